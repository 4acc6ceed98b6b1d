"""The code of one tile of a `Sweep`, in LLVM's language: sums held in registers."""

import itertools
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sslx.lowering._ir import WIDE
from sslx.lowering._sweep import Kernel, Sweep


class Types:
    """Names of a sweep's types, and how vectors are read and written."""

    def __init__(self, sweep: Sweep, vectors: int = 1, tail: int | None = None):
        self.scalar = {"float32": "float", "float64": "double"}[sweep.dtype]
        self.bytes = {"float32": 4, "float64": 8}[sweep.dtype]
        self.final = vectors - 1
        filters = self.width = sweep.lanes // sweep.fold
        self.vector = f"<{sweep.lanes} x {self.scalar}>"
        self.filters = f"<{filters} x {self.scalar}>"
        self.suffix = f"v{sweep.lanes}f{8 * self.bytes}"
        self.suffixes = f"v{filters}f{8 * self.bytes}"
        bits = [f"i1 {int(tail is None or k < tail)}" for k in range(filters)]
        self.mask = None if tail in (None, filters) else f"<{', '.join(bits)}>"
        self.masks = f"<{filters} x i1>"

    def declared(self) -> str:
        """The functions that are called."""
        v, f, m = self.vector, self.filters, self.masks
        return (
            f"declare {v} @llvm.fmuladd.{self.suffix}({v}, {v}, {v})\n"
            f"declare {f} @llvm.masked.load.{self.suffixes}.p0(ptr, {m}, {f})\n"
            f"declare void @llvm.masked.store.{self.suffixes}.p0({f}, ptr, {m})\n"
            f"declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"
            f"declare {f} @llvm.maximum.{self.suffixes}({f}, {f})\n"
            f"declare {f} @llvm.minimum.{self.suffixes}({f}, {f})\n"
        )

    def load(self, name: str, pointer: str, v: int, added_up: bool = False) -> str:
        """Read vector `v`, or what is left of it after adding up neighbouring lanes."""
        if v < self.final or not self.mask:
            kind = self.filters if added_up else self.vector
            return f"{name} = load {kind}, ptr {pointer}, align {self.bytes}"
        return (
            f"{name} = call {self.filters} @llvm.masked.load.{self.suffixes}.p0("
            f"ptr align {self.bytes} {pointer}, {self.masks} {self.mask}, "
            f"{self.filters} zeroinitializer)"
        )

    def splat(self, number: float) -> str:
        """A vector of filters of one number."""
        scalar = float(np.float32(number)) if self.bytes == 4 else number
        bits = struct.pack(">d", scalar).hex().upper()
        return f"<{', '.join([f'{self.scalar} 0x{bits}'] * self.width)}>"

    def store(self, value: str, pointer: str, v: int) -> str:
        """Write vector `v`."""
        if v < self.final or not self.mask:
            return f"store {self.filters} {value}, ptr {pointer}, align {self.bytes}"
        return (
            f"call void @llvm.masked.store.{self.suffixes}.p0({self.filters} {value}, "
            f"ptr align {self.bytes} {pointer}, {self.masks} {self.mask})"
        )

    @staticmethod
    def lanes(places: Iterable[int]) -> str:
        """Which lanes a shuffle takes."""
        numbers = [f"i32 {k}" for k in places]
        return f"<{len(numbers)} x i32> <{', '.join(numbers)}>"

    def at(self, name: str, pointer: str, offset: object) -> str:
        """A pointer some entries behind another one."""
        return f"{name} = getelementptr {self.scalar}, ptr {pointer}, i64 {offset}"


def number(name: str, table: str, place: object) -> list[str]:
    """Read a table's 32-bit integer as one of 64 bits."""
    return [
        f"{name}_p = getelementptr i32, ptr {table}, i64 {place}",
        f"{name}_i = load i32, ptr {name}_p, align 4",
        f"{name} = sext i32 {name}_i to i64",
    ]


class _Code(NamedTuple):
    """What the parts of a tile's function are made from.

    Attributes:
      sweep: whose tile it is.
      kernel: its positions.
      vectors: of filters.
      types: of the arrays.
    """

    sweep: Sweep
    kernel: Kernel
    vectors: int
    types: Types

    def entries(self, places: Iterable[int]) -> "list[_Entry]":
        """Vectors of sums of some places of every run."""
        runs = range(self.kernel.runs)
        return list(itertools.product(runs, places, range(self.vectors)))


_Entry = tuple[int, int, int]
"""A run, a place in it, and a vector of filters."""


def _named(start: str, *numbers: int) -> str:
    return f"%{start}" + "_".join(map(str, numbers))


