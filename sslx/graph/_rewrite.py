"""Evaluate a program on its alive slices only."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx.graph._bodies import Call, Scan, stacked
from sslx.graph._constants import (
    Carrier,
    FoldedTerms,
    evaluate,
    filled,
    flatten_uniform,
    folded,
    now,
)
from sslx.graph._liveness import Facts, Liveness, full
from sslx.graph._program import Equation, Value, build
from sslx.graph._relation import Masks, Relation, Shapes


def take(array: Any, positions: np.ndarray, axis: int) -> Any:
    """Slices at static positions; a strided slice where they form a progression."""
    if positions.size == array.shape[axis]:
        if (positions == np.arange(positions.size)).all():
            return array
    steps = np.diff(positions)
    if positions.size and (steps == steps[:1]).all() and (steps > 0).all():
        stride = int(steps[0]) if steps.size else 1
        end = int(positions[-1]) + 1
        return jax.lax.slice_in_dim(array, int(positions[0]), end, stride, axis)
    return jnp.take(array, positions, axis=axis, mode="clip")


def _picked(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Positions, among the indices in `have`, of those in `want`."""
    return (np.cumsum(have) - 1)[want]


class Rewriter:
    """Runs one program on reduced values.

    Every value is held as an array over some indices of each axis (`held`), which
    include its alive ones; the rest is zero, constant (see `Carrier`), or unneeded.
    """

    def __init__(self, liveness: Liveness, carriers: Sequence[Any | None]):
        self.live = liveness
        self.carrier = Carrier(liveness.program, list(carriers))
        self.held: dict[Value, tuple[Any, Masks]] = {}

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
        for eqn in self.live.program.equations:
            if self.live.runs(eqn):
                self._equation(eqn)
        rows = enumerate(zip(self.live.program.outputs, outputs, strict=True))
        return [
            self.deliver(value, masks) if only is None or k in only else None
            for k, (value, masks) in rows
        ]

    def _equation(self, eqn: Equation) -> None:
        body = self.live.inner.get(eqn)
        if isinstance(body, Call):
            results = self._call(eqn, body.inside)
            masks = [self.live.alive(v) for v in eqn.outputs]
        elif isinstance(body, Scan):
            results, masks = self._scan(eqn, body)
        else:
            results, masks = self._primitive(eqn)
        for value, array, mask in zip(eqn.outputs, results, masks, strict=True):
            if all(m.any() for m in self.live.alive(value)):
                self.held[value] = (array, mask)

    def _primitive(self, eqn: Equation) -> tuple[list[Any], list[Masks]]:
        rel, live = self.live.relations[eqn], self.live
        targets = live.targets(eqn)
        operands = [
            self.deliver(v, t) for v, t in zip(eqn.inputs, targets, strict=True)
        ]
        made = produced(eqn, rel, targets)
        sizes = [
            tuple(int(m.sum()) for m in masks) if v.shape else ()
            for v, masks in zip(eqn.outputs, made, strict=True)
        ]
        emit = rel.emit or _bind
        results = emit(eqn, operands, Shapes(sizes))
        for row in folded(live, eqn):
            results[0] = results[0] + self._folded(eqn, row, made[0])
        return results, made

    def _folded(self, eqn: Equation, row: FoldedTerms, made: Masks) -> Any:
        """The constant terms of a product, over the output slices that are made."""
        arrays = [self.carrier.of(v) for v in eqn.inputs]
        shape = [1] * len(eqn.inputs[row.operand].shape)
        shape[row.axis] = -1
        with now(arrays):
            left = row.mask.reshape(shape)
            arrays[row.operand] = jnp.where(left, arrays[row.operand], 0)
            (result,) = evaluate(eqn, arrays)
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
                arrays.append(jnp.asarray(outer.literal, outer.dtype))
                given.append(full(outer, True))
            elif pair is None or need is None:
                arrays.append(None)
                given.append(None)
            else:
                arrays.append(pair[0])
                given.append(pair[1])
        outputs = [self.live.alive(v) for v in eqn.outputs]
        carriers = [functools.partial(self.carrier.of, v) for v in eqn.inputs]

        def run(*operands):
            it = iter(operands)
            ins = [None if g is None else (next(it), g) for g in given]
            return tuple(Rewriter(inside, carriers).run(ins, outputs))

        present = [x for x in arrays if x is not None]
        if eqn.name == "custom_jvp_call":
            run = _with_jvp(run, eqn, given, outputs)
        elif eqn.name in ("checkpoint", "remat", "remat2"):
            run = jax.checkpoint(
                run,
                prevent_cse=eqn.params["prevent_cse"],
                policy=eqn.params["policy"],
            )
        return list(run(*present))

    def _scan(self, eqn: Equation, body: Scan) -> tuple[list[Any], list[Masks]]:
        needs = body.backward([self.live.alive(v) for v in eqn.outputs])
        present = [all(m.any() for m in n) for n in needs]
        operands = [
            self.deliver(v, n) if p else None
            for v, n, p in zip(eqn.inputs, needs, present, strict=True)
        ]
        stop = body.consts + body.carries
        inner = [
            n if k < stop else n[1:] or full(Value((), None), True)
            for k, n in enumerate(needs)
        ]
        kept = [k for k, masks in enumerate(body.wanted) if all(m.any() for m in masks)]

        def step(carry: Any, xs: Any) -> Any:
            arrays = [*operands[: body.consts], *carry, *xs]
            ins = [
                (x, m) if p else None
                for x, m, p in zip(arrays, inner, present, strict=True)
            ]
            rewriter = Rewriter(body.inside, [None] * len(ins))
            outs = rewriter.run(ins, body.wanted, only=kept)
            return outs[: body.carries], outs[body.carries :]

        carry, ys = jax.lax.scan(
            step,
            operands[body.consts : stop],
            operands[stop:],
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )
        rows = zip(
            body.wanted[body.carries :], eqn.outputs[body.carries :], strict=True
        )
        masks = [*body.wanted[: body.carries], *(stacked(m, v) for m, v in rows)]
        return [*carry, *ys], masks

    def deliver(self, value: Value, target: Masks) -> Any:
        """A value over the wanted slices, moved and filled as needed."""
        if value.literal is not None:
            array = jnp.asarray(value.literal, value.dtype)
            return _take_all(array, full(value, True), target) if value.shape else array
        if not value.shape:
            if value in self.held:
                return self.held[value][0]
            return self._base(value, target)
        pair = self.held.get(value)
        if pair is None:
            return self._base(value, target)
        array, have = pair
        if all((h | ~t).all() for h, t in zip(have, target, strict=True)):
            return _take_all(array, have, target)
        both = [h & t for h, t in zip(have, target, strict=True)]
        part = _take_all(array, have, both)
        base = self._base(value, target)
        where = [
            None if b.sum() == t.sum() else _picked(t, b)
            for b, t in zip(both, target, strict=True)
        ]
        return _scatter(base, part, where)

    def _base(self, value: Value, target: Masks) -> Any:
        """The wanted slices as far as they are not computed: constants and zeros."""
        shape = tuple(int(t.sum()) for t in target) if value.shape else ()
        if filled(self.live, value, target) is None:
            return jnp.zeros(shape, value.dtype)
        array = self.carrier.of(value)
        facts = self.live.of(value)
        with now([array]):
            for a, t in enumerate(target if value.shape else []):
                if array.shape[a] > 1:
                    array = take(jnp.asarray(array), np.flatnonzero(t), a)
                zero = facts.zero[a][t]
                if zero.any():
                    lined = zero.reshape(
                        [-1 if b == a else 1 for b in range(len(shape))]
                    )
                    array = jnp.where(lined, 0, array)
        return jnp.broadcast_to(jnp.asarray(array, value.dtype), shape)


