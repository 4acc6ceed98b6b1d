"""Random convolutions by machine code, every array between pages nobody may touch.

    python -m tests.lowering.native.guarded FIRST COUNT

Each number is a convolution: any dtype, shape, pads, groups, columns, epilogue, or a
weight gradient. It is printed before its code runs, so that the last line names the one
that read or wrote outside of its arrays.
"""

import ctypes
import dataclasses
import math
import mmap
import sys
from typing import Any
from unittest import mock

import numpy as np

from sslx.lowering import Columns, Conv
from sslx.lowering._native import llvm, loops
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.schedule import PostOp, Schedule
from sslx.lowering._native.scheduler import schedule
from tests.lowering.native import hardware, reference

MACHINES = (Machine(64, 32, 1), Machine(32, 16, 2), Machine(16, 32, 3))


class Guarded:
    """Arrays in memory of their own, before or behind which a page is closed."""

    def __init__(self, at_end: bool):
        self.at_end = at_end
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._kept: list[mmap.mmap] = []

    def empty(self, size: int, dtype: Any) -> np.ndarray:
        """An array that touches the closed page on one side."""
        page, bytes_ = mmap.PAGESIZE, size * np.dtype(dtype).itemsize
        whole = -(-bytes_ // page) * page
        memory = mmap.mmap(-1, whole + 2 * page)
        self._kept.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for place in (start, start + page + whole):
            if self._protect(place, page, 0):
                raise OSError(ctypes.get_errno(), "pages cannot be closed")
        offset = page + (whole - bytes_ if self.at_end else 0)
        return np.frombuffer(memory, dtype, size, offset)

    def copy(self, values: np.ndarray) -> np.ndarray:
        """An array of the same values."""
        array = self.empty(values.size, values.dtype)
        array[:] = values.reshape(-1)
        return array


def convolution(rng: np.random.Generator, gradient: bool) -> Conv | None:
    """Any convolution, or none where nothing would come out."""
    ndim = int(rng.integers(1, 4))
    some = lambda high, low=1: tuple(map(int, rng.integers(low, high + 1, ndim)))
    large = bool(rng.random() < 0.2) and not gradient
    image, window = some(14 // ndim), some(4)
    groups = 1 if gradient else int(rng.choice([1, 1, 2, 3]))
    each, filters = int(rng.integers(1, 7)), int(rng.choice([1, 2, 5, 16, 23, 40]))
    if large:
        filters, each = 40, -(-20_000 // (math.prod(window) * 40 * groups))
    elif not gradient and rng.random() < 0.2:
        groups, each, filters = int(rng.choice([3, 19])), 1, 1
    dilations = (1,) * ndim if gradient else some(2)
    dtype = str(rng.choice(["float32", "float64"]))
    pads = some(3, -1), some(3, -1)
    conv = Conv(
        lhs=(int(rng.choice([1, 2, 5])), *image, each * groups),
        rhs=(*window, each, filters * groups),
        strides=some(3),
        padding=tuple(zip(*pads, strict=True)),
        lhs_dilation=dilations,
        rhs_dilation=some(2),
        groups=groups,
        batch_groups=1,
        dtype=dtype,
        result=dtype,
        precision=None,
    )
    if min(conv.out) < 1:
        return None
    mask = rng.random((*conv.rhs[:-1], groups)) < rng.choice([0.3, 0.8, 1.0])
    return dataclasses.replace(conv, columns=Columns.of(mask))


def epilogue(rng: np.random.Generator) -> tuple[PostOp, ...]:
    """Up to two operations."""
    counted = {"filter": 0, "entry": 0, "number": 0}
    steps = []
    for _ in range(rng.integers(0, 3)):
        kind: Any = str(rng.choice([*counted]))
        op = str(rng.choice(["add", "mul", "sub", "max"]))
        steps.append(PostOp(op, kind, 0.7, counted[kind], bool(rng.random() < 0.5)))
        counted[kind] += kind != "number"
    return tuple(steps)


def run(
    conv: Conv, made: Schedule, gradient: bool, memory: Guarded, given: dict[str, Any]
) -> np.ndarray:
    """What the code writes, called by its address."""
    shape = (conv.lhs[0], *conv.out, conv.rhs[-1])
    shares = made.tasks.shares if gradient else 1
    laid = reference.laid_out(conv, made, gradient, given["x"], given["w"])
    more = [*given["filter"], *given["entry"]]
    arrays = [memory.copy(a.astype(conv.dtype)) for a in (*laid, *more)]
    y = memory.empty(shares * math.prod(shape), conv.dtype)
    y[:] = np.nan
    scratch = memory.empty(loops.scratch_size(made), conv.dtype)
    numbers = loops.Tables.numbers
    guarded = lambda self, beyond: memory.copy(numbers(self, beyond))
    with mock.patch.object(loops.Tables, "numbers", guarded):
        name = loops.target(made)
    places = [a.ctypes.data for a in arrays]
    results = [y.ctypes.data, scratch.ctypes.data]
    error = hardware.call(name, hardware.Interface(), places, results)
    assert error is None, error
    llvm.drop(name)
    return y.reshape(shares, *shape).astype(np.float64).sum(0)


def check(number: int) -> bool:
    """One convolution, whether there was something to compute."""
    rng = np.random.default_rng(number)
    gradient = number % 7 == 0
    conv = convolution(rng, gradient)
    if conv is None:
        return False
    machine = MACHINES[rng.integers(len(MACHINES))]
    steps = () if gradient else epilogue(rng)
    made = schedule(conv, machine, gradient, steps)
    sys.stdout.write(f"{number}: {conv} {machine} {steps} {gradient=}\n")
    sys.stdout.flush()
    draw = lambda *shape: rng.uniform(0.5, 1.5, shape).astype(conv.dtype)
    out = (conv.lhs[0], *conv.out, conv.rhs[-1])
    given: dict[str, Any] = {"x": draw(*conv.lhs), "w": draw(*conv.rhs)}
    given["filter"] = [draw(out[-1]) for s in steps if s.kind == "filter"]
    given["entry"] = [draw(*out) for s in steps if s.kind == "entry"]
    found = run(conv, made, gradient, Guarded(bool(rng.random() < 0.7)), given)
    exact = {k: np.asarray(given[k], np.float64) for k in ("x", "w")}
    expected = reference.convolution(conv, exact["x"], exact["w"])
    expected = reference.followed(expected, steps, given)
    tolerance = 1e-4 if conv.dtype == "float32" else 1e-11
    np.testing.assert_allclose(found, expected, tolerance, tolerance)
    return True


def main() -> None:
    """Check some numbers one after the other."""
    first, count = map(int, sys.argv[1:])
    done = sum(check(number) for number in range(first, first + count))
    sys.stdout.write(f"{done} convolutions\n")


if __name__ == "__main__":
    main()
