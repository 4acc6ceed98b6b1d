"""The value of a penalty and its proximal operator on a parameter pytree."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from sslx._arguments import expect, expect_number, expect_word
from sslx._groups.arithmetic import covered
from sslx._groups.classes import GroupClass, Groups, Member
from sslx._groups.groups import (
    Leaves,
    class_norms,
    expect_groups,
    flatten,
    present,
    scale_classes,
    select_classes,
    unflatten,
)
from sslx._groups.penalties import Penalty, Scalar

__all__ = ["Overlap", "penalty_value", "prox"]

Overlap: TypeAlias = Literal["sequential", "dykstra"]
Classes: TypeAlias = Sequence[GroupClass]


def penalty_value(penalty: Penalty, groups: Groups, params: PyTree) -> Float[Array, ""]:
    """The penalty of the parameters.

    `P(w) = sum_g weight_g * value(norm_g)`, plus the l1 term of `SparseGroupLasso`.
    Overlapping groups add up. Differentiable; the gradient is a subgradient, 0 on
    groups that are zero.

    Args:
        penalty: The penalty; `weight_g` is the weight of the group's class, times
            `sqrt(size_g)` with `scale_by_size`.
        groups: The groups.
        params: The parameters.

    Returns:
        A scalar, in the unit of the loss.

    Raises:
        ValueError: A leaf is missing or has another shape.
    """
    expect_penalty(penalty)
    expect_groups(groups)
    leaves, _ = flatten(params)
    return value_of(penalty, present(groups, leaves), leaves)


def prox(
    penalty: Penalty,
    groups: Groups,
    params: PyTree,
    step: Scalar,
    *,
    overlap: Overlap = "sequential",
) -> PyTree:
    """The proximal operator of a penalty.

    `prox(w) = argmin_z |z - w|^2 / 2 + step * P(z)`

    Disjoint groups have it in closed form. So do nested groups (any two disjoint, or
    one inside the other, such as layer over filter over weight) for `GroupLasso` and
    `SparseGroupLasso`: the inner groups' operator first. For groups that overlap
    without nesting, such as filters and channels of one kernel:

    - `"sequential"`: one class after the other, in the order of the rules, inner
      classes first. Cheap, with exact zeros, but not the exact operator: it shrinks
      slightly more or less.
    - `"dykstra"`: the exact operator by Dykstra's alternating algorithm, for convex
      penalties: passes over the classes until nothing changes but rounding, at most
      1,000. The short steps of training take two to five passes, steps as long as the
      norms take hundreds. Groups that the solution removes are exactly zero.

    Args:
        penalty: The penalty.
        groups: The groups.
        params: The parameters.
        step: Step >= 0, in the unit of a learning rate.
        overlap: The operator for groups that overlap without nesting.

    Returns:
        A pytree like `params`; removed groups are exactly zero.

    Raises:
        ValueError: `"dykstra"` with a penalty that is not convex; a leaf is missing or
            has another shape.

    Source: nested groups Jenatton et al. 2011, theorem 1; Dykstra's algorithm for
    proximal operators Bauschke and Combettes 2008, and as dual coordinate descent for
    more than two terms Tseng 1993.
    """
    expect_penalty(penalty)
    expect_groups(groups)
    expect_number("step", step)
    expect_word("overlap", overlap, ("sequential", "dykstra"))
    leaves, treedef = flatten(params)
    classes = present(groups, leaves)
    leaves.update(prox_leaves(penalty, classes, leaves, step, overlap))
    return unflatten(treedef, leaves)


def value_of(penalty: Penalty, classes: Classes, leaves: Leaves) -> Float[Array, ""]:
    """`penalty_value` from leaves by path."""
    weights = {c.name: _weight(penalty, c) for c in classes}
    total = jnp.zeros(())
    for name, norm in class_norms(classes, leaves).items():
        total = total + jnp.sum(weights[name] * penalty.value(norm))
    if penalty.entry_strength is not None:
        for path, members in _members(classes).items():
            sizes = jnp.where(covered(members), jnp.abs(leaves[path]), 0)
            total = total + penalty.entry_strength * jnp.sum(sizes)
    return total


def expect_penalty(penalty: Any) -> None:
    """Raise unless a value is a penalty (a name or a class is not)."""
    fix = "give one with its strength, such as GroupLasso(1e-4)"
    expect("penalty", penalty, Penalty, fix)


def prox_leaves(
    penalty: Penalty,
    classes: Classes,
    leaves: Leaves,
    step: Scalar,
    overlap: Overlap,
) -> dict[str, Array]:
    """The leaves that `prox` changes."""
    if overlap == "dykstra" and not penalty.convex:
        kind = type(penalty).__name__
        raise ValueError(
            f"{kind} is not convex, Dykstra's algorithm would not find its proximal"
            " operator; use overlap='sequential'"
        )
    new = {path: jnp.asarray(leaves[path]) for path in _members(classes)}
    if penalty.entry_strength is not None:
        cut = step * penalty.entry_strength
        for path, members in _members(classes).items():
            new[path] = jnp.where(covered(members), _soft(new[path], cut), new[path])
    for component in _components(classes):
        ordered, nested = _inner_first(component)
        exact = len(component) == 1 or (nested and penalty.nests)
        if overlap == "sequential" or exact:
            new.update(_sequential(penalty, ordered, new, step))
        else:
            new.update(_dykstra(penalty, ordered, new, step))
    return new


def _sequential(
    penalty: Penalty, classes: Classes, leaves: Leaves, step: Scalar
) -> dict[str, Array]:
    new = {path: leaves[path] for path in _members(classes)}
    for layer in sets_apart(classes):
        new.update(_shrunk(penalty, layer, new, step)[0])
    return new


def _shrunk(
    penalty: Penalty, classes: Classes, leaves: Leaves, step: Scalar
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Leaves after the operator of classes that do not cross, and the groups left.

    `+0.0`, never `-0.0`, where the factor is 0.
    """
    norms = class_norms(classes, leaves)
    factors = {
        c.name: penalty.factor(norms[c.name], step * _weight(penalty, c))
        for c in classes
    }
    marks = {name: factor != 0 for name, factor in factors.items()}
    scaled = scale_classes(classes, leaves, factors)
    return select_classes(classes, scaled, marks), marks


