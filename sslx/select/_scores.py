"""Scores: how much each group matters, one number per group, shaped like `norms`.

Most are derivatives by *factors*: with `L(f)` the loss of `scale(groups, params, f)`,
removing group g moves `f_g` from 1 to 0, so that what removal costs is read off the
derivatives of `L` at `f = 1`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from sslx._arguments import expect_number, expect_pattern
from sslx._groups.arithmetic import sums_of
from sslx._groups.classes import GroupClass, Groups, Member
from sslx._groups.groups import Leaves, expect_groups, flatten, in_order, present, scale

__all__ = [
    "Loss",
    "Scores",
    "fisher",
    "geometric_median",
    "lamp",
    "only",
    "random",
    "sum_abs",
    "taylor",
]

Scores: TypeAlias = Mapping[str, Array | np.ndarray]
Loss: TypeAlias = Callable[[Any], Float[Array, ""]]


def sum_abs(groups: Groups, params: PyTree) -> dict[str, Array]:
    """`s_g = sum_{i in g} |w_i|`: the l1 norm of every group.

    For the l2 norm use `sslx.norms`. Neither compares groups of different sizes: divide
    by `groups.sizes`, or see `lamp`.

    Args:
        groups: The groups.
        params: Parameters.

    Returns:
        Class name -> scores, shaped and with classes left out as in `norms`.

    Source: for filters, Li et al. 2017.
    """
    leaves, _ = flatten(params)
    return sums_of(present(groups, leaves), leaves, jnp.abs)


def only(groups: Groups, pattern: str) -> Groups:
    """The same groups, restricted to some of their leaves.

    Scores of the result fit the full groups: a channel can be scored by its BatchNorm
    scale alone and then removed from every leaf it lies in.

    Args:
        groups: The groups, such as those of `coupled`.
        pattern: Regular expression, searched in the paths of leaves.

    Returns:
        Groups with the same names and shapes.

    Raises:
        ValueError: A class has no leaf that matches.

    Example:
        >>> norms(only(groups, "bn1/scale"), params)  # |gamma| of each channel

    Source: scores by BatchNorm scales: Liu et al. 2017 (network slimming).
    """
    expect_groups(groups)
    expect_pattern("only: pattern", pattern)
    classes, empty = [], []
    for c in groups.classes:
        members = tuple(m for m in c.members if re.search(pattern, m.path))
        classes.append(dataclasses.replace(c, members=members))
        if not members:
            empty.append(f"{c.name} has {', '.join(m.path for m in c.members)}")
    if empty:
        raise ValueError(f"no leaf matches {pattern!r}: " + "; ".join(empty))
    return Groups(tuple(classes))


def taylor(
    groups: Groups,
    params: PyTree,
    loss: Loss,
    *,
    order: Literal[1, 2] = 1,
    probes: int | None = None,
    key: Array | None = None,
    batch_size: int = 8,
) -> dict[str, Array]:
    """Squared change of the loss on removal, as predicted by a Taylor expansion.

    order 1: `s_g = (dL/df_g)^2 = (sum_{i in g} w_i dL/dw_i)^2`
    order 2: `s_g = (-dL/df_g + d2L/df_g^2 / 2)^2`, with
    `d2L/df_g^2 = w_g^T H w_g` of the group's own weights

    Args:
        groups: The groups.
        params: Parameters.
        loss: Parameters -> loss on some data. Average the scores of several batches.
        order: Order of the expansion.
        probes: For order 2. None computes exact curvatures, one Hessian-vector product
            per group; a number takes Hutchinson's estimate from that many vectors of
            random signs, whose error comes from interactions between groups.
        key: Random key; needed with `probes`.
        batch_size: Hessian-vector products computed at once.

    Returns:
        Class name -> scores.

    Source: Molchanov et al. 2019 (group importance); diagonal of the Hessian by
    Bekas et al. 2007.
    """
    if order not in (1, 2):
        raise ValueError(f"taylor: order must be 1 or 2, got {order!r}")
    if probes is not None:
        expect_number("taylor: probes", probes, 1, whole=True)
    expect_groups(groups)
    by_factor = functools.partial(_loss_of_factors, groups, params, loss)
    ones = _ones(groups)
    slopes = jax.grad(by_factor)(ones)
    if order == 1:
        return in_order(groups.classes, jax.tree.map(jnp.square, slopes))
    flat, unravel = jax.flatten_util.ravel_pytree(ones)

    def product(direction: Array) -> Array:
        gradient = jax.grad(by_factor)
        _, out = jax.jvp(gradient, (ones,), (unravel(direction),))
        return jax.flatten_util.ravel_pytree(out)[0]

    if probes is None:
        own = lambda i: product(jnp.zeros_like(flat).at[i].set(1))[i]
        bends = jax.lax.map(own, jnp.arange(flat.size), batch_size=batch_size)
    else:
        if key is None:
            raise ValueError("taylor: probes need a key")
        signs = jax.random.rademacher(key, (probes, flat.size), flat.dtype)
        sample = lambda z: z * product(z)
        bends = jax.lax.map(sample, signs, batch_size=batch_size).mean(axis=0)
    change = lambda slope, bend: jnp.square(bend / 2 - slope)
    scores = jax.tree.map(change, slopes, unravel(bends))
    return in_order(groups.classes, scores)


def fisher(
    groups: Groups,
    params: PyTree,
    loss: Callable[[Any, Any], Float[Array, ""]],
    batch: PyTree,
    *,
    batch_size: int = 8,
) -> dict[str, Array]:
    """`s_g = mean_n (dL_n/df_g)^2` over examples: the empirical Fisher information.

    Args:
        groups: The groups.
        params: Parameters.
        loss: (parameters, batch) -> mean loss of the batch. Called on batches of one
            example, so it must not depend on the rest of the batch (batch statistics).
        batch: Arrays with the examples along their first axis.
        batch_size: Examples at once; memory holds that many gradients.

    Returns:
        Class name -> scores.

    Source: Theis et al. 2018 (Fisher pruning).
    """
    expect_groups(groups)
    ones = _ones(groups)

    def squares(example: PyTree) -> dict[str, Array]:
        single = jax.tree.map(lambda x: x[None], example)
        alone = lambda tree: loss(tree, single)
        slopes = jax.grad(functools.partial(_loss_of_factors, groups, params, alone))
        return jax.tree.map(jnp.square, slopes(ones))

    every = jax.lax.map(squares, batch, batch_size=batch_size)
    return in_order(groups.classes, jax.tree.map(lambda s: s.mean(axis=0), every))


def lamp(scores: Scores) -> dict[str, Array]:
    """`s_g <- s_g^2 / sum_{h in class, s_h >= s_g} s_h^2`: comparable across layers.

    The best group of every class scores 1, so that a global choice never empties one
    layer before the others.

    Args:
        scores: Class name -> magnitudes, such as `norms(groups, params)`.

    Returns:
        Class name -> scores from 0 to 1.

    Source: Lee et al. 2021 (LAMP), on groups.
    """

    def relative(score: Array | np.ndarray) -> Array:
        flat = jnp.ravel(score)
        largest = jnp.max(flat, initial=0)
        squares = jnp.square(flat / jnp.where(largest > 0, largest, 1))
        order = jnp.argsort(-squares, stable=True)
        above = jnp.zeros_like(squares).at[order].set(jnp.cumsum(squares[order]))
        ratio = squares / jnp.where(above > 0, above, 1)
        return ratio.reshape(score.shape)

    return {name: relative(score) for name, score in scores.items()}


def geometric_median(groups: Groups, params: PyTree) -> dict[str, Array]:
    """`s_g = sum_{h in class} |w_g - w_h|_2`: low for groups that others can replace.

    Args:
        groups: The groups; those of a class must have the same number of slices in
            each leaf. Time grows with the square of their number.
        params: Parameters.

    Returns:
        Class name -> scores.

    Raises:
        ValueError: Groups of a class differ in size.

    Source: He et al. 2019 (FPGM).
    """
    leaves, _ = flatten(params)

    def distances(c: GroupClass) -> Array:
        rows = jnp.concatenate([_rows(c, m, leaves) for m in c.members], axis=1)
        far = lambda row: jnp.linalg.norm(rows - row[None], axis=1).sum()
        return jax.lax.map(far, rows).reshape(c.shape)

    return {c.name: distances(c) for c in present(groups, leaves)}


def random(groups: Groups, key: Array) -> dict[str, Array]:
    """`s_g` uniform in [0, 1): the control that every other score must beat.

    Args:
        groups: The groups.
        key: A random key.

    Returns:
        Class name -> scores.
    """
    keys = jax.random.split(key, len(groups.classes))
    return {
        c.name: jax.random.uniform(k, c.shape)
        for c, k in zip(groups.classes, keys, strict=True)
    }


def _ones(groups: Groups) -> dict[str, Array]:
    return {c.name: jnp.ones(c.shape) for c in groups.classes}


def _loss_of_factors(
    groups: Groups, params: PyTree, loss: Loss, factors: Mapping[str, Array]
) -> Array:
    return loss(scale(groups, params, factors))


def _wide(x: Array) -> Array:
    """In at least single precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _rows(c: GroupClass, member: Member, leaves: Leaves) -> Array:
    """One row per group: its entries in one leaf."""
    entries = _wide(jnp.asarray(leaves[member.path])).reshape(member.view)
    slices = jnp.moveaxis(entries, member.kept, range(len(member.kept)))
    slices = slices.reshape(-1, member.slice_size)
    if member.ids is None:
        return slices
    ids = np.asarray(member.ids)
    sizes = np.bincount(ids[ids >= 0], minlength=c.count)
    if np.ptp(sizes) > 0:
        raise ValueError(
            f"geometric_median: {c.name}: groups have {sizes.min()} to {sizes.max()}"
            f" slices of {member.path}, expected equally many"
        )
    order = np.argsort(ids, kind="stable")[np.sum(ids < 0) :]
    return slices[order].reshape(c.count, -1)
