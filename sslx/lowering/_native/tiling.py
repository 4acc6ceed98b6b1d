"""How positions and filters are put together in tiles, by estimated cycles."""

import functools
import math
from typing import NamedTuple

from sslx.lowering._native.positions import Positions

BLOCK_BYTES = 1 << 20
"""Of a nearby cache, for what is read again and again."""


class Choice(NamedTuple):
    """How places are repeated: along which axis, how often, in how many runs."""

    axis: int
    length: int
    runs: int


class Tiling(NamedTuple):
    """The filters of a group in tiles of nearly equal width.

    Attributes:
      cycles: estimate for all positions of a block.
      tiles: how many.
      widest: vectors of the widest one.
      positions: by classes, with their columns.
      ways: how the positions of every class are put together.
    """

    cycles: float
    tiles: int
    widest: int
    positions: Positions
    ways: tuple[Choice, ...]


class Work(NamedTuple):
    """What decides the time of a class.

    Attributes:
      counts: of its lines.
      sections: columns and places of each.
      places: how many.
      channelwise: see `Sweep`.
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
    """As few tiles as there can be of at most so many vectors."""
    count = -(-vectors // most)
    narrow, more = divmod(vectors, count)
    widest = narrow + (more > 0)
    ways, cycles = [], 0.0
    for c, k in positions:
        work = Work(
            tuple(line.size for line in c.lines),
            tuple((len(n), len(s[0])) for n, s in zip(k[0], c.sections, strict=True)),
            len(c.places),
            channelwise,
            far,
        )
        each, way = _cheapest(work, widest, max(1, room // len(c.places)))
        ways.append(way)
        cycles += each * (more or count)
        if more:
            cycles += (count - more) * _all(work, narrow, way)
    return Tiling(cycles, count, widest, positions, tuple(ways))


def read_once(tiling: Tiling, tasks: int, vector_bytes: int, cores: int) -> Tiling:
    """With the time that cores wait for the last task, or a tile for memory."""
    cycles = tiling.cycles * -(-tasks // cores) * cores / tasks
    beyond = tiling.widest * vector_bytes > BLOCK_BYTES
    return tiling._replace(cycles=2 * cycles if beyond else cycles)


@functools.lru_cache(4096)
def _cheapest(work: Work, vectors: int, most: int) -> tuple[float, Choice]:
    """The cheapest tile for a class: estimated cycles, and what it is."""
    total = math.prod(work.counts)
    found = []
    for axis, count in enumerate(work.counts):
        for length in range(1, min(count, most) + 1):
            runs = min(_MOST_RUNS, most // length, total // count * (count // length))
            way = Choice(axis, length, runs)
            found.append((_all(work, vectors, way), way))
    return min(found)


def _all(work: Work, vectors: int, way: Choice) -> float:
    """Estimated cycles of all positions of a class, for one tile of filters."""
    total, count = math.prod(work.counts), work.counts[way.axis]
    cost = 0.0
    for size, times in ((way.length, count // way.length), (count % way.length, 1)):
        if size:
            runs = total // count * times
            cost += _cycles(runs, size, way.runs, work, vectors)
    return 1.03 * cost if way.axis == 0 and way.length > 1 else cost


_MOST_RUNS = 8


def _cycles(runs: int, length: int, together: int, work: Work, vectors: int) -> float:
    """Estimate for all runs of one length: two products or loads at a time."""
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
