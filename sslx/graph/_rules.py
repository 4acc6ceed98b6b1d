"""The relations of layout, reduction and indexing primitives."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx.graph._elementwise import identity_links
from sslx.graph._masks import every
from sslx.graph._relation import (
    FIRST,
    NEVER,
    UNKNOWN,
    Link,
    Operands,
    Relation,
    Shapes,
    Summed,
    register,
    together,
)


@register(
    *"iota rng_bit_generator threefry2x32 random_seed random_wrap".split(),
    *"random_unwrap random_bits random_split random_fold_in random_clone".split(),
    "random_gamma",
)
def _source(equation: Any) -> Relation:
    del equation
    return Relation(constant=False, free_outputs=True)


@register("broadcast_in_dim")
def _broadcast_in_dim(equation: Any) -> Relation:
    if len(equation.inputs) > 1:
        return UNKNOWN
    source, target = equation.inputs[0].shape, equation.outputs[0].shape
    dims = equation.params["broadcast_dimensions"]
    links = [
        Link(0, a, 0, b)
        if source[a] == target[b]
        else Link(0, a, 0, b, None, np.zeros(target[b], int))
        for a, b in enumerate(dims)
    ]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn
        return [jax.lax.broadcast_in_dim(operands[0], shapes.outputs[0], dims)]

    return Relation(tuple(links), zero=FIRST, emit=emit, free_outputs=True)


def reshape_groups(
    source: tuple[int, ...], target: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes (without unit axes) with equal products."""
    ins = [a for a, n in enumerate(source) if n != 1]
    outs = [b for b, n in enumerate(target) if n != 1]
    groups, i, j = [], 0, 0
    while i < len(ins) and j < len(outs):
        left, right = [ins[i]], [outs[j]]
        p, q = source[ins[i]], target[outs[j]]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                left.append(ins[i])
                p *= source[ins[i]]
                i += 1
            else:
                right.append(outs[j])
                q *= target[outs[j]]
                j += 1
        groups.append((left, right))
    return groups


def _coordinates(sizes: list[int]) -> list[np.ndarray]:
    return list(np.unravel_index(np.arange(math.prod(sizes)), sizes))


def _reshape_links(source: tuple[int, ...], target: tuple[int, ...]) -> list[Link]:
    if 0 in source:
        return []
    links = []
    for left, right in reshape_groups(source, target):
        if len(left) == len(right) == 1:
            links.append(Link(0, left[0], 0, right[0]))
        elif len(right) == 1:
            labels = _coordinates([source[a] for a in left])
            links += [
                Link(0, a, 0, right[0], None, label)
                for a, label in zip(left, labels, strict=True)
            ]
        elif len(left) == 1:
            labels = _coordinates([target[b] for b in right])
            links += [
                Link(0, left[0], 0, b, label, None)
                for b, label in zip(right, labels, strict=True)
            ]
    return links


@register("reshape")
def _reshape(equation: Any) -> Relation:
    source, target = equation.inputs[0].shape, equation.outputs[0].shape
    if equation.params.get("dimensions") is not None:
        return UNKNOWN
    units = {a for a, n in enumerate(source) if n == 1}
    unit_outs = [b for b, n in enumerate(target) if n == 1]
    pairs = zip(sorted(units), unit_outs, strict=False)
    links = [*_reshape_links(source, target), *(Link(0, a, 0, b) for a, b in pairs)]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn
        return [jax.lax.reshape(operands[0], shapes.outputs[0])]

    return Relation(tuple(links), zero=FIRST, emit=emit)


@register("squeeze")
def _squeeze(equation: Any) -> Relation:
    dropped = {d % len(equation.inputs[0].shape) for d in equation.params["dimensions"]}
    rest = [a for a in range(len(equation.inputs[0].shape)) if a not in dropped]
    links = tuple(Link(0, a, 0, b) for b, a in enumerate(rest))
    return Relation(links, zero=FIRST)


@register("transpose")
def _transpose(equation: Any) -> Relation:
    order = equation.params["permutation"]
    links = tuple(Link(0, a, 0, b) for b, a in enumerate(order))
    return Relation(links, zero=FIRST)


@register("rev")
def _rev(equation: Any) -> Relation:
    dims = equation.params["dimensions"]
    links = [
        Link(0, a, 0, a, None, np.arange(n)[::-1] if a in dims else None)
        for a, n in enumerate(equation.inputs[0].shape)
    ]
    return Relation(tuple(links), zero=FIRST)


@register("slice")
def _slice(equation: Any) -> Relation:
    params, target = equation.params, equation.outputs[0].shape
    strides = params["strides"] or (1,) * len(target)
    links = []
    for a, n in enumerate(target):
        if n == equation.inputs[0].shape[a]:
            links.append(Link(0, a, 0, a))
        else:
            picked = params["start_indices"][a] + strides[a] * np.arange(n)
            links.append(Link(0, a, 0, a, None, picked))

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn, shapes
        return operands

    return Relation(tuple(links), zero=FIRST, emit=emit, index_only=True)


