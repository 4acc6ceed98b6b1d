"""Pad widths: keep some dead channels, so that their number suits the machine."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sslx._compact.analysis.facts import full
from sslx._compact.analysis.forcing import force, force_operands, revives
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.products import PRODUCTS
from sslx._compact.rules.relation import Summed

Widths = Callable[[int], int]
"""Number of alive channels -> number to keep, where there are enough."""


def pad_widths(live: Liveness, widths: Widths) -> bool:
    """Force dead channels where a product of data and weights sums over too few.

    Returns whether any were forced. Channels of grouped convolutions, and axes that
    were merged or split by a reshape on the way into the product, stay as they are.
    """
    changed = False
    for eqn in live.program.equations:
        if not live.runs(eqn):
            continue
        body = live.inner.get(eqn)
        if body is not None:
            changed |= any([pad_widths(inside, widths) for inside in body.insides])
            changed |= force_operands(live, eqn)
        elif eqn.name in PRODUCTS:
            for members in live.relations[eqn].sums:
                changed |= _padded(live, eqn, members, widths)
    return changed


def _padded(
    live: Liveness, eqn: Equation, members: Sequence[Summed], widths: Widths
) -> bool:
    if len(members) != 2 or any(m.label is not None for m in members):
        return False
    static = [live.of(eqn.inputs[m.operand]).static for m in members]
    if static not in ([True, False], [False, True]):
        return False
    data = members[static.index(False)]
    alive = live.alive(eqn.inputs[data.operand])[data.axis]
    terms = live.terms(eqn, members)
    kept = int(terms.sum())
    lacking = min(widths(kept), terms.size) - kept
    if not kept or lacking <= 0:
        return False
    places = np.flatnonzero(~terms)
    first = places[np.argsort(~alive[places], kind="stable")]
    source = eqn.inputs[data.operand]
    possible = (k for k in first if not revives(live, source, _slices(source, data, k)))
    chosen = list(itertools.islice(possible, lacking))
    changed = False
    for member in members if chosen else ():
        value = eqn.inputs[member.operand]
        changed |= force(live, value, _slices(value, member, chosen), eqn)
    return changed


def _slices(value: Value, member: Summed, indices: Any) -> Masks:
    masks = full(value, False)
    masks[member.axis] = np.isin(np.arange(masks[member.axis].size), indices)
    return masks
