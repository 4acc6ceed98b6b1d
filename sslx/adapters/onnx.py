"""ONNX files of compact networks, written by `jax2onnx`."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx  # pyright: ignore[reportMissingImports]

from sslx._compact import Compact
from sslx.graph._program import Equation, Program, trace

_INLINED = ("custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2")
_RUNTIME_AXES = 3


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


def _run(program: Program, inputs: Sequence[Any]) -> list[Any]:
    values = dict(zip(program.inputs, inputs, strict=True))

    def read(value: Any) -> Any:
        return values[value] if value.literal is None else value.literal

    for equation in program.equations:
        outs = _apply(equation, [read(v) for v in equation.inputs])
        values.update(zip(equation.outputs, outs, strict=True))
    return [read(v) for v in program.outputs]


def _apply(equation: Equation, operands: list[Any]) -> list[Any]:
    if equation.name in _INLINED and equation.bodies:
        return _run(equation.bodies[0], operands)
    if equation.name == "reduce_window_max":
        return [_max_pool(equation, operands[0])]
    return equation.bind(operands)


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
