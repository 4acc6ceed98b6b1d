"""Operands whose slices disagree: move data at run time, or keep what lines up.

An operand that lacks slices its consumer wants must be scattered into place; one that
has more than the consumer wants must be gathered. Either moves elements to save
multiplications. `MACS_PER_MOVE` is the exchange rate: on a 2-core AVX-512 CPU XLA did
about 1e11 multiply-adds, or moved about 1e9 channel-indexed elements, a second.
"""

import math
from typing import Literal

import numpy as np

from sslx.graph._bodies import Call, Rewired
from sslx.graph._liveness import Liveness, full
from sslx.graph._program import Equation, Value
from sslx.graph._relation import Mask, Masks, Summed

Alignment = Literal["auto", "align", "scatter"]
MACS_PER_MOVE = 100


def settle(liveness: Liveness, alignment: Alignment) -> bool:
    """Force what is better kept computed; whether anything was."""
    work = _Work(liveness)
    changed = False
    for eqn in liveness.program.equations:
        if not liveness.runs(eqn):
            continue
        body = liveness.inner.get(eqn)
        if isinstance(body, Call):
            changed |= settle(body.inside, alignment)
            for k, masks in body.forced():
                changed |= liveness.force(eqn.inputs[k], masks)
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
            alive = inside.alive(value)
            missing = [m & ~a for m, a in zip(masks, alive, strict=True)]
            if all(a.any() for a in alive) and any(m.any() for m in missing):
                changed |= inside.force(value, missing)
    for k, masks in body.forced():
        changed |= liveness.force(eqn.inputs[k], masks)
    for value, target in zip(eqn.inputs, liveness.targets(eqn), strict=True):
        alive = liveness.alive(value)
        missing = [t & ~a for t, a in zip(target, alive, strict=True)]
        if value.literal is None and any(m.any() for m in missing):
            keep = alignment != "scatter" and all(a.any() for a in alive)
            if liveness.of(value).weight or keep:
                changed |= liveness.force(value, missing)
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


def _settle_equation(
    liveness: Liveness, eqn: Equation, alignment: Alignment, work: _Work
) -> bool:
    rel, changed = liveness.relations[eqn], False
    targets = liveness.targets(eqn)
    for value, target in zip(eqn.inputs, targets, strict=True):
        if value.literal is not None:
            continue
        alive = liveness.alive(value)
        missing = [t & ~a for t, a in zip(target, alive, strict=True)]
        if any(m.any() for m in missing):
            dead = not all(m.any() for m in alive)
            weight = liveness.of(value).weight
            saved = max(m.sum() for m in missing) * work.of(value)
            moved = max(t.sum() for t in target)
            cheap = saved < MACS_PER_MOVE * moved
            keep = alignment == "align" or (alignment == "auto" and cheap)
            linked = bool(rel.links) and rel.known
            if weight or (not dead and (keep or not linked)):
                changed |= liveness.force(value, missing)
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
            if liveness.of(value).static or not liveness.of(partner).static:
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
                masks[other.axis] = _translate(extra, here.label, other, partner)
                changed |= liveness.force(partner, masks)
    return changed


def _outputs_per_position(liveness: Liveness, eqn: Equation, kernel: int) -> float:
    sizes = [m.sum() for m in liveness.targets(eqn)[kernel]]
    summed = {
        m.axis for s in liveness.relations[eqn].sums for m in s if m.operand == kernel
    }
    return float(math.prod(n for a, n in enumerate(sizes) if a not in summed))


def _translate(
    mask: Mask, label: np.ndarray | None, other: Summed, partner: Value
) -> Mask:
    labels = np.arange(mask.size) if label is None else label
    size = partner.shape[other.axis]
    theirs = np.arange(size) if other.label is None else other.label
    return np.isin(theirs, labels[mask])