class _Sweeps(NamedTuple):
    """State of Dykstra's algorithm; `x + sum(duals)` is constant."""

    done: Array
    x: dict[str, Array]
    duals: list[dict[str, Array]]
    alive: dict[str, Array]
    change: Array


_MAX_SWEEPS = 1000


def _dykstra(
    penalty: Penalty, classes: Classes, leaves: Leaves, step: Scalar
) -> dict[str, Array]:
    """The exact operator; see `prox`.

    One sweep is, for every class k: `v = x + p_k; x = prox_k(v); p_k = v - x`. A sweep
    that changes no `p_k` is a fixed point, where `x` is the solution.
    """
    start = {p: _wide(leaves[p]) for p in _members(classes)}
    largest = jnp.max(jnp.stack([_largest(x) for x in start.values()]))
    tolerance = 8 * jnp.finfo(largest.dtype).eps * largest
    layers = sets_apart(classes)

    def sweep(state: _Sweeps) -> _Sweeps:
        x, duals, alive, changes = dict(state.x), [], {}, []
        for layer, dual in zip(layers, state.duals, strict=True):
            moved = {path: x[path] + p for path, p in dual.items()}
            scaled, marks = _shrunk(penalty, layer, moved, step)
            changes += [_largest(scaled[path] - x[path]) for path in scaled]
            duals.append({path: moved[path] - scaled[path] for path in scaled})
            alive |= marks
            x.update(scaled)
        return _Sweeps(state.done + 1, x, duals, alive, jnp.max(jnp.stack(changes)))

    zeros = {path: jnp.zeros_like(x) for path, x in start.items()}
    duals = [{m.path: zeros[m.path] for c in k for m in c.members} for k in layers]
    marks = {c.name: jnp.ones(c.shape, bool) for c in classes}
    first = _Sweeps(jnp.zeros((), jnp.int32), start, duals, marks, largest)
    last = jax.lax.while_loop(
        lambda s: (s.done < _MAX_SWEEPS) & ((s.change > tolerance) | (s.done == 0)),
        sweep,
        first,
    )
    new = select_classes(classes, last.x, last.alive)
    return {p: x.astype(jnp.asarray(leaves[p]).dtype) for p, x in new.items()}


def _largest(x: Array) -> Array:
    """The largest absolute value among the finite entries."""
    size = jnp.abs(x)
    return jnp.max(jnp.where(jnp.isfinite(size), size, 0), initial=0)


