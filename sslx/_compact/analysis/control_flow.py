"""Equations that hold programs: calls, `cond`, `scan`, `while`.

A call passes facts and needs through its program. What `cond`, `scan` and `while` make
has to have one shape whichever branch runs and however often a step does: facts hold if
they do for every branch, or before and after a step, and what is wanted of the results
is fixed (`wanted`) before the programs are rewritten. The carry of a loop is found by
repetition: assume what holds at the start, run a step, drop what it does not preserve.
"""

import functools
from collections.abc import Sequence

import numpy as np

from sslx._compact.analysis.body import BODIES, Body
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.forcing import force
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import (
    Masks,
    both,
    either,
    is_region,
    same,
    within,
    without,
)
from sslx._compact.jaxpr.program import Equation, Program, Value


class CallBody(Body[Liveness]):
    """One program, run once on the operands: `checkpoint`, a custom derivative.

    In a call with a derivative rule of its own no constants are folded: the rule may
    differentiate with respect to any operand. Constants do not come through a
    `custom_vjp` call at all: its rule is known at the call's own shapes only.
    """

    def __init__(self, equation: Equation, fold_constants: bool):
        self.name = equation.name
        folds = fold_constants and not self.is_custom
        self.inside = Liveness(equation.bodies[0], fold_constants=folds)
        self.insides = (self.inside,)
        self.entries = [(0, k, k) for k in range(len(equation.inputs))]
        self.exits = [(0, k, k) for k in range(len(equation.outputs))]

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """Facts of the outputs are those of the body's outputs."""
        outs = self.inside.forward(ins)
        if self.name != "custom_vjp_call":
            return outs
        return [f if f.static else Facts(f.zero, f.zero) for f in outs]

    @property
    def is_custom(self) -> bool:
        """Whether the call has a derivative rule of its own."""
        return self.name.startswith("custom_")

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """Needs of the inputs are those of the body's inputs."""
        return self.inside.backward(alive)

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force inside; returns what that forces of the operands."""
        program = self.inside.program
        force(self.inside, program.outputs[output], masks)
        return self.forced()

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices the program was made to keep."""
        return _forced(self.inside, range(len(self.inside.program.inputs)))


class ControlFlowBody(Body[Liveness]):
    """Programs whose results line up with `wanted`, whatever is zero in them.

    Attributes:
      wanted: per output, the slices that every program is made to produce.
    """

    wanted: list[Masks]

    def wanted_of(self, number: int) -> list[Masks]:
        """What the outputs of one program have to line up with."""
        del number
        return self.wanted


class CondBody(ControlFlowBody):
    """`cond`: one program of several; the results of all line up."""

    def __init__(self, equation: Equation, fold_constants: bool):
        del fold_constants
        self.insides = tuple(Liveness(p, fold_constants=False) for p in equation.bodies)
        branches = range(len(self.insides))
        operands, outputs = len(equation.inputs) - 1, len(equation.outputs)
        self.entries = [(n, k, k + 1) for n in branches for k in range(operands)]
        self.exits = [(n, k, k) for n in branches for k in range(outputs)]
        self.wanted = []

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """A slice is zero if every branch makes it so."""
        given = [_given(f.zero, f) for f in ins[1:]]
        rows = [inside.forward(given) for inside in self.insides]
        return [
            _plain(functools.reduce(both, [f.zero for f in outs]))
            for outs in zip(*rows, strict=True)
        ]

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """A slice is needed if any branch needs it."""
        self.wanted = [_region_or_nothing(m) for m in alive]
        rows = [inside.backward(self.wanted) for inside in self.insides]
        needs = [
            functools.reduce(either, [_region_or_nothing(n) for n in row])
            for row in zip(*rows, strict=True)
        ]
        return [[np.ones(1, bool)], *needs]

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force in every branch."""
        for inside in self.insides:
            force(inside, inside.program.outputs[output], masks)
        return self.forced()

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices any branch was made to keep."""
        return [
            (k + 1, masks)
            for inside in self.insides
            for k, masks in _forced(inside, range(len(inside.program.inputs)))
        ]


