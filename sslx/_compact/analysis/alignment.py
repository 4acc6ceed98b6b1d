"""Operands whose slices disagree: move data at run time, or keep what lines up.

An operand that lacks slices its consumer wants must be scattered into place; one that
has more than the consumer wants must be gathered. Either moves elements to save
multiplications. `MACS_PER_MOVE` is the exchange rate: on a 2-core AVX-512 CPU XLA did
about 1e11 multiply-adds, or moved about 1e9 channel-indexed elements, a second.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sslx._compact.analysis.control_flow import Call, Rewired
from sslx._compact.analysis.liveness import Liveness, full
from sslx._compact.jaxpr.masks import Mask, Masks
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Summed

Alignment = Literal["auto", "align", "scatter"]
MACS_PER_MOVE = 100


def settle(
    liveness: Liveness,
    alignment: Alignment,
    outputs: Sequence[tuple[Value, Masks]] = (),
) -> bool:
    """Force what is better kept computed; whether anything was.

    `outputs` are slices that the results line up with if all is aligned; else they are
    moved into place once, at the very end.
    """
    work = _Work(liveness)
    changed = False
    for value, target in outputs if alignment == "align" else ():
        missing = _missing(liveness, value, target)
        if missing and all(m.any() for m in liveness.alive(value)):
            changed |= liveness.force(value, missing)
    for eqn in liveness.program.equations:
        if not liveness.runs(eqn):
            continue
        body = liveness.inner.get(eqn)
        if isinstance(body, Call):
            changed |= settle(body.inside, alignment)
            for k, masks in body.forced():
                changed |= liveness.force(eqn.inputs[k], masks, eqn)
        elif isinstance(body, Rewired):
            changed |= _settle_rewired(liveness, eqn, body, alignment)
        elif body is None:
            changed |= _settle_equation(liveness, eqn, alignment, work)
    return changed


def _settle_rewired(
    liveness: Liveness, eqn: Equation, body: Rewired, alignment: Alignment
) -> bool:
    """What the bodies produce lines up with what is wanted of them, as do operands."""
    changed = False
    for number, inside in enumerate(body.insides):
        changed |= settle(inside, alignment)
        if alignment == "scatter":
            continue
        rows = zip(inside.program.outputs, body.wanted_of(number), strict=True)
        for value, masks in rows:
            missing = _missing(inside, value, masks)
            if missing and all(a.any() for a in inside.alive(value)):
                changed |= inside.force(value, missing)
    for k, masks in body.forced():
        changed |= liveness.force(eqn.inputs[k], masks, eqn)
    for value, target in zip(eqn.inputs, liveness.targets(eqn), strict=True):
        missing = _missing(liveness, value, target)
        alive = all(a.any() for a in liveness.alive(value))
        weight = liveness.of(value).weight
        if missing and (weight or (alignment != "scatter" and alive)):
            changed |= liveness.force(value, missing, eqn)
    return changed


class _Work:
    """Multiply-adds behind one element of a value, as produced now."""

    def __init__(self, liveness: Liveness):
        self.per_element: dict[Value, float] = {}
        for eqn in liveness.program.equations:
            if eqn.name in ("dot_general", "conv_general_dilated"):
                work = _fan_in(liveness, eqn)
            else:
                work = max((self.of(v) for v in eqn.inputs), default=0.0)
            self.per_element.update((v, work) for v in eqn.outputs)

    def of(self, value: Value) -> float:
        return self.per_element.get(value, 0.0)


def _fan_in(liveness: Liveness, eqn: Equation) -> float:
    """Multiply-adds per output element of a product, over alive terms."""
    rel = liveness.relations[eqn]
    terms = math.prod(int(liveness.terms(eqn, s).sum()) for s in rel.sums)
    if eqn.name == "dot_general":
        return float(terms)
    window = eqn.params["dimension_numbers"].rhs_spec[2:]
    return float(terms * math.prod(eqn.inputs[1].shape[a] for a in window))


def _missing(liveness: Liveness, value: Value, target: Masks) -> Masks | None:
    """Wanted slices that are not computed."""
    if value.literal is not None:
        return None
    alive = liveness.alive(value)
    missing = [t & ~a for t, a in zip(target, alive, strict=True)]
    return missing if any(m.any() for m in missing) else None


def _better_kept(
    liveness: Liveness,
    value: Value,
    target: Masks,
    missing: Masks,
    alignment: Alignment,
    work: "_Work",
) -> bool:
    """Whether to compute zeros costs less than to move what is not zero."""
    if liveness.of(value).weight:
        return True
    if not all(m.any() for m in liveness.alive(value)):
        return False
    saved = max(m.sum() for m in missing) * work.of(value)
    cheap = bool(saved < MACS_PER_MOVE * max(t.sum() for t in target))
    return alignment == "align" or (alignment == "auto" and cheap)


def _settle_equation(
    liveness: Liveness, eqn: Equation, alignment: Alignment, work: _Work
) -> bool:
    rel, changed = liveness.relations[eqn], False
    targets = liveness.targets(eqn)
    for value, target in zip(eqn.inputs, targets, strict=True):
        missing = _missing(liveness, value, target)
        if missing is None:
            continue
        unlinked = not (rel.links and rel.known)
        keep = unlinked and all(m.any() for m in liveness.alive(value))
        if keep or _better_kept(liveness, value, target, missing, alignment, work):
            changed |= liveness.force(value, missing, eqn)
    if alignment != "scatter":
        changed |= _settle_sums(liveness, eqn, targets, alignment)
    return changed


def _settle_sums(
    liveness: Liveness, eqn: Equation, targets: list[Masks], alignment: Alignment
) -> bool:
    """Keep zero weights where leaving them out would need a gather that costs more."""
    changed = False
    for members in liveness.relations[eqn].sums:
        if len(members) != 2:
            continue
        for here, other in (members, members[::-1]):
            value, partner = eqn.inputs[here.operand], eqn.inputs[other.operand]
            if liveness.of(value).settled or not liveness.of(partner).static:
                continue
            alive = liveness.alive(value)[here.axis]
            target = targets[here.operand][here.axis]
            extra = alive & ~target
            if not extra.any():
                continue
            out_work = _outputs_per_position(liveness, eqn, other.operand)
            saved = extra.sum() * out_work
            if alignment == "align" or saved < MACS_PER_MOVE * target.sum():
                masks = full(partner, False)
                masks[other.axis] = translate(extra, here.label, other, partner)
                changed |= liveness.force(partner, masks, eqn)
    return changed


def _outputs_per_position(liveness: Liveness, eqn: Equation, kernel: int) -> float:
    sizes = [m.sum() for m in liveness.targets(eqn)[kernel]]
    summed = {
        m.axis for s in liveness.relations[eqn].sums for m in s if m.operand == kernel
    }
    return float(math.prod(n for a, n in enumerate(sizes) if a not in summed))


def translate(
    mask: Mask, label: np.ndarray | None, other: Summed, partner: Value
) -> Mask:
    """The slices of one member of a sum that meet given slices of another."""
    labels = np.arange(mask.size) if label is None else label
    size = partner.shape[other.axis]
    theirs = np.arange(size) if other.label is None else other.label
    return np.isin(theirs, labels[mask])
