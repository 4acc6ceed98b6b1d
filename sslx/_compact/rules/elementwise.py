"""Elementwise primitives: what each does at zero is evaluated, not listed."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._compact.jaxpr import numpy_primitives
from sslx._compact.jaxpr.masks import some
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import (
    FIRST,
    NEVER,
    UNKNOWN,
    Link,
    Operands,
    Relation,
    each,
    register,
    together,
)

Shape = tuple[int, ...]

_LITERAL_LIMIT = 1 << 16


def identity_links(
    equation: Any, operand: int, output: int = 0, skip: tuple[int, ...] = ()
) -> list[Link]:
    """Links axis by axis; an operand axis of size one may be broadcast."""
    source, target = equation.inputs[operand].shape, equation.outputs[output].shape
    return _axis_links(source, target, operand, output, skip)


def _axis_links(
    source: Shape, target: Shape, operand: int, output: int, skip: tuple[int, ...] = ()
) -> list[Link]:
    if len(source) != len(target):
        return []
    links = []
    for axis, (n_in, n_out) in enumerate(zip(source, target, strict=True)):
        if axis in skip:
            continue
        if n_in == n_out:
            links.append(Link(operand, axis, output, axis))
        elif n_in == 1:
            links.append(Link(operand, axis, output, axis, None, np.zeros(n_out, int)))
    return links


@functools.lru_cache(1024)
def _entrywise(
    inputs: tuple[Shape, ...], target: Shape, zero: tuple[Operands, ...]
) -> Relation:
    """Every entry comes from the operands' entries at its own place."""
    links = [x for k, s in enumerate(inputs) for x in _axis_links(s, target, k, 0)]
    return Relation(tuple(links), zero=zero, pointwise=True)


def _broadcasts(source: Shape, target: Shape) -> bool:
    if not source:
        return True
    same = len(source) == len(target)
    return same and all(n in (1, m) for n, m in zip(source, target, strict=True))


# Which operands make the result zero, whatever the others hold.


def _quotient(equation: Any) -> tuple[Operands, ...]:
    """`0 / y` is zero; the quotient of whole numbers is not, where `y` is zero."""
    return FIRST if _inexact(equation.inputs[0]) else NEVER


def _chosen(equation: Any) -> tuple[Operands, ...]:
    """All cases are zero, or the first one where the predicate chooses it."""
    return (tuple(range(1, len(equation.inputs))), (0, 1))


def _inexact(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, np.inexact)


_STRUCTURE: dict[str, Callable[[Any], tuple[Operands, ...]]] = {
    "mul": lambda equation: each(2),
    "and": lambda equation: each(2),
    "div": _quotient,
    "rem": lambda equation: FIRST,
    "shift_left": lambda equation: FIRST,
    "shift_right_logical": lambda equation: FIRST,
    "shift_right_arithmetic": lambda equation: FIRST,
    "select_n": _chosen,
}
_QUOTIENTS = ("div", "rem")


@register(
    *"add add_any sub mul div rem max min pow and or xor not neg abs sign".split(),
    *"sqrt rsqrt cbrt square exp exp2 expm1 log log1p logistic integer_pow".split(),
    *"sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh".split(),
    *"erf erfc erf_inv lgamma digamma polygamma igamma igammac igamma_grad_a".split(),
    *"zeta regularized_incomplete_beta bessel_i0e bessel_i1e".split(),
    *"log2 one_minus_square polynomial floor ceil round is_finite nextafter".split(),
    *"clamp select_n".split(),
    *"eq ne lt le gt ge eq_to le_to lt_to".split(),
    *"shift_left shift_right_logical shift_right_arithmetic".split(),
    *"population_count clz mulhi real imag conj complex".split(),
    *"convert_element_type bitcast_convert_type reduce_precision".split(),
)
def _elementwise(equation: Any) -> Relation:
    shapes, target = [v.shape for v in equation.inputs], equation.outputs[0].shape
    if not all(_broadcasts(shape, target) for shape in shapes):
        return UNKNOWN
    known = _STRUCTURE.get(equation.name, lambda equation: NEVER)(equation)
    groups = (*known, *_zeros_at_zero(equation))
    zero = tuple(g for g in groups if not any({*h} < {*g} for h in groups))
    rel = _entrywise(tuple(shapes), target, zero)
    if equation.name in _QUOTIENTS and _inexact(equation.inputs[0]):
        return _without_poles(equation, rel)
    return rel


