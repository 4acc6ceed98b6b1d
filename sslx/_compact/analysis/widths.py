"""Keep some dead channels, so that widths become numbers a machine likes."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sslx._compact.analysis.control_flow import Call, Rewired
from sslx._compact.analysis.liveness import Liveness, full
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Summed

Widths = Callable[[int], int]
"""Number of channels that are alive -> number to keep, if there are so many."""

_PRODUCTS = ("dot_general", "conv_general_dilated")


def round_up(live: Liveness, widths: Widths) -> bool:
    """Force dead channels wherever a product of data and weights sums over too few.

    Whether any were. Channels of grouped convolutions, and axes that were merged or
    split by a reshape on the way into the product, stay as they are.
    """
    changed = False
    for eqn in live.program.equations:
        if not live.runs(eqn):
            continue
        body = live.inner.get(eqn)
        if isinstance(body, Call):
            changed |= round_up(body.inside, widths)
        elif isinstance(body, Rewired):
            changed |= any([round_up(inside, widths) for inside in body.insides])
        if isinstance(body, Call | Rewired):
            for k, masks in body.forced():
                changed |= live.force(eqn.inputs[k], masks, eqn)
        elif eqn.name in _PRODUCTS:
            for members in live.relations[eqn].sums:
                changed |= _rounded(live, eqn, members, widths)
    return changed


def _rounded(
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
    possible = (k for k in first if not live.revives(source, _slices(source, data, k)))
    chosen = list(itertools.islice(possible, lacking))
    changed = False
    for member in members if chosen else ():
        value = eqn.inputs[member.operand]
        changed |= live.force(value, _slices(value, member, chosen), eqn)
    return changed


def _slices(value: Value, member: Summed, indices: Any) -> Masks:
    masks = full(value, False)
    masks[member.axis] = np.isin(np.arange(masks[member.axis].size), indices)
    return masks
