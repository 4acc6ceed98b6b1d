"""Equal slices: of several equal terms of a sum, one is evaluated.

Removed channels after `x - mean(x)` are neither zero nor constant, but each of them is
`-mean(x)`. A sum over channels needs one of them, times their number.

That slice is evaluated separately, through the equations along which the slices stay
equal (`Copies.chain`), from values that have only one slice along that axis, or zeros.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sslx._compact.jaxpr.masks import Mask, Masks, some, uniform
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Link, Relation


@runtime_checkable
class HasZeros(Protocol):
    """Facts of a value; only the zero slices matter here."""

    @property
    def zero(self) -> Masks: ...


@runtime_checkable
class Analysis(Protocol):
    """What the analysis of the program answers: see `Liveness`."""

    inner: dict[Equation, Any]
    producer: dict[Value, Equation]
    relations: dict[Equation, Relation]

    def of(self, value: Value) -> HasZeros: ...

    def targets(self, equation: Equation) -> list[Masks]: ...

    def behind(self, equation: Equation, wanted: list[Masks]) -> list[Masks]: ...


class Piece(NamedTuple):
    """A region of a value: one of the equal slices along `axis`; None: all of it."""

    value: Value
    axis: int | None
    region: tuple[Mask, ...]

    @property
    def key(self) -> tuple[Value, int | None, bytes]:
        """What tells pieces apart."""
        return self.value, self.axis, b"|".join(m.tobytes() for m in self.region)


class Step(NamedTuple):
    """A piece, the equation that makes it, and the pieces of its operands."""

    piece: Piece
    equation: Equation
    operands: Sequence[Piece]


class Copies:
    """Equal slices of the values of one program, as the facts stand."""

    def __init__(self, live: Analysis):
        self.live = live
        self.forget()

    def forget(self) -> None:
        """Drop what was found: the facts, or what is needed, have changed."""
        self._uniform: dict[tuple[Value, int], Mask] = {}
        self._chains: dict[Equation, list[tuple[Mask, Piece, list[Step]]]] = {}

    def terms(self, equation: Equation, axis: int) -> Mask:
        """Terms of a plain sum along an axis that equal one another and are not zero.

        Those of one axis at most count, and never all of them.
        """
        value = equation.inputs[0]
        sums = self.live.relations[equation].sums
        for other in sorted(m.axis for (m,) in sums):
            same = self.uniform(value, other) & ~self.live.of(value).zero[other]
            if some(same) and not same.all():
                return same if other == axis else np.zeros(value.shape[axis], bool)
        return np.zeros(value.shape[axis], bool)

    def uniform(self, value: Value, axis: int) -> Mask:
        """Slices of an axis that are equal to one another."""
        stack = [(value, axis)]
        while stack:
            key = stack[-1]
            if key not in self._uniform:
                found = self._found(*key)
                if isinstance(found, tuple):
                    stack.append(found)
                    continue
                self._uniform[key] = found
            stack.pop()
        return self._uniform[value, axis]

    def _found(self, value: Value, axis: int) -> "Mask | tuple[Value, int]":
        """The answer of `uniform`, or the value and axis to answer it for first."""
        zero = self.live.of(value).zero[axis]
        eqn = self.live.producer.get(value)
        if zero.any() or eqn is None or eqn in self.live.inner:
            return zero
        links = self._links(eqn, value, axis)
        if not links:
            return ~zero if eqn.name == "broadcast_in_dim" else zero
        same = ~zero
        for link in links:
            operand = eqn.inputs[link.operand]
            if operand.shape[link.in_axis] == 1:
                continue
            if link.in_label is not None or link.out_label is not None:
                return zero
            if (operand, link.in_axis) not in self._uniform:
                return operand, link.in_axis
            same = same & self._uniform[operand, link.in_axis]
            if not same.any():
                break
        return same

    def _links(self, eqn: Equation, value: Value, axis: int) -> list[Link]:
        position = eqn.outputs.index(value)
        links = self.live.relations[eqn].links
        return [x for x in links if x.output == position and x.out_axis == axis]

    def chains(self, equation: Equation) -> list[tuple[Mask, Piece, list[Step]]]:
        """The equal terms of a plain sum: which, one of them, and its steps."""
        if equation.name != "reduce_sum":
            return []
        if equation not in self._chains:
            self._chains[equation] = self._found_chains(equation)
        return self._chains[equation]

    def _found_chains(self, equation: Equation) -> list[tuple[Mask, Piece, list[Step]]]:
        found = []
        for (member,) in self.live.relations[equation].sums:
            same = self.terms(equation, member.axis)
            if some(same):
                (target,) = self.live.targets(equation)
                one = np.arange(same.size) == np.flatnonzero(same)[0]
                region = [one if a == member.axis else m for a, m in enumerate(target)]
                piece = Piece(equation.inputs[0], member.axis, tuple(region))
                found.append((same, piece, self.chain(piece)))
        return found

    def chain(self, piece: Piece) -> list[Step]:
        """The steps that evaluate a piece, operands first; other pieces are held."""
        done: set[tuple] = set()
        steps, work = [], [piece]
        while work:
            piece = work[-1]
            if piece.axis is None or piece.key in done:
                work.pop()
                continue
            step = Step(piece, self.live.producer[piece.value], self._operands(piece))
            left = [
                p for p in step.operands if p.axis is not None and p.key not in done
            ]
            if left:
                work += left
                continue
            done.add(piece.key)
            steps.append(step)
            work.pop()
        return steps

    def _operands(self, piece: Piece) -> list[Piece]:
        value, axis, region = piece
        assert axis is not None
        eqn = self.live.producer[value]
        wanted = [
            list(region) if v is value else uniform(v.shape, False) for v in eqn.outputs
        ]
        along = {x.operand: x.in_axis for x in self._links(eqn, value, axis)}
        pieces = []
        for k, masks in enumerate(self.live.behind(eqn, wanted)):
            operand, at = eqn.inputs[k], along.get(k)
            held = at is None or operand.shape[at] == 1 or self._is_zero(operand, masks)
            pieces.append(Piece(operand, None if held else at, tuple(masks)))
        return pieces

    def _is_zero(self, value: Value, region: Masks) -> bool:
        rows = zip(region, self.live.of(value).zero, strict=True)
        return any(not some(r > z) for r, z in rows)