@register("split")
def _split(equation: Any) -> Relation:
    axis, links, start = equation.params["axis"], [], 0
    for output, value in enumerate(equation.outputs):
        for a, n in enumerate(value.shape):
            label = start + np.arange(n) if a == axis else None
            links.append(Link(0, a, output, a, None, label))
        start += value.shape[axis]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn
        ends = np.cumsum([shape[axis] for shape in shapes.outputs])
        starts = [0, *ends[:-1]]
        return [
            jax.lax.slice_in_dim(operands[0], int(a), int(b), axis=axis)
            for a, b in zip(starts, ends, strict=True)
        ]

    return Relation(tuple(links), zero=FIRST, emit=emit, index_only=True)


@register("concatenate")
def _concatenate(equation: Any) -> Relation:
    axis, links, start = equation.params["dimension"], [], 0
    for k, value in enumerate(equation.inputs):
        for a, n in enumerate(value.shape):
            label = start + np.arange(n) if a == axis else None
            links.append(Link(k, a, 0, a, label, None))
        start += value.shape[axis]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn, shapes
        pieces = [x for x in operands if x.shape[axis]]
        return pieces if len(pieces) == 1 else [jax.lax.concatenate(pieces, axis)]

    count = len(equation.inputs)
    return Relation(tuple(links), zero=together(count), covers=True, emit=emit)


@register("pad")
def _pad(equation: Any) -> Relation:
    """Along an axis that is padded with anything but zeros, all is kept."""
    config = equation.params["padding_config"]
    plain = [a for a, widths in enumerate(config) if not any(widths)]
    links = tuple(Link(0, a, 0, a) for a in plain)
    padded = len(plain) < len(config)
    rel = Relation(links, zero=together(2) if padded else FIRST)

    def refine(operands: Sequence[Any]) -> Relation:
        value = operands[1]
        literal = value.static and not value.weight
        if padded and literal and every(value.zero[0]):
            return _pad_with_zeros(equation, links)
        return dataclasses.replace(rel, refine=None)

    return dataclasses.replace(rel, refine=refine)


def _pad_with_zeros(equation: Any, plain: tuple[Link, ...]) -> Relation:
    """Slices beside those of the operand are zero, and never computed."""
    config = equation.params["padding_config"]
    grown = [a for a, c in enumerate(config) if any(c) and min(c) >= 0]
    links = list(plain)
    for a in grown:
        low, _, inner = config[a]
        places = low + (inner + 1) * np.arange(equation.inputs[0].shape[a])
        links.append(Link(0, a, 0, a, places, None))

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del shapes
        rest = [(0, 0, 0) if a in grown else c for a, c in enumerate(config)]
        return eqn.bind(operands, padding_config=tuple(rest))

    return Relation(tuple(links), zero=together(2), covers=True, emit=emit)


def _reduction(zero: tuple[Operands, ...], of_nothing: tuple[Operands, ...] = NEVER):
    """`of_nothing` is for axes of size zero, where the result is no operand's."""

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
    zero = FIRST if equation.name == "reduce_window_sum" or _meets(equation) else NEVER
    return Relation(links, zero=zero)


def _meets(equation: Any) -> bool:
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


@register("stack")
def _stack(equation: Any) -> Relation:
    axis = equation.params["axis"]
    links = [
        Link(k, a, 0, a + (a >= axis))
        for k, value in enumerate(equation.inputs)
        for a in range(len(value.shape))
    ]
    return Relation(tuple(links), zero=together(len(equation.inputs)))


@register("unstack")
def _unstack(equation: Any) -> Relation:
    axis = equation.params["axis"]
    links = [
        Link(0, a + (a >= axis), output, a)
        for output, value in enumerate(equation.outputs)
        for a in range(len(value.shape))
    ]
    return Relation(tuple(links), zero=FIRST)


@register("tile")
def _tile(equation: Any) -> Relation:
    source, target = equation.inputs[0].shape, equation.outputs[0].shape
    lead = len(target) - len(source)
    reps = [n // max(m, 1) for n, m in zip(target[lead:], source, strict=True)]
    links = [
        Link(0, a, 0, a + lead, None, np.arange(target[a + lead]) % n)
        for a, n in enumerate(source)
        if n
    ]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn, shapes
        return [jax.numpy.tile(operands[0], (*target[:lead], *reps))]

    return Relation(tuple(links), zero=FIRST, emit=emit)


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
    """A lookup in a parameter: NaN for what lies outside counts as zero."""
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
