"""The fixed point of liveness, and the plan that follows from it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sslx._compact.analysis.alignment import Alignment, align
from sslx._compact.analysis.constants import require_constants
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks, both, either, every, same, some, without
from sslx._compact.jaxpr.program import Program, Value
from sslx._compact.jaxpr.tracing import Traced, whole_leaf
from sslx._compact.plan import LeafPlan, Plan

Look = Callable[[str, Masks], Masks]
"""Which slices of a leaf are zero within the product of some regions of its axes."""

Keep = Callable[[Liveness], bool]
"""Forces slices to stay computed; whether there were any."""

_PASSES = 100
"""Passes of the analysis, plus two per equation: a dead slice takes one to pass on."""


def fixed_point(
    live: Liveness,
    traced: Traced,
    leaves: Mapping[str, Any],
    zeros: dict[str, Masks],
    alignment: Alignment,
    look: Look | None,
    keep: Keep | None = None,
    follow: bool = False,
) -> dict[str, Masks]:
    """Analyse until nothing new is found dead; returns the zeros used.

    With `look`, a slice counts as zero that is zero wherever something reads it. Once
    all is aligned, `keep` may force more. With `follow`, nothing is wanted of the new
    values of state.

    It stops after a number of passes in proportion to the program: what is dead by then
    is dead, and the rest stays.
    """
    params = traced.program.inputs[: len(leaves)]
    outputs = [
        (v, full(v, True))
        for v, name in zip(traced.program.outputs, traced.state, strict=True)
        if name is None
    ]
    rows = zip(traced.program.outputs, traced.state, strict=True)
    wanted = [full(v, name is None or not follow) for v, name in rows]
    for _ in range(_PASSES + 2 * size(traced.program)):
        _analyse(live, wanted, zeros)
        pruned = live.prune()
        fresh = {
            path: _restricted(live, value, path, zeros[path], look)
            for path, value in zip(leaves, params, strict=True)
        }
        if pruned or any(not same(fresh[p], zeros[p]) for p in zeros):
            zeros = fresh
        elif align(live, alignment, outputs) or (keep and keep(live)):
            live.restore()
        else:
            return zeros
    _analyse(live, wanted, zeros)
    return zeros


def size(program: Program) -> int:
    """The number of equations, those of bodies included."""
    return sum(1 + sum(map(size, eqn.bodies)) for eqn in program.equations)


def _analyse(live: Liveness, wanted: list[Masks], zeros: Mapping[str, Masks]) -> None:
    program = live.program
    facts = [Facts(z, full(v, True), True, True) for z, v in pairs(zeros, program)]
    rest = program.inputs[len(facts) :]
    facts += [Facts(full(v, False), full(v, False)) for v in rest]
    live.forward(facts)
    live.backward(wanted)
    require_constants(live, wanted)


def pairs(zeros: Mapping[str, Masks], program: Program) -> list[tuple[Masks, Value]]:
    return list(zip(zeros.values(), program.inputs, strict=False))


def _restricted(
    live: Liveness, value: Value, path: str, old: Masks, look: Look | None
) -> Masks:
    """Zeros within the slices that are read; an unread leaf stays as it is."""
    region = _region(live, value)
    if not value.shape or region is None or all(map(every, region)):
        return old
    if look is None:
        return old
    found = look(path, region)
    return either(old, both(found, region))


def _region(live: Liveness, value: Value) -> Masks | None:
    need, constant = live.need.get(value), live.constant_need.get(value)
    if need is None or constant is None:
        return need if constant is None else constant
    return either(need, constant)


def planned(
    live: Liveness,
    params: list[Value],
    leaves: Mapping[str, Any],
    zeros: Mapping[str, Masks],
) -> tuple[Plan, dict[str, int]]:
    """What to keep of every leaf, and how many entries for constant channels only."""
    plans, folded = {}, {}
    for value, (path, leaf) in zip(params, leaves.items(), strict=True):
        shape = tuple(leaf.shape)
        if not shape:
            plans[path] = whole_leaf(shape)
            continue
        alive, kept = computed(live, value), needed(live, value)
        dead = without(zeros[path], kept)
        plans[path] = LeafPlan(
            shape,
            tuple(None if every(m) else _ints(m) for m in kept),
            tuple(_ints(m) if some(m) else None for m in dead),
        )
        spare = math.prod(m.sum() for m in kept) - math.prod(m.sum() for m in alive)
        if spare:
            folded[path] = int(spare)
    return Plan(plans), folded


def computed(live: Liveness, value: Value) -> Masks:
    """The slices of a variable that computation on data reads."""
    return live.alive(value) if live.computed(value) else full(value, False)


def needed(live: Liveness, value: Value) -> Masks:
    """The same, and the slices that constants are made of."""
    alive, constant = computed(live, value), live.constant_need.get(value)
    return alive if constant is None else either(alive, constant)


def _ints(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
