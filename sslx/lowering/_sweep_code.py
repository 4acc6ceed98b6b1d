"""The code of a `Sweep`, in LLVM's language."""

import itertools
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from sslx.lowering import _llvm
from sslx.lowering._llvm import WIDE
from sslx.lowering._sweep import Kernel, Sweep


def target(sweep: Sweep) -> str:
    """The name by which XLA calls it; compiled when it is asked for the first time."""
    tables = _Tables()
    text = _source(sweep, tables)
    return _llvm.named(text, tables.numbers())


class _Tables:
    """Tables of 32-bit integers, one behind the other."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.places: dict[bytes, int] = {}
        self.size = 0

    def place(self, values: Any) -> int:
        """Where a table starts; equal ones are stored once."""
        flat = np.ascontiguousarray(values, np.int32).reshape(-1)
        key = flat.tobytes()
        if key not in self.places:
            self.places[key] = self.size
            self.parts.append(flat)
            self.size += flat.size
        return self.places[key]

    def numbers(self) -> np.ndarray:
        return np.concatenate([*self.parts, np.zeros(1, np.int32)])


def _source(sweep: Sweep, tables: _Tables) -> str:
    kinds = list(dict.fromkeys((t.vectors, t.tail) for t in sweep.tiles))
    kernels = {
        k: i for i, k in enumerate(dict.fromkeys(v.kernel for v in sweep.visits))
    }
    functions = [
        _kernel(sweep, f"kernel_{j}_{i}", kernel, *kind)
        for j, kind in enumerate(kinds)
        for kernel, i in kernels.items()
    ]
    fields = _tile_fields(sweep, kinds, tables)
    functions.append(_positions(sweep, len(kinds), kernels, fields, tables))
    if sweep.packed is not None:
        functions += [_pack(sweep, f"pack_{j}", *kind) for j, kind in enumerate(kinds)]
        functions.append(_pack_all(sweep, len(kinds), fields, tables))
    functions.append(_task(sweep))
    rounds, pieces = len(sweep.tiles) // sweep.together, sweep.shares * sweep.parts
    return "\n".join(
        [
            *functions,
            _llvm.handler(
                rounds,
                pieces,
                sweep.workers,
                sweep.together,
                arguments(sweep),
                2,
            ),
            _Types(sweep, sweep.lanes // sweep.fold).declared(),
        ]
    )


def arguments(sweep: Sweep) -> int:
    """Arrays that XLA hands over: `x`, `w`, operands of the epilogue."""
    return 2 + sweep.per_filter + sweep.per_entry


class _Types:
    """Names of a sweep's types, and how vectors are read and written."""

    def __init__(self, sweep: Sweep, tail: int):
        self.scalar = {"float32": "float", "float64": "double"}[sweep.dtype]
        self.bytes = {"float32": 4, "float64": 8}[sweep.dtype]
        filters = self.width = sweep.lanes // sweep.fold
        self.vector = f"<{sweep.lanes} x {self.scalar}>"
        self.filters = f"<{filters} x {self.scalar}>"
        self.suffix = f"v{sweep.lanes}f{8 * self.bytes}"
        self.suffixes = f"v{filters}f{8 * self.bytes}"
        bits = [f"i1 {int(k < tail)}" for k in range(filters)]
        self.mask = None if tail == filters else f"<{', '.join(bits)}>"
        self.masks = f"<{filters} x i1>"

    def declared(self) -> str:
        v, f, m = self.vector, self.filters, self.masks
        return (
            f"declare {v} @llvm.fmuladd.{self.suffix}({v}, {v}, {v})\n"
            f"declare {f} @llvm.masked.load.{self.suffixes}.p0(ptr, {m}, {f})\n"
            f"declare void @llvm.masked.store.{self.suffixes}.p0({f}, ptr, {m})\n"
            f"declare void @llvm.prefetch.p0(ptr, i32, i32, i32)\n"
            f"declare {f} @llvm.maximum.{self.suffixes}({f}, {f})\n"
            f"declare {f} @llvm.minimum.{self.suffixes}({f}, {f})\n"
        )

    def load(self, name: str, pointer: str, last: bool, added_up: bool = False) -> str:
        """Read a vector, or what is left of one after adding up neighbouring lanes."""
        if not (last and self.mask):
            kind = self.filters if added_up else self.vector
            return f"{name} = load {kind}, ptr {pointer}, align {self.bytes}"
        return (
            f"{name} = call {self.filters} @llvm.masked.load.{self.suffixes}.p0("
            f"ptr align {self.bytes} {pointer}, {self.masks} {self.mask}, "
            f"{self.filters} zeroinitializer)"
        )

    def splat(self, number: float) -> str:
        scalar = float(np.float32(number)) if self.bytes == 4 else number
        bits = struct.pack(">d", scalar).hex().upper()
        return f"<{', '.join([f'{self.scalar} 0x{bits}'] * self.width)}>"

    def store(self, value: str, pointer: str, last: bool) -> str:
        if not (last and self.mask):
            return f"store {self.filters} {value}, ptr {pointer}, align {self.bytes}"
        return (
            f"call void @llvm.masked.store.{self.suffixes}.p0({self.filters} {value}, "
            f"ptr align {self.bytes} {pointer}, {self.masks} {self.mask})"
        )

    @staticmethod
    def lanes(places: Iterable[int]) -> str:
        numbers = [f"i32 {k}" for k in places]
        return f"<{len(numbers)} x i32> <{', '.join(numbers)}>"

    def at(self, name: str, pointer: str, offset: object) -> str:
        return f"{name} = getelementptr {self.scalar}, ptr {pointer}, i64 {offset}"


