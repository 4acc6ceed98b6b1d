"""Make the schedule of a direct convolution for a machine.

`Problem` says what follows from the sizes alone: the vectors, the blocks of images that
fit a cache, and whether the kernel is so large, and the image so small, that it should
be read from memory only once. Then every width of a filter tile is tried: with each,
every region takes the tile of positions that costs the fewest cycles by the model in
`tiling`, and the width with the lowest sum is taken. What is left is bookkeeping: list
where every tile starts, cut the positions into parts so that all cores have work, and
decide whether the rows of the kernel are packed.
"""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from sslx.lowering._conv import Conv
from sslx.lowering._native.limits import image_bytes, too_large
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.positions import Positions, Region, columns_of, regions
from sslx.lowering._native.problem import Problem
from sslx.lowering._native.schedule import (
    FilterTile,
    PositionTile,
    PostOp,
    Rows,
    Schedule,
    Strides,
    Tasks,
    Vectors,
    Visit,
)
from sslx.lowering._native.tiling import (
    BLOCK_BYTES,
    TileShape,
    Tiling,
    read_once,
    tiling,
)

_FEWEST_CYCLES = 5000
"""Of a task."""
_POSITIONS_TO_PACK = 48
_LINE_BYTES = 64
_PAIR_OF_LINES = 128
_ROWS_AHEAD = 64


def schedule(
    conv: Conv,
    machine: Machine,
    gradient: bool = False,
    epilogue: tuple[PostOp, ...] = (),
) -> Schedule:
    """The schedule of a convolution without groups of images.

    Args:
      conv: what to compute, in float32 or float64.
      machine: where.
      gradient: read the operands in the memory order of a weight gradient and add up
        over blocks of channels; then there is no epilogue.
      epilogue: what is done to the results.

    Raises:
      ValueError: for a convolution that is `too_large`.
    """
    large = too_large(conv, gradient)
    if large is not None:
        raise ValueError(f"{conv.lhs} with {conv.rhs} cannot be scheduled: {large}")
    problem = Problem(conv, machine, gradient)
    best = _best_tiling(problem)
    visits = tuple(
        visit
        for (region, columns), shape in zip(best.positions, best.shapes, strict=True)
        for visit in _visits(conv, region, columns, shape)
    )
    vectors = Vectors(
        conv.dtype, problem.lanes, problem.channelwise, problem.interleave
    )
    filters = _filter_tiles(
        problem.groups, problem.per_group, best.tiles, vectors.filters
    )
    tasks = Tasks(
        blocks=problem.blocks,
        shares=problem.shares,
        parts=_parts(problem, best.cycles, len(filters)),
        tiles=len(filters) if problem.filters_inside else 1,
        workers=machine.cores,
    )
    packed = None
    if _packs(problem, best.tiles, tasks.parts):
        visits, packed = _packed(visits)
    rows = Rows(
        stride=conv.rhs[-1] if vectors.interleave == 1 else vectors.lanes,
        packed=packed,
        ahead=_ROWS_AHEAD if problem.kernel_once and packed is None else 0,
    )
    return Schedule(vectors, filters, visits, rows, _strides(problem), tasks, epilogue)


def _strides(problem: Problem) -> Strides:
    """A gradient goes from channel to channel, else blocks are images."""
    conv, gradient = problem.conv, problem.gradient
    x_strides = problem.x_strides
    return Strides(
        x_block=x_strides[-1] if gradient else problem.batch * x_strides[0],
        w_block=math.prod(conv.window) * conv.rhs[-1] if gradient else 0,
        y_share=problem.batch * problem.y_strides[0],
        x_group=0 if problem.channelwise else conv.rhs[-2] * x_strides[-1],
    )


def _packs(problem: Problem, tiles: int, parts: int) -> bool:
    """Whether each panel of packed rows serves enough positions to pay for the copy."""
    if tiles == 1 or problem.gradient:
        return False
    copies = problem.blocks * parts
    if problem.filters_inside:
        copies = problem.machine.cores
    return problem.positions // copies >= _POSITIONS_TO_PACK