def tile_code(sweep: Sweep, name: str, kernel: Kernel, vectors: int, tail: int) -> str:
    """The function of a tile: all its columns, the epilogue, then it is written."""
    t = Types(sweep, vectors, tail)
    code = _Code(sweep, kernel, vectors, t)
    adds = sweep.blocks > sweep.shares
    tile = code.entries(range(len(kernel.places)))
    out = [
        f"define internal void @{name}(ptr %x, ptr %w, ptr %y, {pointers(sweep)}"
        f"ptr %columns, ptr %ends, ptr %runs, i1 %more, ptr %next_x, i64 %pace) "
        f"{WIDE} {{",
        "entry:",
    ]
    for r in range(kernel.runs):
        for k, array in enumerate("xy"):
            out += [
                *number(f"%{array}o{r}", "%runs", 2 * r + k),
                t.at(f"%{array}{r}", f"%{array}", f"%{array}o{r}"),
            ]
    for r, p, v in tile:
        offset = kernel.places[p][1] + v * sweep.lanes
        out.append(t.at(_named("d", r, p, v), f"%y{r}", offset))
    out += [
        f"call void @llvm.prefetch.p0(ptr {_named('d', *at)}, i32 1, i32 3, i32 1)"
        for at in tile
    ]
    block, sums = "entry", dict.fromkeys(tile, "zeroinitializer")
    if adds:
        out += ["br i1 %more, label %again, label %start", "again:"]
        out += [t.load(_named("o", *at), _named("d", *at), at[2]) for at in tile]
        out += ["br label %start", "start:"]
        out += [
            f"{_named('s', *at)} = phi {t.vector} [ zeroinitializer, %entry ], "
            f"[ {_named('o', *at)}, %again ]"
            for at in tile
        ]
        block, sums = "start", {at: _named("s", *at) for at in tile}
    for s in range(len(kernel.sections)):
        lines, sums = _section(code, s, block, sums)
        out += lines
        block = f"after{s}"
    for at in sorted(tile, key=lambda entry: entry[2]):
        lines, value = _unfolded(code, at, sums[at])
        out += lines
        out += _written(code, at, value)
    return "\n".join([*out, "ret void", "}"])


def _section(
    code: _Code, s: int, before: str, sums: dict[_Entry, str]
) -> tuple[list[str], dict[_Entry, str]]:
    """A loop over the columns of a section, and what the sums are called after it.

    Args:
      code: of the tile.
      s: which section.
      before: the block that comes before it.
      sums: what they are called there.
    """
    sweep, kernel, vectors, t = code
    meeting = kernel.sections[s]
    active = code.entries(meeting)
    begin = f"%end{s - 1}" if s else "0"
    row = vectors * sweep.lanes if sweep.packed is not None else sweep.row
    out = [
        *number(f"%end{s}", "%ends", s),
        f"%some{s} = icmp slt i64 {begin}, %end{s}",
        f"br i1 %some{s}, label %loop{s}, label %after{s}",
        f"loop{s}:",
        f"%k{s} = phi i64 [ {begin}, %{before} ], [ %next{s}, %loop{s} ]",
    ]
    ways = {
        at: f"[ {sums[at]}, %{before} ], [ {_named('b', s, *at)}, %loop{s} ]"
        for at in active
    }
    out += [f"{_named('a', s, *at)} = phi {t.vector} {ways[at]}" for at in active]
    out += [
        f"%kp{s} = getelementptr [2 x i32], ptr %columns, i64 %k{s}",
        *number(f"%xl{s}", f"%kp{s}", 0),
        *_row(t, f"{s}", f"%kp{s}", 1, row),
    ]
    if any(visit.pace for visit in sweep.visits):
        out += [
            f"%paced{s} = mul i64 %k{s}, %pace",
            f"%soon{s} = getelementptr i8, ptr %next_x, i64 %paced{s}",
            f"call void @llvm.prefetch.p0(ptr %soon{s}, i32 0, i32 2, i32 1)",
        ]
    if sweep.ahead:
        out += _row(t, f"a{s}", f"%kp{s}", 2 * sweep.ahead + 1, row)
        for v in range(vectors):
            soon = _named("ap", s, v)
            out += [
                t.at(soon, f"%wra{s}", v * sweep.lanes),
                f"call void @llvm.prefetch.p0(ptr {soon}, i32 0, i32 2, i32 1)",
            ]
    padded, whole = sweep.packed is not None or sweep.fold > 1, Types(sweep)
    for v in range(vectors):
        w = _named("w", s, v)
        out.append(t.at(f"{w}p", f"%wr{s}", v * sweep.lanes))
        out.append((whole if padded else t).load(w, f"{w}p", v))
    for r in range(kernel.runs):
        out.append(t.at(_named("xr", s, r), f"%x{r}", f"%xl{s}"))
        for p in meeting:
            out += _products(code, s, r, p)
    out += [
        f"%next{s} = add i64 %k{s}, 1",
        f"%further{s} = icmp slt i64 %next{s}, %end{s}",
        f"br i1 %further{s}, label %loop{s}, label %after{s}",
        f"after{s}:",
    ]
    out += [f"{_named('c', s, *at)} = phi {t.vector} {ways[at]}" for at in active]
    return out, sums | {at: _named("c", s, *at) for at in active}


