"""Primitives that read or write slices at positions that are computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx._compact.rules.elementwise import identity_links
from sslx._compact.rules.relation import (
    FIRST,
    UNKNOWN,
    Link,
    Relation,
    Shapes,
    register,
    together,
)


@register("dynamic_slice")
def _dynamic_slice(equation: Any) -> Relation:
    links = [
        link
        for link in identity_links(equation, 0)
        if equation.inputs[0].shape[link.in_axis]
        == equation.outputs[0].shape[link.out_axis]
    ]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        return eqn.bind(operands, slice_sizes=shapes.outputs[0])

    return Relation(tuple(links), zero=FIRST, constant=False, emit=emit)


@register("dynamic_update_slice")
def _dynamic_update_slice(equation: Any) -> Relation:
    whole, update = equation.inputs[0].shape, equation.inputs[1].shape
    same = [a for a, (n, m) in enumerate(zip(whole, update, strict=True)) if n == m]
    links = tuple(Link(k, a, 0, a) for k in (0, 1) for a in same)
    return Relation(links, zero=together(2), constant=False)


_IN_RANGE = (
    jax.lax.GatherScatterMode.CLIP,
    jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)
_FILL = jax.lax.GatherScatterMode.FILL_OR_DROP


@register("gather")
def _gather(equation: Any) -> Relation:
    """In a lookup in a parameter, NaN for indices out of range counts as zero."""
    dims, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    mode, fill = equation.params["mode"], equation.params["fill_value"]
    if mode not in (*_IN_RANGE, _FILL):
        return UNKNOWN
    fixed = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    windows = [a for a in range(len(sizes)) if a not in fixed]
    source = equation.inputs[0].shape
    pairs = [
        (a, b)
        for a, b in zip(windows, dims.offset_dims, strict=True)
        if sizes[a] == source[a]
    ]
    links = tuple(Link(0, a, 0, b) for a, b in pairs)

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        new = list(sizes)
        for a, b in pairs:
            new[a] = shapes.outputs[0][b]
        return eqn.bind(operands, slice_sizes=tuple(new))

    rel = Relation(links, constant=False, emit=emit)
    zeros = dataclasses.replace(rel, zero=FIRST)
    if mode in _IN_RANGE or (fill is not None and fill == 0):
        return zeros
    inexact = jnp.issubdtype(equation.inputs[0].dtype, np.inexact)
    if not inexact or not (fill is None or np.isnan(fill)):
        return rel
    refine = lambda operands: zeros if operands[0].weight else rel
    return dataclasses.replace(rel, refine=refine)


@register("scatter", "scatter-add", "scatter-sub", "scatter-mul")
@register("scatter-min", "scatter-max")
def _scatter(equation: Any) -> Relation:
    if equation.params["mode"] not in (*_IN_RANGE, _FILL):
        return UNKNOWN
    if equation.name == "scatter" and not _replaces(equation.params["update_jaxpr"]):
        return UNKNOWN
    dims = equation.params["dimension_numbers"]
    fixed = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    whole, updates = equation.inputs[0].shape, equation.inputs[2].shape
    windows = [a for a in range(len(whole)) if a not in fixed]
    links = []
    for a, u in zip(windows, dims.update_window_dims, strict=True):
        if whole[a] == updates[u]:
            links += [Link(0, a, 0, a), Link(2, u, 0, a)]
    zero = FIRST if equation.name == "scatter-mul" else ((0, 2),)
    return Relation(tuple(links), zero=zero, constant=False)


def _replaces(update: Any) -> bool:
    """Whether a scatter writes its updates as they are."""
    return update is None or (not update.eqns and update.outvars == update.invars[1:])
