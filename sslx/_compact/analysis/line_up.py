"""Keep what code that is not rewritten needs: operands of one size, means of all terms.

A rewritten program takes from every operand the slices that it reads. Other code takes
operands as they are: a slice that stands in one also stands in the results, in the
other operands, and in the weights that are summed with it. And a mean divides by the
number of slices that are there, so the zero ones have to stay.

`line_up` goes through the equations in order, notes which slices stand in every value,
and forces those that would be missing.
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np

from sslx._compact.analysis.alignment import translate
from sslx._compact.analysis.control_flow import CallBody
from sslx._compact.analysis.facts import full
from sslx._compact.analysis.forcing import force, force_operands, revives, standing
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Mask, Masks, either, is_region, some, without
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Relation

_RESHAPED = ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type")


def line_up(live: Liveness, *, whole: Iterable[Value], means: bool) -> bool:
    """Force what does not line up, after `align`; whether anything was.

    Args:
      live: of the program, analysed.
      whole: values of which all slices stay.
      means: keep the zero terms of means.
    """
    there: dict[Value, Masks] = {}
    for value in whole:
        _add(live, there, value, full(value, True))
    return _lined_up(live, there, means)


def _lined_up(live: Liveness, there: dict[Value, Masks], means: bool) -> bool:
    """The same for one program; `there` are slices that stand in some of its values."""
    changed, readers = False, _readers(live)
    for eqn in live.program.equations:
        if not live.runs(eqn):
            continue
        body = live.inner.get(eqn)
        if body is None:
            if means and _is_mean(eqn, readers):
                changed |= _force_terms(live, eqn)
            _pass_on(live, eqn, there)
            continue
        for inside in body.insides:
            given = {}
            if isinstance(body, CallBody):
                pairs = zip(inside.program.inputs, eqn.inputs, strict=True)
                given = {v: there[outer] for v, outer in pairs if outer in there}
            changed |= _lined_up(inside, given, means)
        changed |= force_operands(live, eqn)
        if isinstance(body, CallBody):
            outputs = body.inside.program.outputs
            for inner, outer in zip(outputs, eqn.outputs, strict=True):
                _add(live, there, outer, standing(body.inside, inner))
    for value, masks in there.items():
        if not revives(live, value, masks):
            changed |= force(live, value, masks)
    return changed


def _add(live: Liveness, there: dict[Value, Masks], value: Value, masks: Masks) -> None:
    """Note slices that stand in a value and are not computed yet."""
    new = without(masks, standing(live, value))
    if value.literal is None and live.computed(value) and any(map(some, new)):
        there[value] = either(there[value], new) if value in there else new


def _pass_on(live: Liveness, eqn: Equation, there: dict[Value, Masks]) -> None:
    """What stands in the operands stands in the results, and in what is summed."""
    relation = live.relations[eqn]
    stands = [
        either(standing(live, v), there[v]) if v in there else standing(live, v)
        for v in eqn.inputs
    ]
    for o, value in enumerate(eqn.outputs):
        masks = full(value, False)
        for k, operand in enumerate(eqn.inputs):
            if operand.literal is None and is_region(stands[k]):
                masks = either(masks, _through(relation, stands[k], k, o, value))
        _add(live, there, value, masks)
    for members in relation.sums:
        for here, other in itertools.permutations(members, 2):
            partner = eqn.inputs[other.operand]
            masks = full(partner, False)
            stand = stands[here.operand][here.axis]
            if eqn.inputs[here.operand].literal is None:
                size = partner.shape[other.axis]
                masks[other.axis] = translate(stand, here, other, size)
            _add(live, there, partner, masks)


def _through(
    relation: Relation, stands: Masks, operand: int, output: int, value: Value
) -> Masks:
    """The slices of a result that hold slices of an operand.

    Labels of a grouped convolution do not count: one channel of a group makes no other.
    """
    found: dict[int, Mask] = {}
    for link in relation.between(operand, output):
        size, stand = value.shape[link.out_axis], stands[link.in_axis]
        labelled = link.in_label is not None or link.out_label is not None
        if (labelled and relation.sums) or (stand.size == 1 != size):
            continue
        mask, axis = link.to_output_any(stand, size), link.out_axis
        found[axis] = found[axis] & mask if axis in found else mask
    return [found.get(a, m) for a, m in enumerate(full(value, False))]


# Means.


def _readers(live: Liveness) -> dict[Value, list[Equation]]:
    found: dict[Value, list[Equation]] = {}
    for eqn in live.program.equations:
        for value in eqn.inputs:
            found.setdefault(value, []).append(eqn)
    return found


def _is_mean(eqn: Equation, readers: dict[Value, list[Equation]]) -> bool:
    """Whether a sum is divided by the number of its terms."""
    if eqn.name != "reduce_sum":
        return False
    count = math.prod(eqn.inputs[0].shape[a] for a in eqn.params["axes"])
    work = list(eqn.outputs)
    while work:
        value = work.pop()
        for reader in readers.get(value, ()):
            if reader.name in _RESHAPED:
                work += reader.outputs
            by = {"div": count, "mul": 1 / count if count else 0}.get(reader.name)
            fills = [v.fill for v in reader.inputs if v is not value]
            if by and any(f is not None and np.isclose(f, by) for f in fills):
                return True
    return False


def _force_terms(live: Liveness, eqn: Equation) -> bool:
    """Keep the zero terms of a sum."""
    (value,) = eqn.inputs
    masks = full(value, False)
    for members in live.relations[eqn].sums:
        masks[members[0].axis] = ~live.terms(eqn, members)
    return not revives(live, value, masks) and force(live, value, masks, eqn)
