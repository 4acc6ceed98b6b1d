"""The shapes of tiles, chosen by estimated cycles.

A tile of `p` positions and `v` vectors of filters keeps `p * v` sums in registers. Per
column it loads `v` vectors of weights and `p` entries of the image, which are repeated
in all lanes, and does `p * v` multiply-adds; a core does two loads or two multiply-adds
in a cycle. So wide tiles cost fewest cycles per product, as far as registers reach. It
takes eight independent sums to hide the latency of multiply-adds; every tile has a
fixed cost; what does not fill a tile is computed in smaller ones. The model counts the
cycles of every shape that fits the registers. Its constants come from measurements.
"""

import functools
import math
from typing import NamedTuple

from sslx.lowering._native.positions import Positions

BLOCK_BYTES = 1 << 20
"""Of the second cache, for what is read repeatedly."""


class TileShape(NamedTuple):
    """Positions of a tile: the places of a region, repeated.

    Attributes:
      axis: along which line of the region a run goes.
      length: of a run.
      runs: in a tile, from anywhere in the region.
    """

    axis: int
    length: int
    runs: int


class Tiling(NamedTuple):
    """The filters of a group in tiles of nearly equal width.

    Attributes:
      cycles: estimate for all positions of a block.
      tiles: how many.
      widest: vectors of the widest one.
      positions: by regions, with their columns.
      shapes: of the tiles of every region.
    """

    cycles: float
    tiles: int
    widest: int
    positions: Positions
    shapes: tuple[TileShape, ...]


class Workload(NamedTuple):
    """What decides the time of a region.

    Attributes:
      counts: positions of its lines.
      sections: columns and places of each.
      places: how many.
      channelwise: see `Vectors`.
      far: whether rows of `w` come from beyond the nearest cache.
    """

    counts: tuple[int, ...]
    sections: tuple[tuple[int, int], ...]
    places: int
    channelwise: bool
    far: bool


def tiling(
    positions: Positions,
    vectors: int,
    most: int,
    room: int,
    channelwise: bool,
    far: bool,
) -> Tiling:
    """The fewest filter tiles of at most `most` vectors, and a shape for each region.

    Args:
      positions: by regions.
      vectors: of the filters of a group.
      most: of a tile.
      room: positions for which a tile has registers.
      channelwise: see `Vectors`.
      far: whether rows of `w` come from beyond the nearest cache.
    """
    count = -(-vectors // most)
    narrow, more = divmod(vectors, count)
    widest = narrow + (more > 0)
    shapes, cycles = [], 0.0
    for region, columns in positions:
        sections = zip(columns[0], region.sections, strict=True)
        work = Workload(
            tuple(line.size for line in region.lines),
            tuple((len(listed), len(s.places)) for listed, s in sections),
            len(region.places),
            channelwise,
            far,
        )
        each, shape = _cheapest(work, widest, max(1, room // len(region.places)))
        shapes.append(shape)
        cycles += each * (more or count)
        if more:
            cycles += (count - more) * _region_cycles(work, narrow, shape)
    return Tiling(cycles, count, widest, positions, tuple(shapes))


def read_once(tiling: Tiling, tasks: int, vector_bytes: int, cores: int) -> Tiling:
    """With the time that cores wait for the last task, or for memory.

    Args:
      tiling: of a kernel that is read once.
      tasks: filter tiles of all groups.
      vector_bytes: of the kernel, per vector of filters.
      cores: of the machine.
    """
    cycles = tiling.cycles * -(-tasks // cores) * cores / tasks
    beyond = tiling.widest * vector_bytes > BLOCK_BYTES
    return tiling._replace(cycles=2 * cycles if beyond else cycles)


@functools.lru_cache(4096)
def _cheapest(work: Workload, vectors: int, most: int) -> tuple[float, TileShape]:
    """The estimated cycles of a region in its cheapest tiles, and their shape."""
    total = math.prod(work.counts)
    found = []
    for axis, count in enumerate(work.counts):
        for length in range(1, min(count, most) + 1):
            runs = min(_MOST_RUNS, most // length, total // count * (count // length))
            shape = TileShape(axis, length, runs)
            found.append((_region_cycles(work, vectors, shape), shape))
    return min(found)


def _region_cycles(work: Workload, vectors: int, shape: TileShape) -> float:
    """Estimated cycles of a region, for one filter tile."""
    total, count = math.prod(work.counts), work.counts[shape.axis]
    cost = 0.0
    for size, times in (
        (shape.length, count // shape.length),
        (count % shape.length, 1),
    ):
        if size:
            runs = total // count * times
            cost += _cycles(runs, size, shape.runs, work, vectors)
    return 1.03 * cost if shape.axis == 0 and shape.length > 1 else cost


_MOST_RUNS = 8


def _cycles(
    runs: int, length: int, together: int, work: Workload, vectors: int
) -> float:
    """Estimated cycles of all runs of one length, two products or loads in each."""
    cost = 0.0
    for per_tile, tiles in ((together, runs // together), (runs % together, 1)):
        repeated = per_tile * length
        if not repeated:
            continue
        each = 20 + repeated * work.places * vectors
        for columns, places in work.sections:
            positions = repeated * places
            reads = positions * vectors if work.channelwise else positions
            step = max(positions * vectors, reads + vectors + 2, 8) / 2
            step += (_FAR if work.far else vectors / 4) + positions / 20
            each += columns * step
        cost += tiles * each
    return cost


_FAR = 4.0
"""Cycles for a row of a tile, two lines of memory, from beyond the nearest cache."""
