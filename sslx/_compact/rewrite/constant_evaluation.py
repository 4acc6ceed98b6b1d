"""The values of constant slices, in arrays of size one along axes where they repeat.

They are computed from the variables in every call, so that they follow training: a
bias and the channels that read it cost some multiply-adds per weight, once for all
images and positions. Zero slices are known beforehand, so that a removed filter costs
nothing, whatever computes it.

`ConstantValues` evaluates backwards, on demand: to know a value it evaluates the
equation that makes it, on what is known of the operands. Only constant slices of such
an array are right. Slices that depend on the inputs hold placeholders, zeros or one
half (`thin_arrays.evaluate`), which no constant slice is made of. What depends on no
traced array is computed at once, by NumPy where it can be; the rest becomes part of the
program.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._calls import on_host
from sslx._compact.analysis.facts import Facts
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.analysis.thin_arrays import broadcast_axes, evaluate, now, thin_zeros
from sslx._compact.jaxpr import numpy_primitives
from sslx._compact.jaxpr.masks import Masks, every, uniform, within
from sslx._compact.jaxpr.program import Equation, Value, build


class PartialLeaf(NamedTuple):
    """Some slices of a variable; the others count as zero."""

    array: Any
    masks: Masks

    @property
    def known(self) -> Any:
        """The array, for NumPy to read if it is where NumPy can."""
        return np.asarray(self.array) if on_host(self.array) else self.array

    def full(self) -> Any:
        """At full size, zeros included."""
        array = self.known
        if all(map(every, self.masks)):
            return array
        if numpy_primitives.on_host([array]):
            wide = np.zeros([m.size for m in self.masks], array.dtype)
            wide[np.ix_(*map(np.flatnonzero, self.masks))] = array
            return wide
        for axis, mask in enumerate(self.masks):
            if not every(mask):
                source = np.where(mask, np.cumsum(mask) - 1, array.shape[axis])
                array = jnp.take(array, source, axis, mode="fill", fill_value=0)
        return array


class ConstantValues:
    """Values of the constant slices of a program; the other slices are placeholders.

    An input is an array, a part of one, a function that returns one when it is first
    needed, or None if nothing of it is constant.
    """

    def __init__(self, liveness: Liveness, inputs: Sequence[Any | None]):
        self._live = liveness
        self._values: dict[Value, Any] = {}
        self._pending = dict(zip(liveness.program.inputs, inputs, strict=True))

    def part(self, value: Value, region: Masks) -> Any:
        """Slices of the array of a value; axes of size one stay."""
        given = self._pending.get(value)
        if isinstance(given, PartialLeaf) and within(region, given.masks):
            rows = zip(given.masks, region, strict=True)
            return _taken(given.known, [(np.cumsum(m) - 1)[r] for m, r in rows])
        return _taken(self.of(value), map(np.flatnonzero, region))

    def of(self, value: Value) -> Any:
        """The array of a value, computed on demand."""
        stack = [value]
        while stack:
            top = stack[-1]
            if top in self._values:
                stack.pop()
            elif top.literal is not None:
                self._values[top] = top.array
            elif self._is_zero(top):
                self._values[top] = thin_zeros(top)
            elif top in self._pending:
                given = self._pending.pop(top)
                made = given() if callable(given) else given
                made = made.full() if isinstance(made, PartialLeaf) else made
                self._values[top] = thin_zeros(top) if made is None else made
            else:
                eqn = self._live.producer[top]
                through = self._lets_through(eqn)
                missing = [v for v in eqn.inputs if v not in self._values]
                if through and missing:
                    stack += missing
                    continue
                outs = self._outputs(eqn) if through else map(thin_zeros, eqn.outputs)
                self._values.update(zip(eqn.outputs, outs, strict=True))
        return self._values[value]

    def _is_zero(self, value: Value) -> bool:
        """Whether all constant slices are zero."""
        facts = self._live.of(value)
        return within(facts.constant, facts.zero)

    def _lets_through(self, eqn: Equation) -> bool:
        """Whether constants come through an equation; if not, nothing of it is read."""
        if eqn in self._live.inner:
            return eqn.name not in ("scan", "cond", "while")
        return self._live.relations[eqn].constant

    def _outputs(self, eqn: Equation) -> list[Any]:
        operands = [self._values[v] for v in eqn.inputs]
        if eqn not in self._live.inner:
            live = self._live
            sure = [live.certain(v, live.of(v).constant) for v in eqn.inputs]
            zero = [live.of(v).zero for v in eqn.outputs]
            return evaluate(eqn, live.relations[eqn], operands, sure, zero)
        (inside,) = self._live.inner[eqn].insides
        traced = any(map(_jax_compat.is_traced, operands))
        if traced and eqn.name == "custom_vjp_call":
            wide = [
                broadcast_axes(x, dict(enumerate(v.shape)))
                for v, x in zip(eqn.inputs, operands, strict=True)
            ]
            return eqn.bind([jnp.asarray(x) for x in wide])
        if traced and eqn.name == "custom_jvp_call":
            return _with_jvp(eqn, inside, operands)
        return _results(inside, operands)


def _results(live: Liveness, operands: Sequence[Any]) -> list[Any]:
    constants = ConstantValues(live, operands)
    return [constants.of(v) for v in live.program.outputs]


def _with_jvp(eqn: Equation, inside: Liveness, operands: list[Any]) -> list[Any]:
    """A call on constants, with the derivative rule that it has."""
    smooth = [jnp.issubdtype(v.dtype, np.inexact) for v in eqn.inputs]

    @jax.custom_jvp
    def call(*arrays: Any) -> tuple[Any, ...]:
        return tuple(jnp.asarray(x) for x in _results(inside, arrays))

    @call.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        jaxpr, consts, zeros = _jax_compat.custom_jvp_jaxpr(
            eqn.params, [not s for s in smooth]
        )
        live = Liveness(build(jaxpr, consts), fold_constants=True)
        known = [
            Facts(uniform(v.shape, False), uniform(v.shape, True), static=True)
            for v in live.program.inputs
        ]
        live.forward(known)
        slopes = [t for t, s in zip(tangents, smooth, strict=True) if s]
        return with_tangents(_results(live, [*primals, *slopes]), zeros)

    return list(call(*(jnp.asarray(x) for x in operands)))


def with_tangents(results: Sequence[Any], zeros: Sequence[bool]) -> tuple[Any, Any]:
    """Results and their tangents, of which the list holds those that are not zero."""
    outs = tuple(map(jnp.asarray, results[: len(zeros)]))
    rest = iter(results[len(zeros) :])
    return outs, tuple(
        no_tangent(x) if z else jnp.broadcast_to(next(rest), x.shape)
        for x, z in zip(outs, zeros, strict=True)
    )


def no_tangent(out: Any) -> Any:
    """The tangent of a result that does not move."""
    if jnp.issubdtype(out.dtype, np.inexact):
        return jnp.zeros_like(out)
    return np.zeros(out.shape, jax.dtypes.float0)


def _taken(array: Any, places: Iterable[np.ndarray]) -> Any:
    host = numpy_primitives.on_host([array])
    take = np.take if host else jnp.take
    with now([array]):
        for axis, indices in enumerate(places):
            size = array.shape[axis]
            if size > 1 and (indices.size != size):
                whole = array if host else _jax_compat.whole_along(array, axis)
                array = take(whole, indices, axis)
    return array


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
