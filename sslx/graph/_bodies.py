"""Equations that hold programs: `custom_jvp_call`, `checkpoint`, `scan`."""

from collections.abc import Sequence

import numpy as np

from sslx.graph._liveness import Body, Facts, Liveness, full
from sslx.graph._program import Equation, Value
from sslx.graph._relation import Masks


class Call(Body):
    """One body, run once on the operands."""

    def __init__(self, equation: Equation, fold: bool):
        self.inside = Liveness(equation.bodies[0], fold=fold)

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """Facts of the outputs are those of the body's outputs."""
        return self.inside.forward(ins)

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """Needs of the inputs are those of the body's inputs."""
        return self.inside.backward(alive)

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force inside; what that forces of the body's inputs is the answer."""
        program = self.inside.program
        self.inside.force(program.outputs[output], masks)
        return [
            (k, self.inside.forced.get(v, full(v, False)))
            for k, v in enumerate(program.inputs)
            if v in self.inside.forced
        ]


def per_step(masks: Masks) -> Masks:
    """Facts of a stacked value, as those of one of its slices along axis zero."""
    return masks[1:] or [np.array([masks[0].all()])]


def stacked(masks: Masks, outer: Value) -> Masks:
    """Slices of one step as slices of the stacked value, every step taken."""
    steps = np.ones(outer.shape[0], bool)
    return [steps, *masks] if len(outer.shape) > 1 else [steps]


class Scan(Body):
    """A body that runs once per step; the carry keeps one set of slices throughout."""

    def __init__(self, equation: Equation, fold: bool):
        del fold
        self.equation = equation
        body = equation.bodies[0]
        self.carries = _same_rank(body.outputs, equation.outputs)
        self.consts = _same_rank(body.inputs, equation.inputs) - self.carries
        self.inside = Liveness(body, fold=False)
        self.wanted: list[Masks] = []

    @property
    def _stop(self) -> int:
        return self.consts + self.carries

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """The carry's facts are those that a step preserves."""
        inner = [
            _seen(f.zero if k < self._stop else per_step(f.zero), f)
            for k, f in enumerate(ins)
        ]
        while True:
            outs = self.inside.forward(inner)
            stable = True
            for k in range(self.carries):
                before = inner[self.consts + k].zero
                after = [a & b for a, b in zip(before, outs[k].zero, strict=True)]
                if any((a != b).any() for a, b in zip(before, after, strict=True)):
                    inner[self.consts + k] = Facts(after, after)
                    stable = False
            if stable:
                break
        carried = [_plain(f.zero) for f in inner[self.consts : self._stop]]
        rows = zip(
            outs[self.carries :], self.equation.outputs[self.carries :], strict=True
        )
        return carried + [_plain(_stacked_zero(f.zero, v)) for f, v in rows]

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """What a step needs of the carry, the step before has to deliver."""
        program = self.inside.program
        wanted = [m if k < self.carries else per_step(m) for k, m in enumerate(alive)]
        wanted = [_whole_or_nothing(m) for m in wanted]
        while True:
            needs = self.inside.backward(wanted)
            grown = False
            for k in range(self.carries):
                value = program.inputs[self.consts + k]
                zero = self.inside.of(value).zero
                more = [
                    n & ~z for n, z in zip(needs[self.consts + k], zero, strict=True)
                ]
                union = [m | w for m, w in zip(more, wanted[k], strict=True)]
                if _some(more) and any(
                    (u != w).any() for u, w in zip(union, wanted[k], strict=True)
                ):
                    wanted[k], grown = union, True
            if not grown:
                break
        self.wanted = wanted
        held = wanted[: self.carries]
        stacks = [
            stacked(n, v) if _some(n) else full(v, False)
            for n, v in zip(
                needs[self._stop :], self.equation.inputs[self._stop :], strict=True
            )
        ]
        return [*needs[: self.consts], *held, *stacks]

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force inside, the carry before and after a step alike."""
        inside = self.inside
        inner = masks if output < self.carries else per_step(masks)
        inside.force(inside.program.outputs[output], inner)
        if output < self.carries:
            inside.force(inside.program.inputs[self.consts + output], masks)
        return self.forced()

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices the body was made to keep."""
        inside, changed = self.inside, True
        while changed:
            changed = False
            for k in range(self.carries):
                value = inside.program.inputs[self.consts + k]
                if value in inside.forced:
                    output = inside.program.outputs[k]
                    changed |= inside.force(output, inside.forced[value])
        return [
            (k, inside.forced[v] if k < self._stop else self._lifted(k, v))
            for k, v in enumerate(inside.program.inputs)
            if v in inside.forced
        ]

    def _lifted(self, operand: int, value: Value) -> Masks:
        masks = self.inside.forced[value]
        outer = self.equation.inputs[operand]
        steps = np.zeros(outer.shape[0], bool)
        return [steps, *masks] if len(outer.shape) > 1 else [~steps]


def _same_rank(inside: list[Value], outside: list[Value]) -> int:
    """How many values a scan passes on whole rather than step by step."""
    pairs = zip(inside, outside, strict=True)
    return sum(len(a.shape) == len(b.shape) for a, b in pairs)


def _seen(zero: Masks, facts: Facts) -> Facts:
    constant = [np.ones_like(m) for m in zero] if facts.static else zero
    return Facts(zero, constant, facts.static, facts.weight)


def _plain(zero: Masks) -> Facts:
    return Facts(zero, zero)


def _stacked_zero(zero: Masks, outer: Value) -> Masks:
    gone = np.full(outer.shape[0], bool(zero[0].all()))
    return [gone, *zero] if len(outer.shape) > 1 else [gone]


def _some(masks: Sequence[np.ndarray]) -> bool:
    return all(m.any() for m in masks)


def _whole_or_nothing(masks: Masks) -> Masks:
    return masks if _some(masks) else [np.zeros_like(m) for m in masks]


BODIES = {
    "custom_jvp_call": Call,
    "checkpoint": Call,
    "remat": Call,
    "remat2": Call,
    "scan": Scan,
}
