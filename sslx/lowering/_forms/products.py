"""Convolutions as products: patches, taps, positions."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx.lowering._conv import Conv, dilated
from sslx.lowering._forms.taps import (
    as_slice,
    contracted,
    extent,
    kept,
    kept_rows,
    padded,
    product,
    take,
    tap_of,
)


def dot(conv: Conv, x: Array, w: Array) -> Array:
    limits = tuple(dilated(n, s) for n, s in zip(conv.out, conv.strides, strict=True))
    if limits != conv.image or any(s > 1 for s in conv.strides):
        x = jax.lax.slice(
            x,
            (0,) * x.ndim,
            (x.shape[0], *limits, x.shape[-1]),
            (1, *conv.strides, 1),
        )
    return product(conv, x, w.reshape(conv.rhs[-2:]))


def im2col(conv: Conv, x: Array, w: Array) -> Array:
    xp = padded(conv, x)
    taps = [tap_of(conv, xp, k) for k in np.ndindex(*conv.window)]
    patches = jnp.concatenate(taps, axis=-1)
    return product(conv, patches, w.reshape(-1, conv.rhs[-1]))


def gather(conv: Conv, x: Array, w: Array) -> Array:
    xp = padded(conv, x)
    taps = [take(tap_of(conv, xp, k), keep) for k, keep in kept(conv)]
    return product(conv, jnp.concatenate(taps, axis=-1), kept_rows(conv, w))


def gather_columns(conv: Conv, x: Array, w: Array) -> Array:
    xp = jnp.moveaxis(padded(conv, x), -1, 0)
    rows = []
    for k, keep in kept(conv):
        start, limit, strides = extent(conv, k)
        tap = jax.lax.slice(
            xp,
            (0, 0, *start),
            (*xp.shape[:2], *limit),
            (1, 1, *strides),
        )
        rows.append(take(tap, keep, axis=0))
    # XLA has no product over first axes of a dtype other than the result's.
    patches = jnp.concatenate(rows, axis=0).astype(conv.result)
    filters = kept_rows(conv, w).astype(conv.result)
    out = contracted(conv, filters, patches, ((0,), (0,)))
    return jnp.moveaxis(out, 0, -1)


def shifted(conv: Conv, x: Array, w: Array) -> Array:
    xp = padded(conv, x)
    total = None
    for k, keep in kept(conv):
        part = product(conv, take(tap_of(conv, xp, k), keep), take(w[k], keep, axis=-2))
        total = part if total is None else total + part
    assert total is not None
    return total


def unrolled(conv: Conv, x: Array, w: Array) -> Array:
    outs = []
    for p in np.ndindex(*conv.out):
        taps, entries = [], []
        for axis, at in enumerate(p):
            met = np.flatnonzero(conv.meets(axis)[at])
            taps.append(met)
            first = at * conv.strides[axis] - conv.padding[axis][0]
            entries.append(first + met * conv.rhs_dilation[axis])
        if not all(t.size for t in taps):
            outs.append(jnp.zeros((conv.lhs[0], conv.rhs[-1]), conv.result))
            continue
        xs = x[(slice(None), *map(as_slice, entries))]
        ws = w[tuple(map(as_slice, taps))]
        axes = tuple(range(1, xs.ndim))
        outs.append(contracted(conv, xs, ws, (axes, tuple(a - 1 for a in axes))))
    out = jnp.stack(outs, axis=1)
    return out.reshape(conv.shape)


def depthwise(conv: Conv, x: Array, w: Array) -> Array:
    xp = padded(conv, x)
    times = conv.rhs[-1] // conv.lhs[-1]
    total = None
    for k in np.ndindex(*conv.window):
        if not conv.mask[k].any():
            continue
        tap = tap_of(conv, xp, k)
        tap = jnp.repeat(tap, times, axis=-1) if times > 1 else tap
        part = tap.astype(conv.result) * jnp.broadcast_to(
            w[k].reshape(-1).astype(conv.result), tap.shape
        )
        total = part if total is None else total + part
    assert total is not None
    return total
