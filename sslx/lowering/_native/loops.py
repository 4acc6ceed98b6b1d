"""The code of a `Sweep`: the walk over its tiles, from tasks to microkernels."""

from typing import Any, NamedTuple

import numpy as np

from sslx.lowering._native import llvm
from sslx.lowering._native.ir import Function, Index, Value, module
from sslx.lowering._native.microkernel import Types, microkernel, operand_names
from sslx.lowering._native.schedule import Kernel, Sweep

TABLES = Value("ptr", "@tables")


def target(sweep: Sweep) -> str:
    """The name by which XLA calls it; compiled where it is not yet, or no more."""
    tables = Tables()
    text = module(_functions(sweep, tables))
    calls = llvm.Calls(
        rounds=len(sweep.tiles) // sweep.together,
        pieces=sweep.shares * sweep.parts,
        workers=sweep.workers,
        slots=sweep.together,
        arguments=2 + len(operand_names(sweep)),
        results=2,
    )
    return llvm.named(text, tables.numbers(2 * sweep.ahead + 1), calls)


def slot_size(sweep: Sweep) -> int:
    """Entries of the rows of a tile, copied to stand one behind the other."""
    if sweep.packed is None:
        return 0
    widest = max(t.vectors for t in sweep.tiles) * sweep.lanes
    return widest * max(map(len, sweep.packed))


def scratch_size(sweep: Sweep) -> int:
    """Entries of the array that copied rows stand in."""
    return max(1, slot_size(sweep) * sweep.together * sweep.workers)


class Tables:
    """Tables of 32-bit integers, one behind the other."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.places: dict[bytes, int] = {}
        self.size = 0

    def place(self, values: Any) -> int:
        """Where a table starts; equal ones are stored once."""
        exact = np.asarray(values, np.int64).reshape(-1)
        flat = exact.astype(np.int32)
        if (flat != exact).any():
            raise OverflowError("a plan has numbers of more than 32 bits")
        key = flat.tobytes()
        if key not in self.places:
            self.places[key] = self.size
            self.parts.append(flat)
            self.size += flat.size
        return self.places[key]

    def numbers(self, beyond: int) -> np.ndarray:
        """All tables, and some zeros that may be read behind the last one."""
        return np.concatenate([*self.parts, np.zeros(beyond, np.int32)])


class _Kinds(NamedTuple):
    """What differs among the tiles of a sweep, each with functions of its own.

    Attributes:
      filters: vectors, and filters in the last one.
      positions: kernels.
      tiles: where the table of `_TileFields` starts.
    """

    filters: list[tuple[int, int]]
    positions: list[Kernel]
    tiles: int

    @classmethod
    def of(cls, sweep: Sweep, tables: Tables) -> "_Kinds":
        filters = list(dict.fromkeys((t.vectors, t.tail) for t in sweep.tiles))
        positions = list(dict.fromkeys(v.kernel for v in sweep.visits))
        rows = [
            _TileFields(
                filters.index((tile.vectors, tile.tail)),
                tile.group,
                tile.first,
                tile.first if sweep.channelwise else tile.group * sweep.x_group,
            )
            for tile in sweep.tiles
        ]
        return cls(filters, positions, tables.place(rows))


class _TileFields(NamedTuple):
    """What the code of a tile of filters reads about it.

    Attributes:
      kind: of its filters.
      group: of filters.
      first: filter.
      channel: of `x`, where it starts to read.
    """

    kind: Any
    group: Any
    first: Any
    channel: Any


class _VisitFields(NamedTuple):
    """What the code of a visit reads about it.

    Attributes:
      kernel: the first one of its positions; those of other filters follow.
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
    """Where columns stand, section by section, and where the ends of these."""

    columns: Any
    ends: Any


