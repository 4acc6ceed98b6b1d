"""Sums and pools in forms that XLA computes faster on a CPU."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MANY = 512
_MOST_SHIFTS = 32
_POOLS: dict[str, tuple[Callable[[Any, Any], Any], float]] = {
    "reduce_window_sum": (jax.lax.add, 0.0),
    "reduce_window_max": (jax.lax.max, -math.inf),
    "reduce_window_min": (jax.lax.min, math.inf),
}


def reduced(primitive: Any, params: Mapping[str, Any], x: Any) -> Any | None:
    """The result of a sum or pool in another form; None where XLA's is as fast."""
    if not np.ndim(x) or x.dtype not in (np.float32, np.float64):
        return None
    if primitive.name == "reduce_sum":
        return summed(x, params["axes"])
    if primitive.name in _POOLS and _is_small(params, x.shape):
        return _pooled(primitive, tuple(params.items()), x)
    return None


def summed(x: Any, axes: tuple[int, ...]) -> Any | None:
    """`x.sum(axes)` as a product with a row of ones; None where that is no faster.

    XLA adds up lane by lane where the sums are few; a product uses whole vectors and
    all cores.
    """
    kept = math.prod(x.shape[len(axes) :])
    if axes != tuple(range(len(axes))) or kept < 2 or x.size < _MANY * kept:
        return None
    ones = jnp.ones((x.size // kept,), x.dtype)
    highest = jax.lax.Precision.HIGHEST
    total = jnp.matmul(ones, x.reshape(-1, kept), precision=highest)
    return total.reshape(x.shape[len(axes) :])


def _is_small(params: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether a pool has few shifts, no dilation, and a result that is not empty."""
    window = params["window_dimensions"]
    dilations = (*params["base_dilation"], *params["window_dilation"])
    shifts = sum(k for k in window if k > 1)
    filled = all(
        n + low + high >= k > 0
        for n, (low, high), k in zip(shape, params["padding"], window, strict=True)
    )
    return all(d == 1 for d in dilations) and shifts <= _MOST_SHIFTS and filled


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _pooled(primitive: Any, params: tuple[tuple[str, Any], ...], x: Any) -> Any:
    """A pool, axis by axis, of shifted slices, which XLA fuses with their producer.

    XLA's own pools are not vectorised. Derivatives are those of the primitive.
    """
    of = dict(params)
    combine, neutral = _POOLS[primitive.name]
    if any(low or high for low, high in of["padding"]):
        config = [(low, high, 0) for low, high in of["padding"]]
        x = jax.lax.pad(x, jnp.asarray(neutral, x.dtype), config)
    windows = zip(of["window_dimensions"], of["window_strides"], strict=True)
    for axis, (size, stride) in enumerate(windows):
        if size > 1 or stride > 1:
            reach = (x.shape[axis] - size) // stride * stride + 1
            parts = [
                jax.lax.slice_in_dim(x, k, k + reach, stride, axis) for k in range(size)
            ]
            x = functools.reduce(combine, parts)
    return x


@_pooled.defjvp
def _pooled_jvp(
    primitive: Any, params: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    pool = functools.partial(primitive.bind, **dict(params))
    _, tangent = jax.jvp(pool, primals, tangents)
    return _pooled(primitive, params, *primals), tangent
