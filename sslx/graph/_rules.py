"""The relations of elementwise, layout, reduction and indexing primitives."""

import functools
import math
from typing import Any

import jax
import numpy as np

from sslx.graph._relation import Link, Relation, Shapes, Summed, Zero, register

Shape = tuple[int, ...]


def identity_links(
    equation: Any, operand: int, output: int = 0, skip: tuple[int, ...] = ()
) -> list[Link]:
    """Links axis by axis; an operand axis of size one may run along a longer one."""
    source, target = equation.inputs[operand].shape, equation.outputs[output].shape
    return _axis_links(source, target, operand, output, skip)


def _axis_links(
    source: Shape, target: Shape, operand: int, output: int, skip: tuple[int, ...] = ()
) -> list[Link]:
    if len(source) != len(target):
        return []
    links = []
    for axis, (n_in, n_out) in enumerate(zip(source, target, strict=True)):
        if axis in skip:
            continue
        if n_in == n_out:
            links.append(Link(operand, axis, output, axis))
        elif n_in == 1:
            links.append(Link(operand, axis, output, axis, None, np.zeros(n_out, int)))
    return links


def _elementwise(zero: Zero, zero_operands: tuple[int, ...] | None = None):
    @functools.lru_cache(1024)
    def between(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> Relation:
        links = [
            link
            for operand, source in enumerate(inputs)
            for output, target in enumerate(outputs)
            for link in _axis_links(source, target, operand, output)
        ]
        return Relation(
            tuple(links),
            zero=zero,
            zero_operands=zero_operands,
            pointwise=all(len(s) in (0, len(t)) for s in inputs for t in outputs),
        )

    def rule(equation: Any) -> Relation:
        inputs, outputs = equation.inputs, equation.outputs
        return between(tuple(v.shape for v in inputs), tuple(v.shape for v in outputs))

    return rule


register("add", "add_any", "sub", "max", "min", "or", "xor")(_elementwise("all"))
register("mul", "and")(_elementwise("any"))
register(
    *"neg abs sign sqrt cbrt square sin tan tanh asin atan asinh atanh sinh".split(),
    *"erf erf_inv expm1 log1p floor ceil round copy copy_p stop_gradient".split(),
    *"convert_element_type".split(),
    *"real imag conj reduce_precision name optimization_barrier device_put".split(),
    *"sharding_constraint reshard div rem shift_left shift_right_logical".split(),
    *"pvary pcast".split(),
    "shift_right_arithmetic",
)(_elementwise("first"))
register(
    *"exp exp2 log cos cosh rsqrt logistic pow eq ne lt le gt ge".split(),
    *"eq_to le_to lt_to not is_finite erfc lgamma digamma clamp acos".split(),
    *"acosh atan2 nextafter".split(),
    *"population_count clz complex igamma igammac bessel_i0e bessel_i1e".split(),
    *"bitcast_convert_type".split(),
)(_elementwise("never"))


@register("select_n")
def _select_n(equation: Any) -> Relation:
    cases = tuple(range(1, len(equation.inputs)))
    return _elementwise("all", cases)(equation)


@register("integer_pow")
def _integer_pow(equation: Any) -> Relation:
    return _elementwise("first" if equation.params["y"] > 0 else "never")(equation)


@register(
    *"iota random_seed random_wrap random_unwrap random_bits random_split".split(),
    *"random_fold_in random_clone random_gamma rng_bit_generator rng_uniform".split(),
    *"threefry2x32 create_token axis_index empty empty2".split(),
)
def _source(equation: Any) -> Relation:
    del equation
    return Relation(constant=False, free_outputs=True)


@register("broadcast_in_dim")
def _broadcast_in_dim(equation: Any) -> Relation:
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

    return Relation(tuple(links), zero="first", emit=emit, free_outputs=True)


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
        return Relation(zero="first")
    units = {a for a, n in enumerate(source) if n == 1}
    unit_outs = [b for b, n in enumerate(target) if n == 1]
    pairs = zip(sorted(units), unit_outs, strict=False)
    links = [*_reshape_links(source, target), *(Link(0, a, 0, b) for a, b in pairs)]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del eqn
        return [jax.lax.reshape(operands[0], shapes.outputs[0])]

    return Relation(tuple(links), zero="first", emit=emit)


@register("squeeze")
def _squeeze(equation: Any) -> Relation:
    dropped = {d % len(equation.inputs[0].shape) for d in equation.params["dimensions"]}
    rest = [a for a in range(len(equation.inputs[0].shape)) if a not in dropped]
    links = tuple(Link(0, a, 0, b) for b, a in enumerate(rest))
    return Relation(links, zero="first")


@register("transpose")
def _transpose(equation: Any) -> Relation:
    order = equation.params["permutation"]
    links = tuple(Link(0, a, 0, b) for b, a in enumerate(order))
    return Relation(links, zero="first")


@register("rev")
def _rev(equation: Any) -> Relation:
    dims = equation.params["dimensions"]
    links = [
        Link(0, a, 0, a, None, np.arange(n)[::-1] if a in dims else None)
        for a, n in enumerate(equation.inputs[0].shape)
    ]
    return Relation(tuple(links), zero="first")


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

    return Relation(tuple(links), zero="first", emit=emit, index_only=True)


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

    return Relation(tuple(links), zero="first", emit=emit, index_only=True)


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

    return Relation(tuple(links), zero="all", covers=True, emit=emit)


@register("pad")
def _pad(equation: Any) -> Relation:
    config = equation.params["padding_config"]
    source, target = equation.inputs[0].shape, equation.outputs[0].shape
    plain = {
        a for a, (low, high, inner) in enumerate(config) if low == high == inner == 0
    }
    grown = [
        a
        for a, (low, high, inner) in enumerate(config)
        if a not in plain and low >= 0 and high >= 0 and inner >= 0
    ]
    links = [Link(0, a, 0, a) for a in plain]
    for a in grown:
        low, _, inner = config[a]
        links.append(Link(0, a, 0, a, low + (inner + 1) * np.arange(source[a]), None))

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        full = shapes.outputs[0]
        rest = [
            (0, 0, 0) if a in plain or (a in grown and full[a] != target[a]) else c
            for a, c in enumerate(config)
        ]
        return eqn.bind(operands, padding_config=tuple(rest))

    return Relation(tuple(links), zero="all", covers=True, emit=emit)


def _reduction(zero: Zero, summed: bool = False):
    def rule(equation: Any) -> Relation:
        axes = [int(a) for a in equation.params["axes"]]
        rest = [a for a in range(len(equation.inputs[0].shape)) if a not in axes]
        links = tuple(Link(0, a, 0, b) for b, a in enumerate(rest))
        sums = tuple((Summed(0, a),) for a in axes) if summed else ()
        return Relation(links, sums, zero=zero)

    return rule


register("reduce_sum")(_reduction("first", summed=True))
register("reduce_max", "reduce_min", "reduce_prod", "reduce_or", "reduce_and")(
    _reduction("first")
)
register("argmax", "argmin", "reduce_xor")(_reduction("never"))


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
    return Relation(links, zero="never" if general else "first", constant=not general)


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
    return Relation(links, zero="first")


def _along(key: str, zero: Zero):
    def rule(equation: Any) -> Relation:
        axis = equation.params[key] % max(len(equation.inputs[0].shape), 1)
        links = [
            link
            for k in range(len(equation.inputs))
            for o in range(len(equation.outputs))
            for link in identity_links(equation, k, o, skip=(axis,))
        ]
        return Relation(tuple(links), zero=zero)

    return rule


register("cumsum", "cumprod", "cummax", "cummin")(_along("axis", "first"))
register("cumlogsumexp")(_along("axis", "never"))


@register("top_k")
def _top_k(equation: Any) -> Relation:
    axis = equation.params.get("axis", -1) % len(equation.inputs[0].shape)
    links = [
        link for o in (0, 1) for link in identity_links(equation, 0, o, skip=(axis,))
    ]
    return Relation(tuple(links))


@register("sort")
def _sort(equation: Any) -> Relation:
    single = len(equation.inputs) == 1
    return _along("dimension", "first" if single else "never")(equation)


@register("fft")
def _fft(equation: Any) -> Relation:
    rank = len(equation.inputs[0].shape)
    changed = tuple(range(rank - len(equation.params["fft_lengths"]), rank))
    links = identity_links(equation, 0, skip=changed)
    return Relation(tuple(links), zero="first", constant=False)


@register("stack")
def _stack(equation: Any) -> Relation:
    axis = equation.params.get("axis", equation.params.get("dimension", 0))
    links = [
        Link(k, a, 0, a + (a >= axis))
        for k, value in enumerate(equation.inputs)
        for a in range(len(value.shape))
    ]
    return Relation(tuple(links), zero="all")


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

    return Relation(tuple(links), zero="first", emit=emit)


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

    return Relation(tuple(links), zero="first", constant=False, emit=emit)


@register("dynamic_update_slice")
def _dynamic_update_slice(equation: Any) -> Relation:
    whole, update = equation.inputs[0].shape, equation.inputs[1].shape
    same = [a for a, (n, m) in enumerate(zip(whole, update, strict=True)) if n == m]
    links = tuple(Link(k, a, 0, a) for k in (0, 1) for a in same)
    return Relation(links, zero="all", zero_operands=(0, 1), constant=False)


@register("gather")
def _gather(equation: Any) -> Relation:
    dims, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
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

    return Relation(links, zero="first", constant=False, emit=emit)


@register("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul")
@register("scatter-min", "scatter_min", "scatter-max", "scatter_max")
def _scatter(equation: Any) -> Relation:
    dims = equation.params["dimension_numbers"]
    fixed = {*dims.inserted_window_dims, *dims.operand_batching_dims}
    whole, updates = equation.inputs[0].shape, equation.inputs[2].shape
    windows = [a for a in range(len(whole)) if a not in fixed]
    links = []
    for a, u in zip(windows, dims.update_window_dims, strict=True):
        if whole[a] == updates[u]:
            links += [Link(0, a, 0, a), Link(2, u, 0, a)]
    zero: Zero = "first" if "mul" in equation.name else "all"
    return Relation(tuple(links), zero=zero, zero_operands=(0, 2), constant=False)