def per_step(masks: Masks) -> Masks:
    """Facts of a stacked value, as those of one of its slices along axis zero."""
    return masks[1:] or [np.array([masks[0].all()])]


def any_step(masks: Masks) -> Masks:
    """What is needed of a stacked value, as needed of one of its slices."""
    return masks[1:] if len(masks) > 1 else [np.array([masks[0].any()])]


def stacked(masks: Masks, outer: Value) -> Masks:
    """Slices of one step as slices of the stacked value, every step taken."""
    steps = np.ones(outer.shape[0], bool)
    return [steps, *masks] if len(outer.shape) > 1 else [steps]


class ScanBody(ControlFlowBody):
    """`scan`: a step that runs repeatedly; its carry has the same slices throughout."""

    def __init__(self, equation: Equation, fold_constants: bool):
        del fold_constants
        body = equation.bodies[0]
        carries = _same_rank(body.outputs, equation.outputs)
        consts = _same_rank(body.inputs, equation.inputs) - carries
        self._set(body, equation.inputs, equation.outputs, consts, carries)

    def _set(
        self,
        body: Program,
        inputs: list[Value],
        outputs: list[Value],
        consts: int,
        carries: int,
    ) -> None:
        self.inside = Liveness(body, fold_constants=False)
        self.insides = (self.inside,)
        self.inputs, self.outputs = inputs, outputs
        self.consts, self.carries = consts, carries
        self.entries = [(0, k, k) for k in range(len(inputs))]
        self.exits = [(0, k, k) for k in range(len(outputs))]
        self.ties = [(0, consts + k, k) for k in range(carries)]
        self.wanted = []

    @property
    def stop(self) -> int:
        """Number of operands that are not stacked, one slice for every step."""
        return self.consts + self.carries

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """The carry's facts are those that a step preserves."""
        inner = [
            _given(f.zero if k < self.stop else per_step(f.zero), f)
            for k, f in enumerate(ins)
        ]
        for k in range(self.consts, self.stop):
            inner[k] = _plain(inner[k].zero)
        while True:
            outs = self.inside.forward(inner)
            stable = True
            for k in range(self.carries):
                before = inner[self.consts + k].zero
                after = both(before, outs[k].zero)
                if not same(before, after):
                    inner[self.consts + k] = _plain(after)
                    stable = False
            if stable:
                break
        carried = [_plain(f.zero) for f in inner[self.consts : self.stop]]
        rows = zip(outs[self.carries :], self.outputs[self.carries :], strict=True)
        return carried + [_plain(_stacked_zero(f.zero, v)) for f, v in rows]

    def backward(
        self, alive: list[Masks], carry: Sequence[Masks] | None = None
    ) -> list[Masks]:
        """What a step needs of the carry, the step before has to deliver.

        `carry` are slices of the carry that are needed besides.
        """
        program = self.inside.program
        wanted = [_region_or_nothing(m) for m in alive]
        wanted = [m if k < self.carries else any_step(m) for k, m in enumerate(wanted)]
        for k, more in enumerate(carry or ()):
            self._extend(wanted, k, more)
        while True:
            needs = self.inside.backward(wanted)
            rows = needs[self.consts : self.stop]
            if not any([self._extend(wanted, k, more) for k, more in enumerate(rows)]):
                break
        self.wanted = wanted
        needs = [
            _region_or_nothing(n) if v.shape else n
            for n, v in zip(needs, program.inputs, strict=True)
        ]
        stacks = [
            stacked(n, v) if is_region(n) else full(v, False)
            for n, v in zip(needs[self.stop :], self.inputs[self.stop :], strict=True)
        ]
        return [*needs[: self.consts], *wanted[: self.carries], *stacks]

    def _extend(self, wanted: list[Masks], k: int, need: Masks) -> bool:
        """Add to what is wanted of a carry; whether that was new."""
        value = self.inside.program.inputs[self.consts + k]
        zero = self.inside.of(value).zero
        more = without(need, zero)
        if not is_region(more) or within(more, wanted[k]):
            return False
        wanted[k] = either(more, wanted[k])
        return True

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force inside, the carry before and after a step alike."""
        inside = self.inside
        inner = masks if output < self.carries else any_step(masks)
        force(inside, inside.program.outputs[output], inner)
        if output < self.carries:
            force(inside, inside.program.inputs[self.consts + output], masks)
        return self.forced()

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices the program was made to keep."""
        inside, changed = self.inside, True
        while changed:
            changed = False
            for k in range(self.carries):
                value = inside.program.inputs[self.consts + k]
                if value in inside.forced:
                    output = inside.program.outputs[k]
                    changed |= force(inside, output, inside.forced[value])
        rows = _forced(inside, range(len(inside.program.inputs)))
        return [(k, m if k < self.stop else self._lifted(k, m)) for k, m in rows]

    def _lifted(self, operand: int, masks: Masks) -> Masks:
        outer = self.inputs[operand]
        steps = np.zeros(outer.shape[0], bool)
        return [steps, *masks] if len(outer.shape) > 1 else [~steps]


