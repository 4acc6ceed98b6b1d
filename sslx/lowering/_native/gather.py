"""Gathers of channels by machine code; on a CPU XLA copies them one by one."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sslx import _jax_compat
from sslx.lowering._native import llvm
from sslx.lowering._native.ir import module
from sslx.lowering._native.primitive import Axes, call, machine_code
from sslx.lowering._native.values import Vector

_FEWEST_ENTRIES = 4096
_MOST_CHANNELS = 4096
_NO_TABLE = np.zeros(1, np.int32)


def gathered(params: Mapping[str, Any], x: Any, indices: Any) -> Any | None:
    """The result of a `gather` of whole channels; None for any other `gather`."""
    source = _source(params, x, indices)
    return None if source is None else take_channels(tuple(source.tolist()), x)


def _source(
    params: Mapping[str, Any], x: Any, indices: Any
) -> Int[np.ndarray, " channels"] | None:
    """Which channel of `x` each channel of the result is; -1 for zero."""
    numbers, last = params["dimension_numbers"], np.ndim(x) - 1
    if _jax_compat.is_traced(indices) or llvm.machine() is None or last < 1:
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
    if not plain or x.size < _FEWEST_ENTRIES or len(indices) > _MOST_CHANNELS:
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
        name = _program(self.source, x.shape, x.dtype.name)
        shape = (*x.shape[:-1], len(self.source))
        return call(name, jax.ShapeDtypeStruct(shape, x.dtype))(x)

    def mapped(self, size: int, operands: Sequence[Array], axes: Axes) -> Array:
        del size
        return _take(self, jnp.moveaxis(operands[0], axes[0] or 0, 0))


_take = machine_code("take_channels")


def _program(source: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> str:
    """The name of a program whose tasks copy the channels of some positions each."""
    machine = llvm.machine()
    assert machine is not None, "see `_source`"
    rows, width, taken = math.prod(shape[:-1]), shape[-1], len(source)
    tasks = max(1, min(4 * machine.cores, rows * taken // _FEWEST_COPIES))
    f = llvm.task()
    x, y = llvm.arrays(f, 2)
    begin = f.div(f.mul(f["t"], rows), tasks)
    end = f.div(f.mul(f.add(f["t"], 1), rows), tasks)
    bits = {"float32": 32, "float64": 64}[dtype]
    scalar = Vector(1, bits).scalar
    with f.loop(begin, end) as row:
        read = f.at(x, f.mul(row.index, width), scalar)
        write = f.at(y, f.mul(row.index, taken), scalar)
        for start, stop in _pieces(source, 512 // bits):
            some = Vector(stop - start, bits)
            value = some.zeros()
            if source[start] >= 0:
                value = f.load(some, f.at(read, source[start], scalar), some.bytes)
            f.store(value, f.at(write, start, scalar), some.bytes)
    f.ret()
    calls = llvm.Calls(1, tasks, machine.cores, slots=1, arguments=1, results=1)
    return llvm.named(module([f]), _NO_TABLE, calls)


_FEWEST_COPIES = 8192


def _pieces(source: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """Runs of neighbouring channels, or of zeros, cut to powers of 2."""
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
