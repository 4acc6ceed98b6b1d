"""What the taps of a convolution read."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx.lowering._conv import Conv, dilated


def padded(conv: Conv, x: Array) -> Array:
    config = [(0, 0, 0), *((low, high, 0) for low, high in conv.padding), (0, 0, 0)]
    if all(low == high == 0 for low, high, _ in config):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def extent(
    conv: Conv, k: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Start, limit and strides of a tap in the padded input."""
    start = tuple(i * d for i, d in zip(k, conv.rhs_dilation, strict=True))
    limit = tuple(
        a + dilated(n, s) for a, n, s in zip(start, conv.out, conv.strides, strict=True)
    )
    return start, limit, conv.strides


def tap_of(conv: Conv, xp: Array, k: tuple[int, ...]) -> Array:
    """What one tap reads: the shape of the output, with the input's channels."""
    start, limit, strides = extent(conv, k)
    return jax.lax.slice(
        xp,
        (0, *start, 0),
        (xp.shape[0], *limit, xp.shape[-1]),
        (1, *strides, 1),
    )


def kept(conv: Conv) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Taps with the channels they keep."""
    mask = conv.mask[..., 0]
    return [
        (k, np.flatnonzero(mask[k])) for k in np.ndindex(*conv.window) if mask[k].any()
    ]


def kept_rows(conv: Conv, w: Array) -> Array:
    keep = np.flatnonzero(conv.mask[..., 0])
    return take(w.reshape(-1, conv.rhs[-1]), keep, axis=0)


def as_slice(indices: np.ndarray) -> slice:
    step = int(indices[1] - indices[0]) if indices.size > 1 else 1
    return slice(int(indices[0]), int(indices[-1]) + 1, step)


def take(array: Array, keep: np.ndarray, axis: int = -1) -> Array:
    if keep.size == array.shape[axis]:
        return array
    first, last = int(keep[0]), int(keep[-1])
    if last - first + 1 == keep.size:
        return jax.lax.slice_in_dim(array, first, last + 1, axis=axis % array.ndim)
    return jnp.take(
        array,
        keep,
        axis=axis,
        mode="clip",
        unique_indices=True,
        indices_are_sorted=True,
    )


def product(conv: Conv, x: Array, w: Array) -> Array:
    return contracted(conv, x, w, ((x.ndim - 1,), (0,)))


def contracted(conv: Conv, x: Array, w: Array, axes: Any) -> Array:
    return jax.lax.dot_general(
        x,
        w,
        (axes, ((), ())),
        precision=conv.precision,
        preferred_element_type=jnp.dtype(conv.result),
    )
