"""The innermost code of a `Sweep`: a tile of sums that are held in registers.

For every column of a section, the vectors of its row of `w` are loaded; what each place
that meets it reads is loaded and repeated in all lanes; every place times every vector
is added to a sum of its own. In the end the epilogue is applied, and sums are stored.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from sslx.lowering._native.ir import Carried, Function, Value, Vector
from sslx.lowering._native.schedule import Kernel, Sweep


class Entry(NamedTuple):
    """One sum of a tile: a run, a place in it, and a vector of filters."""

    run: int
    place: int
    vector: int


class Types(NamedTuple):
    """Vectors of a sweep.

    Attributes:
      lanes: a whole one.
      filters: what is left of it after neighbouring lanes were added up.
      scalar: one entry.
    """

    lanes: Vector
    filters: Vector
    scalar: str

    @classmethod
    def of(cls, sweep: Sweep) -> "Types":
        """Those of a plan."""
        bits = {"float32": 32, "float64": 64}[sweep.dtype]
        lanes = Vector(sweep.lanes, bits)
        return cls(lanes, Vector(sweep.lanes // sweep.fold, bits), lanes.scalar)


def operand_names(sweep: Sweep) -> list[str]:
    """Parameters of functions that apply the epilogue, beside `x`, `w` and `y`."""
    names = [f"filter{k}" for k in range(sweep.per_filter)]
    return names + [f"entry{k}" for k in range(sweep.per_entry)]


def microkernel(
    sweep: Sweep, name: str, kernel: Kernel, vectors: int, tail: int
) -> Function:
    """The function of a tile.

    Its parameters, beside the arrays from where the tile starts: its `columns` and
    where sections of these end, where its `runs` start, whether there are `more` sums
    in `y` to add to, and what to fetch ahead at which pace for the next tile.

    Args:
      sweep: whose tile it is.
      name: of the function.
      kernel: its positions.
      vectors: of filters.
      tail: filters in the last one.
    """
    return _Microkernel(sweep, name, kernel, vectors, tail).function()


class _Microkernel:
    def __init__(
        self, sweep: Sweep, name: str, kernel: Kernel, vectors: int, tail: int
    ):
        arrays = ["x", "w", "y", *operand_names(sweep)]
        params = dict.fromkeys([*arrays, "columns", "ends", "runs"], "ptr")
        self.f = Function(name, params | {"more": "i1", "next": "ptr", "pace": "i64"})
        self.sweep, self.kernel = sweep, kernel
        self.vectors, self.tail = vectors, tail
        self.types = Types.of(sweep)
        self.x: list[Value] = []
        self.y_offsets: list[Value] = []
        self.into: dict[Entry, Value] = {}

    def function(self) -> Function:
        f, tile = self.f, self._entries(range(len(self.kernel.places)))
        self._find_places(tile)
        for entry in tile:
            f.prefetch(self.into[entry], write=True, near=3)
        sums = dict.fromkeys(tile, self.types.lanes.zeros())
        if self.sweep.blocks > self.sweep.shares:
            with f.when(f["more"], *sums.values()) as again:
                again.values = [
                    f.load_first(self.types.filters, self.into[e], self._whole(e))
                    for e in tile
                ]
            sums = dict(zip(tile, again.values, strict=True))
        begin: Value | int = 0
        for s, places in enumerate(self.kernel.sections):
            end = f.number(f["ends"], s)
            met = self._entries(places)
            with f.loop(begin, end, *(sums[e] for e in met)) as column:
                self._multiply_add(column, met)
            sums |= dict(zip(met, column.values, strict=True))
            begin = end
        for entry in sorted(tile, key=lambda e: e.vector):
            value = sums[entry]
            for _ in range(self.sweep.fold.bit_length() - 1):
                value = f.pairs_added(value)
            value = self._followed(entry, value)
            f.store_first(value, self.into[entry], self._whole(entry))
        f.ret()
        return f

    def _entries(self, places: Iterable[int]) -> list[Entry]:
        runs = range(self.kernel.runs)
        every = itertools.product(runs, places, range(self.vectors))
        return list(itertools.starmap(Entry, every))

    def _whole(self, entry: Entry) -> int:
        """Filters of an entry's vector that there are."""
        last = entry.vector == self.vectors - 1
        return self.tail if last else self.types.filters.lanes

    def _find_places(self, tile: list[Entry]) -> None:
        """Where runs start in `x` and `y`, and where every sum goes."""
        f, scalar = self.f, self.types.scalar
        starts = []
        for r in range(self.kernel.runs):
            self.x.append(f.at(f["x"], f.number(f["runs"], 2 * r), scalar))
            self.y_offsets.append(f.number(f["runs"], 2 * r + 1))
            starts.append(f.at(f["y"], self.y_offsets[r], scalar))
        for e in tile:
            offset = self.kernel.places[e.place][1] + e.vector * self.sweep.lanes
            self.into[e] = f.at(starts[e.run], offset, scalar)

    def _multiply_add(self, column: Carried, met: list[Entry]) -> None:
        """One column: its row of `w` times what each place reads, added to the sums."""
        f, scalar = self.f, self.types.scalar
        here = f.at(f["columns"], column.index, "[2 x i32]")
        read = f.number(here, 0)
        weights = self._weights(column, here)
        starts = [f.at(start, read, scalar) for start in self.x]
        values: dict[tuple[int, int], Value] = {}
        for k, e in enumerate(met):
            offset = self.kernel.places[e.place][0]
            if self.sweep.channelwise:
                place = f.at(
                    starts[e.run], offset + e.vector * self.sweep.lanes, scalar
                )
                value = f.load_first(self.types.lanes, place, self._whole(e))
            else:
                if e[:2] not in values:
                    some = Vector(self.sweep.fold, self.types.lanes.bits)
                    place = f.at(starts[e.run], offset, scalar)
                    one = f.load(some, place, some.bytes)
                    values[e[:2]] = f.repeated(one, self.sweep.lanes)
                value = values[e[:2]]
            column.values[k] = f.fma(value, weights[e.vector], column.values[k])

    def _weights(self, column: Carried, here: Value) -> list[Value]:
        """The vectors of a column's row; what comes later is fetched ahead."""
        f, sweep, scalar = self.f, self.sweep, self.types.scalar
        start = self._row(here, 1)
        if any(visit.pace for visit in sweep.visits):
            f.prefetch(f.at(f["next"], f.mul(column.index, f["pace"])))
        offsets = [v * sweep.lanes for v in range(self.vectors)]
        if sweep.ahead:
            later = self._row(here, 2 * sweep.ahead + 1)
            for offset in offsets:
                f.prefetch(f.at(later, offset, scalar))
        padded = sweep.packed is not None or sweep.fold > 1
        found = []
        for v, offset in enumerate(offsets):
            lanes = sweep.lanes if padded else self._whole(Entry(0, 0, v))
            place = f.at(start, offset, scalar)
            found.append(f.load_first(self.types.lanes, place, lanes))
        return found

    def _row(self, column: Value, place: int) -> Value:
        """Where a row of `w` starts, whose number stands at a place after a column."""
        f, sweep = self.f, self.sweep
        length = sweep.row if sweep.packed is None else self.vectors * sweep.lanes
        offset = f.mul(f.number(column, place), length)
        return f.at(f["w"], offset, self.types.scalar)

    def _followed(self, entry: Entry, value: Value) -> Value:
        """The epilogue of a vector of sums."""
        f, filters, scalar = self.f, self.types.filters, self.types.scalar
        offset = entry.vector * filters.lanes
        for step in self.sweep.epilogue:
            if step.kind == "number":
                operand = filters.filled(step.number)
            else:
                start = f[f"{step.kind}{step.place}"]
                if step.kind == "entry":
                    start = f.at(start, self.y_offsets[entry.run], scalar)
                    start = f.at(start, self.kernel.places[entry.place][1], scalar)
                place = f.at(start, offset, scalar)
                operand = f.load_first(filters, place, self._whole(entry))
            a, b = (operand, value) if step.swapped else (value, operand)
            value = _OPS[step.op](f, a, b)
        return value


_OPS = {
    "add": lambda f, a, b: f.arithmetic("fadd", a, b),
    "sub": lambda f, a, b: f.arithmetic("fsub", a, b),
    "mul": lambda f, a, b: f.arithmetic("fmul", a, b),
    "div": lambda f, a, b: f.arithmetic("fdiv", a, b),
    "max": Function.maximum,
    "min": Function.minimum,
}
