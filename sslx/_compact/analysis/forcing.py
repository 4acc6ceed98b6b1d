"""Keep slices computed although they are zero or constant.

Operands that have to line up, or widths that have to be round, need slices which the
analysis finds dead. To force a slice is to take it out of the facts: it then counts as
data, and so must all that it is made of, back to the parameters.
"""

from collections.abc import Iterable

from sslx._compact.analysis.facts import full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks, either, some, without
from sslx._compact.jaxpr.program import Equation, Value


def force(
    live: Liveness, value: Value, masks: Masks, by: Equation | None = None
) -> bool:
    """Keep slices computed; False if all were already.

    `by` is the equation that wants them, None for an output of the program.
    """
    work, changed = [(value, masks)], False
    while work:
        value, masks = work.pop()
        if value.literal is not None:
            continue
        old = live.forced.get(value, full(value, False))
        new = without(masks, old)
        if not any(map(some, new)):
            continue
        changed = True
        live.forced_by.setdefault(value, by)
        live.forced[value] = either(masks, old)
        live.stale.add(value)
        eqn = live.producer.get(value)
        if eqn is not None:
            work += _sources(live, eqn, value, new)
    return changed


def force_operands(live: Liveness, equation: Equation) -> bool:
    """Keep what the programs nested in an equation keep of its operands."""
    rows = live.inner[equation].forced()
    inputs = equation.inputs
    return any([force(live, inputs[k], masks, equation) for k, masks in rows])


def forces(live: Liveness) -> bool:
    """Whether any slices were forced, here or in any body."""
    return bool(live.forced) or any(map(forces, live.insides()))


def revives(live: Liveness, value: Value, masks: Masks) -> bool:
    """Whether forcing these slices would bring back a value that is wholly zero.

    Nothing is left of such a value's other axes, so it could not be computed.
    """
    work, seen = [(value, masks)], set()
    while work:
        value, masks = work.pop()
        if value.literal is not None or value in seen:
            continue
        seen.add(value)
        facts = live.of(value)
        if value.shape and all(z.all() for z in facts.zero):
            return True
        eqn = live.producer.get(value)
        absent = live.absent(value)
        if eqn and any((m & a).any() for m, a in zip(masks, absent, strict=True)):
            work += _sources(live, eqn, value, masks)
    return False


def _sources(
    live: Liveness, eqn: Equation, value: Value, masks: Masks
) -> Iterable[tuple[Value, Masks]]:
    """The slices of operands that slices of a result are made of."""
    position = eqn.outputs.index(value)
    if eqn in live.inner:
        for k, needed in live.inner[eqn].force(position, masks):
            yield eqn.inputs[k], needed
        return
    relation = live.relations[eqn]
    for link in relation.links:
        if link.output != position:
            continue
        operand = eqn.inputs[link.operand]
        size = operand.shape[link.in_axis]
        if size == 1:
            continue
        axes = full(operand, False)
        mask = link.to_operand_any(masks[link.out_axis], size)
        for other in relation.between(link.operand, position):
            if other.in_axis == link.in_axis and other.out_axis != link.out_axis:
                stand = standing(live, value)[other.out_axis]
                if some(stand):
                    mask = mask & other.to_operand_any(stand, size)
        axes[link.in_axis] = mask
        yield operand, axes


def standing(live: Liveness, value: Value) -> Masks:
    """The slices that are computed, or will be."""
    masks = live.alive(value) if live.computed(value) else full(value, False)
    forced = live.forced.get(value)
    return masks if forced is None else either(masks, forced)
