"""Which slices of its operands an equation needs for slices of its results.

Backwards along links, all axes of a result narrow down an operand together; results,
where there are several, add up. A sum needs the terms that are left of it.
"""

from collections.abc import Sequence

import numpy as np

from sslx._compact.jaxpr.masks import Mask, Masks, either, is_region, uniform
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Relation


def add(store: dict[Value, Masks], value: Value, masks: Masks) -> None:
    """Add to the slices recorded of a value; an empty region adds nothing."""
    if not is_region(masks):
        return
    old = store.get(value)
    store[value] = masks if old is None else either(masks, old)


def pull(
    eqn: Equation, rel: Relation, wanted: list[Masks], terms: Sequence[Mask]
) -> list[Masks]:
    """Operand slices behind the wanted output slices and the computed terms."""
    needs = []
    asked = [is_region(masks) for masks in wanted]
    for k, value in enumerate(eqn.inputs):
        masks: dict[int, Mask] = {}
        for o in range(len(eqn.outputs)):
            axes: dict[int, Mask] = {}
            for link in rel.between(k, o):
                a, size = link.in_axis, value.shape[link.in_axis]
                if asked[o]:
                    mask = link.to_operand_any(wanted[o][link.out_axis], size)
                    axes[a] = axes[a] & mask if a in axes else mask
                elif a not in masks:
                    masks[a] = np.zeros(size, bool)
            for a, mask in axes.items():
                masks[a] = masks[a] | mask if a in masks else mask
        for members, alive in zip(rel.sums, terms, strict=True):
            for member in members:
                if member.operand == k:
                    a, label = member.axis, member.label
                    mask = alive if label is None else alive[label]
                    masks[a] = masks[a] & mask if a in masks else mask
        needs.append(
            [masks.get(a, m) for a, m in enumerate(uniform(value.shape, True))]
        )
    return needs
