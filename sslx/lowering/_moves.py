"""Channels at known places, by machine code: XLA on a CPU moves them one by one."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sslx import _jax_compat
from sslx.lowering import _llvm
from sslx.lowering._llvm import WIDE
from sslx.lowering._primitive import Axes, machine_code

_FEWEST = 4096
_MOST_CHANNELS = 4096
_NO_TABLE = np.zeros(1, np.int32)


def moved(params: Mapping[str, Any], x: Any, indices: Any) -> Any | None:
    """The result of a `gather` of whole channels; None where it is something else."""
    source = _source(params, x, indices)
    return None if source is None else take_channels(tuple(source.tolist()), x)


def _source(
    params: Mapping[str, Any], x: Any, indices: Any
) -> Int[np.ndarray, " channels"] | None:
    """Which channel of `x` each one of the result is; -1 for zero."""
    numbers, last = params["dimension_numbers"], np.ndim(x) - 1
    if _jax_compat.is_traced(indices) or _llvm.machine() is None or last < 1:
        return None
    if x.dtype not in (np.float32, np.float64):
        return None
    whole = (*x.shape[:-1], 1)
    plain = (
        tuple(params["slice_sizes"]) == whole
        and tuple(numbers.offset_dims) == tuple(range(last))
        and tuple(numbers.collapsed_slice_dims) == (last,)
        and tuple(numbers.start_index_map) == (last,)
        and not numbers.operand_batching_dims
        and np.ndim(indices) == 2
    )
    if not plain or x.size < _FEWEST or len(indices) > _MOST_CHANNELS:
        return None
    places = np.asarray(indices)[:, 0].astype(np.int64)
    outside = (places < 0) | (places >= x.shape[-1])
    if outside.any() and (
        params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP
        or params["fill_value"] != 0
    ):
        return None
    return np.where(outside, -1, places)


def take_channels(
    source: tuple[int, ...], x: Float[Array, "*positions channels"]
) -> Float[Array, "*positions taken"]:
    """`y[..., k] = x[..., source[k]]`, and 0 where `source[k]` is -1.

    One equation `take_channels`; derivatives and devices other than CPUs take XLA's
    gather.
    """
    return _take(Take(source), x)


@dataclasses.dataclass(frozen=True)
class Take:
    """The parameter of an equation `take_channels`: channels of its operand, or -1."""

    source: tuple[int, ...]

    def plain(self, x: Array) -> Array:
        places = np.asarray(self.source, int)
        places = np.where(places < 0, x.shape[-1], places)
        return x.at[..., places].get(mode="fill", fill_value=0)

    def code(self, x: Array) -> Array:
        if not x.size or not self.source:
            return self.plain(x)
        text = _take_source(self.source, x.shape, x.dtype.name)
        shape = (*x.shape[:-1], len(self.source))
        result = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.ffi.ffi_call(_llvm.named(text, _NO_TABLE), result)(x)

    def mapped(self, size: int, operands: Sequence[Array], axes: Axes) -> Array:
        del size
        return _take(self, jnp.moveaxis(operands[0], axes[0] or 0, 0))


_take = machine_code("take_channels")


def _take_source(source: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> str:
    scalar, size = {"float32": ("float", 4), "float64": ("double", 8)}[dtype]
    rows, width = math.prod(shape[:-1]), shape[-1]
    machine = _llvm.machine()
    assert machine is not None, "see `_source`"
    cores = machine.cores
    tasks = max(1, min(4 * cores, rows * len(source) // _FEWEST_MOVES))
    out = [
        "define internal void @task(i64 %t, ptr %buffers, i64 %worker, ptr %held) "
        f"{WIDE} {{",
        "entry:",
        *_llvm.buffers("x", "y"),
        f"%a = mul i64 %t, {rows}",
        f"%first = udiv i64 %a, {tasks}",
        f"%b = add i64 %a, {rows}",
        f"%end = udiv i64 %b, {tasks}",
        "%some = icmp slt i64 %first, %end",
        "br i1 %some, label %loop, label %done",
        "loop:",
        "%r = phi i64 [ %first, %entry ], [ %next, %loop ]",
        f"%xo = mul i64 %r, {width}",
        f"%xr = getelementptr {scalar}, ptr %x, i64 %xo",
        f"%yo = mul i64 %r, {len(source)}",
        f"%yr = getelementptr {scalar}, ptr %y, i64 %yo",
    ]
    for start, stop in _pieces(source, 64 // size):
        count = stop - start
        kind = scalar if count == 1 else f"<{count} x {scalar}>"
        value = "0.0" if count == 1 else "zeroinitializer"
        if source[start] >= 0:
            value = f"%v{start}"
            out += [
                f"%p{start} = getelementptr {scalar}, ptr %xr, i64 {source[start]}",
                f"{value} = load {kind}, ptr %p{start}, align {size}",
            ]
        out += [
            f"%q{start} = getelementptr {scalar}, ptr %yr, i64 {start}",
            f"store {kind} {value}, ptr %q{start}, align {size}",
        ]
    out += [
        "%next = add i64 %r, 1",
        "%more = icmp slt i64 %next, %end",
        "br i1 %more, label %loop, label %done",
        "done:",
        "ret void",
        "}",
    ]
    return "\n".join([*out, _llvm.handler(1, tasks, cores, 1, 1, 1)])


_FEWEST_MOVES = 8192


def _pieces(source: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """Runs of neighbouring channels, or of zeros, in lengths that are powers of 2."""
    found, start = [], 0
    while start < len(source):
        step = 0 if source[start] < 0 else 1
        stop = start + 1
        while stop < len(source) and source[stop] == source[stop - 1] + step:
            stop += 1
        while start < stop:
            count = min(most, 1 << ((stop - start).bit_length() - 1))
            found.append((start, start + count))
            start += count
    return found