def _without_poles(equation: Any, rel: Relation) -> Relation:
    """No quotient is zero where the divisor is known to be: `0 / 0` is not."""
    if _given(equation.inputs[1]):
        return dataclasses.replace(rel, zero=_zeros_at_zero(equation))

    def refine(operands: Sequence[Any]) -> Relation:
        poles = any(map(some, operands[1].zero))
        return dataclasses.replace(rel, zero=NEVER if poles else FIRST, refine=None)

    return dataclasses.replace(rel, refine=refine)


@register(*"copy stop_gradient name sharding_constraint reshard".split())
@register("optimization_barrier", "device_put")
def _identity(equation: Any) -> Relation:
    """Each result is an operand."""
    count = len(equation.inputs)
    if any(
        a.shape != b.shape
        for a, b in zip(equation.inputs, equation.outputs, strict=True)
    ):
        return UNKNOWN
    links = [x for k in range(count) for x in identity_links(equation, k, k)]
    return Relation(
        tuple(links),
        zero=together(count),
        sources=tuple((k,) for k in range(count)),
        pointwise=count == 1,
    )


# Evaluation at zero.

Known = tuple[Shape, bytes]


def _zeros_at_zero(equation: Any) -> tuple[Operands, ...]:
    r"""Operands with which the result is zero, all others being literals.

    $$f(0, \ell) = 0$$

    for the literals $\ell$ as they are, or with zeros in place of arrays among them.
    """
    values = equation.inputs
    if not all(isinstance(v.dtype, np.dtype) for v in values):
        return NEVER
    literals = {k: _known(v) for k, v in enumerate(values) if _given(v)}
    moving = tuple(k for k in range(len(values)) if k not in literals)
    zero: Known = ((), b"")
    if all(literals.values()):
        given = [literals.get(k) or zero for k in range(len(values))]
        if _vanishes(equation, given):
            return (moving,)
    arrays = [k for k, x in literals.items() if x is None or x[0]]
    if not arrays:
        return NEVER
    given = [
        zero if k in arrays else literals.get(k) or zero for k in range(len(values))
    ]
    group = tuple(sorted((*moving, *arrays)))
    return (group,) if _vanishes(equation, given) else NEVER


def _given(value: Value) -> bool:
    return value.literal is not None or value.fill is not None


def _known(value: Value) -> Known | None:
    """A literal, as one entry if all are equal; None if it is too large to examine."""
    if value.fill is not None:
        return (), value.fill.tobytes()
    if math.prod(value.shape) > _LITERAL_LIMIT or 0 in value.shape:
        return None
    array = np.asarray(value.array)
    first = array.reshape(-1)[:1]
    if array.tobytes() == first.tobytes() * array.size:
        array = first.reshape(())
    return array.shape, array.tobytes()


def _vanishes(equation: Any, given: Sequence[Known]) -> bool:
    params = equation.params
    if params.get("sharding") is not None:
        params = {**params, "sharding": None}
    dtypes = tuple(v.dtype for v in equation.inputs)
    return _is_zero(
        equation.primitive,
        tuple(sorted(params.items())),
        tuple(given),
        dtypes,
        equation.outputs[0].dtype,
    )


@functools.lru_cache(4096)
def _is_zero(
    primitive: Any,
    params: tuple[tuple[str, Any], ...],
    given: tuple[Known, ...],
    dtypes: tuple[Any, ...],
    dtype: Any,
) -> bool:
    """Whether a primitive gives only zeros for the given operands."""
    arrays = [
        np.frombuffer(data or bytes(t.itemsize), t).reshape(shape)
        for (shape, data), t in zip(given, dtypes, strict=True)
    ]
    arrays = np.broadcast_arrays(*arrays)
    values = [Value(x.shape, t) for x, t in zip(arrays, dtypes, strict=True)]
    result = Value(arrays[0].shape, dtype)
    equation = Equation(primitive, values, [result], dict(params), "", "")
    made = numpy_primitives.bind(equation, arrays)
    if made is None:
        with _jax_compat.compile_time(), jax.debug_nans(False), jax.debug_infs(False):
            (made,) = equation.bind([jnp.asarray(x) for x in arrays])
    return not np.any(np.asarray(made) != 0)