class WhileBody(ScanBody):
    """`while`: a step, and a test that reads the carry as well."""

    def __init__(self, equation: Equation, fold_constants: bool):
        del fold_constants
        self.tests = equation.params["cond_nconsts"]
        consts = equation.params["body_nconsts"]
        test, body = equation.bodies
        rest = equation.inputs[self.tests :]
        self._set(body, rest, equation.outputs, consts, len(rest) - consts)
        self.test = Liveness(test, fold_constants=False)
        self.insides = (self.inside, self.test)
        own = [(1, k, k) for k in range(self.tests)]
        carried = [
            (1, self.tests + k, self.tests + consts + k) for k in range(self.carries)
        ]
        self.entries = [(0, k, self.tests + k) for k in range(len(rest))]
        self.entries += own + carried

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """The carry's facts are those that a step preserves."""
        outs = super().forward(ins[self.tests :])
        self.test.forward([*(_given(f.zero, f) for f in ins[: self.tests]), *outs])
        return outs

    def backward(
        self, alive: list[Masks], carry: Sequence[Masks] | None = None
    ) -> list[Masks]:
        """What the test and a step need of the carry, the step before delivers."""
        del carry
        needs = self.test.backward([[np.ones(1, bool)]])
        return [
            *needs[: self.tests],
            *super().backward(alive, carry=needs[self.tests :]),
        ]

    def wanted_of(self, number: int) -> list[Masks]:
        """What the outputs of one program have to line up with."""
        return self.wanted if number == 0 else [[np.ones(1, bool)]]

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices the step or the test was made to keep."""
        carried = range(self.tests, self.tests + self.carries)
        for k, masks in _forced(self.test, carried):
            value = self.inside.program.inputs[self.consts + k - self.tests]
            force(self.inside, value, masks)
        rows = [(k + self.tests, m) for k, m in super().forced()]
        return rows + _forced(self.test, range(self.tests))


def _forced(inside: Liveness, positions: Sequence[int]) -> list[tuple[int, Masks]]:
    inputs = inside.program.inputs
    return [
        (k, inside.forced[inputs[k]]) for k in positions if inputs[k] in inside.forced
    ]


def _same_rank(inside: list[Value], outside: list[Value]) -> int:
    """How many values a scan passes on whole rather than step by step."""
    pairs = zip(inside, outside, strict=True)
    return sum(len(a.shape) == len(b.shape) for a, b in pairs)


def _given(zero: Masks, facts: Facts) -> Facts:
    constant = [np.ones_like(m) for m in zero] if facts.static else zero
    return Facts(zero, constant, facts.static, facts.weight)


def _plain(zero: Masks) -> Facts:
    return Facts(zero, zero)


def _stacked_zero(zero: Masks, outer: Value) -> Masks:
    gone = np.full(outer.shape[0], bool(zero[0].all()))
    return [gone, *zero] if len(outer.shape) > 1 else [gone]


def _region_or_nothing(masks: Masks) -> Masks:
    return masks if is_region(masks) else [np.zeros_like(m) for m in masks]


_CALLS = ("custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2")
BODIES.update(dict.fromkeys(_CALLS, CallBody))
BODIES.update({"cond": CondBody, "scan": ScanBody, "while": WhileBody})
