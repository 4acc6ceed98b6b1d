"""Evaluate a program on its alive slices only.

The equations run in their order, as an interpreter of jaxprs would run them. Each one
is given its operands over the slices that the analysis says it reads (`deliver`): from
what is held, some are taken, or, where it lacks some, spread over zeros and constants.
The rule's `emit` then binds the primitive with the sizes that follow. What comes out
(`produced`) may be more than what is wanted, such as all channels that a part of a
grouped convolution makes, and is held as it is: what reads it takes what it needs.

A product with constant channels leaves these out and adds what they amount to; a sum
over equal terms leaves out all of them and adds one, times their number. Calls, loops
and branches run their own programs the same way, by a `Rewriter` each.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._compact.analysis.constants import FoldedTerms, filled, folded_terms
from sslx._compact.analysis.control_flow import (
    CallBody,
    CondBody,
    ScanBody,
    WhileBody,
    stacked,
)
from sslx._compact.analysis.copies import Piece, Step
from sslx._compact.analysis.facts import full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.analysis.thin_arrays import now, sized
from sslx._compact.jaxpr.masks import (
    Mask,
    Masks,
    both,
    is_region,
    sizes_of,
    some,
    within,
)
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rewrite.constant_evaluation import ConstantValues, flatten_uniform
from sslx._compact.rewrite.derivatives import ReducedCall
from sslx._compact.rewrite.slices import masked, positions_of, restrict, scatter, take
from sslx._compact.rules.relation import Relation, Shapes


class Rewriter:
    """Runs one program on reduced values.

    Every value is held as an array over some indices of each axis (`held`), which
    include its alive ones; the rest is zero, constant (see `ConstantValues`), or not
    needed. `at` is the equation that is, or was last, computed.
    """

    def __init__(self, liveness: Liveness, constants: Sequence[Any | None]):
        self.live = liveness
        self.constants = ConstantValues(liveness, list(constants))
        self.held: dict[Value, tuple[Any, Masks]] = {}
        self.at: Equation | None = None

    def run(
        self,
        inputs: Sequence[tuple[Any, Masks] | None],
        outputs: Sequence[Masks],
        only: Sequence[int] | None = None,
    ) -> list[Any]:
        """Outputs over the wanted slices, from inputs held over some of theirs.

        With `only`, outputs at other positions are None.
        """
        for value, pair in zip(self.live.program.inputs, inputs, strict=True):
            if pair is not None:
                self.held[value] = pair
        running = filter(self.live.runs, self.live.program.equations)
        for scope, equations in itertools.groupby(running, lambda eqn: eqn.scope):
            with _jax_compat.in_scope(scope):
                for self.at in equations:
                    self._equation(self.at)
        rows = enumerate(zip(self.live.program.outputs, outputs, strict=True))
        return [
            self.deliver(value, masks) if only is None or k in only else None
            for k, (value, masks) in rows
        ]

    def _equation(self, eqn: Equation) -> None:
        body = self.live.inner.get(eqn)
        if isinstance(body, CallBody):
            results = self._call(eqn, body.inside)
            masks = [self.live.alive(v) for v in eqn.outputs]
        elif isinstance(body, WhileBody):
            results, masks = self._while(eqn, body)
        elif isinstance(body, ScanBody):
            results, masks = self._scan(eqn, body)
        elif isinstance(body, CondBody):
            results, masks = self._cond(eqn, body)
        else:
            results, masks = self._primitive(eqn)
        for value, array, mask in zip(eqn.outputs, results, masks, strict=True):
            if self.live.computed(value):
                self.held[value] = (array, mask)

    def _primitive(self, eqn: Equation) -> tuple[list[Any], list[Masks]]:
        rel, live = self.live.relations[eqn], self.live
        targets = live.targets(eqn)
        operands = [
            self.deliver(v, t) for v, t in zip(eqn.inputs, targets, strict=True)
        ]
        made = produced(eqn, rel, targets)
        sizes = [
            sizes_of(masks) if v.shape else ()
            for v, masks in zip(eqn.outputs, made, strict=True)
        ]
        emit = rel.emit or _bind
        results = emit(eqn, operands, Shapes(sizes))
        for same, piece, steps in live.copies.chains(eqn):
            results[0] = results[0] + self._repeated(eqn, same, piece, steps)
        for row in folded_terms(live, eqn):
            results[0] = results[0] + self._constant_terms(eqn, row, made[0])
        return results, made

    def _repeated(
        self, eqn: Equation, same: Mask, piece: Piece, steps: Sequence[Step]
    ) -> Any:
        """Terms of a sum that equal one another: one of them, times their number."""
        made: dict[Any, Any] = {}
        for step in steps:
            operands = [
                self.deliver(p.value, list(p.region)) if p.axis is None else made[p.key]
                for p in step.operands
            ]
            made[step.piece.key] = self._alone(step, operands)
        (term,) = eqn.bind([made[piece.key]])
        count, dtype = int(np.count_nonzero(same)), term.dtype
        if jnp.issubdtype(dtype, np.floating) and dtype.itemsize < 4:
            return (term.astype(np.float32) * np.float32(count)).astype(dtype)
        return term * np.asarray(count).astype(dtype)

    def _alone(self, step: Step, operands: list[Any]) -> Any:
        """One equation on the pieces that one slice of its result is made from."""
        eqn, rel = step.equation, self.live.relations[step.equation]
        made = produced(eqn, rel, [list(p.region) for p in step.operands])
        sizes = [
            sizes_of(masks) if v.shape else ()
            for v, masks in zip(eqn.outputs, made, strict=True)
        ]
        results = (rel.emit or _bind)(eqn, operands, Shapes(sizes))
        place = eqn.outputs.index(step.piece.value)
        return restrict(results[place], made[place], list(step.piece.region))

    def _constant_terms(self, eqn: Equation, row: FoldedTerms, made: Masks) -> Any:
        """The constant terms of a product, over the output slices that are made."""
        rel = self.live.relations[eqn]
        regions = [full(v, True) for v in eqn.inputs]
        plain = row.member.label is None
        for link in rel.links if plain else ():
            regions[link.operand][link.in_axis] = made[link.out_axis]
        regions[row.member.operand][row.member.axis] = row.mask
        regions[row.partner.operand][row.partner.axis] = row.partner_mask
        if plain:
            rows = zip(eqn.inputs, regions, strict=True)
            arrays = [self.constants.part(v, region) for v, region in rows]
            (result,) = sized(eqn, rel, arrays, [sizes_of(r) for r in regions])
        else:
            arrays = [self.constants.of(v) for v in eqn.inputs]
            shape = [1] * len(eqn.inputs[row.member.operand].shape)
            shape[row.member.axis] = -1
            with now(arrays):
                wide = arrays[row.member.operand]
                arrays[row.member.operand] = masked(row.mask.reshape(shape), wide)
            (result,) = sized(eqn, rel, arrays, [v.shape for v in eqn.inputs])
        with now([result]):
            for axis, mask in enumerate(made):
                if result.shape[axis] == mask.size > 1:
                    result = take(result, np.flatnonzero(mask), axis)
            return flatten_uniform(result)

    def _call(self, eqn: Equation, inside: Liveness) -> list[Any]:
        program = inside.program
        pairs = [self.held.get(v) if v.literal is None else None for v in eqn.inputs]
        arrays, given = [], []
        for outer, value, pair in zip(eqn.inputs, program.inputs, pairs, strict=True):
            need = inside.need.get(value)
            if outer.literal is not None:
                pair = jnp.asarray(outer.array), full(outer, True)
            elif need is None:
                pair = None
            elif not inside.fold_constants and not (pair and within(need, pair[1])):
                pair = self.deliver(outer, need), need
            array, masks = pair or (None, None)
            arrays.append(array)
            given.append(masks)
        outputs = [self.live.alive(v) for v in eqn.outputs]
        constants = [functools.partial(self.constants.of, v) for v in eqn.inputs]

        reduced = ReducedCall(eqn, inside, given, outputs, constants, _evaluate)
        present = [x for x in arrays if x is not None]
        if eqn.name == "custom_jvp_call":
            return list(reduced.with_jvp()(*present))
        if eqn.name == "custom_vjp_call":
            return list(reduced.with_vjp()(*present))
        run = jax.checkpoint(
            reduced.run,
            prevent_cse=eqn.params["prevent_cse"],
            policy=eqn.params["policy"],
        )
        return list(run(*present))

    def _scan(self, eqn: Equation, body: ScanBody) -> tuple[list[Any], list[Masks]]:
        needs = self.live.targets(eqn)
        operands = self._operands(eqn)
        inner = [
            n if k < body.stop else n[1:] or full(Value((), None), True)
            for k, n in enumerate(needs)
        ]

        def step(carry: Any, xs: Any) -> Any:
            arrays = [*operands[: body.consts], *carry, *xs]
            outs = _run_body(body.inside, arrays, inner, body.wanted)
            return outs[: body.carries], outs[body.carries :]

        carry, ys = jax.lax.scan(
            step,
            operands[body.consts : body.stop],
            operands[body.stop :],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        rows = zip(
            body.wanted[body.carries :], eqn.outputs[body.carries :], strict=True
        )
        masks = [*body.wanted[: body.carries], *(stacked(m, v) for m, v in rows)]
        return [*carry, *ys], masks

    def _while(self, eqn: Equation, body: WhileBody) -> tuple[list[Any], list[Masks]]:
        needs, operands = self.live.targets(eqn), self._operands(eqn)
        start, stop = body.tests, body.tests + body.consts

        def test(carry: Any) -> Any:
            arrays, masks = [*operands[:start], *carry], [*needs[:start], *needs[stop:]]
            (result,) = _run_body(body.test, arrays, masks, body.wanted_of(1))
            return result

        def step(carry: Any) -> Any:
            arrays = [*operands[start:stop], *carry]
            return _run_body(body.inside, arrays, needs[start:], body.wanted)

        carry = jax.lax.while_loop(test, step, operands[stop:])
        return carry, body.wanted

    def _cond(self, eqn: Equation, body: CondBody) -> tuple[list[Any], list[Masks]]:
        index, *operands = self._operands(eqn)
        needs = self.live.targets(eqn)[1:]
        branches = [
            functools.partial(_run_body, inside, masks=needs, wanted=body.wanted)
            for inside in body.insides
        ]
        return jax.lax.switch(index, branches, operands), body.wanted

    def _operands(self, eqn: Equation) -> list[Any]:
        """The needed slices of every operand; None where there are none."""
        rows = zip(eqn.inputs, self.live.targets(eqn), strict=True)
        operands = [self.deliver(v, n) if is_region(n) else None for v, n in rows]
        return _jax_compat.varying_alike(operands)

    def deliver(self, value: Value, target: Masks) -> Any:
        """A value over the wanted slices, moved and filled as needed."""
        if value.literal is not None:
            array = jnp.asarray(value.array)
            return restrict(array, full(value, True), target) if value.shape else array
        if not value.shape:
            if value in self.held:
                return self.held[value][0]
            return self._base(value, target)
        pair = self.held.get(value)
        if pair is None:
            return self._base(value, target)
        array, have = pair
        if within(target, have):
            return restrict(array, have, target)
        there = both(have, target)
        part = restrict(array, have, there)
        empty = filled(self.live, value, target) is None
        base = None if empty else self._base(value, target)
        where = [
            None if h is t or not some(h != t) else positions_of(h, t)
            for h, t in zip(there, target, strict=True)
        ]
        return scatter(base, part, where, sizes_of(target))

    def _base(self, value: Value, target: Masks) -> Any:
        """Wanted slices that are not computed: constants and zeros."""
        shape = sizes_of(target) if value.shape else ()
        if filled(self.live, value, target) is None:
            return jnp.zeros(shape, value.dtype)
        array = self.constants.of(value)
        facts = self.live.of(value)
        with now([array]):
            for a, t in enumerate(target if value.shape else []):
                if array.shape[a] > 1:
                    array = take(array, np.flatnonzero(t), a)
                zero = facts.zero[a][t]
                if zero.any():
                    lined = zero.reshape(
                        [-1 if b == a else 1 for b in range(len(shape))]
                    )
                    array = masked(~lined, array)
        return jnp.broadcast_to(jnp.asarray(array, value.dtype), shape)


def _run_body(
    inside: Liveness, arrays: Sequence[Any], masks: list[Masks], wanted: list[Masks]
) -> list[Any]:
    """A body on reduced operands; None stands for operands and results not needed."""
    ins = [None if x is None else (x, m) for x, m in zip(arrays, masks, strict=True)]
    kept = [k for k, masks in enumerate(wanted) if is_region(masks)]
    return Rewriter(inside, [None] * len(ins)).run(ins, wanted, only=kept)


def _bind(eqn: Equation, operands: list[Any], shapes: Shapes) -> list[Any]:
    del shapes
    return eqn.bind(operands)


def produced(eqn: Equation, rel: Relation, targets: list[Masks]) -> list[Masks]:
    """Output slices that come out when the operands have just the targeted ones."""
    made = []
    for o, value in enumerate(eqn.outputs):
        masks: dict[int, Mask] = {}
        for k, target in enumerate(targets):
            for link in rel.between(k, o):
                a, size = link.out_axis, value.shape[link.out_axis]
                mask = link.to_output_any(target[link.in_axis], size)
                old = masks.get(a)
                if old is None:
                    masks[a] = mask
                elif old is not mask:
                    masks[a] = old | mask if rel.covers else old & mask
        made.append([masks.get(a, m) for a, m in enumerate(full(value, True))])
    return made


def _evaluate(
    live: Liveness, constants: Sequence[Any], ins: Sequence[Any], wanted: list[Masks]
) -> list[Any]:
    return Rewriter(live, constants).run(ins, wanted)
