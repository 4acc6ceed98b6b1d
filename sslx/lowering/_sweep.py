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
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from sslx.lowering._conv import Conv
from sslx.lowering._llvm import Machine


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


def memory_order(conv: Conv, gradient: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of `x` and `w` from the slowest to the fastest in memory.

    A weight gradient comes with images and channels in each other's place; it is read
    as it lies.
    """
    n = len(conv.lhs)
    if gradient:
        return (n - 1, *range(1, n - 1), 0), (n - 2, *range(n - 2), n - 1)
    return tuple(range(n)), tuple(range(n))


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
    """
    itemsize = jnp.dtype(conv.dtype).itemsize
    lanes = machine.bytes // itemsize
    channelwise = conv.groups > 1 and conv.rhs[-2:] == (1, conv.groups)
    groups = 1 if channelwise else conv.groups
    per_group = conv.rhs[-1] // groups
    fold = 1 if gradient or groups > 1 or channelwise else folded(conv, lanes)
    vectors = -(-per_group * fold // lanes)
    x_order, _ = memory_order(conv, gradient)
    images, channels = conv.lhs[0], conv.lhs[-1]
    x_strides = _strides(conv.lhs, x_order)
    y_strides = _strides((images, *conv.out, conv.rhs[-1]), range(len(conv.lhs)))
    kept = int(conv.mask.sum()) * conv.rhs[-1] // conv.groups
    few = not gradient and images * math.prod(conv.out) <= _FEW_POSITIONS
    few = few and kept * itemsize > _LARGE_KERNEL and groups * vectors >= machine.cores
    inside = gradient or (not few and kept * itemsize <= _BLOCK_BYTES)
    if gradient:
        batch, blocks = images, channels
        shares = _shares(conv, machine)
    else:
        apart = 1 if inside else groups * -(-vectors // 2)
        batch = _batch(conv, machine, itemsize, apart)
        blocks = shares = images // batch

    @functools.cache
    def positions(whole: int, room: int) -> _Positions:
        classes = _classes(conv, x_strides, y_strides, batch, whole, room)
        return [(c, _columns(conv, c, gradient, fold)) for c in classes]

    tilings = []
    widest = _PAIR_OF_LINES // machine.bytes if few else 6
    deepest = len(conv.window) if few and max(conv.lhs_dilation) == 1 else 0
    for n in range(1, min(vectors, widest) + 1):
        room = max(1, (machine.registers - 2 - n) // n)
        for whole in range(deepest + 1):
            met = positions(whole, room if whole else 1)
            tilings.append(_tiling(met, vectors, n, room, channelwise, few))
    if few:
        vector_bytes = kept * itemsize // conv.rhs[-1] * lanes
        tilings = [
            _read_once(t, t.tiles * groups, vector_bytes, machine.cores)
            for t in tilings
        ]
    best = min(tilings, key=lambda t: t.cycles)
    visits = tuple(
        visit
        for (c, k), way in zip(best.positions, best.ways, strict=True)
        for visit in _visits(conv, c, k, way)
    )
    tiles = _tiles(groups, per_group, best.tiles, lanes // fold)
    tasks = shares if inside else shares * len(tiles)
    wanted = -(-4 * machine.cores // tasks)
    per_task = best.cycles * groups * blocks / tasks
    parts = 1 if few else max(1, min(wanted, int(per_task / _FEWEST_CYCLES)))
    if inside and not gradient and len(tiles) > 1:
        parts = max(parts, -(-batch * _image_bytes(conv, itemsize) // _BLOCK_BYTES))
    packed = None
    if best.tiles > 1 and not gradient:
        count = images * math.prod(conv.out)
        each = machine.cores if inside else blocks * parts
        if count // each >= _POSITIONS_TO_PACK:
            visits, packed = _packed(visits)
    return Sweep(
        dtype=conv.dtype,
        lanes=lanes,
        tiles=tiles,
        visits=visits,
        row=lanes if fold > 1 else conv.rhs[-1],
        packed=packed,
        ahead=_ROWS_AHEAD if few and packed is None else 0,
        blocks=blocks,
        shares=shares,
        x_block=x_strides[-1] if gradient else batch * x_strides[0],
        w_block=math.prod(conv.window) * conv.rhs[-1] if gradient else 0,
        y_share=(images if gradient else batch) * y_strides[0],
        x_group=0 if channelwise else conv.rhs[-2] * x_strides[-1],
        parts=parts,
        together=len(tiles) if inside else 1,
        channelwise=channelwise,
        fold=fold,
        epilogue=epilogue,
        workers=machine.cores,
    )


def folded(conv: Conv, lanes: int) -> int:
    """How many neighbouring channels fit a vector, side by side."""
    fold = 1
    while 2 * fold <= 4 and 2 * fold * conv.rhs[-1] <= lanes:
        if conv.rhs[-2] % (2 * fold):
            break
        pairs = conv.mask.reshape(*conv.window, -1, 2 * fold)
        if not (pairs == pairs[..., :1]).all():
            break
        fold *= 2
    return fold


_FEWEST_CYCLES = 5000
_POSITIONS_TO_PACK = 48
_FEW_POSITIONS = 256
_LARGE_KERNEL = 1 << 17
_BLOCK_BYTES = 1 << 20
_LINE_BYTES = 64
_PAIR_OF_LINES = 128
_ROWS_AHEAD = 64


def _strides(shape: tuple[int, ...], order: "range | tuple[int, ...]") -> list[int]:
    strides, distance = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = distance
        distance *= shape[axis]
    return strides


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _batch(conv: Conv, machine: Machine, itemsize: int, apart: int) -> int:
    """Images of a block: they fit a cache and leave enough blocks for all cores."""
    image = _image_bytes(conv, itemsize)
    sizes = _divisors(conv.lhs[0])
    fitting = [b for b in sizes if b * image <= _BLOCK_BYTES] or [1]
    busy = [b for b in fitting if conv.lhs[0] // b * apart >= 4 * machine.cores]
    return busy[-1] if busy else fitting[0]


def _image_bytes(conv: Conv, itemsize: int) -> int:
    entries = math.prod(conv.lhs[1:]) + math.prod(conv.out) * conv.rhs[-1]
    return entries * itemsize


def _shares(conv: Conv, machine: Machine) -> int:
    """Parts of a weight gradient that are added up in the end."""
    out = conv.lhs[0] * math.prod(conv.out) * conv.rhs[-1]
    most = (math.prod(conv.lhs) + math.prod(conv.rhs)) // (4 * out)
    sizes = [d for d in _divisors(conv.lhs[-1]) if d <= 4 * machine.cores]
    return max([d for d in sizes if d <= most], default=1)


class _Line(NamedTuple):
    """Equally distant positions along one axis: how many, and steps in `x` and `y`."""

    size: int
    x_step: int
    y_step: int


class _Class(NamedTuple):
    """Positions that are computed alike: places, and how they are repeated.

    Attributes:
      lines: of repetitions, one per axis, images first.
      x, y: offsets of the first one.
      places: entries from there, in `x` and in `y`.
      sections: of the taps: the places that meet them, the taps, and what they read,
        relative to the place.
    """

    lines: tuple[_Line, ...]
    x: int
    y: int
    places: tuple[tuple[int, int], ...]
    sections: tuple[tuple[tuple[int, ...], np.ndarray, np.ndarray], ...]


_Positions = Sequence[tuple[_Class, tuple[tuple[np.ndarray, ...], ...]]]
"""Classes with their columns, per group and section."""


def _classes(
    conv: Conv,
    x_strides: list[int],
    y_strides: list[int],
    batch: int,
    whole: int,
    room: int,
) -> list[_Class]:
    """Positions whose taps are the same along all axes but the last ones.

    Along these, `whole` of them, all positions are places of one tile, or of several if
    they are more than there is `room` for.
    """
    images = _Line(batch, x_strides[0], y_strides[0])
    found = []
    free = len(conv.window) - whole
    axes = [_along(conv, axis) for axis in range(free)]
    tiles = _places(conv, range(free, len(conv.window)), x_strides, y_strides, room)
    for parts in itertools.product(*axes):
        lines, x, y = [images], 0, 0
        taps, reads = np.zeros((1,), int), np.zeros((1,), int)
        for axis, (first, count, step, base, base_step, pairs) in enumerate(parts):
            sx, sy = x_strides[axis + 1], y_strides[axis + 1]
            lines.append(_Line(count, base_step * sx, step * sy))
            x, y = x + base * sx, y + first * sy
            k, rel = np.array(pairs, int).reshape(-1, 2).T
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
            found.append(_Class(tuple(lines), x + x0, y + y0, places, joint))
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
        base, relative, inside = _meetings(conv, axis)
        meets = np.kron(meets, inside)
        steps = np.stack([base * sx, np.arange(len(base)) * sy], 1)
        at = (at[:, None] + steps).reshape(-1, 2)
        reads = (reads[:, None] + relative[0] * sx).reshape(-1)
    found = []
    for some in np.array_split(np.arange(len(at)), -(-len(at) // room)):
        members: dict[tuple[int, ...], list[int]] = {}
        for tap, column in enumerate(meets[some].T):
            if column.any():
                where = tuple(map(int, np.flatnonzero(column)))
                members.setdefault(where, []).append(tap)
        places = tuple((int(x), int(y)) for x, y in at[some] - at[some[0]])
        sections = [
            (where, np.array(k), reads[np.array(k)]) for where, k in members.items()
        ]
        found.append((tuple(map(int, at[some[0]])), places, sections))
    return found


def _meetings(
    conv: Conv, axis: int
) -> tuple[
    Int[np.ndarray, " out"], Int[np.ndarray, "out taps"], Bool[np.ndarray, "out taps"]
]:
    """Where positions stand in `x`, what taps read from there, whether they meet it."""
    dilation = conv.lhs_dilation[axis]
    taps = np.arange(conv.window[axis]) * conv.rhs_dilation[axis]
    at = np.arange(conv.out[axis]) * conv.strides[axis]
    base = at // dilation
    entry = at[:, None] + taps - conv.padding[axis][0]
    meets = (entry % dilation == 0) & (entry >= 0)
    meets &= entry // dilation < conv.image[axis]
    return base, entry // dilation - base[:, None], meets


def _along(conv: Conv, axis: int) -> list[tuple[int, int, int, int, int, tuple]]:
    """Classes of positions along one axis: first, count, step, in `y` and in `x`."""
    base, reads, meets = _meetings(conv, axis)
    members: dict[tuple, list[int]] = {}
    for o in range(conv.out[axis]):
        key = tuple((int(k), int(reads[o, k])) for k in np.flatnonzero(meets[o]))
        members.setdefault(key, []).append(o)
    found = []
    for key, positions in members.items():
        for part in _progressions(positions, base):
            step = part[1] - part[0] if len(part) > 1 else 0
            x_step = int(base[part[1]] - base[part[0]]) if len(part) > 1 else 0
            x = int(base[part[0]])
            found.append((part[0], len(part), step, x, x_step, key))
    return found


def _progressions(positions: list[int], base: np.ndarray) -> list[list[int]]:
    at = np.array(positions)
    even = all(np.unique(np.diff(v)).size <= 1 for v in (at, base[at]))
    return [positions] if even else [[p] for p in positions]


def _columns(
    conv: Conv, c: _Class, gradient: bool, fold: int
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


class _Choice(NamedTuple):
    """How places are repeated: along which axis, how often, in how many runs."""

    axis: int
    length: int
    runs: int


class _Tiling(NamedTuple):
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
    positions: _Positions
    ways: tuple[_Choice, ...]


class _Work(NamedTuple):
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


def _tiling(
    positions: _Positions,
    vectors: int,
    most: int,
    room: int,
    channelwise: bool,
    far: bool,
) -> _Tiling:
    """As few tiles as there can be of at most so many vectors."""
    count = -(-vectors // most)
    narrow, more = divmod(vectors, count)
    widest = narrow + (more > 0)
    ways, cycles = [], 0.0
    for c, k in positions:
        work = _Work(
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
    return _Tiling(cycles, count, widest, positions, tuple(ways))


def _read_once(tiling: _Tiling, tasks: int, vector_bytes: int, cores: int) -> _Tiling:
    """With the time that cores wait for the last task, or a tile for memory."""
    cycles = tiling.cycles * -(-tasks // cores) * cores / tasks
    beyond = tiling.widest * vector_bytes > _BLOCK_BYTES
    return tiling._replace(cycles=2 * cycles if beyond else cycles)


@functools.lru_cache(4096)
def _cheapest(work: _Work, vectors: int, most: int) -> tuple[float, _Choice]:
    """The cheapest tile for a class: estimated cycles, and what it is."""
    total = math.prod(work.counts)
    found = []
    for axis, count in enumerate(work.counts):
        for length in range(1, min(count, most) + 1):
            runs = min(_MOST_RUNS, most // length, total // count * (count // length))
            way = _Choice(axis, length, runs)
            found.append((_all(work, vectors, way), way))
    return min(found)


def _all(work: _Work, vectors: int, way: _Choice) -> float:
    """Estimated cycles of all positions of a class, for one tile of filters."""
    total, count = math.prod(work.counts), work.counts[way.axis]
    cost = 0.0
    for size, times in ((way.length, count // way.length), (count % way.length, 1)):
        if size:
            runs = total // count * times
            cost += _cycles(runs, size, way.runs, work, vectors)
    return 1.03 * cost if way.axis == 0 and way.length > 1 else cost


_MOST_RUNS = 8


def _cycles(runs: int, length: int, together: int, work: _Work, vectors: int) -> float:
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


def _visits(
    conv: Conv, c: _Class, columns: tuple[tuple[np.ndarray, ...], ...], way: _Choice
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
