"""Convolutions as products: patches, taps, positions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx.lowering._conv import Conv


def dot(conv: Conv, x: Array, w: Array) -> Array:
    reads = [axis.span(0) for axis in conv.axes]
    if any(r != slice(0, n, 1) for r, n in zip(reads, conv.image, strict=True)):
        x = _tap(conv, x, (0,) * len(reads))
    return _product(conv, x, w.reshape(conv.rhs[-2:]))


def im2col(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    taps = [_tap(conv, xp, k) for k in np.ndindex(*conv.window)]
    patches = jnp.concatenate(taps, axis=-1)
    return _product(conv, patches, w.reshape(-1, conv.rhs[-1]))


def gather_columns(conv: Conv, x: Array, w: Array) -> Array:
    xp = jnp.moveaxis(_padded(conv, x), -1, 0)
    mask, rows = conv.mask[..., 0], []
    for k in np.ndindex(*conv.window):
        if mask[k].any():
            tap = _sliced(xp, [slice(None), slice(None), *_spans(conv, k)])
            rows.append(_take(tap, np.flatnonzero(mask[k])))
    # XLA has no product over first axes of a dtype other than the result's.
    patches = jnp.concatenate(rows, axis=0).astype(conv.result)
    filters = _take(w.reshape(-1, conv.rhs[-1]), np.flatnonzero(mask))
    filters = filters.astype(conv.result)
    out = _contracted(conv, filters, patches, ((0,), (0,)))
    return jnp.moveaxis(out, 0, -1)


def unrolled(conv: Conv, x: Array, w: Array) -> Array:
    reads = [axis.reads() for axis in conv.axes]
    outs = []
    for p in np.ndindex(*conv.out):
        places = list(zip(p, reads, strict=True))
        taps = [np.flatnonzero(meets[at]) for at, (_, meets) in places]
        if not all(t.size for t in taps):
            outs.append(jnp.zeros((conv.lhs[0], conv.rhs[-1]), conv.result))
            continue
        entries = [e[at, t] for (at, (e, _)), t in zip(places, taps, strict=True)]
        xs = x[(slice(None), *map(_as_slice, entries))]
        ws = w[tuple(map(_as_slice, taps))]
        axes = tuple(range(1, xs.ndim))
        outs.append(_contracted(conv, xs, ws, (axes, tuple(a - 1 for a in axes))))
    out = jnp.stack(outs, axis=1)
    return out.reshape(conv.shape)


def depthwise(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    times = conv.rhs[-1] // conv.lhs[-1]
    total = None
    for k in np.ndindex(*conv.window):
        if not conv.mask[k].any():
            continue
        tap = _tap(conv, xp, k)
        tap = jnp.repeat(tap, times, axis=-1) if times > 1 else tap
        part = tap.astype(conv.result) * jnp.broadcast_to(
            w[k].reshape(-1).astype(conv.result), tap.shape
        )
        total = part if total is None else total + part
    assert total is not None
    return total


def _padded(conv: Conv, x: Array) -> Array:
    config = [(0, 0, 0), *((low, high, 0) for low, high in conv.padding), (0, 0, 0)]
    if all(low == high == 0 for low, high, _ in config):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _tap(conv: Conv, xp: Array, k: tuple[int, ...]) -> Array:
    """What one tap reads: the shape of the output, with the input's channels."""
    return _sliced(xp, [slice(None), *_spans(conv, k), slice(None)])


def _spans(conv: Conv, k: tuple[int, ...]) -> list[slice]:
    return [axis.span(tap) for axis, tap in zip(conv.axes, k, strict=True)]


def _sliced(array: Array, slices: list[slice]) -> Array:
    """`array[slices]` as one `lax.slice`."""
    bounds = [s.indices(n) for s, n in zip(slices, array.shape, strict=True)]
    start, limit, strides = zip(*bounds, strict=True)
    return jax.lax.slice(array, start, limit, strides)


def _as_slice(indices: np.ndarray) -> slice:
    step = int(indices[1] - indices[0]) if indices.size > 1 else 1
    return slice(int(indices[0]), int(indices[-1]) + 1, step)


def _take(array: Array, keep: np.ndarray) -> Array:
    """Rows, by a slice where they are neighbours."""
    if keep.size == array.shape[0]:
        return array
    first, last = int(keep[0]), int(keep[-1])
    if last - first + 1 == keep.size:
        return jax.lax.slice_in_dim(array, first, last + 1)
    return jnp.take(
        array,
        keep,
        axis=0,
        mode="clip",
        unique_indices=True,
        indices_are_sorted=True,
    )


def _product(conv: Conv, x: Array, w: Array) -> Array:
    return _contracted(conv, x, w, ((x.ndim - 1,), (0,)))


def _contracted(conv: Conv, x: Array, w: Array, axes: Any) -> Array:
    return jax.lax.dot_general(
        x,
        w,
        (axes, ((), ())),
        precision=conv.precision,
        preferred_element_type=jnp.dtype(conv.result),
    )
