"""What a `Schedule` has room for: its tables hold 32-bit integers."""

import math

import jax.numpy as jnp
import numpy as np

from sslx.lowering._conv import Conv
from sslx.lowering._native.positions import Stretch, memory_order, stretches, strides_of
from sslx.lowering._native.tiling import BLOCK_BYTES

_OFFSETS = 1 << 31
_CLASSES = 1 << 10
_POSITIONS = 1 << 26
_NUMBERS = 1 << 26


def too_large(conv: Conv, gradient: bool = False) -> str | None:
    """Why a convolution cannot be scheduled, or None.

    Every number that a schedule keeps in a table is bounded here: where runs of
    positions start in `x` and `y`, what their columns read from there, which row of `w`
    they take; and how many numbers there are. Distances between blocks and between
    rows, and in scratch memory, are computed in 64 bits.

    Args:
      conv: with images and filters.
      gradient: see `schedule`.
    """
    axes = [stretches(axis) for axis in conv.axes]
    strides = strides_of(conv.lhs, memory_order(conv, gradient)[0])
    block = BLOCK_BYTES // max(1, image_bytes(conv))
    images = conv.lhs[0] if gradient else max(1, min(conv.lhs[0], block))
    spatial = list(zip(axes, strides[1:-1], strict=True))
    positions = math.prod(conv.out)
    offsets = {
        "the input": 1
        + (images - 1) * strides[0]
        + sum(s * max(map(_last, axis)) for axis, s in spatial),
        "the input around a position": conv.lhs[-1] * strides[-1]
        + sum(s * max(map(_farthest, axis)) for axis, s in spatial),
        "a filter": math.prod(conv.rhs[:-1]),
        "the result": images * positions * conv.rhs[-1],
    }
    for what, entries in offsets.items():
        if entries > _OFFSETS:
            return f"it is too large for 32-bit offsets: {entries} entries of {what}"
    if math.prod(map(len, axes)) > _CLASSES:
        return f"more than {_CLASSES} kinds of positions meet different taps"
    if positions * (images if gradient else 1) > _POSITIONS:
        return f"one image has {positions} positions, the limit is {_POSITIONS}"
    taps = math.prod(sum(len(s.taps) for s in axis) for axis in axes)
    lists = 1 if conv.columns is None else conv.groups
    if 2 * taps * conv.rhs[-2] * lists > _NUMBERS:
        return f"the columns of all kinds of positions are more than {_NUMBERS // 2}"
    return None


def image_bytes(conv: Conv) -> int:
    """Of one image and its result."""
    entries = math.prod(conv.lhs[1:]) + math.prod(conv.out) * conv.rhs[-1]
    return entries * jnp.dtype(conv.dtype).itemsize


def _last(stretch: Stretch) -> int:
    return stretch.x + (stretch.line.size - 1) * stretch.line.x_step


def _farthest(stretch: Stretch) -> int:
    return int(np.abs(stretch.reads).max(initial=0))