def _kernel(sweep: Sweep, name: str, kernel: Kernel, vectors: int, tail: int) -> str:
    """A tile: all its columns, then it is written."""
    t = _Types(sweep, tail)
    adds = sweep.blocks > sweep.shares
    row = vectors * sweep.lanes if sweep.packed is not None else sweep.row
    tile = list(
        itertools.product(range(kernel.runs), range(kernel.length), range(vectors))
    )
    final = vectors - 1
    out = [
        f"define internal void @{name}(ptr %x, ptr %w, ptr %y, {_more(sweep)}"
        f"ptr %columns, i64 %n, ptr %runs, i1 %more, ptr %next_x, i64 %pace) "
        f"{WIDE} {{",
        "entry:",
    ]
    for r in range(kernel.runs):
        for k, array in enumerate("xy"):
            out += [
                f"%{array}p{r} = getelementptr i32, ptr %runs, i64 {2 * r + k}",
                f"%{array}i{r} = load i32, ptr %{array}p{r}, align 4",
                f"%{array}o{r} = sext i32 %{array}i{r} to i64",
                t.at(f"%{array}{r}", f"%{array}", f"%{array}o{r}"),
            ]
    for r, q, v in tile:
        out.append(
            t.at(f"%d{r}_{q}_{v}", f"%y{r}", q * kernel.y_step + v * sweep.lanes)
        )
    out += [
        f"call void @llvm.prefetch.p0(ptr %d{r}_{q}_{v}, i32 1, i32 3, i32 1)"
        for r, q, v in tile
    ]
    out.append("%some = icmp sgt i64 %n, 0")
    if adds:
        out += ["br i1 %more, label %again, label %start", "again:"]
        out += [
            t.load(f"%o{r}_{q}_{v}", f"%d{r}_{q}_{v}", v == final) for r, q, v in tile
        ]
        out += ["br label %start", "start:"]
        out += [
            f"%s{r}_{q}_{v} = phi {t.vector} [ zeroinitializer, %entry ], "
            f"[ %o{r}_{q}_{v}, %again ]"
            for r, q, v in tile
        ]
    else:
        out += ["br label %start", "start:"]

    def begun(r: int, q: int, v: int) -> str:
        return f"%s{r}_{q}_{v}" if adds else "zeroinitializer"

    out += ["br i1 %some, label %loop, label %none", "none:"]
    for r, q, v in tile:
        value = begun(r, q, v)
        out += _written(sweep, t, kernel, "n", (r, q, v), value, v == final)
    out += ["ret void", "loop:"]
    out.append("%k = phi i64 [ 0, %start ], [ %next, %loop ]")
    for r, q, v in tile:
        out.append(
            f"%a{r}_{q}_{v} = phi {t.vector} [ {begun(r, q, v)}, %start ], "
            f"[ %b{r}_{q}_{v}, %loop ]"
        )
    out += [
        "%kp = getelementptr [2 x i32], ptr %columns, i64 %k",
        "%xk = load i32, ptr %kp, align 4",
        "%wq = getelementptr i32, ptr %kp, i64 1",
        "%wk = load i32, ptr %wq, align 4",
        "%xl = sext i32 %xk to i64",
        "%wl = sext i32 %wk to i64",
        f"%wm = mul i64 %wl, {row}",
        t.at("%wr", "%w", "%wm"),
    ]
    if any(visit.pace for visit in sweep.visits):
        out += [
            "%paced = mul i64 %k, %pace",
            "%soon = getelementptr i8, ptr %next_x, i64 %paced",
            "call void @llvm.prefetch.p0(ptr %soon, i32 0, i32 2, i32 1)",
        ]
    for v in range(vectors):
        out.append(t.at(f"%wp{v}", "%wr", v * sweep.lanes))
        whole = sweep.packed is not None or sweep.fold > 1
        out.append(t.load(f"%w{v}", f"%wp{v}", v == final and not whole))
    for r in range(kernel.runs):
        out.append(t.at(f"%xr{r}", f"%x{r}", "%xl"))
        for q in range(kernel.length):
            if not sweep.channelwise:
                some = f"<{sweep.fold} x {t.scalar}>"
                repeated = t.lanes(k % sweep.fold for k in range(sweep.lanes))
                out += [
                    t.at(f"%xq{r}_{q}", f"%xr{r}", q * kernel.x_step),
                    f"%xs{r}_{q} = load {some}, ptr %xq{r}_{q}, align {t.bytes}",
                    f"%xb{r}_{q} = shufflevector {some} %xs{r}_{q}, {some} poison, "
                    f"{repeated}",
                ]
            for v in range(vectors):
                x = f"%xb{r}_{q}"
                if sweep.channelwise:
                    x = f"%xv{r}_{q}_{v}"
                    out.append(
                        t.at(
                            f"%xq{r}_{q}_{v}",
                            f"%xr{r}",
                            q * kernel.x_step + v * sweep.lanes,
                        )
                    )
                    out.append(t.load(x, f"%xq{r}_{q}_{v}", v == final))
                out.append(
                    f"%b{r}_{q}_{v} = call {t.vector} @llvm.fmuladd.{t.suffix}("
                    f"{t.vector} {x}, {t.vector} %w{v}, {t.vector} %a{r}_{q}_{v})"
                )
    out += [
        "%next = add i64 %k, 1",
        "%further = icmp slt i64 %next, %n",
        "br i1 %further, label %loop, label %end",
        "end:",
    ]
    for r, q, v in sorted(tile, key=lambda place: place[2]):
        lines, value = _unfolded(sweep, t, f"%b{r}_{q}_{v}")
        out += lines
        out += _written(sweep, t, kernel, "e", (r, q, v), value, v == final)
    return "\n".join([*out, "ret void", "}"])


