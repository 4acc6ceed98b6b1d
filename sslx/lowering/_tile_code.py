"""The code of one tile of a `Sweep`, in LLVM's language: sums held in registers."""

import itertools
import struct
from collections.abc import Iterable

import numpy as np

from sslx.lowering._llvm import WIDE
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


def tile_code(sweep: Sweep, name: str, kernel: Kernel, vectors: int, tail: int) -> str:
    """The function of a tile: all its columns, the epilogue, then it is written."""
    t = Types(sweep, vectors, tail)
    adds = sweep.blocks > sweep.shares
    row = vectors * sweep.lanes if sweep.packed is not None else sweep.row
    tile = list(
        itertools.product(range(kernel.runs), range(kernel.length), range(vectors))
    )
    out = [
        f"define internal void @{name}(ptr %x, ptr %w, ptr %y, {pointers(sweep)}"
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
        out += [t.load(f"%o{r}_{q}_{v}", f"%d{r}_{q}_{v}", v) for r, q, v in tile]
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
        out += _written(sweep, t, kernel, "n", (r, q, v), value)
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
    padded, whole = sweep.packed is not None or sweep.fold > 1, Types(sweep)
    for v in range(vectors):
        out.append(t.at(f"%wp{v}", "%wr", v * sweep.lanes))
        out.append((whole if padded else t).load(f"%w{v}", f"%wp{v}", v))
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
                    out.append(t.load(x, f"%xq{r}_{q}_{v}", v))
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
        out += _written(sweep, t, kernel, "e", (r, q, v), value)
    return "\n".join([*out, "ret void", "}"])


def pointers(sweep: Sweep, end: str = "") -> str:
    """Parameters of functions that apply the epilogue, beside `x`, `w` and `y`."""
    names = [f"f{k}" for k in range(sweep.per_filter)]
    names += [f"g{k}" for k in range(sweep.per_entry)]
    return "".join(f"ptr %{name}{end}, " for name in names)


_OPS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


def _written(
    sweep: Sweep,
    t: Types,
    kernel: Kernel,
    branch: str,
    place: tuple[int, int, int],
    value: str,
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
                t.load(operand, pointer, v, True),
            ]
        else:
            base = f"%{branch}{k}b{at}"
            offset = q * kernel.y_step + v * t.width
            out += [
                t.at(base, f"%g{step.place}", f"%yo{r}"),
                t.at(pointer, base, offset),
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
    return [*out, t.store(value, f"%d{at}", v)]


def _unfolded(sweep: Sweep, t: Types, value: str) -> tuple[list[str], str]:
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
