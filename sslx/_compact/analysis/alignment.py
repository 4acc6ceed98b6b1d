"""Operands whose slices disagree: move data at run time, or keep what lines up.

An operand that lacks slices its consumer wants must be scattered into place; one that
has more than the consumer wants must be gathered. Either moves elements to save
multiplications. `MACS_PER_MOVE` is the exchange rate: on a 2-core AVX-512 CPU XLA did
about 1e11 multiply-adds, or moved about 1e9 channel-indexed elements, a second.

`align` looks at every equation that runs. For each operand, the slices that are wanted
but not computed are those a scatter would fill with zeros. To compute the zeros instead
costs the multiply-adds behind them (`_Macs`); where that is less than the move, they
are forced, and all that they are made of with them. For each sum of data and weights,
the slices of the data that the sum leaves out are those a gather would drop; to keep
the zero weights that meet them costs their products with the outputs. Weights are moved
once and for all, so zeros in them always stay. As forced slices are needed by
nothing before, the whole analysis runs again until nothing more is forced.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from sslx._compact.analysis.control_flow import CallBody, ControlFlowBody
from sslx._compact.analysis.facts import full
from sslx._compact.analysis.forcing import force, force_operands
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Mask, Masks, some, without
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.products import PRODUCTS
from sslx._compact.rules.relation import Summed

Alignment = Literal["auto", "align", "scatter"]
MACS_PER_MOVE = 100


def align(
    liveness: Liveness,
    alignment: Alignment,
    outputs: Sequence[tuple[Value, Masks]] = (),
) -> bool:
    """Force slices that cost less to compute than to move; whether any were.

    `outputs` are slices that the results line up with if all is aligned; otherwise they
    are moved into place once, at the very end.
    """
    macs = _Macs(liveness)
    changed = False
    for value, target in outputs if alignment == "align" else ():
        missing = _missing(liveness, value, target)
        if missing and liveness.computed(value):
            changed |= force(liveness, value, missing)
    for eqn in liveness.program.equations:
        if not liveness.runs(eqn):
            continue
        body = liveness.inner.get(eqn)
        if isinstance(body, CallBody):
            changed |= align(body.inside, alignment)
            changed |= force_operands(liveness, eqn)
        elif isinstance(body, ControlFlowBody):
            changed |= _align_control_flow(liveness, eqn, body, alignment)
        elif body is None:
            changed |= _align_equation(liveness, eqn, alignment, macs)
    return changed


def _align_control_flow(
    liveness: Liveness, eqn: Equation, body: ControlFlowBody, alignment: Alignment
) -> bool:
    """Line up what the programs produce, and their operands, with what is wanted."""
    changed = False
    for number, inside in enumerate(body.insides):
        changed |= align(inside, alignment)
        if alignment == "scatter":
            continue
        rows = zip(inside.program.outputs, body.wanted_of(number), strict=True)
        for value, masks in rows:
            missing = _missing(inside, value, masks)
            if missing and inside.computed(value):
                changed |= force(inside, value, missing)
    changed |= force_operands(liveness, eqn)
    for value, target in zip(eqn.inputs, liveness.targets(eqn), strict=True):
        missing = _missing(liveness, value, target)
        moves = alignment != "scatter" and liveness.computed(value)
        if missing and (moves or liveness.of(value).weight):
            changed |= force(liveness, value, missing, eqn)
    return changed


class _Macs:
    """Multiply-adds behind one element of a value, as produced now."""

    def __init__(self, liveness: Liveness):
        self.per_element: dict[Value, float] = {}
        for eqn in liveness.program.equations:
            if eqn.name in PRODUCTS:
                count = _fan_in(liveness, eqn)
            else:
                count = max((self.behind(v) for v in eqn.inputs), default=0.0)
            self.per_element.update((v, count) for v in eqn.outputs)

    def behind(self, value: Value) -> float:
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
    missing = without(target, liveness.alive(value))
    return missing if any(map(some, missing)) else None


def _better_kept(
    liveness: Liveness,
    value: Value,
    target: Masks,
    missing: Masks,
    alignment: Alignment,
    macs: _Macs,
) -> bool:
    """Whether to compute zeros costs less than to move what is not zero."""
    if liveness.of(value).weight:
        return True
    if not liveness.computed(value):
        return False
    saved = max(m.sum() for m in missing) * macs.behind(value)
    cheap = bool(saved < MACS_PER_MOVE * max(t.sum() for t in target))
    return alignment == "align" or (alignment == "auto" and cheap)


def _align_equation(
    liveness: Liveness, eqn: Equation, alignment: Alignment, macs: _Macs
) -> bool:
    rel, changed = liveness.relations[eqn], False
    targets = liveness.targets(eqn)
    for value, target in zip(eqn.inputs, targets, strict=True):
        missing = _missing(liveness, value, target)
        if missing is None:
            continue
        unlinked = not (rel.links and rel.known)
        keep = unlinked and liveness.computed(value)
        if keep or _better_kept(liveness, value, target, missing, alignment, macs):
            changed |= force(liveness, value, missing, eqn)
    if alignment != "scatter":
        changed |= _align_sums(liveness, eqn, targets, alignment)
    return changed


def _align_sums(
    liveness: Liveness, eqn: Equation, targets: list[Masks], alignment: Alignment
) -> bool:
    """Keep zero weights where the gather that leaves them out would cost more."""
    changed = False
    for members in liveness.relations[eqn].sums:
        if len(members) != 2:
            continue
        for here, other in (members, members[::-1]):
            value, partner = eqn.inputs[here.operand], eqn.inputs[other.operand]
            if liveness.of(value).all_constant or not liveness.of(partner).static:
                continue
            alive = liveness.alive(value)[here.axis]
            target = targets[here.operand][here.axis]
            extra = alive & ~target
            if not some(extra):
                continue
            saved = extra.sum() * _outputs_per_position(liveness, eqn, other.operand)
            if alignment == "align" or saved < MACS_PER_MOVE * target.sum():
                masks = full(partner, False)
                size = partner.shape[other.axis]
                masks[other.axis] = translate(extra, here, other, size)
                changed |= force(liveness, partner, masks, eqn)
    return changed


def _outputs_per_position(liveness: Liveness, eqn: Equation, kernel: int) -> float:
    sizes = [m.sum() for m in liveness.targets(eqn)[kernel]]
    summed = {
        m.axis for s in liveness.relations[eqn].sums for m in s if m.operand == kernel
    }
    return float(math.prod(n for a, n in enumerate(sizes) if a not in summed))


def translate(mask: Mask, mine: Summed, theirs: Summed, size: int) -> Mask:
    """The slices of one member of a sum that meet given slices of another."""
    return np.isin(theirs.labels(size), mine.labels(mask.size)[mask])
