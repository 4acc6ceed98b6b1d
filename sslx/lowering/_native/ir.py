"""A builder of functions in LLVM's language, one instruction at a time.

It has what kernels need: 64-bit integers, pointers, vectors of floats, loops with
loop-carried values, and branches; it inserts the phi nodes.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sslx.lowering._native.values import (
    Index,
    Value,
    Vector,
    i64,
    lane_mask,
    phi,
    vector_of,
)

WIDE = 'nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512"'
"""Attributes of functions that may use the longest vectors."""


class Carried:
    """Values that a loop or branch may change.

    Attributes:
      index: of a counted loop.
      values: inside, the current ones; afterwards, those that come out.
    """

    def __init__(self, values: Sequence[Value], index: Value | None = None):
        self.values = list(values)
        self._index = index

    @property
    def index(self) -> Value:
        """Of a counted loop."""
        assert self._index is not None, "only `Function.loop` counts"
        return self._index


class Function:
    """A function under construction; each method appends an instruction.

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
        return self.call("llvm.smin.i64", i64(a), i64(b), result="i64")

    def max(self, a: Index, b: Index) -> Value:
        """The larger one."""
        return self.call("llvm.smax.i64", i64(a), i64(b), result="i64")

    def less(self, a: Index, b: Index) -> Value:
        """Whether `a < b`."""
        return self.let("i1", f"icmp slt i64 {i64(a).name}, {i64(b).name}")

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
        return self.let("i64", f"select {condition}, {i64(yes)}, {i64(no)}")

    def at(self, start: Value, offset: Index, unit: str = "i8") -> Value:
        """The address some units behind another one."""
        return self.let("ptr", f"getelementptr {unit}, {start}, {i64(offset)}")

    # Memory.

    def memory(self, size: int) -> Value:
        """Bytes on the stack."""
        name = self._name("m")
        self._memory.append(f"{name} = alloca [{size} x i8], align 8")
        return Value("ptr", name)

    def load(self, kind: "str | Vector", pointer: Value, align: int = 8) -> Value:
        """The value at a pointer."""
        return self.let(kind, f"load {kind}, {pointer}, align {align}")

    def store(self, value: Value, pointer: Value, align: int = 8) -> None:
        """Write a value."""
        self.do(f"store {value}, {pointer}, align {align}")

    def fill(self, pointer: Value, byte: int, size: Index) -> None:
        """Set bytes."""
        self.call(
            "llvm.memset.p0.i64",
            pointer,
            Value("i8", str(byte)),
            i64(size),
            Value("i1", "false"),
        )

    def number(self, table: Value, index: Index) -> Value:
        """An entry of a table of 32-bit integers."""
        entry = self.load("i32", self.at(table, index, "i32"), 4)
        return self.let("i64", f"sext {entry} to i64")

    def prefetch(self, pointer: Value, write: bool = False, near: int = 2) -> None:
        """Prefetch a cache line; `near` is 3 for the nearest cache."""
        options = (Value("i32", str(k)) for k in (int(write), near, 1))
        self.call("llvm.prefetch.p0", pointer, *options)

    def changed(self, how: str, pointer: Value, by: Index) -> Value:
        """Change an integer atomically (`add`, `sub`, ...): its old value."""
        return self.let("i64", f"atomicrmw {how} {pointer}, {i64(by)} seq_cst")

    # Vectors.

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`."""
        return self._vector("fmuladd", a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """Of every lane; NaN where either is."""
        return self._vector("maximum", a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """Of every lane; NaN where either is."""
        return self._vector("minimum", a, b)

    def arithmetic(self, op: str, a: Value, b: Value) -> Value:
        """`fadd`, `fsub`, `fmul` or `fdiv` of every lane."""
        return self.let(a.type, f"{op} {a}, {b.name}")

    def repeated(self, a: Value, lanes: int) -> Value:
        """The lanes of a vector, repeated to fill a longer one."""
        kind = vector_of(a)
        some = ", ".join(f"i32 {k % kind.lanes}" for k in range(lanes))
        wide = Vector(lanes, kind.bits)
        order = f"<{lanes} x i32> <{some}>"
        return self.let(wide, f"shufflevector {a}, {kind} poison, {order}")

    def pairs_added(self, a: Value) -> Value:
        """The sums of neighbouring lanes: half of a vector.

        The odd lanes are shifted down, two lanes at a time as one integer.
        """
        kind = vector_of(a)
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

    def load_first(self, kind: Vector, pointer: Value, lanes: int) -> Value:
        """Load only the first lanes of a vector; the others are zero."""
        if lanes == kind.lanes:
            return self.load(kind, pointer, kind.bytes)
        name = f"llvm.masked.load.{kind.suffix}.p0"
        mask = lane_mask(kind, lanes)
        self.called[name] = f"{kind} @{name}(ptr, {mask.type}, {kind})"
        where = f"ptr align {kind.bytes} {pointer.name}"
        return self.let(kind, f"call {kind} @{name}({where}, {mask}, {kind.zeros()})")

    def store_first(self, value: Value, pointer: Value, lanes: int) -> None:
        """Store only the first lanes of a vector."""
        kind = vector_of(value)
        if lanes == kind.lanes:
            return self.store(value, pointer, kind.bytes)
        name = f"llvm.masked.store.{kind.suffix}.p0"
        mask = lane_mask(kind, lanes)
        self.called[name] = f"void @{name}({kind}, ptr, {mask.type})"
        where = f"ptr align {kind.bytes} {pointer.name}"
        return self.do(f"call void @{name}({value}, {where}, {mask})")

    # Calls, loops, branches.

    def call(self, callee: "str | Value", *args: Value, result: str = "void") -> Value:
        """Call a function by name or by pointer."""
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
        """Return."""
        self.do(f"ret {value or 'void'}")
        self._left = True

    @contextlib.contextmanager
    def loop(self, begin: Index, end: Index, *carried: Value) -> Iterator[Carried]:
        """Count from `begin` up to, not including, `end`."""
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
        starts = [i64(begin), *carried]
        ends = [Value("i64", following), *state.values]
        self._lines[mark:mark] = [
            phi(v, (first, before), (last, latch))
            for v, first, last in zip([index, *values], starts, ends, strict=True)
        ]
        self._start(after)
        state.values = self._joined((carried, before), (state.values, latch))

    @contextlib.contextmanager
    def repeat(self, *carried: Value) -> Iterator[Carried]:
        """Loop until the condition of `leave`, which is called once inside, is true.

        The values that come out are those at the start of the last iteration.
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
            phi(v, (first, before), (last, latch))
            for v, first, last in zip(values, carried, state.values, strict=True)
        ]
        self._start(f"left{n}")
        state.values = values

    def leave(self, condition: Value) -> None:
        """End the innermost `repeat` if a condition holds."""
        n = self._open[-1]
        self._branch(condition, f"left{n}", f"stay{n}")
        self._start(f"stay{n}")

    @contextlib.contextmanager
    def when(self, condition: Value, *otherwise: Value) -> Iterator[Carried]:
        """Run only if a condition holds; else the values stay as they are."""
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
        """One branch per number below `cases`, filled while the number is yielded."""
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
        """Append an instruction that yields a value."""
        name = self._name("v")
        self._lines.append(f"{name} = {text}")
        return Value(kind, name)

    def do(self, text: str) -> None:
        """Append an instruction that yields none."""
        self._lines.append(text)

    def _binary(self, op: str, a: Index, b: Index) -> Value:
        return self.let("i64", f"{op} i64 {i64(a).name}, {i64(b).name}")

    def _vector(self, name: str, *args: Value) -> Value:
        kind = vector_of(args[0])
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
        """Phi nodes at the start of a block, for values from the blocks before it."""
        blocks = [block for _, block in ways]
        found = []
        for values in zip(*(values for values, _ in ways), strict=True):
            name = Value(values[0].type, self._name("j"))
            self.do(phi(name, *zip(values, blocks, strict=True)))
            found.append(name)
        return found


def module(functions: Iterable[Function]) -> str:
    """The text of functions, with declarations of what they call outside."""
    written = list(functions)
    names = {f.name for f in written}
    called = {name: how for f in written for name, how in f.called.items()}
    declared = [f"declare {how}" for name, how in called.items() if name not in names]
    return "\n".join([*(f.text() for f in written), *declared])
