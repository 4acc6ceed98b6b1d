"""Calls with derivative rules of their own keep them, reduced as the calls are.

The rule is traced at the call's full shapes, which gives a program of operands and
tangents (or cotangents). That is analysed and evaluated as any other program, on the
slices that are held of the operands. Absent slices count as zero where the function
found them so; a rule that reads others is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks, both
from sslx._compact.jaxpr.program import Equation, Program, Value, build
from sslx._compact.rewrite.constant_evaluation import no_tangent, with_tangents

Pair = tuple[Any, Masks] | None
Evaluate = Callable[[Liveness, Sequence[Any], Sequence[Pair], list[Masks]], list[Any]]


class ReducedCall:
    """One call on reduced operands.

    Attributes:
      eqn: the call in the original program.
      inside: the analysis of its body.
      given: per operand, the slices that are held; None if nothing of it is needed.
      outputs: per output, the slices to produce.
      constants: per operand, the values of its constant slices.
      evaluate: runs an analysed program on held slices.
    """

    def __init__(
        self,
        eqn: Equation,
        inside: Liveness,
        given: list[Masks | None],
        outputs: list[Masks],
        constants: list[Any],
        evaluate: Evaluate,
    ):
        self.eqn, self.inside, self.evaluate = eqn, inside, evaluate
        self.given, self.outputs = given, outputs
        folds = inside.fold_constants
        self.constants = constants if folds else [None for _ in constants]
        self.present = [k for k, g in enumerate(given) if g is not None]
        self.smooth = [jnp.issubdtype(v.dtype, np.inexact) for v in eqn.inputs]

    def pairs(self, arrays: Sequence[Any]) -> list[Pair]:
        """All operands with what is held of them, from those that are present."""
        rows: list[Pair] = [None] * len(self.given)
        for k, array in zip(self.present, arrays, strict=True):
            masks = self.given[k]
            assert masks is not None
            rows[k] = (array, masks)
        return rows

    def run(self, *operands: Any) -> tuple[Any, ...]:
        """The call itself."""
        ins = self.pairs(operands)
        return tuple(self.evaluate(self.inside, self.constants, ins, self.outputs))

    def with_jvp(self) -> Callable[..., Any]:
        """The call with its `custom_jvp` rule."""
        call = jax.custom_jvp(self.run)
        call.defjvp(self._jvp)
        return call

    def with_vjp(self) -> Callable[..., Any]:
        """The call with its `custom_vjp` rule, run again from its operands."""
        call = jax.custom_vjp(self.run)
        call.defvjp(lambda *operands: (self.run(*operands), operands), self._vjp)
        return call

    def _jvp(self, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        jaxpr, consts, zeros = _jax_compat.custom_jvp_jaxpr(
            self.eqn.params, [not s for s in self.smooth]
        )
        slopes = [
            x for x, s in zip(self.pairs(tangents), self.smooth, strict=True) if s
        ]
        wanted = [
            *self.outputs,
            *(m for m, z in zip(self.outputs, zeros, strict=True) if not z),
        ]
        program = build(jaxpr, consts)
        results = self._derive(program, [*self.pairs(primals), *slopes], wanted)
        return with_tangents(results, zeros)

    def _vjp(self, operands: tuple[Any, ...], cotangents: tuple[Any, ...]) -> Any:
        count = len(self.smooth)
        smooth = [k for k, s in enumerate(self.smooth) if s]
        outs = [jnp.issubdtype(v.dtype, np.inexact) for v in self.eqn.outputs]

        def pull(*arrays: Any) -> Any:
            primals, given = list(arrays[:count]), iter(arrays[count:])

            def call(*moving: Any) -> Any:
                inputs = dict(enumerate(primals)) | dict(
                    zip(smooth, moving, strict=True)
                )
                return self.eqn.bind([inputs[k] for k in range(count)])

            results, transpose = jax.vjp(call, *(primals[k] for k in smooth))
            rows = zip(results, outs, strict=True)
            return transpose([next(given) if s else no_tangent(x) for x, s in rows])

        ends = [v for v, s in zip(self.eqn.outputs, outs, strict=True) if s]
        shapes = [
            jax.ShapeDtypeStruct(v.shape, v.dtype) for v in [*self.eqn.inputs, *ends]
        ]
        rows = zip(cotangents, self.outputs, outs, strict=True)
        slopes: list[Pair] = [(x, m) for x, m, s in rows if s]
        wanted = [self.given[k] or full(self.eqn.inputs[k], False) for k in smooth]
        program = build(jax.make_jaxpr(pull)(*shapes))
        results = self._derive(program, [*self.pairs(operands), *slopes], wanted)
        found = dict(zip(smooth, results, strict=True))
        return tuple(found.get(k) for k in self.present)

    def _derive(
        self, program: Program, ins: list[Pair], wanted: list[Masks]
    ) -> list[Any]:
        """A derivative program on what is held of the operands, then of slopes."""
        live = Liveness(program, fold_constants=self.inside.fold_constants)
        inner = self.inside.program.inputs
        facts = []
        for k, (value, pair) in enumerate(zip(program.inputs, ins, strict=True)):
            gone = full(value, True) if pair is None else [~m for m in pair[1]]
            facts.append(
                self._operand(inner[k], gone) if k < len(inner) else Facts(gone, gone)
            )
        live.forward(facts)
        needs = live.backward(wanted)
        for value, need, given, pair in zip(inner, needs, facts, ins, strict=False):
            have = full(value, False) if pair is None else pair[1]
            rows = zip(need, have, given.constant, strict=True)
            if all(m.any() for m in need) and any(
                (n & ~h & ~c).any() for n, h, c in rows
            ):
                raise ValueError(
                    f"{self.eqn.source}: the derivative rule of this {self.eqn.name} "
                    "reads slices of its operands that the function itself does not; "
                    "they were removed. Fix: differentiate the original function"
                )
        constants = self.constants + [None] * (len(ins) - len(self.constants))
        return self.evaluate(live, constants, ins, wanted)

    def _operand(self, value: Value, gone: Masks) -> Facts:
        """What is known of the absent slices of an operand of the call."""
        facts = self.inside.of(value)
        zero = both(gone, self.inside.certain(value, facts.zero))
        return Facts(zero, zero)