def _functions(sweep: Sweep, tables: Tables) -> list[Function]:
    kinds = _Kinds.of(sweep, tables)
    found = [
        microkernel(sweep, f"kernel_{i}_{j}", kernel, *filters)
        for i, kernel in enumerate(kinds.positions)
        for j, filters in enumerate(kinds.filters)
    ]
    found.append(_positions(sweep, kinds, tables))
    if sweep.packed is not None:
        found += [
            _pack(sweep, f"pack_{j}", vectors, tail)
            for j, (vectors, tail) in enumerate(kinds.filters)
        ]
        found.append(_pack_tiles(sweep, kinds, tables))
    return [*found, _task(sweep)]


def _task(sweep: Sweep) -> Function:
    """One part of the positions of one share, for some tiles of filters."""
    f, scalar = llvm.task(), Types.of(sweep).scalar
    x, w, *operands, y, scratch = llvm.arrays(f, 4 + len(operand_names(sweep)))
    part, rest = f.mod(f["t"], sweep.parts), f.div(f["t"], sweep.parts)
    share, some = f.mod(rest, sweep.shares), f.div(rest, sweep.shares)
    tile0 = f.mul(some, sweep.together)
    tiles = tile0, f.add(tile0, sweep.together)
    into = f.mul(share, sweep.y_share)
    per_share = sweep.blocks // sweep.shares
    first = f.mul(share, per_share)
    with f.loop(first, f.add(first, per_share)) as block:
        x_block = f.at(x, f.mul(block.index, sweep.x_block), scalar)
        w_block = f.at(w, f.mul(block.index, sweep.w_block), scalar)
        if sweep.packed is not None:
            size = sweep.together * slot_size(sweep)
            slots = f.at(scratch, f.mul(f["worker"], size), scalar)
            f.call("pack_tiles", w_block, slots, *tiles, f["held"])
            w_block = slots
        more = f.less(first, block.index)
        f.call("positions", x_block, w_block, y, *operands, into, part, *tiles, more)
    f.ret()
    return f


def _positions(sweep: Sweep, kinds: _Kinds, tables: Tables) -> Function:
    """All positions of one part, for each of them some tiles of filters.

    What a position reads stays in the nearest cache while its filters are computed.
    """
    arrays = dict.fromkeys(["x", "w", "y", *operand_names(sweep)], "ptr")
    numbers = dict.fromkeys(["into", "part", "tile0", "tile1"], "i64")
    f = Function("positions", arrays | numbers | {"more": "i1"})
    scalar = Types.of(sweep).scalar
    visits, ends = _visits(sweep, kinds, tables)
    with f.loop(0, len(sweep.visits)) as visit:
        fields = _VisitFields(*_fields(f, visits, visit.index, _VisitFields))
        first = f.add(f.mul(visit.index, sweep.parts + 1), f["part"])
        begin, end = (f.number(TABLES, f.add(first, ends + k)) for k in (0, 1))
        with f.loop(begin, end) as tile:
            start = f.add(f.mul(tile.index, fields.length), fields.runs)
            runs = f.at(TABLES, start, "i32")
            following = f.at(f["x"], f.number(runs, fields.length), scalar)
            with f.loop(f["tile0"], f["tile1"]) as filters:
                _tile(f, sweep, kinds, fields, runs, following, filters.index)
    f.ret()
    return f


