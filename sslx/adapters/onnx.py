"""ONNX files of compact networks, written by `jax2onnx`."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx  # pyright: ignore[reportMissingImports]
import numpy as np

from sslx import _jax_compat
from sslx._compact import Compact
from sslx.graph._program import Equation, Program, Value, trace

_INLINED = ("custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2")
_RUNTIME_AXES = 3
_MOST_SLICES = 16


def save(
    path: str | pathlib.Path, small: Compact, *args: Any, **kwargs: Any
) -> pathlib.Path:
    """Write a compact network as an ONNX file, parameters included.

    The network is traced before `jax2onnx` sees it, because that puts operations of its
    own in the place of Flax's layers while it looks at a function.

    Args:
      path: of the file; written over.
      small: what `sslx.compact` returned.
      *args: arrays or shapes; the file's inputs, with these shapes.
      **kwargs: fixed settings of the call, such as `train=False`.

    Returns:
      The path.
    """
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    program, _, _ = trace(
        lambda *a: small.apply(small.variables, *a, **kwargs), *shapes
    )

    def run(*inputs: Any) -> tuple[Any, ...]:
        return tuple(_run(program, inputs))

    jax2onnx.to_onnx(run, shapes, return_mode="file", output_path=str(path))
    return pathlib.Path(path)


@dataclasses.dataclass
class _Affine:
    """A convolution by a constant kernel and a shift per filter, not yet emitted."""

    equation: Equation
    x: Any
    kernel: Any
    shift: Any = None

    def combined(self, name: str, constant: Any, first: bool) -> "_Affine | None":
        """With one more constant per filter taken in; None where it is not one."""
        numbers = self.equation.params["dimension_numbers"]
        ndim, axis = len(numbers.out_spec), numbers.out_spec[1]
        size = self.equation.outputs[0].shape[axis]
        constant = jnp.asarray(constant)
        wide = tuple(size if a == axis else 1 for a in range(ndim))
        if constant.ndim not in (0, ndim):
            return None
        if any(n not in (1, m) for n, m in zip(constant.shape, wide, strict=False)):
            return None
        shift = jnp.zeros(wide, constant.dtype) if self.shift is None else self.shift
        if name == "mul":
            per_filter = jnp.broadcast_to(constant, wide).reshape(-1)
            along = [-1 if a == numbers.rhs_spec[0] else 1 for a in range(ndim)]
            kernel = self.kernel * per_filter.reshape(along)
            return dataclasses.replace(self, kernel=kernel, shift=shift * constant)
        if name == "sub" and not first:
            return None
        shift = shift + (constant if name == "add" else -constant)
        return dataclasses.replace(self, shift=shift)

    def emit(self) -> Any:
        (out,) = self.equation.bind([self.x, self.kernel])
        return out if self.shift is None else out + self.shift


def _run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    """The outputs, norms of fixed statistics folded into the convolutions before them.

    ONNX Runtime fuses a convolution with a shift and a ReLU, and nothing more.
    """
    values: dict[Value, Any] = dict(zip(program.inputs, inputs, strict=True))
    uses = collections.Counter(v for e in program.equations for v in e.inputs)
    uses.update(program.outputs)

    def read(value: Any) -> Any:
        return values[value] if value.literal is None else value.literal

    def emitted(value: Any) -> Any:
        found = read(value)
        if isinstance(found, _Affine):
            found = values[value] = found.emit()
        return found

    for equation in program.equations:
        known = [read(v) for v in equation.inputs]
        if not any(map(_moves, known)):
            with jax.ensure_compile_time_eval():
                outs = _apply(equation, known)
        elif equation.name == "conv_general_dilated" and not _moves(known[1]):
            outs = [_Affine(equation, emitted(equation.inputs[0]), known[1])]
        elif (folded := _folded(equation, known, uses)) is not None:
            outs = [folded]
        else:
            outs = _apply(equation, [emitted(v) for v in equation.inputs])
        values.update(zip(equation.outputs, outs, strict=True))
    return [emitted(v) for v in program.outputs]


def _moves(operand: Any) -> bool:
    return isinstance(operand, _Affine) or _jax_compat.is_traced(operand)


def _folded(
    equation: Equation, known: list[Any], uses: Mapping[Value, int]
) -> _Affine | None:
    """A convolution that is read only here, combined with a constant."""
    if equation.name not in ("add", "sub", "mul"):
        return None
    for at, other in ((0, 1), (1, 0)):
        part = known[at]
        if isinstance(part, _Affine) and not _moves(known[other]):
            if uses[equation.inputs[at]] == 1:
                with jax.ensure_compile_time_eval():
                    return part.combined(equation.name, known[other], at == 0)
    return None


def _apply(equation: Equation, operands: list[Any]) -> list[Any]:
    if equation.name in _INLINED and equation.bodies:
        return _run(equation.bodies[0], operands)
    if equation.name == "reduce_window_max":
        return [_max_pool(equation, operands[0])]
    if equation.name == "reduce_window_sum":
        return [_sum_pool(equation, operands[0])]
    if equation.name == "max":
        for x, bound in (operands, operands[::-1]):
            if not _moves(bound) and np.ndim(bound) == 0 and bound == 0:
                return [jax.nn.relu(x)]
    return equation.bind(operands)


def _sum_pool(equation: Equation, x: Any) -> Any:
    """Pool as a sum of slices, where there are few and none is padding."""
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    dilations = (*params["window_dilation"], *params["base_dilation"])
    plain = all(d == 1 for d in dilations) and not np.any(params["padding"])
    if not plain or math.prod(window) > _MOST_SLICES:
        return equation.bind([x])[0]
    sizes = equation.outputs[0].shape
    total = None
    for start in np.ndindex(*window):
        limit = [
            a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)
        ]
        part = jax.lax.slice(x, start, limit, strides)
        total = part if total is None else total + part
    return total


def _max_pool(equation: Equation, x: Any) -> Any:
    """Pool with the axes that the window does not cover merged into the first.

    ONNX Runtime pools over at most three axes, and `jax2onnx` counts them all.
    """
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    names = (*names, "base_dilation")
    rows = list(zip(*(equation.params[name] for name in names), strict=True))
    unit = (1, 1, (0, 0), 1, 1)
    still = [a for a, row in enumerate(rows) if row == unit]
    moving = [a for a, row in enumerate(rows) if row != unit]
    if x.ndim <= _RUNTIME_AXES or not still or len(moving) >= _RUNTIME_AXES:
        return equation.bind([x])[0]
    order = [*still, *moving]
    merged = jnp.transpose(x, order).reshape(-1, *(x.shape[a] for a in moving))
    columns = zip(unit, *(rows[a] for a in moving), strict=True)
    (out,) = equation.bind([merged], **dict(zip(names, columns, strict=True)))
    out = out.reshape([equation.outputs[0].shape[a] for a in order])
    return jnp.transpose(out, [order.index(a) for a in range(x.ndim)])
