"""Pruning while training, as an optax transformation with masks in its state."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from sslx._arguments import expect_number
from sslx._groups.classes import Groups
from sslx._groups.groups import (
    expect_groups,
    flatten,
    present,
    select_classes,
    unflatten,
)
from sslx.select._keep import Density, keep
from sslx.select._scores import Scores, sum_abs

__all__ = ["PruneState", "prune"]


Choose: TypeAlias = Callable[..., dict[str, Array]]


class PruneState(NamedTuple):
    """State of `prune`: number of steps taken, and masks by class name."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    masks: dict[str, Array]


def prune(
    groups: Groups,
    density: Density | Callable[[Array], Density],
    *,
    score: Callable[[Groups, PyTree], Scores] = sum_abs,
    choose: Choose = keep,
    every: int = 1,
    until: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Removes groups as a density falls, and holds removed groups at exact zero.

    At steps 0, every, 2*every, ... up to `until`, on the parameters `w` that the update
    would give: `masks <- choose(score(w), density(step)) & masks`; at every step
    `w_{t+1} = scale(w_t + u_t, masks)`. Goes last in `optax.chain`. Removed groups do
    not return.

    Args:
        groups: The groups; leaves outside them are untouched.
        density: Share to keep: a number or numbers by class name (removed at once, at
            step 0), or a schedule:

            - cubic: `optax.polynomial_schedule(1, final, 3, steps, begin)`
              (Zhu and Gupta 2017)
            - constant: `optax.piecewise_constant_schedule(1.0, {begin: final})`
            - one-cycle: `one_cycle(final, steps)`
        score: (groups, parameters) -> scores; may close over data and a loss.
        choose: `(groups, scores, density, within=masks) -> masks`: `keep` or `n_of_m`,
            their options bound with `functools.partial`.
        every: Steps between two choices. A choice ranks all groups, which for single
            weights takes time (0.2 microseconds each on a CPU core, 0.7 with scope
            `global`); holding the masks in between costs next to nothing.
        until: Last step at which groups are chosen; None for no limit.

    Returns:
        A transformation whose state holds the masks.

    Raises:
        ValueError: `every` is less than 1.

    Example:
        >>> density = optax.polynomial_schedule(1.0, 0.2, 3, 1000)
        >>> widths = functools.partial(keep, scope="global", minimum=8, round_to=8)
        >>> pruning = prune(groups, density, choose=widths, every=100)
        >>> tx = optax.chain(optax.sgd(0.1, momentum=0.9), pruning)
    """
    expect_groups(groups)
    expect_number("prune: every", every, 1, whole=True)
    if until is not None:
        expect_number("prune: until", until, whole=True)
    if not callable(density):
        for share in density.values() if isinstance(density, Mapping) else [density]:
            expect_number("prune: density", share, high=1)

    def init(params: PyTree) -> PruneState:
        classes = present(groups, flatten(params)[0])
        masks = {c.name: jnp.ones(c.shape, bool) for c in classes}
        return PruneState(jnp.zeros((), jnp.int32), masks)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "prune looks at the parameters: call tx.update(..., params)"
            )
        count, masks = state
        due = count % every == 0
        if until is not None:
            due &= count <= until

        def chosen() -> dict[str, Array]:
            share = density(count) if callable(density) else density
            scores = score(groups, optax.apply_updates(params, updates))
            return choose(groups, scores, share, within=masks)

        masks = jax.lax.cond(due, chosen, lambda: masks)
        new = _held(groups, masks, updates, params)
        count = jnp.asarray(optax.safe_increment(count))
        return new, PruneState(count, masks)

    return optax.GradientTransformationExtraArgs(init, update)


def _held(
    groups: Groups, masks: dict[str, Array], updates: PyTree, params: PyTree
) -> PyTree:
    """The updates, but those of removed entries end at zero."""
    leaves, treedef = flatten(updates)
    old, _ = flatten(params)
    classes = present(groups, old)
    held = select_classes(classes, leaves, masks)
    stay = select_classes(classes, old, masks)
    for path, update in held.items():
        leaves[path] = update - (old[path] - stay[path])
    return unflatten(treedef, leaves)
