"""Regions: positions of a convolution that read the same columns.

Which taps meet the image depends on the output position only near the ends of the
image, and on its phase where the image is dilated. So the positions along an axis fall
into a few `Stretch`es: the inside, every position near an end, every phase. Positions
of one stretch are equally distant, and their taps read the same entries, counted from
where the position stands. One stretch per axis, and all images of a block, make a
`Region`, whose positions share one list of columns.

Where a large kernel meets a small image, nearly every position would be a region of its
own, and each would read much of the kernel again. There the last axes are not divided:
all their positions become places of one tile, and the taps are sorted into `Section`s
by the places that meet them.
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

    In a weight gradient images and channels have changed places; its operands are read
    as they lie, without a transpose.
    """
    n = len(conv.lhs)
    if gradient:
        return (n - 1, *range(1, n - 1), 0), (n - 2, *range(n - 2), n - 1)
    return tuple(range(n)), tuple(range(n))


def strides_of(shape: tuple[int, ...], order: "range | tuple[int, ...]") -> list[int]:
    """Entries from one index to the next along each axis, in a memory order."""
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


class Section(NamedTuple):
    """Taps that the same places of a region meet.

    Attributes:
      places: which.
      taps: counted over the window.
      reads: per tap the offset in `x` of what it reads, from the place.
    """

    places: tuple[int, ...]
    taps: Int[np.ndarray, " some"]
    reads: Int[np.ndarray, " some"]


class Region(NamedTuple):
    """Positions that share one list of columns: places, repeated along lines.

    Attributes:
      lines: of repetitions, images first, then one per axis that is divided.
      x, y: offsets of the first place.
      places: offsets from there, in `x` and in `y`; a single one if every axis is
        divided.
      sections: of the taps.
    """

    lines: tuple[Line, ...]
    x: int
    y: int
    places: tuple[tuple[int, int], ...]
    sections: tuple[Section, ...]


Positions = Sequence[tuple[Region, tuple[tuple[np.ndarray, ...], ...]]]
"""Regions with their columns, per group and section."""


def regions(
    conv: Conv,
    x_strides: list[int],
    y_strides: list[int],
    batch: int,
    whole: int,
    room: int,
) -> list[Region]:
    """All positions of a block of images.

    Args:
      conv: what to compute.
      x_strides: of `x`, in entries.
      y_strides: of `y`.
      batch: images of the block.
      whole: how many of the last axes are not divided.
      room: places that a tile has room for.
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
                Section(
                    at,
                    (taps[:, None] * count + k).reshape(-1),
                    (reads[:, None] + rel).reshape(-1),
                )
                for at, k, rel in sections
            )
            found.append(Region(tuple(lines), x + x0, y + y0, places, joint))
    return found


def _places(
    conv: Conv, axes: range, x_strides: list[int], y_strides: list[int], room: int
) -> list[tuple]:
    """The positions along some axes in tiles: where each starts, places, sections.

    Images are not dilated along these axes, so a tap reads the same entry from every
    position.
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
    """Taps that meet any place, split by the set of places that they meet."""
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

    Positions in one phase of a dilated image hit the same taps. The image's ends cut
    off some of them: the first and the last tap inside move down from position to
    position, so that the cuts are found by bisection, without a table of all positions
    and taps.
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
    conv: Conv, region: Region, gradient: bool, interleave: int
) -> tuple[tuple[np.ndarray, ...], ...]:
    """Per group and section, offsets in `x` and rows of `w` of the columns to read."""
    sections = [_columns(conv, s, gradient, interleave) for s in region.sections]
    groups = 1 if gradient or conv.rhs[-2] == 1 else conv.groups
    return tuple(tuple(s[g] for s in sections) for g in range(groups))


def _columns(
    conv: Conv, section: Section, gradient: bool, interleave: int
) -> tuple[np.ndarray, ...]:
    """Per group, the columns of a section that are not zero."""
    taps, reads = section.taps, section.reads
    mask = conv.mask.reshape(-1, *conv.mask.shape[-2:])[taps]
    if gradient or conv.rhs[-2] == 1:
        alive = mask.any((1, 2))
        return (np.stack([reads[alive], taps[alive]], 1).astype(np.int32),)
    channels = np.arange(0, conv.rhs[-2], interleave)
    x = reads[:, None] + channels
    rows = taps[:, None] * len(channels) + channels // interleave
    mask = mask[:, ::interleave]
    whole = np.stack([x, rows], -1).astype(np.int32)
    if conv.columns is None:
        return (whole.reshape(-1, 2),) * conv.groups
    return tuple(whole[mask[..., g]] for g in range(conv.groups))
