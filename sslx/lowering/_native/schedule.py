"""A convolution as a walk over tiles of its output, planned ahead.

Every output entry is a sum over the columns of the kernel that meet the image. Entries
whose columns are the same, relative to where they stand, form a class: the inside of an
image, an edge, a corner, a phase of a dilated input. A tile is some positions of one
class times some vectors of filters, held in registers while its columns are gone
through: `y[p, f] += x[base[p] + offset[k]] * w[k, f]`. Nothing is gathered or padded,
and columns that are zero cost nothing. Where a large kernel meets a small image, a tile
has positions of several classes: each section of its columns adds to those places that
meet them, so that the kernel is read once for all.
"""

import dataclasses
import functools
import itertools
import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sslx.lowering._conv import Conv
from sslx.lowering._native.limits import image_bytes, too_large
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.positions import Class, Positions, classes, columns_of
from sslx.lowering._native.positions import memory_order as memory_order
from sslx.lowering._native.problem import Problem
from sslx.lowering._native.tiling import BLOCK_BYTES, Choice, Tiling, read_once, tiling


class Kernel(NamedTuple):
    """The positions of a tile: runs of places at fixed distances.

    Attributes:
      places: of a run: entries from its start, in `x` and in `y`.
      sections: of the columns, each with the places that meet them.
      runs: how many runs.
    """

    places: tuple[tuple[int, int], ...]
    sections: tuple[tuple[int, ...], ...]
    runs: int


class Tile(NamedTuple):
    """Filters of one group that are computed together.

    Attributes:
      group: of filters.
      first: filter, counted over all groups.
      vectors: of filters.
      tail: filters in the last vector.
    """

    group: int
    first: int
    vectors: int
    tail: int


@dataclasses.dataclass(frozen=True)
class Visit:
    """All tiles of one class of positions that one kernel computes.

    Attributes:
      kernel: which.
      columns: per group of filters and section, offsets in `x` and rows of `w`.
      runs: offsets of the runs in `x` and `y`, `kernel.runs` of them per tile.
      pace: bytes of what the next tile reads that are fetched ahead per column, where
        there is one tap only; else tiles share what they read.
    """

    kernel: Kernel
    columns: tuple[tuple[Int[np.ndarray, "_ 2"], ...], ...]
    runs: Int[np.ndarray, "runs 2"]
    pace: int