def _best_tiling(problem: Problem) -> Tiling:
    """The tiling with the fewest estimated cycles.

    A kernel that is read once is tried with the last axes divided and whole.
    """
    conv, machine, once = problem.conv, problem.machine, problem.kernel_once

    @functools.cache
    def positions(whole: int, room: int) -> Positions:
        strides = problem.x_strides, problem.y_strides
        met = regions(conv, *strides, problem.batch, whole, room)
        gradient, interleave = problem.gradient, problem.interleave
        return [(r, columns_of(conv, r, gradient, interleave)) for r in met]

    tilings = []
    widest = _PAIR_OF_LINES // machine.bytes if once else 6
    deepest = len(conv.window) if once and max(conv.lhs_dilation) == 1 else 0
    for n in range(1, min(problem.vectors, widest) + 1):
        room = max(1, (machine.registers - 2 - n) // n)
        for whole in range(deepest + 1):
            met = positions(whole, room if whole else 1)
            tilings.append(
                tiling(met, problem.vectors, n, room, problem.channelwise, once)
            )
    if once:
        vector_bytes = problem.kept * problem.itemsize // conv.rhs[-1] * problem.lanes
        tilings = [
            read_once(t, t.tiles * problem.groups, vector_bytes, machine.cores)
            for t in tilings
        ]
    return min(tilings, key=lambda t: t.cycles)


def _parts(problem: Problem, cycles: float, tiles: int) -> int:
    """Parts of the positions: enough for all cores, none too short to be a task.

    Args:
      problem: what is scheduled.
      cycles: of a block, for the filters of a group.
      tiles: filter tiles of all groups.
    """
    if problem.kernel_once:
        return 1
    tasks = problem.shares if problem.filters_inside else problem.shares * tiles
    wanted = -(-4 * problem.machine.cores // tasks)
    per_task = cycles * problem.groups * problem.blocks / tasks
    parts = max(1, min(wanted, int(per_task / _FEWEST_CYCLES)))
    if problem.filters_inside and not problem.gradient and tiles > 1:
        block = problem.batch * image_bytes(problem.conv)
        parts = max(parts, -(-block // BLOCK_BYTES))
    return parts


def _filter_tiles(
    groups: int, filters: int, count: int, lanes: int
) -> tuple[FilterTile, ...]:
    """Filters of every group in tiles of nearly equal width."""
    vectors = -(-filters // lanes)
    tail = filters - (vectors - 1) * lanes
    ends = [i * vectors // count for i in range(count + 1)]
    return tuple(
        FilterTile(g, g * filters + a * lanes, b - a, tail if b == vectors else lanes)
        for g in range(groups)
        for a, b in itertools.pairwise(ends)
    )


def _visits(
    conv: Conv,
    region: Region,
    columns: tuple[tuple[np.ndarray, ...], ...],
    shape: TileShape,
) -> list[Visit]:
    """A region in tiles of one shape, and smaller ones of what is left over."""
    line = region.lines[shape.axis]
    whole = line.size // shape.length * shape.length
    alone = math.prod(conv.window) == 1
    found = []
    for begin, end, length in (
        (0, whole, shape.length),
        (whole, line.size, line.size - whole),
    ):
        if begin == end:
            continue
        starts = _starts(region, shape.axis, np.arange(begin, end, length))
        places, sections = _repeated(region, shape.axis, length)
        even = len(starts) // shape.runs * shape.runs
        for runs, some in (
            (shape.runs, starts[:even]),
            (len(starts) - even, starts[even:]),
        ):
            if len(some):
                tile = PositionTile(places, sections, runs)
                pace = _pace(conv, columns, len(places) * runs) if alone else 0
                found.append(Visit(tile, columns, some, pace))
    return found


def _starts(
    region: Region, axis: int, along: Int[np.ndarray, " _"]
) -> Int[np.ndarray, "runs 2"]:
    """Offsets in `x` and `y`: all lines of a region, some positions along one axis."""
    x, y = np.array([region.x]), np.array([region.y])
    for a, line in enumerate(region.lines):
        at = along if a == axis else np.arange(line.size)
        x = (x[:, None] + at * line.x_step).reshape(-1)
        y = (y[:, None] + at * line.y_step).reshape(-1)
    return np.stack([x, y], 1).astype(np.int32)


def _repeated(
    region: Region, axis: int, length: int
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, ...], ...]]:
    """The places of a region repeated along an axis, and those of every section."""
    line, count = region.lines[axis], len(region.places)
    places = tuple(
        (q * line.x_step + x, q * line.y_step + y)
        for q in range(length)
        for x, y in region.places
    )
    sections = tuple(
        tuple(q * count + p for q in range(length) for p in section.places)
        for section in region.sections
    )
    return places, sections


def _pace(
    conv: Conv, columns: tuple[tuple[np.ndarray, ...], ...], positions: int
) -> int:
    """Bytes to prefetch per column, so that the next tile's input is there in time."""
    each = conv.lhs[-1] * conv.strides[-1] * jnp.dtype(conv.dtype).itemsize
    most = max(1, *(sum(map(len, sections)) for sections in columns))
    return min(_LINE_BYTES, -(-positions * each // most))


def _packed(
    visits: tuple[Visit, ...],
) -> tuple[tuple[Visit, ...], tuple[np.ndarray, ...]]:
    """Visits that count rows by their place in a panel, and the rows of each panel."""
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