def _row(t: Types, name: str, column: str, place: int, row: int) -> list[str]:
    """Where a row of `w` starts, whose number stands at some place after a column."""
    return [
        *number(f"%wl{name}", column, place),
        f"%wm{name} = mul i64 %wl{name}, {row}",
        t.at(f"%wr{name}", "%w", f"%wm{name}"),
    ]


def _products(code: _Code, s: int, r: int, p: int) -> list[str]:
    """What one place reads of a column, times its weights, added to the sums."""
    sweep, kernel, vectors, t = code
    x = kernel.places[p][0]
    base, value = _named("xr", s, r), _named("x", s, r, p)
    out = []
    if not sweep.channelwise:
        some = f"<{sweep.fold} x {t.scalar}>"
        repeated = t.lanes(k % sweep.fold for k in range(sweep.lanes))
        out += [
            t.at(f"{value}p", base, x),
            f"{value}s = load {some}, ptr {value}p, align {t.bytes}",
            f"{value} = shufflevector {some} {value}s, {some} poison, {repeated}",
        ]
    for v in range(vectors):
        read = value
        if sweep.channelwise:
            read = _named("x", s, r, p, v)
            out.append(t.at(f"{read}p", base, x + v * sweep.lanes))
            out.append(t.load(read, f"{read}p", v))
        out.append(
            f"{_named('b', s, r, p, v)} = call {t.vector} @llvm.fmuladd.{t.suffix}("
            f"{t.vector} {read}, {t.vector} {_named('w', s, v)}, "
            f"{t.vector} {_named('a', s, r, p, v)})"
        )
    return out


def pointers(sweep: Sweep, end: str = "") -> str:
    """Parameters of functions that apply the epilogue, beside `x`, `w` and `y`."""
    names = [f"f{k}" for k in range(sweep.per_filter)]
    names += [f"g{k}" for k in range(sweep.per_entry)]
    return "".join(f"ptr %{name}{end}, " for name in names)


_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


def _written(code: _Code, entry: _Entry, value: str) -> list[str]:
    """The epilogue of a vector of sums, and storing it."""
    sweep, kernel, _, t = code
    r, p, v = entry
    out = []
    for k, step in enumerate(sweep.epilogue):
        name = _named(f"e{k}v", *entry)
        operand, pointer = f"{name}o", f"{name}p"
        if step.kind == "number":
            operand = t.splat(step.number)
        elif step.kind == "filter":
            out += [
                t.at(pointer, f"%f{step.place}", v * t.width),
                t.load(operand, pointer, v, True),
            ]
        else:
            offset = kernel.places[p][1] + v * t.width
            out += [
                t.at(f"{name}b", f"%g{step.place}", f"%yo{r}"),
                t.at(pointer, f"{name}b", offset),
                t.load(operand, pointer, v, True),
            ]
        a, b = (operand, value) if step.swapped else (value, operand)
        if step.op in _OPS:
            out.append(f"{name} = {_OPS[step.op]} {t.filters} {a}, {b}")
        else:
            kind = {"max": "maximum", "min": "minimum"}[step.op]
            out.append(
                f"{name} = call {t.filters} @llvm.{kind}.{t.suffixes}("
                f"{t.filters} {a}, {t.filters} {b})"
            )
        value = name
    return [*out, t.store(value, _named("d", *entry), v)]


def _unfolded(code: _Code, entry: _Entry, value: str) -> tuple[list[str], str]:
    """Add up neighbouring lanes: as integers of twice their width, shifted."""
    sweep, _, _, t = code
    out = []
    lanes, bits = sweep.lanes, 8 * t.bytes
    while lanes > sweep.lanes // sweep.fold:
        whole, half = f"<{lanes} x {t.scalar}>", f"<{lanes // 2} x i{bits}>"
        pairs = f"<{lanes // 2} x i{2 * bits}>"
        shift = ", ".join([f"i{2 * bits} {bits}"] * (lanes // 2))
        name = _named(f"u{lanes}v", *entry)
        out += [
            f"{name}p = bitcast {whole} {value} to {pairs}",
            f"{name}h = lshr {pairs} {name}p, <{shift}>",
            f"{name}o = bitcast {pairs} {name}h to {whole}",
            f"{name}a = fadd {whole} {value}, {name}o",
            f"{name}b = bitcast {whole} {name}a to {pairs}",
            f"{name}t = trunc {pairs} {name}b to {half}",
            f"{name}s = bitcast {half} {name}t to <{lanes // 2} x {t.scalar}>",
        ]
        value, lanes = f"{name}s", lanes // 2
    return out, value
