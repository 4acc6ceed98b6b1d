"""Slices that do not depend on the inputs: what needs them, and what they are made of.

A removed filter followed by a bias or a normalisation leaves a constant channel. What
reads it needs its value, but not as part of the computation on data:
`sslx._compact.rewrite.constant_evaluation` computes it from the variables.

There are two ways to need one. A product of constant channels with weights is itself
constant, and is added to the product of the others (`folded_terms`). Everywhere else
the constant slices are put in place beside the computed ones (`filled`): where operands
have to line up, where a call or a loop takes them, in the results. `require_constants`
starts from these places and goes back through the equations, as the analysis of needs
does, to the slices of variables that the constants are made of; the plan keeps these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sslx._compact.analysis.control_flow import CallBody
from sslx._compact.analysis.facts import full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.analysis.needs import add, pull
from sslx._compact.jaxpr.masks import Masks, both, is_region, some, within, without
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Summed


def filled(liveness: Liveness, value: Value, target: Masks) -> Masks | None:
    """Slices of a value that are wanted, constant, and not computed."""
    facts = liveness.of(value)
    if facts.static or within(facts.constant, facts.zero):
        return None
    fixed = without(facts.constant, facts.zero)
    absent = both(fixed, without(target, liveness.alive(value)))
    return absent if any(map(some, absent)) else None


class FoldedTerms(NamedTuple):
    """Constant terms of a product that are left out of it and added as one constant.

    Attributes:
      member: the operand whose slices are constant, and the axis summed over.
      mask: which of them.
      partner: the other operand, and its axis.
      partner_mask: the slices that the constant ones meet.
    """

    member: Summed
    mask: np.ndarray
    partner: Summed
    partner_mask: np.ndarray


def folded_terms(liveness: Liveness, equation: Equation) -> list[FoldedTerms]:
    """The constant terms of a product that are left out of it."""
    rows = []
    for members in liveness.relations[equation].sums:
        for here in members:
            if not liveness.folds_terms(equation, here):
                continue
            facts = liveness.of(equation.inputs[here.operand])
            left = facts.constant[here.axis] > facts.zero[here.axis]
            if not some(left):
                continue
            left = left > liveness.targets(equation)[here.operand][here.axis]
            left = left & _reaches(liveness, equation, here)
            (other,) = [m for m in members if m.operand != here.operand]
            partner = liveness.of(equation.inputs[other.operand])
            theirs = other.labels(partner.zero[other.axis].size)
            mine = here.labels(left.size)
            left = left & np.isin(mine, theirs[~partner.zero[other.axis]])
            if some(left):
                hit = np.isin(theirs, mine[left])
                rows.append(FoldedTerms(here, left, other, hit))
    return rows


def _reaches(liveness: Liveness, equation: Equation, member: Summed) -> np.ndarray:
    """Slices that are added to anything computed (in a grouped product, by part)."""
    rel = liveness.relations[equation]
    size = equation.inputs[member.operand].shape[member.axis]
    reach = np.ones(size, bool)
    for link in rel.between(member.operand, 0):
        if link.in_axis == member.axis:
            alive = liveness.alive(equation.outputs[0])[link.out_axis]
            reach = reach & link.to_operand_any(alive, size)
    return reach


def require_constants(liveness: Liveness, outputs: Sequence[Masks]) -> None:
    """Find the constant slices needed of every value, given the wanted outputs."""
    liveness.constant_need = {}
    for value, masks in zip(liveness.program.outputs, outputs, strict=True):
        _seed_filled(liveness, value, masks)
    _propagate(liveness)


def _propagate(liveness: Liveness) -> None:
    need = liveness.constant_need
    for eqn in reversed(liveness.program.equations):
        body = liveness.inner.get(eqn)
        if isinstance(body, CallBody):
            if body.is_custom and liveness.runs(eqn):
                for outer, value in zip(
                    eqn.inputs, body.inside.program.inputs, strict=True
                ):
                    wanted = body.inside.need.get(value)
                    _seed_filled(liveness, outer, wanted or full(value, False))
            _through_call(liveness, eqn, body.inside)
            continue
        if body is not None:
            if liveness.runs(eqn):
                rows = zip(eqn.inputs, liveness.targets(eqn), strict=True)
                for value, target in rows:
                    _seed_filled(liveness, value, target)
            continue
        if liveness.runs(eqn):
            _seed(liveness, eqn)
        if not any(v in need for v in eqn.outputs):
            continue
        rel = liveness.relations[eqn]
        wanted = [
            without(need[v], liveness.of(v).zero) if v in need else full(v, False)
            for v in eqn.outputs
        ]
        if any(map(is_region, wanted)):
            terms = [liveness.nonzero_terms(eqn, members) for members in rel.sums]
            for value, masks in zip(
                eqn.inputs, pull(eqn, rel, wanted, terms), strict=True
            ):
                add(need, value, masks)


def _through_call(liveness: Liveness, eqn: Equation, inside: Liveness) -> None:
    need = liveness.constant_need
    inside.constant_need = {}
    for outer, value in zip(eqn.outputs, inside.program.outputs, strict=True):
        if outer in need:
            add(inside.constant_need, value, need[outer])
        if liveness.runs(eqn) and inside.fold_constants:
            _seed_filled(inside, value, liveness.alive(outer))
    _propagate(inside)
    for outer, value in zip(eqn.inputs, inside.program.inputs, strict=True):
        if value in inside.constant_need:
            add(need, outer, inside.constant_need[value])


def _seed(liveness: Liveness, eqn: Equation) -> None:
    targets = liveness.targets(eqn)
    need = liveness.constant_need
    for value, target in zip(eqn.inputs, targets, strict=True):
        _seed_filled(liveness, value, target)
    for _, _, steps in liveness.copies.chains(eqn):
        for piece in (p for step in steps for p in step.operands if p.axis is None):
            _seed_filled(liveness, piece.value, list(piece.region))
    for row in folded_terms(liveness, eqn):
        operand, partner = (eqn.inputs[m.operand] for m in (row.member, row.partner))
        wide = full(operand, True)
        add(need, operand, _replaced(wide, row.member.axis, row.mask))
        target = targets[row.partner.operand]
        add(need, partner, _replaced(target, row.partner.axis, row.partner_mask))


def _seed_filled(liveness: Liveness, value: Value, target: Masks) -> None:
    for axis, mask in enumerate(filled(liveness, value, target) or ()):
        if some(mask):
            add(liveness.constant_need, value, _replaced(target, axis, mask))


def _replaced(masks: Masks, axis: int, mask: np.ndarray) -> Masks:
    return [mask if a == axis else m for a, m in enumerate(masks)]
