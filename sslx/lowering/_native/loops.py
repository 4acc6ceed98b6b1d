"""The loops of a `Schedule`, from its tasks down to the microkernels.

A task goes through its blocks; per block it packs the rows of its filter tiles, where
the schedule says so, and calls `positions`, which loops over visits, over the position
tiles of its part and, innermost, over filter tiles: what a position tile reads stays in
the nearest cache meanwhile. Which microkernel to call, and where it reads and writes,
stand in tables of integers: the code grows with the number of different tiles only, not
with that of positions, columns or filters.
"""

from typing import Any, NamedTuple

import numpy as np

from sslx.lowering._native import llvm
from sslx.lowering._native.ir import Function, module
from sslx.lowering._native.microkernel import Types, microkernel, operand_names
from sslx.lowering._native.schedule import PositionTile, Schedule
from sslx.lowering._native.values import Index, Value

TABLES = Value("ptr", "@tables")


def target(schedule: Schedule) -> str:
    """The name by which XLA calls it, compiled if there is no code for it now."""
    tables = Tables()
    text = module(_functions(schedule, tables))
    calls = llvm.Calls(
        rounds=len(schedule.filters) // schedule.tasks.tiles,
        pieces=schedule.tasks.shares * schedule.tasks.parts,
        workers=schedule.tasks.workers,
        slots=schedule.tasks.tiles,
        arguments=2 + len(operand_names(schedule)),
        results=2,
    )
    return llvm.named(text, tables.numbers(2 * schedule.rows.ahead + 1), calls)


def slot_size(schedule: Schedule) -> int:
    """Entries of the packed panel of a filter tile."""
    if schedule.rows.packed is None:
        return 0
    widest = max(t.vectors for t in schedule.filters) * schedule.vectors.lanes
    return widest * max(map(len, schedule.rows.packed))


def scratch_size(schedule: Schedule) -> int:
    """Entries of the array that holds the packed panels of all workers."""
    return max(1, slot_size(schedule) * schedule.tasks.tiles * schedule.tasks.workers)


