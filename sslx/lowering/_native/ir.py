"""Functions in LLVM's language, written one instruction at a time.

Only what kernels need: 64-bit integers, addresses, vectors of floats, loops whose
values are carried from one round to the next, and branches.
"""

import contextlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

WIDE = 'nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512"'
"""Attributes of functions that may use the longest vectors."""


class Vector(NamedTuple):
    """The type of some floats side by side.

    Attributes:
      lanes: how many.
      bits: of each.
    """

    lanes: int
    bits: int

    def __str__(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def scalar(self) -> str:
        """The type of one."""
        return {32: "float", 64: "double"}[self.bits]

    @property
    def bytes(self) -> int:
        """Of one."""
        return self.bits // 8

    @property
    def suffix(self) -> str:
        """What the names of LLVM's functions for this type end with."""
        return f"v{self.lanes}f{self.bits}"

    def zeros(self) -> "Value":
        """A constant."""
        return Value(self, "zeroinitializer")

    def filled(self, number: float) -> "Value":
        """A constant: the number, rounded to this type, in every lane."""
        exact = float(np.float32(number)) if self.bits == 32 else number
        one = f"{self.scalar} 0x{struct.pack('>d', exact).hex().upper()}"
        return Value(self, f"<{', '.join([one] * self.lanes)}>")


class Value(NamedTuple):
    """Something that was computed, or is known.

    Attributes:
      type: as LLVM writes it.
      name: or number.
    """

    type: "str | Vector"
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


Index = Value | int
"""A 64-bit integer."""

NULL = Value("ptr", "null")


def address(number: int) -> Value:
    """Memory at a known place."""
    return Value("ptr", f"inttoptr (i64 {number} to ptr)")


class Carried:
    """Values that differ by the way that led to a place.

    Attributes:
      index: of a counted loop, which round it is.
      values: in a block, what is carried to its end; after it, what came there.
    """

    def __init__(self, values: Sequence[Value], index: Value | None = None):
        self.values = list(values)
        self._index = index

    @property
    def index(self) -> Value:
        """The round of a counted loop."""
        assert self._index is not None, "only `Function.loop` counts"
        return self._index


class Function:
    """A function that is being written: each method appends an instruction.

    Args:
      name: of the function.
      params: types of its parameters by their names.
      result: type of what it returns.
      shared: whether it is called from outside.
    """

    def __init__(
        self,
        name: str,
        params: Mapping[str, str],
        result: str = "void",
        shared: bool = False,
    ):
        self.name = name
        self.given = {n: Value(t, f"%{n}") for n, t in params.items()}
        self.called: dict[str, str] = {}
        given = ", ".join(map(str, self.given.values()))
        kind = "" if shared else "internal "
        self._head = f"define {kind}{result} @{name}({given}) {WIDE} {{"
        self._memory: list[str] = []
        self._lines: list[str] = []
        self._block = "entry"
        self._count = 0
        self._left = False
        self._open: list[int] = []

    def __getitem__(self, name: str) -> Value:
        return self.given[name]

    def text(self) -> str:
        """All of it."""
        lines = [self._head, "entry:", *self._memory, *self._lines]
        return "\n".join([*lines, "}"])

    # Numbers and addresses.

    def add(self, a: Index, b: Index) -> Value:
        """`a + b`."""
        return self._binary("add", a, b)

    def sub(self, a: Index, b: Index) -> Value:
        """`a - b`."""
        return self._binary("sub", a, b)

    def mul(self, a: Index, b: Index) -> Value:
        """`a * b`."""
        return self._binary("mul", a, b)

    def div(self, a: Index, b: Index) -> Value:
        """`a // b`, of numbers without signs."""
        return self._binary("udiv", a, b)

    def mod(self, a: Index, b: Index) -> Value:
        """`a % b`, of numbers without signs."""
        return self._binary("urem", a, b)

    def min(self, a: Index, b: Index) -> Value:
        """The smaller one."""
        return self.call("llvm.smin.i64", _i64(a), _i64(b), result="i64")

    def max(self, a: Index, b: Index) -> Value:
        """The larger one."""
        return self.call("llvm.smax.i64", _i64(a), _i64(b), result="i64")

    def less(self, a: Index, b: Index) -> Value:
        """Whether `a < b`."""
        return self.let("i1", f"icmp slt i64 {_i64(a).name}, {_i64(b).name}")

    def same(self, a: Value, b: Index) -> Value:
        """Whether they are equal: integers, or addresses."""
        other = b.name if isinstance(b, Value) else b
        return self.let("i1", f"icmp eq {a}, {other}")

    def differ(self, a: Value, b: Index) -> Value:
        """Whether they are not equal."""
        other = b.name if isinstance(b, Value) else b
        return self.let("i1", f"icmp ne {a}, {other}")

    def choose(self, condition: Value, yes: Index, no: Index) -> Value:
        """One of two numbers."""
        return self.let("i64", f"select {condition}, {_i64(yes)}, {_i64(no)}")

    def at(self, start: Value, offset: Index, unit: str = "i8") -> Value:
        """The address some units behind another one."""
        return self.let("ptr", f"getelementptr {unit}, {start}, {_i64(offset)}")

    # Memory.

    def memory(self, size: int) -> Value:
        """Some bytes that live as long as the call."""
        name = self._name("m")
        self._memory.append(f"{name} = alloca [{size} x i8], align 8")
        return Value("ptr", name)

    def load(self, kind: "str | Vector", place: Value, align: int = 8) -> Value:
        """What stands there."""
        return self.let(kind, f"load {kind}, {place}, align {align}")

    def store(self, value: Value, place: Value, align: int = 8) -> None:
        """Write it there."""
        self.do(f"store {value}, {place}, align {align}")

    def fill(self, place: Value, byte: int, size: Index) -> None:
        """Write the same byte many times."""
        self.call(
            "llvm.memset.p0.i64", place, Value("i8", str(byte)), _i64(size), _FALSE
        )

    def number(self, table: Value, place: Index) -> Value:
        """An entry of a table of 32-bit integers."""
        entry = self.load("i32", self.at(table, place, "i32"), 4)
        return self.let("i64", f"sext {entry} to i64")

    def prefetch(self, place: Value, write: bool = False, near: int = 2) -> None:
        """Ask for a line of memory; `near` is 3 for the nearest cache."""
        options = (Value("i32", str(k)) for k in (int(write), near, 1))
        self.call("llvm.prefetch.p0", place, *options)

    def changed(self, how: str, place: Value, by: Index) -> Value:
        """What stood there, while all threads see one after the other change it."""
        return self.let("i64", f"atomicrmw {how} {place}, {_i64(by)} seq_cst")

    # Vectors.

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`."""
        return self._vector("fmuladd", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """Of every lane; not a number where one is not."""
        return self._vector("maximum", a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """Of every lane; not a number where one is not."""
        return self._vector("minimum", a, b)

    def arithmetic(self, op: str, a: Value, b: Value) -> Value:
        """`fadd`, `fsub`, `fmul` or `fdiv` of every lane."""
        return self.let(a.type, f"{op} {a}, {b.name}")

    def repeated(self, a: Value, lanes: int) -> Value:
        """The lanes of a vector again and again."""
        kind = _vector_of(a)
        some = ", ".join(f"i32 {k % kind.lanes}" for k in range(lanes))
        wide = Vector(lanes, kind.bits)
        order = f"<{lanes} x i32> <{some}>"
        return self.let(wide, f"shufflevector {a}, {kind} poison, {order}")

    def pairs_added(self, a: Value) -> Value:
        """The sums of neighbouring lanes: half of a vector.

        As integers of twice their width, shifted.
        """
        kind = _vector_of(a)
        half, bits = kind.lanes // 2, kind.bits
        pairs = f"<{half} x i{2 * bits}>"
        by = ", ".join([f"i{2 * bits} {bits}"] * half)
        whole = self.let(pairs, f"bitcast {a} to {pairs}")
        high = self.let(pairs, f"lshr {whole}, <{by}>")
        odd = self.let(kind, f"bitcast {high} to {kind}")
        added = self.arithmetic("fadd", a, odd)
        again = self.let(pairs, f"bitcast {added} to {pairs}")
        low = self.let(f"<{half} x i{bits}>", f"trunc {again} to <{half} x i{bits}>")
        return self.let(Vector(half, bits), f"bitcast {low} to {Vector(half, bits)}")

    def load_first(self, kind: Vector, place: Value, lanes: int) -> Value:
        """A vector of which only the first lanes are read; zero in the others."""
        if lanes == kind.lanes:
            return self.load(kind, place, kind.bytes)
        name = f"llvm.masked.load.{kind.suffix}.p0"
        mask = _mask(kind, lanes)
        self.called[name] = f"{kind} @{name}(ptr, {mask.type}, {kind})"
        where = f"ptr align {kind.bytes} {place.name}"
        return self.let(kind, f"call {kind} @{name}({where}, {mask}, {kind.zeros()})")

    def store_first(self, value: Value, place: Value, lanes: int) -> None:
        """Write only the first lanes of a vector."""
        kind = _vector_of(value)
        if lanes == kind.lanes:
            return self.store(value, place, kind.bytes)
        name = f"llvm.masked.store.{kind.suffix}.p0"
        mask = _mask(kind, lanes)
        self.called[name] = f"void @{name}({kind}, ptr, {mask.type})"
        where = f"ptr align {kind.bytes} {place.name}"
        return self.do(f"call void @{name}({value}, {where}, {mask})")

    # Calls, loops, branches.

    def call(self, callee: "str | Value", *args: Value, result: str = "void") -> Value:
        """Call a function by its name, or at its address."""
        name = callee.name if isinstance(callee, Value) else f"@{callee}"
        if isinstance(callee, str):
            kinds = ", ".join(str(a.type) for a in args)
            self.called[callee] = f"{result} @{callee}({kinds})"
        text = f"call {result} {name}({', '.join(map(str, args))})"
        if result != "void":
            return self.let(result, text)
        self.do(text)
        return Value("void", "")

    def ret(self, value: Value | None = None) -> None:
        """Leave the function."""
        self.do(f"ret {value or 'void'}")
        self._left = True

    @contextlib.contextmanager
    def loop(self, begin: Index, end: Index, *carried: Value) -> Iterator[Carried]:
        """Rounds from a number to before another one, none where that is not larger."""
        n = self._fresh()
        before = self._block
        body, after, following = f"loop{n}", f"after{n}", f"%next{n}"
        self._branch(self.less(begin, end), body, after)
        self._start(body)
        index = Value("i64", f"%k{n}")
        mark = len(self._lines)
        values = [Value(v.type, self._name("c")) for v in carried]
        state = Carried(values, index)
        yield state
        latch = self._block
        self.do(f"{following} = add {index}, 1")
        self._branch(self.less(Value("i64", following), end), body, after)
        starts = [_i64(begin), *carried]
        ends = [Value("i64", following), *state.values]
        self._lines[mark:mark] = [
            _phi(v, (first, before), (last, latch))
            for v, first, last in zip([index, *values], starts, ends, strict=True)
        ]
        self._start(after)
        state.values = self._joined((carried, before), (state.values, latch))

    @contextlib.contextmanager
    def repeat(self, *carried: Value) -> Iterator[Carried]:
        """Rounds until `leave` is called, once in all, in their midst.

        What is carried is, after the loop, what it was at the start of the last round.
        """
        n = self._fresh()
        before = self._block
        body = f"loop{n}"
        self._jump(body)
        self._start(body)
        mark = len(self._lines)
        values = [Value(v.type, self._name("c")) for v in carried]
        state = Carried(values)
        self._open.append(n)
        yield state
        self._open.pop()
        latch = self._block
        self._jump(body)
        self._lines[mark:mark] = [
            _phi(v, (first, before), (last, latch))
            for v, first, last in zip(values, carried, state.values, strict=True)
        ]
        self._start(f"left{n}")
        state.values = values

    def leave(self, condition: Value) -> None:
        """End the innermost `repeat`."""
        n = self._open[-1]
        self._branch(condition, f"left{n}", f"stay{n}")
        self._start(f"stay{n}")

    @contextlib.contextmanager
    def when(self, condition: Value, *otherwise: Value) -> Iterator[Carried]:
        """Only where it is true; values keep what they were where it is not."""
        n = self._fresh()
        before = self._block
        self._branch(condition, f"then{n}", f"end{n}")
        self._start(f"then{n}")
        state = Carried(otherwise)
        yield state
        then = self._block
        left = self._left
        if not left:
            self._jump(f"end{n}")
        self._start(f"end{n}")
        if not left:
            state.values = self._joined((otherwise, before), (state.values, then))

    def switch(self, value: Value, cases: int) -> Iterator[int]:
        """Each of the numbers below `cases`; what is written meanwhile is for it."""
        n = self._fresh()
        labels = " ".join(f"i64 {k}, label %case{n}_{k}" for k in range(cases))
        self.do(f"switch {value}, label %end{n} [ {labels} ]")
        for k in range(cases):
            self._start(f"case{n}_{k}")
            yield k
            self._jump(f"end{n}")
        self._start(f"end{n}")

    # Text.

    def let(self, kind: "str | Vector", text: str) -> Value:
        """Name a new value."""
        name = self._name("v")
        self._lines.append(f"{name} = {text}")
        return Value(kind, name)

    def do(self, text: str) -> None:
        """An instruction without a value."""
        self._lines.append(text)

    def _binary(self, op: str, a: Index, b: Index) -> Value:
        return self.let("i64", f"{op} i64 {_i64(a).name}, {_i64(b).name}")

    def _vector(self, name: str, *args: Value) -> Value:
        kind = _vector_of(args[0])
        callee = f"llvm.{name}.{kind.suffix}"
        kinds = ", ".join(str(a.type) for a in args)
        self.called[callee] = f"{kind} @{callee}({kinds})"
        return self.let(kind, f"call {kind} @{callee}({', '.join(map(str, args))})")

    def _fresh(self) -> int:
        self._count += 1
        return self._count

    def _name(self, start: str) -> str:
        return f"%{start}{self._fresh()}"

    def _start(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block, self._left = label, False

    def _jump(self, label: str) -> None:
        self.do(f"br label %{label}")

    def _branch(self, condition: Value, yes: str, no: str) -> None:
        self.do(f"br {condition}, label %{yes}, label %{no}")

    def _joined(self, *ways: "tuple[Sequence[Value], str]") -> list[Value]:
        """What came to the start of a block, by the blocks before it."""
        blocks = [block for _, block in ways]
        found = []
        for values in zip(*(values for values, _ in ways), strict=True):
            name = Value(values[0].type, self._name("j"))
            self.do(_phi(name, *zip(values, blocks, strict=True)))
            found.append(name)
        return found


def module(functions: Iterable[Function]) -> str:
    """Functions, and what they call beside each other, declared."""
    written = list(functions)
    names = {f.name for f in written}
    called = {name: how for f in written for name, how in f.called.items()}
    declared = [f"declare {how}" for name, how in called.items() if name not in names]
    return "\n".join([*(f.text() for f in written), *declared])


_FALSE = Value("i1", "false")


def _i64(a: Index) -> Value:
    return a if isinstance(a, Value) else Value("i64", str(a))


def _vector_of(a: Value) -> Vector:
    assert isinstance(a.type, Vector), a
    return a.type


def _phi(name: Value, *ways: tuple[Value, str]) -> str:
    text = ", ".join(f"[ {value.name}, %{block} ]" for value, block in ways)
    return f"{name.name} = phi {name.type} {text}"


def _mask(kind: Vector, lanes: int) -> Value:
    bits = ", ".join(f"i1 {int(k < lanes)}" for k in range(kind.lanes))
    return Value(f"<{kind.lanes} x i1>", f"<{bits}>")
