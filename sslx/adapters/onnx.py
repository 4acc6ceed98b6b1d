"""ONNX files of compact networks, written by `jax2onnx`."""

import collections
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax2onnx  # pyright: ignore[reportMissingImports]
import numpy as np
from onnx import load, save_model  # pyright: ignore

from sslx import _jax_compat
from sslx._compact.compacted import Compact
from sslx._compact.jaxpr.program import Equation, Program, Value, trace
from sslx.adapters import _channels_first


def save(
    path: str | pathlib.Path, small: Compact, *args: Any, **kwargs: Any
) -> pathlib.Path:
    """Write a compact network as an ONNX file, parameters included.

    The network is traced before `jax2onnx` sees it, since `jax2onnx` replaces Flax's
    layers by operations of its own when it traces a function itself. Between operators
    images are stored channels first, as ONNX's convolutions and pools expect; the
    file's inputs and outputs keep the axes that they have in JAX.

    Args:
      path: the file to write; replaced if it exists. Large parameters go to a file
        beside it, `NAME.data`, which is removed where there are none.
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
    program, _, _ = trace(lambda *a: _channels_first.run(program, a), *shapes)

    def run(*inputs: Any) -> tuple[Any, ...]:
        return tuple(_run(program, inputs))

    path = pathlib.Path(path)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        made = pathlib.Path(folder) / f"{pathlib.Path(folder).name}.onnx"
        jax2onnx.to_onnx(run, shapes, return_mode="file", output_path=str(made))
        data = made.with_name(f"{made.name}.data")
        beside = path.with_name(f"{path.name}.data")
        if data.exists():
            _name_data(made, beside.name)
            data.replace(beside)
        else:
            beside.unlink(missing_ok=True)
        made.replace(path)
    return path


def _name_data(file: pathlib.Path, name: str) -> None:
    """Say in a file that its large parameters are in one of another name.

    They are written under a name that is nowhere else: `onnx` refuses one that exists
    in the current folder, whatever the folder of the file.
    """
    model = load(file, load_external_data=False)  # pyright: ignore[reportCallIssue]
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    save_model(model, file)  # pyright: ignore[reportCallIssue]


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A convolution by a constant kernel and a shift per filter, not yet emitted."""

    equation: Equation
    x: Any
    kernel: Any
    shift: Any = None

    def combined(self, name: str, constant: Any, first: bool) -> "_Affine | None":
        """With one more constant per filter taken in; None where it is not one."""
        filters, _, *window = self.kernel.shape
        wide = (1, filters, *(1 for _ in window))
        constant = jnp.asarray(constant)
        if constant.ndim not in (0, len(wide)):
            return None
        if any(n not in (1, m) for n, m in zip(constant.shape, wide, strict=False)):
            return None
        constant = jnp.broadcast_to(constant, wide)
        shift = jnp.zeros_like(constant) if self.shift is None else self.shift
        if name == "mul" or (name == "div" and first):
            scale = constant if name == "mul" else 1 / constant
            kernel = self.kernel * scale.reshape(-1, *(1 for _ in wide[1:]))
            return dataclasses.replace(self, kernel=kernel, shift=shift * scale)
        if name == "add" or (name == "sub" and first):
            shift = shift + (constant if name == "add" else -constant)
            return dataclasses.replace(self, shift=shift)
        return None

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
            with _jax_compat.compile_time():
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
    if equation.name not in ("add", "sub", "mul", "div"):
        return None
    for at, other in ((0, 1), (1, 0)):
        part = known[at]
        if isinstance(part, _Affine) and not _moves(known[other]):
            if uses[equation.inputs[at]] == 1:
                with _jax_compat.compile_time():
                    return part.combined(equation.name, known[other], at == 0)
    return None


def _apply(equation: Equation, operands: list[Any]) -> list[Any]:
    if equation.name == "max":
        for x, bound in (operands, operands[::-1]):
            if not _moves(bound) and np.ndim(bound) == 0 and bound == 0:
                return [jax.nn.relu(x)]
    return equation.bind(operands)