def sets_apart(classes: Classes) -> list[list[GroupClass]]:
    """Classes in sets that share no entry, in order; inner ones before outer ones.

    Every class joins the first set it does not cross, behind those of the classes that
    lie inside it.
    """
    layers: list[list[GroupClass]] = []
    taken: list[dict[str, list[tuple[Member, np.ndarray]]]] = []
    for c in classes:
        inner = [
            k for k, layer in enumerate(layers) if any(_inside(d, c) for d in layer)
        ]
        first = max(inner, default=-1) + 1
        place = next(
            (k for k in range(first, len(layers)) if not _meets(c, taken[k])),
            len(layers),
        )
        if place == len(layers):
            layers.append([])
            taken.append({})
        layers[place].append(c)
        for member in c.members:
            taken[place].setdefault(member.path, []).append((member, _used(member)))
    return layers


def _used(member: Member) -> np.ndarray:
    """Which slices of a member are in a group."""
    if member.ids is None:
        return np.ones(math.prod(member.index_shape), bool)
    return np.asarray(member.ids) >= 0


def _meets(
    group_class: GroupClass, taken: Mapping[str, list[tuple[Member, np.ndarray]]]
) -> bool:
    """Whether a class may share an entry with members that are there."""
    for member in group_class.members:
        used = _used(member)
        for other, there in taken.get(member.path, ()):
            alike = (member.view, member.kept) == (other.view, other.kept)
            if (used & there).any() if alike else used.any() and there.any():
                return True
    return False


def _weight(penalty: Penalty, group_class: GroupClass) -> float | Array:
    """Weights of the groups of a class; a number where they are all the same."""
    if not penalty.scale_by_size:
        return group_class.weight
    sizes = group_class.sizes
    if sizes.size and sizes.min() == sizes.max():
        return group_class.weight * math.sqrt(sizes.min())
    return jnp.asarray(group_class.weight * np.sqrt(sizes))


def _members(classes: Classes) -> dict[str, list[Member]]:
    """The members in each leaf, by path."""
    members: dict[str, list[Member]] = {}
    for c in classes:
        for member in c.members:
            members.setdefault(member.path, []).append(member)
    return members


def _soft(leaf: Array, cut: Scalar) -> Array:
    """`sign(x) * max(|x| - cut, 0)`."""
    cut = jnp.asarray(cut, jnp.finfo(leaf.dtype).dtype)
    return jnp.where(jnp.abs(leaf) <= cut, 0, leaf - cut * jnp.sign(leaf))


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _components(classes: Classes) -> list[list[GroupClass]]:
    """Classes that share leaves, directly or through others."""
    components: list[tuple[set[str], list[GroupClass]]] = []
    for c in classes:
        paths, joined = {m.path for m in c.members}, [c]
        touching = [part for part in components if part[0] & paths]
        for part in reversed(touching):
            components.remove(part)
            paths |= part[0]
            joined = part[1] + joined
        components.append((paths, joined))
    return [component for _, component in components]


def _inner_first(component: Classes) -> tuple[list[GroupClass], bool]:
    """The classes with inner groups first, and whether all groups are nested."""
    remaining, ordered, nested = list(component), [], True
    while remaining:
        inner = next(
            c
            for c in remaining
            if not any(_inside(d, c) and not _inside(c, d) for d in remaining)
        )
        remaining.remove(inner)
        ordered.append(inner)
    for i, c in enumerate(ordered):
        for d in ordered[i + 1 :]:
            shared = {m.path for m in c.members} & {m.path for m in d.members}
            nested &= not shared or _inside(c, d) or _inside(d, c)
    return ordered, nested


def _inside(inner: GroupClass, outer: GroupClass) -> bool:
    """Whether every group of one class lies in or apart from each of another.

    Sufficient: the inner class has one leaf, cut into equal runs along each axis that
    divide the runs of the outer class.
    """
    if len(inner.members) != 1 or inner.members[0].ids is not None:
        return False
    member = inner.members[0]
    others = [m for m in outer.members if m.path == member.path]
    runs = [_runs(m) for m in (member, *others)]
    return bool(others) and all(
        runs[0] is not None
        and other is not None
        and all(b % a == 0 for a, b in zip(runs[0], other, strict=True))
        for other in runs[1:]
    )


def _runs(member: Member) -> tuple[int, ...] | None:
    """Length of the runs of equal group index along each axis; None if not runs."""
    pieces = [(n, a in member.kept) for a, n in enumerate(member.view) if n > 1]
    runs = []
    for size in member.shape:
        length, run = 1, 1
        while length < size and pieces:
            n, kept = pieces.pop(0)
            if kept and run > 1:
                return None
            run *= 1 if kept else n
            length *= n
        if length != size:
            return None
        runs.append(run)
    return tuple(runs)
