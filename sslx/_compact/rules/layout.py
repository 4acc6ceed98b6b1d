"""Primitives that move slices: reshape, transpose, slice, pad, concatenate, tile."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sslx._compact.jaxpr.masks import every
from sslx._compact.rules.relation import (
    FIRST,
    UNKNOWN,
    Link,
    Relation,
    Shapes,
    register,
    together,
)


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
    """Shortest runs of axes of both shapes with equal products; unit axes left out."""
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

    return Relation(tuple(links), zero=FIRST, emit=emit)


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

    return Relation(tuple(links), zero=FIRST, emit=emit)


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
    """An axis that is padded with anything but zeros is kept whole."""
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
