"""Densities over time that optax has no schedule for."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from sslx._arguments import expect_number

__all__ = ["one_cycle"]


def one_cycle(
    final: float,
    steps: int,
    *,
    begin: int = 0,
    initial: float = 1.0,
    steepness: float = 14.0,
    offset: float = 5.0,
) -> Callable[[ArrayLike], Float[Array, ""]]:
    """A density that falls once along a logistic curve, over all of training.

    `d(t) = initial + (final - initial) * (1 + e^(b-a)) / (1 + e^(b - a*t))`, where t
    goes from 0 to 1 in `steps` steps, a = steepness, b = offset; `initial` before
    `begin`.

    Args:
        final: Density at the end.
        steps: Number of steps over which it falls.
        begin: First step of the fall.
        initial: Density before the fall.
        steepness: a.
        offset: b.

    Returns:
        Step -> density.

    Source: Hubens et al. 2022 (one-cycle pruning).
    """
    expect_number("one_cycle: final", final, high=1)
    expect_number("one_cycle: initial", initial, high=1)
    expect_number("one_cycle: steps", steps, 1, whole=True)
    expect_number("one_cycle: begin", begin, whole=True)
    top = 1 + math.exp(offset - steepness)

    def density(step: ArrayLike) -> Array:
        t = jnp.clip((jnp.asarray(step) - begin) / steps, 0, 1)
        share = top * jax.nn.sigmoid(steepness * t - offset)
        fall = jnp.where(jnp.asarray(step) < begin, 0, share)
        return initial + (final - initial) * fall

    return density