class Step(NamedTuple):
    """One operation of an epilogue on every entry: `y = op(y, operand)`.

    Attributes:
      op: `add`, `sub`, `mul`, `div`, `max` or `min`.
      kind: of the operand: a `number`, one per filter, or one per entry of `y`.
      number: the operand itself, where it is one.
      place: which of the operands of its kind.
      swapped: whether it is `y = op(operand, y)`.
    """

    op: str
    kind: Literal["number", "filter", "entry"]
    number: float = 0.0
    place: int = 0
    swapped: bool = False


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A planned convolution; distances are in entries.

    Attributes:
      dtype: of all arrays.
      lanes: entries of a vector.
      tiles: of filters.
      visits: of positions.
      row: distance of the rows of `w`.
      packed: per group the rows that are copied to stand one behind the other before a
        tile of filters is computed, or None.
      ahead: how many columns before its turn a row of `w` is fetched, 0 for not at all.
      blocks: how often `x` and `w` are advanced.
      shares: of the blocks, each with an output of its own; a share of several blocks
        adds them up.
      x_block, w_block: from a block to the next.
      y_share: from a share's output to the next.
      x_group: from the channels of a group to those of the next.
      parts: of the positions, for more cores to work on.
      together: tiles that one worker computes one after the other while it has a block.
      channelwise: whether every filter reads the channel of its own number.
      fold: neighbouring channels that stand side by side in a vector, where there are
        few filters; their sums are added up in the end. Rows of `w` are then vectors,
        channel after channel for every filter.
      epilogue: what is done to every entry before it is written.
      workers: at most.
    """

    dtype: str
    lanes: int
    tiles: tuple[Tile, ...]
    visits: tuple[Visit, ...]
    row: int
    packed: tuple[Int[np.ndarray, " _"], ...] | None
    ahead: int
    blocks: int
    shares: int
    x_block: int
    w_block: int
    y_share: int
    x_group: int
    parts: int
    together: int
    channelwise: bool
    fold: int
    epilogue: tuple[Step, ...]
    workers: int

    @property
    def per_filter(self) -> int:
        """Operands of the epilogue with one number per filter."""
        return sum(step.kind == "filter" for step in self.epilogue)

    @property
    def per_entry(self) -> int:
        """Operands of the epilogue like `y`."""
        return sum(step.kind == "entry" for step in self.epilogue)

    @property
    def macs_inside(self) -> int:
        """Multiply-accumulates, those on padding and on zero columns left out."""
        count = 0
        for visit in self.visits:
            sections = visit.kernel.sections
            meets = [
                sum(len(p) * len(k) for p, k in zip(sections, columns, strict=True))
                for columns in visit.columns
            ]
            for tile in self.tiles:
                group = tile.group if len(visit.columns) > 1 else 0
                whole = (tile.vectors - 1) * self.lanes // self.fold
                filters = (whole + tile.tail) * self.fold
                count += meets[group] * len(visit.runs) * self.blocks * filters
        return count


def plan(
    conv: Conv,
    machine: Machine,
    gradient: bool = False,
    epilogue: tuple[Step, ...] = (),
) -> Sweep:
    """How to walk through a convolution without groups of images.

    A large kernel that few positions use is read from memory once, by one core each
    part of it: its tiles of filters fit a cache, there are as many for every core, and
    positions at an edge may go through it together with those inside.

    Args:
      conv: what to compute, in float32 or float64.
      machine: where.
      gradient: add up over blocks of channels, with the operands in the memory order of
        a weight gradient; then there is no epilogue.
      epilogue: what is done to the results.

    Raises:
      ValueError: for a convolution that is `too_large`.
    """
    large = too_large(conv, gradient)
    if large is not None:
        raise ValueError(f"{conv.lhs} with {conv.rhs} cannot be planned: {large}")
    problem = Problem(conv, machine, gradient)
    best = _best_tiling(problem)
    visits = tuple(
        visit
        for (c, k), way in zip(best.positions, best.ways, strict=True)
        for visit in _visits(conv, c, k, way)
    )
    lanes, fold = problem.lanes, problem.fold
    tiles = _tiles(problem.groups, problem.per_group, best.tiles, lanes // fold)
    parts = _parts(problem, best.cycles, len(tiles))
    packed = None
    if best.tiles > 1 and not gradient:
        each = machine.cores if problem.inside else problem.blocks * parts
        if problem.positions // each >= _POSITIONS_TO_PACK:
            visits, packed = _packed(visits)
    batch, x_strides = problem.batch, problem.x_strides
    return Sweep(
        dtype=conv.dtype,
        lanes=lanes,
        tiles=tiles,
        visits=visits,
        row=lanes if fold > 1 else conv.rhs[-1],
        packed=packed,
        ahead=_ROWS_AHEAD if problem.few and packed is None else 0,
        blocks=problem.blocks,
        shares=problem.shares,
        x_block=x_strides[-1] if gradient else batch * x_strides[0],
        w_block=math.prod(conv.window) * conv.rhs[-1] if gradient else 0,
        y_share=batch * problem.y_strides[0],
        x_group=0 if problem.channelwise else conv.rhs[-2] * x_strides[-1],
        parts=parts,
        together=len(tiles) if problem.inside else 1,
        channelwise=problem.channelwise,
        fold=fold,
        epilogue=epilogue,
        workers=machine.cores,
    )


def _best_tiling(problem: Problem) -> Tiling:
    """The cheapest of all tilings, by estimate."""
    conv, machine, few = problem.conv, problem.machine, problem.few

    @functools.cache
    def positions(whole: int, room: int) -> Positions:
        strides = problem.x_strides, problem.y_strides
        met = classes(conv, *strides, problem.batch, whole, room)
        return [(c, columns_of(conv, c, problem.gradient, problem.fold)) for c in met]

    tilings = []
    widest = _PAIR_OF_LINES // machine.bytes if few else 6
    deepest = len(conv.window) if few and max(conv.lhs_dilation) == 1 else 0
    for n in range(1, min(problem.vectors, widest) + 1):
        room = max(1, (machine.registers - 2 - n) // n)
        for whole in range(deepest + 1):
            met = positions(whole, room if whole else 1)
            tilings.append(
                tiling(met, problem.vectors, n, room, problem.channelwise, few)
            )
    if few:
        vector_bytes = problem.kept * problem.itemsize // conv.rhs[-1] * problem.lanes
        tilings = [
            read_once(t, t.tiles * problem.groups, vector_bytes, machine.cores)
            for t in tilings
        ]
    return min(tilings, key=lambda t: t.cycles)


def _parts(problem: Problem, cycles: float, tiles: int) -> int:
    """Of the positions: enough for all cores, as far as they are worth a task.

    Args:
      problem: what is planned.
      cycles: of a block, for the filters of a group.
      tiles: of filters, of all groups.
    """
    if problem.few:
        return 1
    tasks = problem.shares if problem.inside else problem.shares * tiles
    wanted = -(-4 * problem.machine.cores // tasks)
    per_task = cycles * problem.groups * problem.blocks / tasks
    parts = max(1, min(wanted, int(per_task / _FEWEST_CYCLES)))
    if problem.inside and not problem.gradient and tiles > 1:
        block = problem.batch * image_bytes(problem.conv)
        parts = max(parts, -(-block // BLOCK_BYTES))
    return parts


_FEWEST_CYCLES = 5000
_POSITIONS_TO_PACK = 48
_LINE_BYTES = 64
_PAIR_OF_LINES = 128
_ROWS_AHEAD = 64


def _tiles(groups: int, filters: int, count: int, lanes: int) -> tuple[Tile, ...]:
    """Filters of every group in tiles of nearly equal width."""
    vectors = -(-filters // lanes)
    tail = filters - (vectors - 1) * lanes
    ends = [i * vectors // count for i in range(count + 1)]
    return tuple(
        Tile(g, g * filters + a * lanes, b - a, tail if b == vectors else lanes)
        for g in range(groups)
        for a, b in itertools.pairwise(ends)
    )


def _visits(
    conv: Conv, c: Class, columns: tuple[tuple[np.ndarray, ...], ...], way: Choice
) -> list[Visit]:
    line = c.lines[way.axis]
    each = conv.lhs[-1] * conv.strides[-1] * jnp.dtype(conv.dtype).itemsize
    most = max(1, *(sum(map(len, sections)) for sections in columns))
    alone = math.prod(conv.window) == 1
    found = []
    even = line.size // way.length * way.length
    for start, stop, length in (
        (0, even, way.length),
        (even, line.size, line.size % way.length),
    ):
        if not length or start == stop:
            continue
        x, y = np.array([c.x]), np.array([c.y])
        for axis, other in enumerate(c.lines):
            at = (
                np.arange(start, stop, length)
                if axis == way.axis
                else np.arange(other.size)
            )
            x = (x[:, None] + at * other.x_step).reshape(-1)
            y = (y[:, None] + at * other.y_step).reshape(-1)
        runs = np.stack([x, y], 1).astype(np.int32)
        places = tuple(
            (q * line.x_step + px, q * line.y_step + py)
            for q in range(length)
            for px, py in c.places
        )
        sections = tuple(
            tuple(q * len(c.places) + p for q in range(length) for p in where)
            for where, _, _ in c.sections
        )
        whole = len(runs) // way.runs * way.runs
        for together, some in (
            (way.runs, runs[:whole]),
            (len(runs) - whole, runs[whole:]),
        ):
            if len(some):
                kernel = Kernel(places, sections, together)
                pace = min(_LINE_BYTES, -(-len(places) * together * each // most))
                found.append(Visit(kernel, columns, some, pace * alone))
    return found


def _packed(
    visits: tuple[Visit, ...],
) -> tuple[tuple[Visit, ...], tuple[np.ndarray, ...]]:
    """Rows of `w` renumbered in the order in which they are copied together."""
    rows = tuple(
        np.unique(np.concatenate([k[:, 1] for v in visits for k in v.columns[g]]))
        for g in range(len(visits[0].columns))
    )

    def renumbered(k: np.ndarray, r: np.ndarray) -> np.ndarray:
        return np.stack([k[:, 0], np.searchsorted(r, k[:, 1])], 1).astype(np.int32)

    moved = tuple(
        dataclasses.replace(
            v,
            columns=tuple(
                tuple(renumbered(k, r) for k in sections)
                for sections, r in zip(v.columns, rows, strict=True)
            ),
        )
        for v in visits
    )
    return moved, rows
