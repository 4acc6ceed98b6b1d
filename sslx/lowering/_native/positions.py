"""Positions of a convolution that are computed alike, and what they read.

Along every axis the taps that meet the image are the same for a stretch of positions:
the inside, every place near an edge, each phase of a dilated image. Such stretches of
all axes together make a class.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sslx.lowering._conv import Conv
from sslx.lowering._taps import Axis


def memory_order(conv: Conv, gradient: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of `x` and `w` from the slowest to the fastest in memory.

    A weight gradient comes with images and channels in each other's place; it is read
    as it lies.
    """
    n = len(conv.lhs)
    if gradient:
        return (n - 1, *range(1, n - 1), 0), (n - 2, *range(n - 2), n - 1)
    return tuple(range(n)), tuple(range(n))


def strides_of(shape: tuple[int, ...], order: "range | tuple[int, ...]") -> list[int]:
    strides, distance = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = distance
        distance *= shape[axis]
    return strides


class Line(NamedTuple):
    """Equally distant positions along one axis: how many, and steps in `x` and `y`."""

    size: int
    x_step: int
    y_step: int


class Class(NamedTuple):
    """Positions that are computed alike: places, and how they are repeated.

    Attributes:
      lines: of repetitions, one per axis, images first.
      x, y: offsets of the first one.
      places: entries from there, in `x` and in `y`.
      sections: of the taps: the places that meet them, the taps, and what they read,
        relative to the place.
    """

    lines: tuple[Line, ...]
    x: int
    y: int
    places: tuple[tuple[int, int], ...]
    sections: tuple[tuple[tuple[int, ...], np.ndarray, np.ndarray], ...]


Positions = Sequence[tuple[Class, tuple[tuple[np.ndarray, ...], ...]]]
"""Classes with their columns, per group and section."""


def classes(
    conv: Conv,
    x_strides: list[int],
    y_strides: list[int],
    batch: int,
    whole: int,
    room: int,
) -> list[Class]:
    """Positions whose taps are the same along all axes but the last ones.

    Along these, `whole` of them, all positions are places of one tile, or of several if
    they are more than there is `room` for.
    """
    images = Line(batch, x_strides[0], y_strides[0])
    found = []
    free = len(conv.window) - whole
    axes = [stretches(axis) for axis in conv.axes[:free]]
    tiles = _places(conv, range(free, len(conv.window)), x_strides, y_strides, room)
    for parts in itertools.product(*axes):
        lines, x, y = [images], 0, 0
        taps, reads = np.zeros((1,), int), np.zeros((1,), int)
        for axis, (first, line, base, k, rel) in enumerate(parts):
            sx, sy = x_strides[axis + 1], y_strides[axis + 1]
            lines.append(Line(line.size, line.x_step * sx, line.y_step * sy))
            x, y = x + base * sx, y + first * sy
            taps = (taps[:, None] * conv.window[axis] + k).reshape(-1)
            reads = (reads[:, None] + rel * sx).reshape(-1)
        count = math.prod(conv.window[free:])
        for (x0, y0), places, sections in tiles:
            joint = tuple(
                (
                    at,
                    (taps[:, None] * count + k).reshape(-1),
                    (reads[:, None] + rel).reshape(-1),
                )
                for at, k, rel in sections
            )
            found.append(Class(tuple(lines), x + x0, y + y0, places, joint))
    return found