def _more(sweep: Sweep, end: str = "") -> str:
    """Parameters of functions that apply the epilogue, beside `x`, `w` and `y`."""
    names = [f"f{k}" for k in range(sweep.per_filter)]
    names += [f"g{k}" for k in range(sweep.per_entry)]
    return "".join(f"ptr %{name}{end}, " for name in names)


_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


def _written(
    sweep: Sweep,
    t: _Types,
    kernel: Kernel,
    branch: str,
    place: tuple[int, int, int],
    value: str,
    last: bool,
) -> list[str]:
    """The epilogue of a vector of sums, and storing it."""
    r, q, v = place
    at = f"{r}_{q}_{v}"
    out = []
    for k, step in enumerate(sweep.epilogue):
        name, pointer = f"%{branch}{k}v{at}", f"%{branch}{k}p{at}"
        operand = f"%{branch}{k}o{at}"
        if step.kind == "number":
            operand = t.splat(step.number)
        elif step.kind == "filter":
            out += [
                t.at(pointer, f"%f{step.place}", v * t.width),
                t.load(operand, pointer, last, True),
            ]
        else:
            base = f"%{branch}{k}b{at}"
            offset = q * kernel.y_step + v * t.width
            out += [
                t.at(base, f"%g{step.place}", f"%yo{r}"),
                t.at(pointer, base, offset),
                t.load(operand, pointer, last, True),
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
    return [*out, t.store(value, f"%d{at}", last)]


def _unfolded(sweep: Sweep, t: _Types, value: str) -> tuple[list[str], str]:
    """Add up neighbouring lanes: as integers of twice their width, shifted."""
    out = []
    lanes, bits = sweep.lanes, 8 * t.bytes
    while lanes > sweep.lanes // sweep.fold:
        whole, half = f"<{lanes} x {t.scalar}>", f"<{lanes // 2} x i{bits}>"
        pairs = f"<{lanes // 2} x i{2 * bits}>"
        shift = ", ".join([f"i{2 * bits} {bits}"] * (lanes // 2))
        out += [
            f"{value}p = bitcast {whole} {value} to {pairs}",
            f"{value}h = lshr {pairs} {value}p, <{shift}>",
            f"{value}o = bitcast {pairs} {value}h to {whole}",
            f"{value}a = fadd {whole} {value}, {value}o",
            f"{value}b = bitcast {whole} {value}a to {pairs}",
            f"{value}t = trunc {pairs} {value}b to {half}",
            f"{value}s = bitcast {half} {value}t to <{lanes // 2} x {t.scalar}>",
        ]
        value, lanes = f"{value}s", lanes // 2
    return out, value


_FIELDS = ("kind", "group", "first", "xg")


def _tile_fields(sweep: Sweep, kinds: list[tuple[int, int]], tables: _Tables) -> int:
    """Where the table of the tiles of filters starts: a row of `_FIELDS` for each."""
    return tables.place(
        [
            (
                kinds.index((tile.vectors, tile.tail)),
                tile.group,
                tile.first,
                tile.first if sweep.channelwise else tile.group * sweep.x_group,
            )
            for tile in sweep.tiles
        ]
    )


def _read_tile(fields: int, tile: str, end: str = "") -> list[str]:
    return [
        line
        for k, field in enumerate(_FIELDS)
        for line in _entry(f"%{field}{end}", fields, tile, len(_FIELDS), k)
    ]


def _positions(
    sweep: Sweep, kinds: int, kernels: dict[Kernel, int], fields: int, tables: _Tables
) -> str:
    """All positions of one part, for each of them some tiles of filters.

    What a position reads stays in the nearest cache while its filters are computed.
    """
    t = _Types(sweep, sweep.lanes // sweep.fold)
    out = [
        f"define internal void @positions(ptr %x, ptr %w, ptr %y, {_more(sweep)}"
        f"i64 %ys, i64 %part, i64 %tile0, i64 %tile1, i1 %more) {WIDE} {{",
        "br label %v0",
    ]
    for i, visit in enumerate(sweep.visits):
        runs = visit.kernel.runs
        count = len(visit.runs) // runs
        ends = [p * count // sweep.parts for p in range(sweep.parts + 1)]
        columns = tables.place([(tables.place(k), len(k)) for k in visit.columns])
        group = f"%group{i}" if len(visit.columns) > 1 else "0"
        after = "done" if i + 1 == len(sweep.visits) else f"v{i + 1}"
        kernel = kernels[visit.kernel]
        labels = " ".join(f"i64 {j}, label %k{i}_{j}" for j in range(kinds))
        out += [
            f"v{i}:",
            *_entry(f"%lo{i}", tables.place(ends), "%part", 1, 0),
            *_entry(f"%hi{i}", tables.place(ends), "%part", 1, 1),
            f"%any{i} = icmp slt i64 %lo{i}, %hi{i}",
            f"br i1 %any{i}, label %l{i}, label %{after}",
            f"l{i}:",
            f"%t{i} = phi i64 [ %lo{i}, %v{i} ], [ %u{i}, %n{i} ]",
            f"%m{i} = mul i64 %t{i}, {2 * runs}",
            f"%o{i} = add i64 %m{i}, {tables.place(visit.runs)}",
            f"%r{i} = getelementptr i32, ptr @tables, i64 %o{i}",
            f"%rn{i} = getelementptr i32, ptr %r{i}, i64 {2 * runs}",
            f"%rx{i} = load i32, ptr %rn{i}, align 4",
            f"%rs{i} = sext i32 %rx{i} to i64",
            t.at(f"%nx{i}", "%x", f"%rs{i}"),
            f"br label %e{i}",
            f"e{i}:",
            f"%tile_{i} = phi i64 [ %tile0, %l{i} ], [ %tn{i}, %next{i} ]",
            f"%begin{i} = icmp eq i64 %tile_{i}, %tile0",
            f"%pace{i} = select i1 %begin{i}, i64 {visit.pace}, i64 0",
            *_read_tile(fields, f"%tile_{i}", f"{i}"),
            *_entry(f"%c{i}", columns, group, 2, 0),
            *_entry(f"%s{i}", columns, group, 2, 1),
            f"%cp{i} = getelementptr i32, ptr @tables, i64 %c{i}",
            t.at(f"%xt{i}", "%x", f"%xg{i}"),
            *_tile_weights(sweep, t, i),
            f"%yo{i} = add i64 %ys, %first{i}",
            t.at(f"%yt{i}", "%y", f"%yo{i}"),
            *[
                t.at(f"%f{k}_{i}", f"%f{k}", f"%first{i}")
                for k in range(sweep.per_filter)
            ],
            *[t.at(f"%g{k}_{i}", f"%g{k}", f"%yo{i}") for k in range(sweep.per_entry)],
            f"switch i64 %kind{i}, label %next{i} [ {labels} ]",
        ]
        for j in range(kinds):
            out += [
                f"k{i}_{j}:",
                f"call void @kernel_{j}_{kernel}(ptr %xt{i}, ptr %wt{i}, ptr %yt{i}, "
                f"{_more(sweep, f'_{i}')}ptr %cp{i}, i64 %s{i}, ptr %r{i}, i1 %more, "
                f"ptr %nx{i}, i64 %pace{i})",
                f"br label %next{i}",
            ]
        out += [
            f"next{i}:",
            f"%tn{i} = add i64 %tile_{i}, 1",
            f"%tz{i} = icmp slt i64 %tn{i}, %tile1",
            f"br i1 %tz{i}, label %e{i}, label %n{i}",
            f"n{i}:",
            f"%u{i} = add i64 %t{i}, 1",
            f"%z{i} = icmp slt i64 %u{i}, %hi{i}",
            f"br i1 %z{i}, label %l{i}, label %{after}",
        ]
    return "\n".join([*out, "done:", "ret void", "}"])


def _tile_weights(sweep: Sweep, t: _Types, i: int) -> list[str]:
    """Where the rows of a tile start: among those of `w`, or in their packed slot."""
    if sweep.packed is None:
        return [t.at(f"%wt{i}", "%w", f"%first{i}")]
    return [
        f"%place{i} = urem i64 %tile_{i}, {sweep.together}",
        f"%so{i} = mul i64 %place{i}, {slot_size(sweep)}",
        t.at(f"%wt{i}", "%w", f"%so{i}"),
    ]


def _entry(name: str, table: int, row: str, width: int, column: int) -> list[str]:
    """Read a table's entry as a 64-bit integer."""
    return [
        f"{name}_m = mul i64 {row}, {width}",
        f"{name}_o = add i64 {name}_m, {table + column}",
        f"{name}_p = getelementptr i32, ptr @tables, i64 {name}_o",
        f"{name}_i = load i32, ptr {name}_p, align 4",
        f"{name} = sext i32 {name}_i to i64",
    ]


def _pack(sweep: Sweep, name: str, vectors: int, tail: int) -> str:
    t = _Types(sweep, tail)
    out = [
        f"define internal void @{name}(ptr %w, ptr %to, ptr %rows, i64 %n) {WIDE} {{",
        "entry:",
        "%some = icmp sgt i64 %n, 0",
        "br i1 %some, label %loop, label %end",
        "loop:",
        "%k = phi i64 [ 0, %entry ], [ %next, %loop ]",
        "%rp = getelementptr i32, ptr %rows, i64 %k",
        "%ri = load i32, ptr %rp, align 4",
        "%rl = sext i32 %ri to i64",
        f"%ro = mul i64 %rl, {sweep.row}",
        t.at("%source", "%w", "%ro"),
        f"%so = mul i64 %k, {vectors * sweep.lanes}",
        t.at("%into", "%to", "%so"),
    ]
    for v in range(vectors):
        last = v == vectors - 1
        out += [
            t.at(f"%from{v}", "%source", v * sweep.lanes),
            t.load(f"%w{v}", f"%from{v}", last),
            t.at(f"%t{v}", "%into", v * sweep.lanes),
            f"store {t.vector} %w{v}, ptr %t{v}, align {t.bytes}",
        ]
    out += [
        "%next = add i64 %k, 1",
        "%more = icmp slt i64 %next, %n",
        "br i1 %more, label %loop, label %end",
        "end:",
        "ret void",
        "}",
    ]
    return "\n".join(out)


def _pack_all(sweep: Sweep, kinds: int, fields: int, tables: _Tables) -> str:
    """Copy the rows of all tiles of a task that do not stand in their slots yet."""
    assert sweep.packed is not None
    t = _Types(sweep, sweep.lanes // sweep.fold)
    rows = tables.place([(tables.place(r), len(r)) for r in sweep.packed])
    group = "%group" if len(sweep.packed) > 1 else "0"
    labels = " ".join(f"i64 {j}, label %pack{j}" for j in range(kinds))
    out = [
        "define internal void @pack_all(ptr %w, ptr %slots, i64 %tile0, i64 %tile1, "
        f"ptr %held) {WIDE} {{",
        "entry:",
        "br label %each",
        "each:",
        "%tile = phi i64 [ %tile0, %entry ], [ %tn, %next ]",
        f"%place = urem i64 %tile, {sweep.together}",
        "%hp = getelementptr i64, ptr %held, i64 %place",
        "%had = load i64, ptr %hp, align 8",
        "%same = icmp eq i64 %had, %tile",
        "br i1 %same, label %next, label %copy",
        "copy:",
        "store i64 %tile, ptr %hp, align 8",
        *_read_tile(fields, "%tile"),
        *_entry("%rows", rows, group, 2, 0),
        *_entry("%count", rows, group, 2, 1),
        "%rp = getelementptr i32, ptr @tables, i64 %rows",
        t.at("%wt", "%w", "%first"),
        f"%so = mul i64 %place, {slot_size(sweep)}",
        t.at("%slot", "%slots", "%so"),
        f"switch i64 %kind, label %next [ {labels} ]",
    ]
    for j in range(kinds):
        out += [
            f"pack{j}:",
            f"call void @pack_{j}(ptr %wt, ptr %slot, ptr %rp, i64 %count)",
            "br label %next",
        ]
    out += [
        "next:",
        "%tn = add i64 %tile, 1",
        "%tz = icmp slt i64 %tn, %tile1",
        "br i1 %tz, label %each, label %done",
        "done:",
        "ret void",
        "}",
    ]
    return "\n".join(out)


def _task(sweep: Sweep) -> str:
    """One part of the positions of one share, for some tiles of filters."""
    t = _Types(sweep, sweep.lanes // sweep.fold)
    per_share = sweep.blocks // sweep.shares
    more = [f"f{k}" for k in range(sweep.per_filter)]
    more += [f"g{k}" for k in range(sweep.per_entry)]
    w, packing = "%wb", []
    if sweep.packed is not None:
        w = "%slots"
        packing = [
            f"%sw = mul i64 %worker, {sweep.together * slot_size(sweep)}",
            t.at("%slots", "%scratch", "%sw"),
            "call void @pack_all(ptr %wb, ptr %slots, i64 %tile0, i64 %tile1, "
            "ptr %held)",
        ]
    out = [
        "define internal void @task(i64 %t, ptr %buffers, i64 %worker, ptr %held) "
        f"{WIDE} {{",
        "entry:",
        *_llvm.buffers("x", "w", *more, "y", "scratch"),
        f"%part = urem i64 %t, {sweep.parts}",
        f"%rest = udiv i64 %t, {sweep.parts}",
        f"%share = urem i64 %rest, {sweep.shares}",
        f"%some = udiv i64 %rest, {sweep.shares}",
        f"%tile0 = mul i64 %some, {sweep.together}",
        f"%tile1 = add i64 %tile0, {sweep.together}",
        f"%ys = mul i64 %share, {sweep.y_share}",
        f"%b0 = mul i64 %share, {per_share}",
        f"%b1 = add i64 %b0, {per_share}",
        "br label %block",
        "block:",
        "%b = phi i64 [ %b0, %entry ], [ %bn, %block ]",
        f"%xo = mul i64 %b, {sweep.x_block}",
        t.at("%xb", "%x", "%xo"),
        f"%wo = mul i64 %b, {sweep.w_block}",
        t.at("%wb", "%w", "%wo"),
        *packing,
        "%more = icmp sgt i64 %b, %b0",
        f"call void @positions(ptr %xb, ptr {w}, ptr %y, {_more(sweep)}i64 %ys, "
        "i64 %part, i64 %tile0, i64 %tile1, i1 %more)",
        "%bn = add i64 %b, 1",
        "%bz = icmp slt i64 %bn, %b1",
        "br i1 %bz, label %block, label %done",
        "done:",
        "ret void",
        "}",
    ]
    return "\n".join(out)


def slot_size(sweep: Sweep) -> int:
    """Entries of the rows of a tile, copied to stand one behind the other."""
    if sweep.packed is None:
        return 0
    return (
        max(t.vectors for t in sweep.tiles) * sweep.lanes * max(map(len, sweep.packed))
    )


def scratch_size(sweep: Sweep) -> int:
    """Entries of the array that copied rows stand in."""
    return max(1, slot_size(sweep) * sweep.together * sweep.workers)
