"""Optax transformations that make parameters structurally sparse and keep them so.

`subgradient` changes the gradient and goes first in `optax.chain`; the others look at
the parameters that the update would give and go last.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from sslx._arguments import expect_number, expect_word
from sslx._groups.classes import Groups
from sslx._groups.groups import (
    Leaves,
    TreeDef,
    class_alive,
    expect_groups,
    flatten,
    present,
    select_classes,
    unflatten,
)
from sslx._groups.penalties import GroupL0, Penalty, Scalar
from sslx._groups.prox import Overlap, expect_penalty, prox_leaves, value_of

__all__ = [
    "ProximalState",
    "keep_zeros",
    "proximal",
    "subgradient",
    "zero_threshold",
]

_NO_PARAMS = (
    "this transformation looks at the parameters: call tx.update(grads, state, params)"
)

ScalarOrSchedule: TypeAlias = Scalar | Callable[[Array], Scalar]


class ProximalState(NamedTuple):
    """State of `proximal`: number of steps taken."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def proximal(
    penalty: Penalty,
    groups: Groups,
    learning_rate: ScalarOrSchedule,
    *,
    strength: ScalarOrSchedule | None = None,
    overlap: Overlap = "sequential",
) -> optax.GradientTransformationExtraArgs:
    """A proximal step after the optimiser's own: groups reach exact zero.

    `w_{t+1} = prox(w_t + u_t)` with step `learning_rate_t`, where `u_t` is the incoming
    update; the outgoing update is `w_{t+1} - w_t`. Entries of removed groups are
    exactly 0 after `optax.apply_updates`. Goes last in `optax.chain`.

    After plain SGD this is the proximal gradient method (ISTA), whose fixed points are
    those of loss plus penalty. Momentum `beta` amplifies the gradient by
    `1 / (1 - beta)` in the long run, but not the operator, so that `strength` acts as
    `(1 - beta) * strength` would in the loss or in `subgradient`: with `beta = 0.9`,
    give ten times as much. After Adam and other optimisers that scale each entry it is
    still the operator in the *Euclidean* metric with step `learning_rate_t`: every
    group is shrunk by the same amount, however large its gradients, and the fixed
    points are not those of loss plus penalty.

    Weight decay on the same leaves adds to the penalty; turn it off there.

    Args:
        penalty: The penalty.
        groups: The groups; leaves outside them are untouched, as are leaves masked by
            `optax.masked` or `optax.multi_transform`.
        learning_rate: The optimiser's learning rate, a number or the same schedule.
        strength: Replaces `penalty.strength`; a number or a schedule. Like
            `learning_rate`, it can be injected by `optax.inject_hyperparams`.
        overlap: The operator for groups that overlap without nesting; see `prox`.

    Returns:
        A transformation whose state is a step count.

    Example:
        >>> tx = optax.chain(
        ...     optax.sgd(schedule, momentum=0.9),
        ...     proximal(GroupLasso(1e-4), groups, learning_rate=schedule),
        ... )

    Source: Parikh and Boyd 2014, section 4.2.
    """
    expect_penalty(penalty)
    expect_groups(groups)
    for what, value in (("learning_rate", learning_rate), ("strength", strength)):
        if value is not None and not callable(value):
            expect_number(f"proximal: {what}", value)
    expect_word("overlap", overlap, ("sequential", "dykstra"))

    def init(params: PyTree) -> ProximalState:
        present(groups, flatten(params)[0])
        return ProximalState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        leaves, treedef, old = _both(updates, params)
        classes = present(groups, old)
        paths = {m.path for c in classes for m in c.members}
        moved = {path: old[path] + leaves[path] for path in paths}
        step = _at(learning_rate, state.count)
        now = penalty if strength is None else _with(penalty, strength, state.count)
        new = prox_leaves(now, classes, moved, step, overlap)
        leaves.update({path: new[path] - old[path] for path in new})
        count = jnp.asarray(optax.safe_increment(state.count))
        return unflatten(treedef, leaves), ProximalState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def subgradient(
    penalty: Penalty, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Adds the penalty's subgradient to the gradient: the method of the SSL paper.

    For group lasso, `g_i <- g_i + strength * sum_g weight_g * w_i / norm_g`, summed
    over the groups of entry i; groups that are zero contribute 0. Goes *first* in the
    chain, before momentum and learning rate. Groups shrink but do not reach zero by
    themselves; `zero_threshold` cuts them.

    Args:
        penalty: Any penalty but `GroupL0`, whose gradient is 0.
        groups: The groups.

    Returns:
        A transformation without state.

    Raises:
        ValueError: The penalty is `GroupL0`.

    Source: Wen et al. 2016, as in their published solver.
    """
    expect_penalty(penalty)
    expect_groups(groups)
    if isinstance(penalty, GroupL0):
        raise ValueError("GroupL0 has no useful subgradient; use sslx.proximal")

    def add(updates: Leaves, params: Leaves) -> dict[str, Array]:
        classes = present(groups, params)
        inside = {m.path: params[m.path] for c in classes for m in c.members}
        slopes = jax.grad(lambda leaves: value_of(penalty, classes, leaves))(inside)
        return {path: updates[path] + slope for path, slope in slopes.items()}

    return _stateless(add)


def zero_threshold(threshold: float = 1e-4) -> optax.GradientTransformationExtraArgs:
    """Sets entries that an update would leave below a threshold to exactly zero.

    `w_{t+1} = 0` where `|w_t + u_t| < threshold`. Goes last in the chain. Applies to
    every leaf, biases and norm scales included; restrict it with `optax.masked`.
    Entries may grow again.

    Args:
        threshold: Absolute value, in the unit of the parameters.

    Returns:
        A transformation without state.

    Source: the published solver of Wen et al. 2016, where it is 1e-4.
    """
    expect_number("zero_threshold: threshold", threshold)

    def cut(updates: Leaves, params: Leaves) -> dict[str, Array]:
        return {
            path: jnp.where(jnp.abs(params[path] + u) < threshold, -params[path], u)
            for path, u in updates.items()
            if not isinstance(u, optax.MaskedNode)
        }

    return _stateless(cut)


def keep_zeros(
    groups: Groups | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps exact zeros at zero, for fine-tuning.

    With groups, the updates of every entry in at least one zero group become 0;
    without, those of every zero entry (biases that start at zero included). NaN and
    infinite updates pass through, so that they are noticed.

    It must see the update that `optax.apply_updates` adds, so it goes last in a chain:
    what follows it there (`add_noise`, momentum, `ema`) may undo it. Zeros stay exact
    inside `masked`, `partition`, `MultiSteps`, `apply_if_finite`, `conditionally_mask`,
    `inject_hyperparams`, `lookahead` (both copies), and `contrib.schedule_free` (the
    parameters for evaluation). A moving average of the parameters is zero where the
    parameters were zero when it began; elsewhere it only tends to zero.

    Args:
        groups: The groups; None takes the single entries of all leaves.

    Returns:
        A transformation without state.

    Example:
        >>> tx = optax.chain(optax.sgd(0.01, momentum=0.9), keep_zeros(groups))

    Source: the published solver of Wen et al. 2016, modes DISCONNECTED_GRPWISE and
    DISCONNECTED_ELTWISE.
    """

    def entries(updates: Leaves, params: Leaves) -> dict[str, Array]:
        return {
            path: jnp.where((params[path] == 0) & jnp.isfinite(u), jnp.zeros_like(u), u)
            for path, u in updates.items()
            if not isinstance(u, optax.MaskedNode)
        }

    if groups is None:
        return _stateless(entries)
    expect_groups(groups)

    def by_group(updates: Leaves, params: Leaves) -> dict[str, Array]:
        classes = present(groups, params)
        return select_classes(classes, updates, class_alive(classes, params))

    return _stateless(by_group)


def _stateless(
    change: Callable[[Leaves, Leaves], dict[str, Array]],
) -> optax.GradientTransformationExtraArgs:
    """A transformation that replaces some leaves of the updates."""

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates, state, params=None, **extra_args):
        del extra_args
        leaves, treedef, old = _both(updates, params)
        leaves.update(change(leaves, old))
        return unflatten(treedef, leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def _both(updates: PyTree, params: PyTree | None) -> tuple[Leaves, TreeDef, Leaves]:
    """Updates by path, their tree, and the parameters by path."""
    if params is None:
        raise ValueError(_NO_PARAMS)
    leaves, treedef = flatten(updates)
    old, _ = flatten(params)
    if leaves.keys() != old.keys():
        differing = sorted(leaves.keys() ^ old.keys())
        raise ValueError(f"updates and parameters differ in the leaves {differing}")
    return leaves, treedef, old


def _at(value: ScalarOrSchedule, count: Array) -> Scalar:
    """A schedule's value at a step; a number as it is."""
    return value(count) if callable(value) else value


def _with(penalty: Penalty, strength: ScalarOrSchedule, count: Array) -> Penalty:
    return dataclasses.replace(penalty, strength=_at(strength, count))
