"""The microkernel: one tile of sums, held in registers.

A tile has one vector of sums per place and vector of filters. For every column, the
vectors of its row of `w` are loaded; for every place that meets the column, the entry
that it reads is loaded and broadcast to all lanes; their products are added to the
sums. Channelwise filters multiply a vector of channels instead of a broadcast entry.
Interleaved channels are broadcast as a group, and neighbouring lanes are added up at
the end. Each section of the columns has a loop of its own, which updates only the sums
of the places that meet it.

Sums start at zero or, where `more` blocks are added up, at what `y` holds. After the
last column the epilogue is applied and they are stored. The shape of a tile is known
when its code is made, so every loop but that over columns is unrolled.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from sslx.lowering._native.ir import Carried, Function
from sslx.lowering._native.schedule import PositionTile, Schedule
from sslx.lowering._native.values import Value, Vector


class Entry(NamedTuple):
    """One sum of a tile: a run, a place in it, and a vector of filters."""

    run: int
    place: int
    vector: int


class Types(NamedTuple):
    """Vectors as LLVM's types.

    Attributes:
      lanes: a whole one.
      filters: what is left of it when interleaved channels are added up.
      scalar: one entry.
    """

    lanes: Vector
    filters: Vector
    scalar: str

    @classmethod
    def of(cls, schedule: Schedule) -> "Types":
        """Those of a schedule."""
        bits = {"float32": 32, "float64": 64}[schedule.vectors.dtype]
        lanes = Vector(schedule.vectors.lanes, bits)
        return cls(lanes, Vector(schedule.vectors.filters, bits), lanes.scalar)


def operand_names(schedule: Schedule) -> list[str]:
    """Names of the operands of the epilogue, as parameters of functions."""
    names = [f"filter{k}" for k in range(schedule.per_filter)]
    return names + [f"entry{k}" for k in range(schedule.per_entry)]


def microkernel(
    schedule: Schedule, name: str, tile: PositionTile, vectors: int, tail: int
) -> Function:
    """The function of a tile.

    Its parameters are the arrays, from where the tile starts; its `columns` and the
    `ends` of their sections; where its `runs` start; whether there are `more` sums in
    `y` to add to; where the `next` tile reads, and at which `pace` to prefetch that.

    Args:
      schedule: whose tile it is.
      name: of the function.
      tile: its positions.
      vectors: of filters.
      tail: filters in the last one.
    """
    return _Microkernel(schedule, name, tile, vectors, tail).function()


class _Microkernel:
    def __init__(
        self, schedule: Schedule, name: str, tile: PositionTile, vectors: int, tail: int
    ):
        arrays = ["x", "w", "y", *operand_names(schedule)]
        params = dict.fromkeys([*arrays, "columns", "ends", "runs"], "ptr")
        self.f = Function(name, params | {"more": "i1", "next": "ptr", "pace": "i64"})
        self.schedule, self.tile = schedule, tile
        self.vectors, self.tail = vectors, tail
        self.types = Types.of(schedule)
        self.x: list[Value] = []
        self.y_offsets: list[Value] = []
        self.into: dict[Entry, Value] = {}

    def function(self) -> Function:
        f, every = self.f, self._entries(range(len(self.tile.places)))
        self._locate(every)
        for entry in every:
            f.prefetch(self.into[entry], write=True, near=3)
        sums = dict.fromkeys(every, self.types.lanes.zeros())
        if self.schedule.tasks.blocks_per_share > 1:
            with f.when(f["more"], *sums.values()) as again:
                again.values = [
                    f.load_first(self.types.filters, self.into[e], self._filters(e))
                    for e in every
                ]
            sums = dict(zip(every, again.values, strict=True))
        begin: Value | int = 0
        for s, places in enumerate(self.tile.sections):
            end = f.number(f["ends"], s)
            met = self._entries(places)
            with f.loop(begin, end, *(sums[e] for e in met)) as column:
                self._multiply_add(column, met)
            sums |= dict(zip(met, column.values, strict=True))
            begin = end
        for entry in sorted(every, key=lambda e: e.vector):
            value = sums[entry]
            for _ in range(self.schedule.vectors.interleave.bit_length() - 1):
                value = f.pairs_added(value)
            value = self._with_epilogue(entry, value)
            f.store_first(value, self.into[entry], self._filters(entry))
        f.ret()
        return f

    def _entries(self, places: Iterable[int]) -> list[Entry]:
        runs = range(self.tile.runs)
        found = itertools.product(runs, places, range(self.vectors))
        return list(itertools.starmap(Entry, found))

    def _filters(self, entry: Entry) -> int:
        """How many filters an entry's vector has."""
        last = entry.vector == self.vectors - 1
        return self.tail if last else self.types.filters.lanes

    def _locate(self, entries: list[Entry]) -> None:
        """Find where runs start in `x` and `y`, and where every sum is stored."""
        f, scalar = self.f, self.types.scalar
        starts = []
        for r in range(self.tile.runs):
            self.x.append(f.at(f["x"], f.number(f["runs"], 2 * r), scalar))
            self.y_offsets.append(f.number(f["runs"], 2 * r + 1))
            starts.append(f.at(f["y"], self.y_offsets[r], scalar))
        for e in entries:
            offset = (
                self.tile.places[e.place][1] + e.vector * self.schedule.vectors.lanes
            )
            self.into[e] = f.at(starts[e.run], offset, scalar)

    def _multiply_add(self, column: Carried, met: list[Entry]) -> None:
        """Add one column: its row of `w` times what each place reads."""
        f, scalar = self.f, self.types.scalar
        here = f.at(f["columns"], column.index, "[2 x i32]")
        read = f.number(here, 0)
        weights = self._weights(column, here)
        starts = [f.at(start, read, scalar) for start in self.x]
        values: dict[tuple[int, int], Value] = {}
        for k, e in enumerate(met):
            offset = self.tile.places[e.place][0]
            if self.schedule.vectors.channelwise:
                place = f.at(
                    starts[e.run],
                    offset + e.vector * self.schedule.vectors.lanes,
                    scalar,
                )
                value = f.load_first(self.types.lanes, place, self._filters(e))
            else:
                if e[:2] not in values:
                    some = Vector(
                        self.schedule.vectors.interleave, self.types.lanes.bits
                    )
                    place = f.at(starts[e.run], offset, scalar)
                    one = f.load(some, place, some.bytes)
                    values[e[:2]] = f.repeated(one, self.schedule.vectors.lanes)
                value = values[e[:2]]
            column.values[k] = f.fma(value, weights[e.vector], column.values[k])

    def _weights(self, column: Carried, here: Value) -> list[Value]:
        """Load the vectors of a column's row, and prefetch later rows."""
        f, schedule, scalar = self.f, self.schedule, self.types.scalar
        start = self._row(here, 1)
        if any(visit.pace for visit in schedule.visits):
            f.prefetch(f.at(f["next"], f.mul(column.index, f["pace"])))
        offsets = [v * schedule.vectors.lanes for v in range(self.vectors)]
        if schedule.rows.ahead:
            later = self._row(here, 2 * schedule.rows.ahead + 1)
            for offset in offsets:
                f.prefetch(f.at(later, offset, scalar))
        padded = schedule.rows.packed is not None or schedule.vectors.interleave > 1
        found = []
        for v, offset in enumerate(offsets):
            lanes = schedule.vectors.lanes if padded else self._filters(Entry(0, 0, v))
            place = f.at(start, offset, scalar)
            found.append(f.load_first(self.types.lanes, place, lanes))
        return found

    def _row(self, column: Value, place: int) -> Value:
        """Where a row of `w` starts whose number is `place` integers after a column."""
        f, schedule = self.f, self.schedule
        length = (
            schedule.rows.stride
            if schedule.rows.packed is None
            else self.vectors * schedule.vectors.lanes
        )
        offset = f.mul(f.number(column, place), length)
        return f.at(f["w"], offset, self.types.scalar)

    def _with_epilogue(self, entry: Entry, value: Value) -> Value:
        """A vector of sums after the epilogue."""
        f, filters, scalar = self.f, self.types.filters, self.types.scalar
        offset = entry.vector * filters.lanes
        for post in self.schedule.epilogue:
            if post.kind == "number":
                operand = filters.filled(post.number)
            else:
                start = f[f"{post.kind}{post.operand}"]
                if post.kind == "entry":
                    start = f.at(start, self.y_offsets[entry.run], scalar)
                    start = f.at(start, self.tile.places[entry.place][1], scalar)
                place = f.at(start, offset, scalar)
                operand = f.load_first(filters, place, self._filters(entry))
            a, b = (operand, value) if post.swapped else (value, operand)
            value = _OPS[post.op](f, a, b)
        return value


_OPS = {
    "add": lambda f, a, b: f.arithmetic("fadd", a, b),
    "sub": lambda f, a, b: f.arithmetic("fsub", a, b),
    "mul": lambda f, a, b: f.arithmetic("fmul", a, b),
    "div": lambda f, a, b: f.arithmetic("fdiv", a, b),
    "max": Function.maximum,
    "min": Function.minimum,
}