def _visits(sweep: Sweep, kinds: _Kinds, tables: Tables) -> tuple[int, int]:
    """Where the table of `_VisitFields` starts, and that of the parts of visits."""
    rows, ends = [], []
    for visit in sweep.visits:
        runs = visit.kernel.runs
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
                kinds.positions.index(visit.kernel) * len(kinds.filters),
                2 * runs,
                tables.place(visit.runs),
                tables.place(columns),
                visit.pace,
            )
        )
        ends.append([p * count // sweep.parts for p in range(sweep.parts + 1)])
    return tables.place(rows), tables.place(ends)


_NO_COLUMN = np.zeros((0, 2), np.int32)


def _tile(
    f: Function,
    sweep: Sweep,
    kinds: _Kinds,
    visit: _VisitFields,
    runs: Value,
    following: Value,
    number: Value,
) -> None:
    """Call the microkernel of some positions and one tile of filters.

    Args:
      f: where it is called.
      sweep: the plan.
      kinds: of tiles.
      visit: the positions' fields.
      runs: where they stand.
      following: where the next ones read.
      number: of the tile of filters.
    """
    scalar = Types.of(sweep).scalar
    tile = _TileFields(*_fields(f, kinds.tiles, number, _TileFields))
    group = tile.group if len(sweep.visits[0].columns) > 1 else 0
    columns = _ColumnFields(*_fields(f, visit.columns, group, _ColumnFields))
    if sweep.packed is None:
        w = f.at(f["w"], tile.first, scalar)
    else:
        place = f.mul(f.mod(number, sweep.together), slot_size(sweep))
        w = f.at(f["w"], place, scalar)
    into = f.add(f["into"], tile.first)
    operands = [
        f.at(f[name], tile.first if name.startswith("filter") else into, scalar)
        for name in operand_names(sweep)
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
    count = len(kinds.filters)
    which = f.add(visit.kernel, tile.kind)
    for k in f.switch(which, len(kinds.positions) * count):
        f.call(f"kernel_{k // count}_{k % count}", *arguments)


def _fields(f: Function, table: Index, row: Index, kind: type[tuple]) -> list[Value]:
    """Read a row of a table of named tuples."""
    names = kind._fields  # pyright: ignore
    start = f.add(f.mul(row, len(names)), table)
    return [f.number(TABLES, f.add(start, k)) for k in range(len(names))]


def _pack_tiles(sweep: Sweep, kinds: _Kinds, tables: Tables) -> Function:
    """Copy the rows of all tiles of a task that do not stand in their slots yet."""
    assert sweep.packed is not None
    params = {"w": "ptr", "slots": "ptr", "tile0": "i64", "tile1": "i64", "held": "ptr"}
    f, scalar = Function("pack_tiles", params), Types.of(sweep).scalar
    rows = tables.place([(tables.place(r), len(r)) for r in sweep.packed])
    with f.loop(f["tile0"], f["tile1"]) as each:
        place = f.mod(each.index, sweep.together)
        held = f.at(f["held"], place, "i64")
        with f.when(f.differ(f.load("i64", held), each.index)):
            f.store(each.index, held)
            tile = _TileFields(*_fields(f, kinds.tiles, each.index, _TileFields))
            group = tile.group if len(sweep.packed) > 1 else 0
            first, count = _fields(f, rows, group, _Rows)
            source = f.at(f["w"], tile.first, scalar)
            slot = f.at(f["slots"], f.mul(place, slot_size(sweep)), scalar)
            some = f.at(TABLES, first, "i32")
            for k in f.switch(tile.kind, len(kinds.filters)):
                f.call(f"pack_{k}", source, slot, some, count)
    f.ret()
    return f


class _Rows(NamedTuple):
    """Where the numbers of rows stand, and how many there are."""

    first: Any
    count: Any


def _pack(sweep: Sweep, name: str, vectors: int, tail: int) -> Function:
    """Copy some rows of a tile one behind the other; zeros behind the last filter."""
    params = {"source": "ptr", "into": "ptr", "rows": "ptr", "count": "i64"}
    f, types = Function(name, params), Types.of(sweep)
    with f.loop(0, f["count"]) as each:
        row = f.mul(f.number(f["rows"], each.index), sweep.row)
        source = f.at(f["source"], row, types.scalar)
        into = f.mul(each.index, vectors * sweep.lanes)
        into = f.at(f["into"], into, types.scalar)
        for v in range(vectors):
            lanes = tail if v == vectors - 1 else sweep.lanes
            place = f.at(source, v * sweep.lanes, types.scalar)
            some = f.load_first(types.lanes, place, lanes)
            place = f.at(into, v * sweep.lanes, types.scalar)
            f.store(some, place, types.lanes.bytes)
    f.ret()
    return f
