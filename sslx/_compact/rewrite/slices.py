"""Slices of arrays at static positions: take them, mask them, put them in place."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._compact.jaxpr.masks import Mask, Masks, some
from sslx._compact.jaxpr.numpy_primitives import on_host


def take(array: Any, positions: np.ndarray, axis: int) -> Any:
    """Slices at static positions; a strided slice where they form a progression."""
    if positions.size == array.shape[axis]:
        if (positions == np.arange(positions.size)).all():
            return array
    if on_host([array]):
        return np.take(array, positions, axis)
    array = _jax_compat.whole_along(array, axis)
    steps = np.diff(positions)
    if positions.size and (steps == steps[:1]).all() and (steps > 0).all():
        stride = int(steps[0]) if steps.size else 1
        end = int(positions[-1]) + 1
        return jax.lax.slice_in_dim(array, int(positions[0]), end, stride, axis)
    return _gather(array, positions, axis)


def _gather(array: Any, positions: np.ndarray, axis: int) -> Any:
    """Slices at static positions, each of them once, as one `gather`."""
    rest = [a for a in range(array.ndim) if a != axis]
    return jax.lax.gather(
        array,
        positions.astype(np.int32)[:, None],
        jax.lax.GatherDimensionNumbers(tuple(rest), (axis,), (axis,)),
        tuple(1 if a == axis else n for a, n in enumerate(array.shape)),
        indices_are_sorted=bool((np.diff(positions) > 0).all()),
        unique_indices=True,
        mode="promise_in_bounds",
    )


def masked(mask: np.ndarray, array: Any) -> Any:
    """An array where the mask holds, zero elsewhere."""
    where = np.where if on_host([array]) else jnp.where
    return where(mask, array, np.zeros((), array.dtype))


def positions_of(want: Mask, have: Mask) -> np.ndarray:
    """Positions of the indices in `want` among those in `have`."""
    return (np.cumsum(have) - 1)[want]


def restrict(array: Any, have: Masks, target: Masks) -> Any:
    """The wanted slices of an array that holds some which include them."""
    for axis, (h, t) in enumerate(zip(have, target, strict=True)):
        if h is not t and some(h != t):
            array = take(array, positions_of(t, h), axis)
    return array


def scatter(
    base: Any | None,
    part: Any,
    where: Sequence[np.ndarray | None],
    sizes: Sequence[int],
) -> Any:
    """Put a part in place along every axis that has positions; elsewhere is the base.

    Args:
      base: None means zero.
      part: what there is.
      where: per axis, the positions of its slices, or None if it has all.
      sizes: of the result.
    """
    if part.size == 0:
        return jnp.zeros(sizes, part.dtype) if base is None else base
    inside = np.ones((1,) * len(sizes), bool)
    for axis, places in enumerate(where):
        if places is not None:
            source = np.full(sizes[axis], part.shape[axis], np.int32)
            source[places] = np.arange(places.size)
            line = [-1 if a == axis else 1 for a in range(len(sizes))]
            inside = inside & (source < part.shape[axis]).reshape(line)
            part = jnp.take(part, source, axis=axis, mode="fill", fill_value=0)
    return part if base is None else jnp.where(inside, part, base)
