"""A program with its images stored channels first, as other runtimes compute them.

JAX's networks keep channels last. ONNX's convolutions and pools take them first, and a
transposition on either side of each is only sometimes found to be undone by the next.
Here a value may be stored with its axes in another order, and what does not care for
the order (elementwise operations, reductions, pools, slices, concatenations) leaves it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sslx import _jax_compat
from sslx._compact.analysis.body import BODIES
from sslx._compact.analysis.control_flow import CallBody
from sslx._compact.jaxpr.program import Equation, Program, Value
from sslx._compact.rules.relation import relation

_WINDOW = (
    "window_dimensions",
    "window_strides",
    "padding",
    "window_dilation",
    "base_dilation",
)

Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Stored:
    """Axis k of `array` is axis `order[k]` of the value."""

    array: Any
    order: Order

    def axis(self, axis: int) -> int:
        """Where an axis of the value is."""
        return self.order.index(axis)

    def by_axis(self, params: Sequence[Any]) -> tuple[Any, ...]:
        """What is given per axis of the value, per axis of the array."""
        return tuple(params[axis] for axis in self.order)

    def to(self, order: Order) -> "Stored":
        """The same value in another order."""
        if order == self.order:
            return self
        moves = tuple(map(self.order.index, order))
        if _jax_compat.is_traced(self.array):
            return Stored(jax.lax.transpose(self.array, moves), order)
        with _jax_compat.compile_time():
            return Stored(jnp.transpose(self.array, moves), order)

    @property
    def plain(self) -> Any:
        """The array with its axes in the value's order."""
        return self.to(tuple(range(len(self.order)))).array


def stored(array: Any) -> Stored:
    """An array as it is."""
    return Stored(array, tuple(range(jnp.ndim(array))))