def _places(
    conv: Conv, axes: range, x_strides: list[int], y_strides: list[int], room: int
) -> list[tuple]:
    """The positions along some axes in tiles: where each starts, places, sections.

    Images are not dilated along these axes, so that all positions read a tap alike.
    """
    at, reads = np.zeros((1, 2), int), np.zeros((1,), int)
    meets = np.ones((1, 1), bool)
    for axis in axes:
        sx, sy = x_strides[axis + 1], y_strides[axis + 1]
        entries, inside = conv.axes[axis].reads()
        base = conv.axes[axis].starts
        meets = np.kron(meets, inside)
        steps = np.stack([base * sx, np.arange(len(base)) * sy], 1)
        at = (at[:, None] + steps).reshape(-1, 2)
        reads = (reads[:, None] + entries[0] * sx).reshape(-1)
    found = []
    for some in np.array_split(np.arange(len(at)), -(-len(at) // room)):
        places = tuple((int(x), int(y)) for x, y in at[some] - at[some[0]])
        sections = [
            (tuple(map(int, np.flatnonzero(meets[some, k[0]]))), k, reads[k])
            for k in _alike(meets[some])
        ]
        found.append((tuple(map(int, at[some[0]])), places, sections))
    return found


def _alike(
    meets: Bool[np.ndarray, "places taps"],
) -> list[Int[np.ndarray, " some"]]:
    """The taps that meet something, those together that meet the same places."""
    taps = np.flatnonzero(meets.any(0))
    bits = np.packbits(meets[:, taps], axis=0)
    _, first, which = np.unique(bits, axis=1, return_index=True, return_inverse=True)
    number = np.empty(len(first), int)
    number[np.argsort(first)] = np.arange(len(first))
    which = number[which.reshape(-1)]
    order = np.argsort(which, kind="stable")
    return np.split(taps[order], np.flatnonzero(np.diff(which[order])) + 1)[
        : len(first)
    ]


class Stretch(NamedTuple):
    """Equally distant positions along one axis whose taps read alike.

    Attributes:
      first: position.
      line: how many, and their distances.
      x: where the first one stands in `x`, in entries along the axis.
      taps: that meet the image.
      reads: entries of the image, from where a position stands, per tap.
    """

    first: int
    line: Line
    x: int
    taps: Int[np.ndarray, " met"]
    reads: Int[np.ndarray, " met"]


def stretches(axis: Axis) -> list[Stretch]:
    """All positions along one axis, in order of the first ones.

    Those of one phase of a dilated image can meet the same taps; the ends of the image
    leave a part of these, which gets no longer at one end and no shorter at the other
    from each position to the next.
    """
    base, phases = np.divmod(axis.starts, axis.hole)
    found = []
    for phase in map(int, np.unique(phases)):
        taps, reads = axis.phase(phase)
        here = np.flatnonzero(phases == phase)
        low = np.searchsorted(reads, -base[here])
        high = np.searchsorted(reads, axis.size - base[here])
        changes = np.flatnonzero(np.diff(low) | np.diff(high)) + 1
        step, x_step = (
            int(v[here[1]] - v[here[0]]) if len(here) > 1 else 0
            for v in (np.arange(len(base)), base)
        )
        for some in np.split(np.arange(len(here)), changes):
            first, met = int(here[some[0]]), slice(low[some[0]], high[some[0]])
            steps = (x_step, step) if len(some) > 1 else (0, 0)
            line = Line(len(some), *steps)
            found.append(Stretch(first, line, int(base[first]), taps[met], reads[met]))
    return sorted(found, key=lambda stretch: stretch.first)


def columns_of(
    conv: Conv, c: Class, gradient: bool, fold: int
) -> tuple[tuple[np.ndarray, ...], ...]:
    """Per group and section, offsets in `x` and rows of `w` of the columns to read."""
    sections = [_section(conv, k, reads, gradient, fold) for _, k, reads in c.sections]
    groups = 1 if gradient or conv.rhs[-2] == 1 else conv.groups
    return tuple(tuple(s[g] for s in sections) for g in range(groups))


def _section(
    conv: Conv, taps: np.ndarray, reads: np.ndarray, gradient: bool, fold: int
) -> tuple[np.ndarray, ...]:
    """The columns of some taps, per group."""
    mask = conv.mask.reshape(-1, *conv.mask.shape[-2:])[taps]
    if gradient or conv.rhs[-2] == 1:
        alive = mask.any((1, 2))
        return (np.stack([reads[alive], taps[alive]], 1).astype(np.int32),)
    channels = np.arange(0, conv.rhs[-2], fold)
    x = reads[:, None] + channels
    rows = taps[:, None] * len(channels) + channels // fold
    mask = mask[:, ::fold]
    whole = np.stack([x, rows], -1).astype(np.int32)
    if conv.columns is None:
        return (whole.reshape(-1, 2),) * conv.groups
    return tuple(whole[mask[..., g]] for g in range(conv.groups))