def _bind(eqn: Equation, operands: list[Any], shapes: Shapes) -> list[Any]:
    del shapes
    return eqn.bind(operands)


def produced(eqn: Equation, rel: Relation, targets: list[Masks]) -> list[Masks]:
    """Output slices that come out when the operands have just the targeted ones."""
    made = []
    for o, value in enumerate(eqn.outputs):
        masks = full(value, True)
        found: dict[int, list[np.ndarray]] = {}
        for link in rel.links:
            if link.output == o:
                size = value.shape[link.out_axis]
                mask = link.to_output_any(targets[link.operand][link.in_axis], size)
                found.setdefault(link.out_axis, []).append(mask)
        join = np.logical_or if rel.covers else np.logical_and
        for axis, parts in found.items():
            masks[axis] = join.reduce(parts)
        made.append(masks)
    return made


def _take_all(array: Any, have: Masks, target: Masks) -> Any:
    for axis, (h, t) in enumerate(zip(have, target, strict=True)):
        if (h != t).any():
            array = take(array, _picked(h, t), axis)
    return array


def _scatter(base: Any, part: Any, where: Sequence[np.ndarray | None]) -> Any:
    """Put a part in place along every axis that has positions."""
    axes = [a for a, w in enumerate(where) if w is not None]
    if not axes:
        return part
    moved = jnp.moveaxis(base, axes, range(len(axes)))
    places = np.ix_(*(where[a] for a in axes))  # pyright: ignore[reportArgumentType]
    update = jnp.moveaxis(part, axes, range(len(axes)))
    done = moved.at[places].set(update, unique_indices=True, indices_are_sorted=True)
    return jnp.moveaxis(done, range(len(axes)), axes)


def _with_jvp(run: Any, eqn: Equation, given: list[Any], outputs: list[Masks]) -> Any:
    """Give the reduced call the reduced form of its own derivative rule."""
    call = jax.custom_jvp(run)
    smooth = [jnp.issubdtype(v.dtype, np.inexact) for v in eqn.inputs]
    present = [k for k, g in enumerate(given) if g is not None]

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        jaxpr, consts, zeros = _jax_compat.custom_jvp_jaxpr(
            eqn.params, [not s for s in smooth]
        )
        program = build(jaxpr, consts)
        pairs: list[Any] = [None] * len(eqn.inputs)
        slopes: list[Any] = [None] * len(eqn.inputs)
        for k, primal, tangent in zip(present, primals, tangents, strict=True):
            pairs[k], slopes[k] = (primal, given[k]), (tangent, given[k])
        ins = [*pairs, *(x for x, s in zip(slopes, smooth, strict=True) if s)]
        live = Liveness(program, fold=False)
        live.forward(
            [
                _absent(v, None if pair is None else pair[1])
                for v, pair in zip(program.inputs, ins, strict=True)
            ]
        )
        wanted = [*outputs, *(m for m, z in zip(outputs, zeros, strict=True) if not z)]
        live.backward(wanted)
        results = Rewriter(live, [None] * len(ins)).run(ins, wanted)
        outs, rest = results[: len(outputs)], iter(results[len(outputs) :])
        out_tangents = [
            _zero_tangent(out) if zero else next(rest)
            for out, zero in zip(outs, zeros, strict=True)
        ]
        return tuple(outs), tuple(out_tangents)

    call.defjvp(rule)
    return call


def _absent(value: Value, have: Masks | None) -> Facts:
    gone = full(value, True) if have is None else [~m for m in have]
    return Facts(gone, gone)


def _zero_tangent(out: Any) -> Any:
    if jnp.issubdtype(out.dtype, np.inexact):
        return jnp.zeros_like(out)
    return np.zeros(out.shape, jax.dtypes.float0)