def run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a program, images channels first in between."""
    return [out.plain for out in _run(program, [stored(x) for x in inputs])]


def _run(program: Program, inputs: Sequence[Stored]) -> list[Stored]:
    values: dict[Value, Stored] = dict(zip(program.inputs, inputs, strict=True))

    def read(value: Value) -> Stored:
        return values[value] if value.literal is None else stored(value.literal)

    for equation in program.equations:
        operands = [read(v) for v in equation.inputs]
        if any(_jax_compat.is_traced(x.array) for x in operands):
            outs = _apply(equation, operands)
        else:
            with _jax_compat.compile_time():
                outs = _as_it_is(equation, operands)
        values.update(zip(equation.outputs, outs, strict=True))
    return [read(v) for v in program.outputs]


def _apply(equation: Equation, operands: list[Stored]) -> list[Stored]:
    if BODIES.get(equation.name) is CallBody:
        return _run(equation.bodies[0], operands)
    if equation.name in _RULES:
        return [_RULES[equation.name](equation, operands)]
    if relation(equation).pointwise:
        return _pointwise(equation, operands)
    return _as_it_is(equation, operands)


def _as_it_is(equation: Equation, operands: list[Stored]) -> list[Stored]:
    return [stored(out) for out in equation.bind([x.plain for x in operands])]


def _pointwise(equation: Equation, operands: list[Stored]) -> list[Stored]:
    ndim = len(equation.outputs[0].shape)
    moving = [x for x in operands if _jax_compat.is_traced(x.array)]
    widest = max(moving, key=lambda x: (len(x.order), x.array.size, x.order))
    if len(widest.order) != ndim:
        return _as_it_is(equation, operands)
    order = widest.order
    arrays = [x.to(order).array if x.order else x.array for x in operands]
    return [Stored(out, order) for out in equation.bind(arrays)]


def _conv(equation: Equation, operands: list[Stored]) -> Stored:
    numbers = equation.params["dimension_numbers"]
    x, kernel = operands[0].to(numbers.lhs_spec), operands[1].to(numbers.rhs_spec)
    axes = tuple(range(len(numbers.lhs_spec)))
    first = jax.lax.ConvDimensionNumbers(axes, axes, axes)
    (out,) = equation.bind([x.array, kernel.array], dimension_numbers=first)
    return Stored(out, numbers.out_spec)


def _reduce(equation: Equation, operands: list[Stored]) -> Stored:
    (x,) = operands
    axes = equation.params["axes"]
    (out,) = equation.bind([x.array], axes=tuple(sorted(map(x.axis, axes))))
    left = [axis for axis in x.order if axis not in axes]
    return Stored(out, tuple(sorted(left).index(axis) for axis in left))


def _concatenate(equation: Equation, operands: list[Stored]) -> Stored:
    order = max(operands, key=lambda x: x.array.size).order
    arrays = [x.to(order).array for x in operands]
    axis = order.index(equation.params["dimension"])
    return Stored(equation.bind(arrays, dimension=axis)[0], order)


def _transpose(equation: Equation, operands: list[Stored]) -> Stored:
    (x,) = operands
    axes = equation.params["permutation"]
    return Stored(x.array, tuple(map(axes.index, x.order)))


def _pad(equation: Equation, operands: list[Stored]) -> Stored:
    x, value = operands
    config = x.by_axis(equation.params["padding_config"])
    (out,) = equation.bind([x.array, value.array], padding_config=config)
    return Stored(out, x.order)


def _slice(equation: Equation, operands: list[Stored]) -> Stored:
    (x,) = operands
    names = [
        name
        for name in ("start_indices", "limit_indices", "strides")
        if equation.params[name] is not None
    ]
    changes = {name: x.by_axis(equation.params[name]) for name in names}
    return Stored(equation.bind([x.array], **changes)[0], x.order)


def _pooled(
    equation: Equation, x: Stored
) -> tuple[Stored, int, dict[str, tuple[Any, ...]]]:
    """With the axes that no window covers first, their number, and the parameters."""
    unit = (1, 1, (0, 0), 1, 1)
    rows = list(zip(*(equation.params[name] for name in _WINDOW), strict=True))
    still = [axis for axis in x.order if rows[axis] == unit]
    x = x.to((*still, *(axis for axis in x.order if axis not in still)))
    return x, len(still), {name: x.by_axis(equation.params[name]) for name in _WINDOW}


def _max_pool(equation: Equation, operands: list[Stored]) -> Stored:
    """Pool of what the window does not cover as one axis.

    ONNX Runtime pools over at most three axes, and `jax2onnx` counts them all.
    """
    x, still, params = _pooled(equation, operands[0])
    sizes = x.array.shape
    merged = x.array.reshape(-1, *sizes[still:])
    unit = (1, 1, (0, 0), 1, 1)
    params = {
        k: (n, *v[still:]) for n, (k, v) in zip(unit, params.items(), strict=True)
    }
    (out,) = equation.bind([merged], **params)
    return Stored(out.reshape(*sizes[:still], *out.shape[1:]), x.order)


def _sum_pool(equation: Equation, operands: list[Stored]) -> Stored:
    """Pool as a convolution, a kernel of ones for every channel."""
    if not jnp.issubdtype(operands[0].array.dtype, jnp.floating):
        return _as_it_is(equation, operands)[0]
    x, still, params = _pooled(equation, operands[0])
    if still == len(x.order):
        return x
    sizes = x.array.shape
    channels = sizes[1] if still == 2 else 1
    image = x.array if still == 2 else x.array.reshape(-1, 1, *sizes[still:])
    window, strides, padding, dilation, stretch = (v[still:] for v in params.values())
    with _jax_compat.compile_time():
        ones = jnp.ones((channels, 1, *window), image.dtype)
    out = jax.lax.conv_general_dilated(
        image,
        ones,
        strides,
        padding,
        lhs_dilation=stretch,
        rhs_dilation=dilation,
        feature_group_count=channels,
    )
    return Stored(out.reshape(*sizes[:still], *out.shape[2:]), x.order)


_RULES: Mapping[str, Callable[[Equation, list[Stored]], Stored]] = {
    "conv_general_dilated": _conv,
    "concatenate": _concatenate,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "reduce_window_max": _max_pool,
    "reduce_window_sum": _sum_pool,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
}
