"""Slices that do not depend on the inputs: who needs them, and what they are.

A removed filter followed by a bias or a normalisation leaves a constant channel.
Its consumers need its value, never its computation: `require` finds which parameter
slices such values come from, `Carrier` computes them, each array of size one along the
axes on which it does not vary.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx.graph._bodies import Call
from sslx.graph._liveness import Liveness, add, full, label_of, pull
from sslx.graph._program import Equation, Program, Value
from sslx.graph._relation import Masks, Relation, Summed, relation
from sslx.graph._rules import reshape_groups


def filled(liveness: Liveness, value: Value, target: Masks) -> Masks | None:
    """Slices of a value that are wanted, constant, and not computed."""
    facts = liveness.of(value)
    if facts.static:
        return None
    alive = liveness.alive(value)
    absent = [
        t & ~a & c & ~z
        for t, a, c, z in zip(target, alive, facts.constant, facts.zero, strict=True)
    ]
    return absent if any(m.any() for m in absent) else None


class FoldedTerms(NamedTuple):
    """Constant terms of a product that are left out of it and added as one constant."""

    operand: int
    axis: int
    mask: np.ndarray
    partner: Summed
    partner_mask: np.ndarray


def folded(liveness: Liveness, equation: Equation) -> list[FoldedTerms]:
    """The constant terms of a product that are not computed in it."""
    rows = []
    targets = liveness.targets(equation)
    for members in liveness.relations[equation].sums:
        for here in members:
            if not liveness.folds(equation, here):
                continue
            facts = liveness.of(equation.inputs[here.operand])
            left = facts.constant[here.axis] & ~facts.zero[here.axis]
            left = left & ~targets[here.operand][here.axis]
            (other,) = [m for m in members if m.operand != here.operand]
            partner = liveness.of(equation.inputs[other.operand])
            mine, theirs = label_of(equation, here), label_of(equation, other)
            left = left & np.isin(mine, theirs[~partner.zero[other.axis]])
            if left.any():
                hit = np.isin(theirs, mine[left])
                rows.append(FoldedTerms(here.operand, here.axis, left, other, hit))
    return rows


def require(liveness: Liveness, outputs: Sequence[Masks]) -> None:
    """Find the constant slices needed of every value, given the wanted outputs."""
    liveness.constant_need = {}
    for value, masks in zip(liveness.program.outputs, outputs, strict=True):
        _seed_filled(liveness, value, masks)
    _propagate(liveness)


def _propagate(liveness: Liveness) -> None:
    need = liveness.constant_need
    for eqn in reversed(liveness.program.equations):
        body = liveness.inner.get(eqn)
        if isinstance(body, Call):
            _through_call(liveness, eqn, body.inside)
            continue
        if body is not None:
            if liveness.runs(eqn):
                rows = zip(eqn.inputs, liveness.targets(eqn), strict=True)
                for value, target in rows:
                    _seed_filled(liveness, value, target)
            continue
        if liveness.runs(eqn):
            _seed(liveness, eqn)
        rel = liveness.relations[eqn]
        wanted = [need.get(v, full(v, False)) for v in eqn.outputs]
        wanted = [
            [w & ~z for w, z in zip(masks, liveness.of(v).zero, strict=True)]
            for masks, v in zip(wanted, eqn.outputs, strict=True)
        ]
        if any(all(m.any() for m in masks) for masks in wanted):
            terms = [
                np.ones(max(label_of(eqn, m).max(initial=-1) for m in s) + 1, bool)
                for s in rel.sums
            ]
            for value, masks in zip(
                eqn.inputs, pull(eqn, rel, wanted, terms), strict=True
            ):
                add(need, value, masks)


def _through_call(liveness: Liveness, eqn: Equation, inside: Liveness) -> None:
    need = liveness.constant_need
    inside.constant_need = {}
    for outer, value in zip(eqn.outputs, inside.program.outputs, strict=True):
        if outer in need:
            add(inside.constant_need, value, need[outer])
        if liveness.runs(eqn):
            _seed_filled(inside, value, liveness.alive(outer))
    _propagate(inside)
    for outer, value in zip(eqn.inputs, inside.program.inputs, strict=True):
        if value in inside.constant_need:
            add(need, outer, inside.constant_need[value])


def _seed(liveness: Liveness, eqn: Equation) -> None:
    targets = liveness.targets(eqn)
    need = liveness.constant_need
    for value, target in zip(eqn.inputs, targets, strict=True):
        _seed_filled(liveness, value, target)
    for row in folded(liveness, eqn):
        operand, partner = eqn.inputs[row.operand], eqn.inputs[row.partner.operand]
        wide = full(operand, True)
        add(need, operand, _replaced(wide, row.axis, row.mask))
        target = targets[row.partner.operand]
        add(need, partner, _replaced(target, row.partner.axis, row.partner_mask))


def _seed_filled(liveness: Liveness, value: Value, target: Masks) -> None:
    for axis, mask in enumerate(filled(liveness, value, target) or ()):
        if mask.any():
            add(liveness.constant_need, value, _replaced(target, axis, mask))


def _replaced(masks: Masks, axis: int, mask: np.ndarray) -> Masks:
    return [mask if a == axis else m for a, m in enumerate(masks)]


class Carrier:
    """Values of the constant slices of a program; other slices hold anything.

    Arrays have size one along axes where the constant does not vary. An input is an
    array, a function that returns one when it is first needed, or None if nothing of it
    is constant.
    """

    def __init__(self, program: Program, inputs: Sequence[Any | None]):
        self._values: dict[Value, Any] = {}
        self._pending = dict(zip(program.inputs, inputs, strict=True))
        self._producer = {v: e for e in program.equations for v in e.outputs}

    def of(self, value: Value) -> Any:
        """The carrier of a value, computed on demand."""
        stack = [value]
        while stack:
            top = stack[-1]
            if top.literal is not None or top in self._values:
                if top not in self._values:
                    self._values[top] = top.array
                stack.pop()
                continue
            if top in self._pending:
                given = self._pending.pop(top)
                thin = np.zeros((1,) * len(top.shape), _plain(top.dtype))
                made = given() if callable(given) else given
                self._values[top] = thin if made is None else made
                continue
            eqn = self._producer[top]
            missing = [v for v in eqn.inputs if v not in self._values]
            missing = missing if _carries(eqn) else []
            if missing:
                stack += missing
                continue
            outs = self._outputs(eqn)
            self._values.update(zip(eqn.outputs, outs, strict=True))
            stack.pop()
        return self._values[value]

    def _outputs(self, eqn: Equation) -> list[Any]:
        if _carries(eqn):
            return evaluate(eqn, [self._values[v] for v in eqn.inputs])
        return [np.zeros((1,) * len(v.shape), _plain(v.dtype)) for v in eqn.outputs]


def _carries(eqn: Equation) -> bool:
    """Whether constants come through an equation; if not, nothing of it is read."""
    if eqn.bodies:
        return eqn.name not in ("scan", "cond", "while")
    return relation(eqn).constant


def _plain(dtype: Any) -> Any:
    return dtype if isinstance(dtype, np.dtype) else np.dtype(np.uint32)


def now(arrays: Iterable[Any]) -> contextlib.AbstractContextManager:
    """Compute at once what depends on no traced value, even while tracing."""
    if any(_jax_compat.is_traced(x) for x in arrays):
        return contextlib.nullcontext()
    return _jax_compat.compile_time()


def evaluate(eqn: Equation, operands: list[Any]) -> list[Any]:
    """One equation on carriers."""
    with now(operands):
        return _apply(eqn, operands)


def _apply(eqn: Equation, operands: list[Any]) -> list[Any]:
    if eqn.bodies:
        inside = Carrier(eqn.bodies[0], list(operands))
        return [inside.of(v) for v in eqn.bodies[0].outputs]
    if eqn.name == "broadcast_in_dim":
        return [_broadcast(eqn, operands[0])]
    if eqn.name == "reshape":
        return [_reshape(eqn, operands[0])]
    if not operands:
        return eqn.bind(operands)
    rel = relation(eqn)
    if _elementwise(eqn):
        arrays = [x for x in operands if np.ndim(x)]
        shape = np.broadcast_shapes(*(np.shape(x) for x in arrays)) if arrays else ()
        return eqn.bind(
            [jnp.broadcast_to(x, shape) if np.ndim(x) else x for x in operands]
        )
    return eqn.bind([_expand(eqn, rel, k, operands) for k in range(len(operands))])


def _elementwise(eqn: Equation) -> bool:
    shapes = {v.shape for v in (*eqn.inputs, *eqn.outputs) if v.shape}
    reducing = "axes" in eqn.params or "axis" in eqn.params
    layout = {"transpose", "rev", "pad", "slice", "dot_general", "concatenate", "split"}
    windowed = "window_dimensions" in eqn.params
    ranks = {len(s) for s in shapes}
    named = eqn.name not in layout and eqn.name != "conv_general_dilated"
    return named and not reducing and not windowed and len(ranks) <= 1


_ANY_SIZE = {
    "transpose",
    "rev",
    "squeeze",
    "dot_general",
    "cumsum",
    "cumprod",
    "cummax",
}


def _expand(eqn: Equation, rel: Relation, k: int, operands: list[Any]) -> Any:
    """Give an operand its full size, except on axes that merely run along."""
    value = eqn.inputs[k]
    if not value.shape:
        return operands[k]
    thin: set[int] = set()
    if eqn.name == "conv_general_dilated":
        thin = {eqn.params["dimension_numbers"].lhs_spec[0]} if k == 0 else set()
    elif eqn.name in _ANY_SIZE or eqn.name.startswith("reduce"):
        plain = [x for x in rel.links if x.in_label is None and x.out_label is None]
        thin = {x.in_axis for x in plain if x.operand == k}
    if eqn.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        thin -= set(batch[k])
    thin -= {m.axis for s in rel.sums for m in s if m.operand == k}
    shape = [
        have if a in thin else want
        for a, (have, want) in enumerate(
            zip(np.shape(operands[k]), value.shape, strict=True)
        )
    ]
    return jnp.broadcast_to(operands[k], shape)


def _broadcast(eqn: Equation, operand: Any) -> Any:
    shape = [1] * len(eqn.outputs[0].shape)
    dims = eqn.params["broadcast_dimensions"]
    for a, b in enumerate(dims):
        shape[b] = np.shape(operand)[a]
    return jax.lax.broadcast_in_dim(operand, shape, dims)


def _reshape(eqn: Equation, operand: Any) -> Any:
    source, target = eqn.inputs[0].shape, eqn.outputs[0].shape
    have = list(np.shape(operand))
    shape = [1] * len(target)
    for left, right in reshape_groups(source, target):
        if all(have[a] == 1 for a in left):
            continue
        for a in left:
            have[a] = source[a]
        for b in right:
            shape[b] = target[b]
    return jnp.reshape(jnp.broadcast_to(operand, have), shape)


def flatten_uniform(array: Any) -> Any:
    """Drop axes along which a concrete array repeats itself."""
    if _jax_compat.is_traced(array):
        return array
    array = np.asarray(array)
    for axis in range(array.ndim):
        first = np.take(array, [0], axis)
        if array.shape[axis] > 1 and math.prod(array.shape) and (array == first).all():
            array = first
    return array
