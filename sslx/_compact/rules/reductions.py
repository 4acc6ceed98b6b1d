"""Primitives that combine entries along an axis: sums, windows, sorts, FFT."""

from typing import Any

import numpy as np

from sslx._compact.rules.elementwise import identity_links
from sslx._compact.rules.relation import (
    FIRST,
    NEVER,
    Link,
    Operands,
    Relation,
    Summed,
    register,
    together,
)


def _reduction(zero: tuple[Operands, ...], of_nothing: tuple[Operands, ...] = NEVER):
    """`of_nothing` holds for axes of size zero, where nothing is reduced."""

    def rule(equation: Any) -> Relation:
        source = equation.inputs[0].shape
        axes = [int(a) for a in equation.params["axes"]]
        rest = [a for a in range(len(source)) if a not in axes]
        links = tuple(Link(0, a, 0, b) for b, a in enumerate(rest))
        summed = equation.name == "reduce_sum"
        sums = tuple((Summed(0, a),) for a in axes) if summed else ()
        nothing = any(source[a] == 0 for a in axes)
        return Relation(links, sums, zero=of_nothing if nothing else zero)

    return rule


register("reduce_sum", "reduce_or", "reduce_xor")(_reduction(FIRST, FIRST))
register("reduce_max", "reduce_min", "reduce_prod", "reduce_and")(_reduction(FIRST))
register("argmax", "argmin")(_reduction(NEVER))


@register(
    "reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"
)
def _reduce_window(equation: Any) -> Relation:
    p = equation.params
    rank = len(equation.outputs[0].shape)
    ones = (1,) * rank
    parts = zip(
        p["window_dimensions"],
        p.get("window_strides") or ones,
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
        p["padding"],
        strict=True,
    )
    idle = [a for a, part in enumerate(parts) if tuple(part) == (1, 1, 1, 1, (0, 0))]
    general = equation.name == "reduce_window"
    arrays = [k for k, v in enumerate(equation.inputs) if len(v.shape) == rank]
    links = tuple(
        Link(k, a, o, a)
        for k in arrays
        for o in range(len(equation.outputs))
        for a in idle
    )
    if general:
        return Relation(links, constant=False)
    zero = (
        FIRST
        if equation.name == "reduce_window_sum" or _has_entries(equation)
        else NEVER
    )
    return Relation(links, zero=zero)


def _has_entries(equation: Any) -> bool:
    """Whether every window holds an entry of the operand, not padding alone."""
    p = equation.params
    source, target = equation.inputs[0].shape, equation.outputs[0].shape
    for a, (n, m) in enumerate(zip(source, target, strict=True)):
        stretch = p["base_dilation"][a]
        taps = p["window_dilation"][a] * np.arange(p["window_dimensions"][a])
        starts = p["window_strides"][a] * np.arange(m) - p["padding"][a][0]
        places = starts[:, None] + taps
        inside = (places >= 0) & (places <= (n - 1) * stretch)
        if not (inside & (places % stretch == 0)).any(1).all():
            return False
    return True


@register("select_and_scatter_add")
def _select_and_scatter_add(equation: Any) -> Relation:
    params, rank = equation.params, len(equation.outputs[0].shape)
    parts = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        strict=True,
    )
    idle = [a for a, part in enumerate(parts) if tuple(part) == (1, 1, (0, 0))]
    links = tuple(Link(k, a, 0, a) for k in (0, 1) for a in idle if a < rank)
    return Relation(links, zero=FIRST)


def _along(key: str, all_zero: bool):
    def rule(equation: Any) -> Relation:
        axis = equation.params[key] % max(len(equation.inputs[0].shape), 1)
        links = [
            link
            for k in range(len(equation.inputs))
            for o in range(len(equation.outputs))
            for link in identity_links(equation, k, o, skip=(axis,))
        ]
        zero = together(len(equation.inputs)) if all_zero else NEVER
        return Relation(tuple(links), zero=zero)

    return rule


register("cumsum", "cumprod", "cummax", "cummin")(_along("axis", True))
register("cumlogsumexp")(_along("axis", False))
register("sort")(_along("dimension", True))


@register("top_k")
def _top_k(equation: Any) -> Relation:
    axis = equation.params.get("axis", -1) % len(equation.inputs[0].shape)
    links = [
        link for o in (0, 1) for link in identity_links(equation, 0, o, skip=(axis,))
    ]
    return Relation(tuple(links))


@register("fft")
def _fft(equation: Any) -> Relation:
    rank = len(equation.inputs[0].shape)
    changed = tuple(range(rank - len(equation.params["fft_lengths"]), rank))
    links = identity_links(equation, 0, skip=changed)
    return Relation(tuple(links), zero=FIRST, constant=False)
