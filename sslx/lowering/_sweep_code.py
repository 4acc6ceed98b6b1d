"""The code of a `Sweep`, in LLVM's language: the walk over its tiles."""

from typing import Any

import numpy as np

from sslx.lowering import _llvm
from sslx.lowering._ir import WIDE
from sslx.lowering._sweep import Kernel, Sweep
from sslx.lowering._tile_code import Types, number, pointers, tile_code


def target(sweep: Sweep) -> str:
    """The name by which XLA calls it; compiled when it is asked for the first time."""
    tables = _Tables()
    text = _source(sweep, tables)
    calls = _llvm.Calls(
        rounds=len(sweep.tiles) // sweep.together,
        pieces=sweep.shares * sweep.parts,
        workers=sweep.workers,
        slots=sweep.together,
        arguments=arguments(sweep),
        results=2,
    )
    return _llvm.named(text, tables.numbers(2 * sweep.ahead + 1), calls)


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

    def numbers(self, beyond: int) -> np.ndarray:
        """All tables, and some zeros that may be read behind the last one."""
        return np.concatenate([*self.parts, np.zeros(beyond, np.int32)])


def _source(sweep: Sweep, tables: _Tables) -> str:
    kinds = list(dict.fromkeys((t.vectors, t.tail) for t in sweep.tiles))
    kernels = {
        k: i for i, k in enumerate(dict.fromkeys(v.kernel for v in sweep.visits))
    }
    functions = [
        tile_code(sweep, f"kernel_{j}_{i}", kernel, *kind)
        for j, kind in enumerate(kinds)
        for kernel, i in kernels.items()
    ]
    fields = _tile_fields(sweep, kinds, tables)
    functions.append(_positions(sweep, len(kinds), kernels, fields, tables))
    if sweep.packed is not None:
        functions += [_pack(sweep, f"pack_{j}", *kind) for j, kind in enumerate(kinds)]
        functions.append(_pack_all(sweep, len(kinds), fields, tables))
    functions.append(_task(sweep))
    return "\n".join([*functions, Types(sweep).declared()])


def arguments(sweep: Sweep) -> int:
    """Arrays that XLA hands over: `x`, `w`, operands of the epilogue."""
    return 2 + sweep.per_filter + sweep.per_entry


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
    t = Types(sweep)
    out = [
        f"define internal void @positions(ptr %x, ptr %w, ptr %y, {pointers(sweep)}"
        f"i64 %ys, i64 %part, i64 %tile0, i64 %tile1, i1 %more) {WIDE} {{",
        "br label %v0",
    ]
    for i, visit in enumerate(sweep.visits):
        runs = visit.kernel.runs
        count = len(visit.runs) // runs
        ends = [p * count // sweep.parts for p in range(sweep.parts + 1)]
        columns = tables.place([_ends(sections, tables) for sections in visit.columns])
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
            *number(f"%rs{i}", f"%r{i}", 2 * runs),
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
            f"%ep{i} = getelementptr i32, ptr @tables, i64 %s{i}",
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
                f"{pointers(sweep, f'_{i}')}ptr %cp{i}, ptr %ep{i}, ptr %r{i}, "
                f"i1 %more, ptr %nx{i}, i64 %pace{i})",
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


def _ends(sections: tuple[np.ndarray, ...], tables: _Tables) -> tuple[int, int]:
    """Where the columns stand, section by section, and where the ends of these."""
    ends = np.cumsum([len(k) for k in sections])
    return tables.place(np.concatenate([*sections, _NO_COLUMN])), tables.place(ends)


_NO_COLUMN = np.zeros((0, 2), np.int32)


def _tile_weights(sweep: Sweep, t: Types, i: int) -> list[str]:
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
        *number(name, "@tables", f"{name}_o"),
    ]


def _pack(sweep: Sweep, name: str, vectors: int, tail: int) -> str:
    t = Types(sweep, vectors, tail)
    out = [
        f"define internal void @{name}(ptr %w, ptr %to, ptr %rows, i64 %n) {WIDE} {{",
        "entry:",
        "%some = icmp sgt i64 %n, 0",
        "br i1 %some, label %loop, label %end",
        "loop:",
        "%k = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *number("%rl", "%rows", "%k"),
        f"%ro = mul i64 %rl, {sweep.row}",
        t.at("%source", "%w", "%ro"),
        f"%so = mul i64 %k, {vectors * sweep.lanes}",
        t.at("%into", "%to", "%so"),
    ]
    for v in range(vectors):
        out += [
            t.at(f"%from{v}", "%source", v * sweep.lanes),
            t.load(f"%w{v}", f"%from{v}", v),
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
    t = Types(sweep)
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
    t = Types(sweep)
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
        f"define void @task(i64 %t, ptr %buffers, i64 %worker, ptr %held) {WIDE} {{",
        "entry:",
        *_buffers("x", "w", *more, "y", "scratch"),
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
        f"call void @positions(ptr %xb, ptr {w}, ptr %y, {pointers(sweep)}i64 %ys, "
        "i64 %part, i64 %tile0, i64 %tile1, i1 %more)",
        "%bn = add i64 %b, 1",
        "%bz = icmp slt i64 %bn, %b1",
        "br i1 %bz, label %block, label %done",
        "done:",
        "ret void",
        "}",
    ]
    return "\n".join(out)


def _buffers(*names: str) -> list[str]:
    """Code of a task that names the addresses it is given, in their order."""
    return [
        line
        for k, name in enumerate(names)
        for line in (
            f"%{name}_at = getelementptr ptr, ptr %buffers, i64 {k}",
            f"%{name} = load ptr, ptr %{name}_at, align 8",
        )
    ]


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