class Tables:
    """Tables of 32-bit integers in one array."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.places: dict[bytes, int] = {}
        self.size = 0

    def place(self, values: Any) -> int:
        """Where a table starts; equal ones are stored once."""
        exact = np.asarray(values, np.int64).reshape(-1)
        flat = exact.astype(np.int32)
        if (flat != exact).any():
            raise OverflowError("a schedule has numbers of more than 32 bits")
        key = flat.tobytes()
        if key not in self.places:
            self.places[key] = self.size
            self.parts.append(flat)
            self.size += flat.size
        return self.places[key]

    def numbers(self, beyond: int) -> np.ndarray:
        """All tables, and some zeros behind the last one, which prefetches may read."""
        return np.concatenate([*self.parts, np.zeros(beyond, np.int32)])


class _Variants(NamedTuple):
    """The different tiles of a schedule, each of which has functions of its own.

    Attributes:
      filters: vectors, and filters in the last one.
      positions: tiles of them.
      tiles: where the table of `_TileFields` starts.
    """

    filters: list[tuple[int, int]]
    positions: list[PositionTile]
    tiles: int

    @classmethod
    def of(cls, schedule: Schedule, tables: Tables) -> "_Variants":
        filters = list(dict.fromkeys((t.vectors, t.tail) for t in schedule.filters))
        positions = list(dict.fromkeys(v.tile for v in schedule.visits))
        rows = [
            _TileFields(
                filters.index((tile.vectors, tile.tail)),
                tile.group,
                tile.first,
                tile.first
                if schedule.vectors.channelwise
                else tile.group * schedule.strides.x_group,
            )
            for tile in schedule.filters
        ]
        return cls(filters, positions, tables.place(rows))


class _TileFields(NamedTuple):
    """A row of the table of filter tiles.

    Attributes:
      kind: which of `_Variants.filters`.
      group: of filters.
      first: filter.
      channel: of `x`, where it starts to read.
    """

    kind: Any
    group: Any
    first: Any
    channel: Any


class _VisitFields(NamedTuple):
    """A row of the table of visits.

    Attributes:
      kernel: the first microkernel of its tiles; those of other filters follow.
      length: numbers of its runs per tile.
      runs: where these start.
      columns: where the table of `_ColumnFields` of its groups starts.
      pace: see `Visit`.
    """

    kernel: Any
    length: Any
    runs: Any
    columns: Any
    pace: Any


class _ColumnFields(NamedTuple):
    """Where the columns of a group start, and where the ends of their sections."""

    columns: Any
    ends: Any


def _functions(schedule: Schedule, tables: Tables) -> list[Function]:
    variants = _Variants.of(schedule, tables)
    found = [
        microkernel(schedule, f"kernel_{i}_{j}", tile, *filters)
        for i, tile in enumerate(variants.positions)
        for j, filters in enumerate(variants.filters)
    ]
    found.append(_positions(schedule, variants, tables))
    if schedule.rows.packed is not None:
        found += [
            _pack(schedule, f"pack_{j}", vectors, tail)
            for j, (vectors, tail) in enumerate(variants.filters)
        ]
        found.append(_pack_tiles(schedule, variants, tables))
    return [*found, _task(schedule)]


def _task(schedule: Schedule) -> Function:
    """One part of the positions of one share, for some filter tiles."""
    f, scalar = llvm.task(), Types.of(schedule).scalar
    x, w, *operands, y, scratch = llvm.arrays(f, 4 + len(operand_names(schedule)))
    tasks, strides = schedule.tasks, schedule.strides
    part, rest = f.mod(f["t"], tasks.parts), f.div(f["t"], tasks.parts)
    share, some = f.mod(rest, tasks.shares), f.div(rest, tasks.shares)
    tile0 = f.mul(some, tasks.tiles)
    tiles = tile0, f.add(tile0, tasks.tiles)
    into = f.mul(share, strides.y_share)
    first = f.mul(share, tasks.blocks_per_share)
    with f.loop(first, f.add(first, tasks.blocks_per_share)) as block:
        x_block = f.at(x, f.mul(block.index, strides.x_block), scalar)
        w_block = f.at(w, f.mul(block.index, strides.w_block), scalar)
        if schedule.rows.packed is not None:
            size = tasks.tiles * slot_size(schedule)
            slots = f.at(scratch, f.mul(f["worker"], size), scalar)
            f.call("pack_tiles", w_block, slots, *tiles, f["held"])
            w_block = slots
        more = f.less(first, block.index)
        f.call("positions", x_block, w_block, y, *operands, into, part, *tiles, more)
    f.ret()
    return f


def _positions(schedule: Schedule, variants: _Variants, tables: Tables) -> Function:
    """All positions of one part, each for some filter tiles."""
    arrays = dict.fromkeys(["x", "w", "y", *operand_names(schedule)], "ptr")
    numbers = dict.fromkeys(["into", "part", "tile0", "tile1"], "i64")
    f = Function("positions", arrays | numbers | {"more": "i1"})
    scalar = Types.of(schedule).scalar
    visits, ends = _visits(schedule, variants, tables)
    with f.loop(0, len(schedule.visits)) as visit:
        fields = _VisitFields(*_fields(f, visits, visit.index, _VisitFields))
        first = f.add(f.mul(visit.index, schedule.tasks.parts + 1), f["part"])
        begin, end = (f.number(TABLES, f.add(first, ends + k)) for k in (0, 1))
        with f.loop(begin, end) as tile:
            start = f.add(f.mul(tile.index, fields.length), fields.runs)
            runs = f.at(TABLES, start, "i32")
            following = f.at(f["x"], f.number(runs, fields.length), scalar)
            with f.loop(f["tile0"], f["tile1"]) as filters:
                _tile(f, schedule, variants, fields, runs, following, filters.index)
    f.ret()
    return f


def _visits(schedule: Schedule, variants: _Variants, tables: Tables) -> tuple[int, int]:
    """Where the table of `_VisitFields` starts, and that of the ends of parts."""
    rows, ends, parts = [], [], schedule.tasks.parts
    for visit in schedule.visits:
        runs = visit.tile.runs
        count = len(visit.runs) // runs
        columns = [
            _ColumnFields(
                tables.place(np.concatenate([*sections, _NO_COLUMN])),
                tables.place(np.cumsum([len(k) for k in sections])),
            )
            for sections in visit.columns
        ]
        rows.append(
            _VisitFields(
                variants.positions.index(visit.tile) * len(variants.filters),
                2 * runs,
                tables.place(visit.runs),
                tables.place(columns),
                visit.pace,
            )
        )
        ends.append([p * count // parts for p in range(parts + 1)])
    return tables.place(rows), tables.place(ends)


_NO_COLUMN = np.zeros((0, 2), np.int32)


def _tile(
    f: Function,
    schedule: Schedule,
    variants: _Variants,
    visit: _VisitFields,
    runs: Value,
    following: Value,
    number: Value,
) -> None:
    """Call the microkernel of one position tile and one filter tile.

    Args:
      f: where it is called.
      schedule: whose tiles they are.
      variants: of tiles.
      visit: of the position tile.
      runs: where it starts.
      following: where the next one reads.
      number: of the filter tile.
    """
    scalar = Types.of(schedule).scalar
    tile = _TileFields(*_fields(f, variants.tiles, number, _TileFields))
    group = tile.group if len(schedule.visits[0].columns) > 1 else 0
    columns = _ColumnFields(*_fields(f, visit.columns, group, _ColumnFields))
    if schedule.rows.packed is None:
        w = f.at(f["w"], tile.first, scalar)
    else:
        place = f.mul(f.mod(number, schedule.tasks.tiles), slot_size(schedule))
        w = f.at(f["w"], place, scalar)
    into = f.add(f["into"], tile.first)
    operands = [
        f.at(f[name], tile.first if name.startswith("filter") else into, scalar)
        for name in operand_names(schedule)
    ]
    arguments = [
        f.at(f["x"], tile.channel, scalar),
        w,
        f.at(f["y"], into, scalar),
        *operands,
        f.at(TABLES, columns.columns, "i32"),
        f.at(TABLES, columns.ends, "i32"),
        runs,
        f["more"],
        following,
        f.choose(f.same(number, f["tile0"]), visit.pace, 0),
    ]
    count = len(variants.filters)
    which = f.add(visit.kernel, tile.kind)
    for k in f.switch(which, len(variants.positions) * count):
        f.call(f"kernel_{k // count}_{k % count}", *arguments)


def _fields(f: Function, table: Index, row: Index, kind: type[tuple]) -> list[Value]:
    """Read a row of a table."""
    names = kind._fields  # pyright: ignore
    start = f.add(f.mul(row, len(names)), table)
    return [f.number(TABLES, f.add(start, k)) for k in range(len(names))]


def _pack_tiles(schedule: Schedule, variants: _Variants, tables: Tables) -> Function:
    """Pack the filter tiles of a task whose panels are not in their slots yet."""
    assert schedule.rows.packed is not None
    params = {"w": "ptr", "slots": "ptr", "tile0": "i64", "tile1": "i64", "held": "ptr"}
    f, scalar = Function("pack_tiles", params), Types.of(schedule).scalar
    rows = tables.place([(tables.place(r), len(r)) for r in schedule.rows.packed])
    with f.loop(f["tile0"], f["tile1"]) as each:
        place = f.mod(each.index, schedule.tasks.tiles)
        held = f.at(f["held"], place, "i64")
        with f.when(f.differ(f.load("i64", held), each.index)):
            f.store(each.index, held)
            tile = _TileFields(*_fields(f, variants.tiles, each.index, _TileFields))
            group = tile.group if len(schedule.rows.packed) > 1 else 0
            first, count = _fields(f, rows, group, _Rows)
            source = f.at(f["w"], tile.first, scalar)
            slot = f.at(f["slots"], f.mul(place, slot_size(schedule)), scalar)
            some = f.at(TABLES, first, "i32")
            for k in f.switch(tile.kind, len(variants.filters)):
                f.call(f"pack_{k}", source, slot, some, count)
    f.ret()
    return f


class _Rows(NamedTuple):
    """Where the numbers of the rows of a panel start, and how many there are."""

    first: Any
    count: Any


def _pack(schedule: Schedule, name: str, vectors: int, tail: int) -> Function:
    """Copy rows into a dense panel, with zeros behind the last filter."""
    params = {"source": "ptr", "into": "ptr", "rows": "ptr", "count": "i64"}
    f, types = Function(name, params), Types.of(schedule)
    with f.loop(0, f["count"]) as each:
        row = f.mul(f.number(f["rows"], each.index), schedule.rows.stride)
        source = f.at(f["source"], row, types.scalar)
        into = f.mul(each.index, vectors * schedule.vectors.lanes)
        into = f.at(f["into"], into, types.scalar)
        for v in range(vectors):
            lanes = tail if v == vectors - 1 else schedule.vectors.lanes
            place = f.at(source, v * schedule.vectors.lanes, types.scalar)
            some = f.load_first(types.lanes, place, lanes)
            place = f.at(into, v * schedule.vectors.lanes, types.scalar)
            f.store(some, place, types.lanes.bytes)
    f.ret()
    return f
