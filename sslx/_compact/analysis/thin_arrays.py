"""One equation on arrays that have size one along axes where they do not vary.

Arrays with known values are computed by NumPy where it can
(`sslx._compact.jaxpr.numpy_primitives`), by JAX otherwise.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._compact.jaxpr import numpy_primitives
from sslx._compact.jaxpr.masks import Masks, every, some
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.layout import reshape_groups
from sslx._compact.rules.products import PRODUCTS
from sslx._compact.rules.relation import Relation


def thin_zeros(value: Value) -> np.ndarray:
    """Zeros, of size one along every axis."""
    known = isinstance(value.dtype, np.dtype)
    return np.zeros((1,) * len(value.shape), value.dtype if known else np.uint32)


def now(arrays: Iterable[Any]) -> contextlib.AbstractContextManager:
    """A context to compute at once, even while tracing, unless an array is traced."""
    if any(_jax_compat.is_traced(x) for x in arrays):
        return contextlib.nullcontext()
    return _jax_compat.compile_time()


_FINITE = frozenset(
    "add add_any sub neg abs sign max min clamp select_n copy stop_gradient name "
    "optimization_barrier convert_element_type floor ceil round square integer_pow "
    "sin cos tanh logistic erf erfc eq ne lt le gt ge and or xor not is_finite".split()
)
"""Functions of each entry that are finite, and have finite slopes, everywhere."""


def evaluate(
    eqn: Equation,
    rel: Relation,
    operands: list[Any],
    sure: Sequence[Masks],
    zero: Sequence[Masks],
) -> list[Any]:
    """One equation on arrays of which only some slices are right.

    The others are set to one half where the equation multiplies or has a pole: what is
    made of them is then finite, with finite slopes, and zero times it is zero.

    Args:
      eqn: the equation.
      rel: its relation.
      operands: arrays, of size one where they do not vary.
      sure: per operand, the slices that are right.
      zero: per result, the slices that are zero.
    """
    if eqn.name in ("mul", *PRODUCTS) or (rel.pointwise and eqn.name not in _FINITE):
        operands = list(map(_halved, operands, sure))
        return list(map(_zeroed, _evaluated(eqn, rel, operands), zero))
    return _evaluated(eqn, rel, operands)


def _halved(array: Any, sure: Masks) -> Any:
    """An array with one half, or one, outside the slices that are right."""
    shape, dtype = np.shape(array), array.dtype
    if any(map(every, sure)):
        return array
    half = np.asarray(0.5 if jnp.issubdtype(dtype, np.inexact) else 1).astype(dtype)
    there = [axis for axis, mask in enumerate(sure) if some(mask)]
    if not there:
        return half.reshape((1,) * len(shape))
    if any(shape[axis] == 1 for axis in there):
        return array
    return _where(_hyperplanes(sure), array, half)


def _zeroed(array: Any, zero: Masks) -> Any:
    """An array with zeros in zero slices."""
    if not np.ndim(array) or not any(map(some, zero)):
        return array
    return _where(~_hyperplanes(zero), array, np.zeros((), array.dtype))


def _hyperplanes(masks: Masks) -> np.ndarray:
    """The entries in any of the slices, of size one along axes without one."""
    lines = [
        mask.reshape([-1 if a == axis else 1 for a in range(len(masks))])
        for axis, mask in enumerate(masks)
        if some(mask)
    ]
    return functools.reduce(np.logical_or, lines)


def _where(mask: np.ndarray, array: Any, other: np.ndarray) -> Any:
    """Entries of one array where the mask holds, of another elsewhere."""
    with now([array]):
        return (np if numpy_primitives.on_host([array]) else jnp).where(
            mask, array, other
        )


def _evaluated(eqn: Equation, rel: Relation, operands: list[Any]) -> list[Any]:
    if eqn.name == "reshape" and eqn.params.get("dimensions") is None:
        return [_reshape(eqn, operands[0])]
    if eqn.name == "broadcast_in_dim":
        return [_broadcast(eqn, operands[0])]
    return sized(eqn, rel, operands, [v.shape for v in eqn.inputs])


def sized(
    eqn: Equation, rel: Relation, operands: list[Any], shapes: Sequence[Any]
) -> list[Any]:
    """One equation on thin arrays, perhaps over some terms and results only.

    Args:
      eqn: the equation; a product without groups where shapes are not its own.
      rel: its relation.
      operands: arrays, of size one where they do not vary.
      shapes: the shapes of the operands, where they are not of size one.
    """
    if eqn.name == "conv_general_dilated":
        made = _convolved(eqn, operands, shapes)
        if made is not None:
            return [made]
    operands = _lined_up(eqn, rel, operands, shapes)
    made = (
        numpy_primitives.bind(eqn, operands)
        if operands and numpy_primitives.on_host(operands)
        else None
    )
    if made is not None:
        return [made]
    with now(operands):
        return eqn.bind([jnp.asarray(x) for x in operands])


def _convolved(eqn: Equation, operands: list[Any], shapes: Any) -> Any | None:
    """A convolution of what does not vary in space."""
    channels = eqn.params["dimension_numbers"].lhs_spec[1]
    image = broadcast_axes(operands[0], {channels: shapes[0][channels]})
    kernel = broadcast_axes(operands[1], dict(enumerate(shapes[1])))
    with now(operands):
        return numpy_primitives.convolve_uniform(eqn, image, kernel)


def broadcast_axes(array: Any, sizes: Mapping[int, int]) -> Any:
    """The given axes of an array at the given sizes; on the host if it is there."""
    shape = tuple(sizes.get(a, n) for a, n in enumerate(np.shape(array)))
    if shape == np.shape(array):
        return array
    if numpy_primitives.on_host([array]):
        return np.broadcast_to(array, shape)
    with now([array]):
        return jnp.broadcast_to(array, shape)


def _lined_up(
    eqn: Equation, rel: Relation, operands: list[Any], shapes: Sequence[Any]
) -> list[Any]:
    """Operands at full size, except along axes where any size will do."""
    if rel.pointwise:
        there = [np.shape(x) for x in operands if np.ndim(x)]
        sizes = dict(enumerate(np.broadcast_shapes(*there) if there else ()))
        return [broadcast_axes(x, sizes) if np.ndim(x) else x for x in operands]
    thin = [_thin_axes(eqn, rel, k) for k in range(len(operands))]
    if eqn.name == "concatenate":
        agreed = {a for a in thin[0] if all(np.shape(x)[a] == 1 for x in operands)}
        thin = [agreed] * len(operands)
    rows = zip(shapes, operands, thin, strict=True)
    return [
        broadcast_axes(x, {a: n for a, n in enumerate(shape) if a not in kept})
        for shape, x, kept in rows
    ]


_ANY_SIZE = {
    "transpose",
    "rev",
    "squeeze",
    "dot_general",
    "concatenate",
    "cumsum",
    "cumprod",
    "cummax",
}


def _thin_axes(eqn: Equation, rel: Relation, k: int) -> set[int]:
    """The axes of an operand along which a primitive takes any size."""
    if eqn.name == "conv_general_dilated":
        return {eqn.params["dimension_numbers"].lhs_spec[0]} if k == 0 else set()
    if eqn.name not in _ANY_SIZE and not eqn.name.startswith("reduce"):
        return set()
    plain = [x for x in rel.links if x.in_label is None and x.out_label is None]
    thin = {x.in_axis for x in plain if x.operand == k}
    if eqn.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        thin -= set(batch[k])
    if eqn.name == "concatenate":
        thin.discard(eqn.params["dimension"])
    return thin - {m.axis for s in rel.sums for m in s if m.operand == k}


def _reshaped(array: Any, shape: Sequence[int]) -> Any:
    if numpy_primitives.on_host([array]):
        return np.reshape(array, shape)
    with now([array]):
        return jnp.reshape(array, shape)


def _broadcast(eqn: Equation, operand: Any) -> Any:
    shape = [1] * len(eqn.outputs[0].shape)
    for a, b in enumerate(eqn.params["broadcast_dimensions"]):
        shape[b] = np.shape(operand)[a]
    return _reshaped(operand, shape)


def _reshape(eqn: Equation, operand: Any) -> Any:
    source, target = eqn.inputs[0].shape, eqn.outputs[0].shape
    have = np.shape(operand)
    shape = [1] * len(target)
    wide: dict[int, int] = {}
    for left, right in reshape_groups(source, target):
        if any(have[a] != 1 for a in left):
            wide.update((a, source[a]) for a in left)
            for b in right:
                shape[b] = target[b]
    return _reshaped(broadcast_axes(operand, wide), shape)
