"""Which groups to keep: from scores to masks, under a density or a budget."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from sslx._arguments import expect, expect_number, expect_pattern, expect_word
from sslx._groups.classes import GroupClass, Groups
from sslx._groups.groups import expect_groups, flatten, present
from sslx._groups.prox import sets_apart
from sslx.measure import Cost
from sslx.select._scores import Scores

__all__ = ["Costs", "Density", "Masks", "bytes_of", "keep", "macs_of", "n_of_m"]

Masks: TypeAlias = Mapping[str, Array | np.ndarray]
Costs: TypeAlias = Mapping[str, np.ndarray]
Density: TypeAlias = ArrayLike | Mapping[str, ArrayLike]

_SLACK = 1 + 1e-6


def keep(
    groups: Groups,
    scores: Scores,
    density: Density | None = None,
    *,
    budget: float | int | None = None,
    costs: Costs | None = None,
    scope: Literal["class", "global"] = "class",
    minimum: int = 1,
    round_to: int = 1,
    ignore: str | Sequence[str] = (),
    within: Masks | None = None,
) -> dict[str, Array]:
    """Keep the best groups that fit a density or a budget, from the highest score down.

    class:  the largest k with `sum of the k best groups' costs <= density * all costs`
    global: the same over the groups of all classes together

    Masks for falling densities are nested. Of equal scores the first is kept; NaN
    counts as infinite, so that a group with a NaN stays and is noticed. Can be traced
    by `jax.jit`, also with a traced density.

    Args:
        groups: The groups.
        scores: Class name -> score per group; classes without scores are left alone.
        density: Share of the costs to keep, from 0 to 1; with scope `class` also by
            name or kind of class (the name takes precedence; classes left out are kept
            whole).
        budget: Instead of `density`: the total cost to keep, in the unit of `costs`,
            over all classes with scores, ignored ones included.
        costs: Class name -> cost per group; None counts entries. See `macs_of` and
            `bytes_of`. Costs add up, which is exact for disjoint groups; for the cost
            of a compacted network see `within_budget`. A budget needs disjoint groups.
        scope: Whether the density applies to each class or to all of them together.
        minimum: Groups of each class that stay, whatever the density or budget.
        round_to: Kept groups per class are a multiple of this, rounded down (`minimum`
            up), unless all are kept.
        ignore: One or several regular expressions; a class is kept whole if one
            matches its name or the path of one of its leaves. A density leaves its
            costs out.
        within: Masks of the groups that may be kept, such as those of an earlier call.

    Returns:
        Class name -> whether the group is kept; `sslx.scale(groups, params, masks)`
        sets the others to zero.

    Raises:
        ValueError: Not exactly one of density and budget; an unknown class; a wrong
            shape; a budget that the ignored classes exceed, or with overlapping groups.

    Example:
        >>> masks = keep(groups, sum_abs(groups, params), 0.3)
        >>> macs = macs_of(groups, measure.cost(apply, variables, x))
        >>> masks = keep(groups, scores, budget=20e6, costs=macs, scope="global")
    """
    expect_groups(groups)
    if (density is None) == (budget is None):
        raise ValueError("keep: give exactly one of density and budget")
    _check_density("keep", density)
    if budget is not None:
        expect_number("keep: budget", budget)
    expect_word("keep: scope", scope, ("class", "global"))
    expect_number("keep: minimum", minimum, whole=True)
    expect_number("keep: round_to", round_to, 1, whole=True)
    _check(groups, scores, "scores")
    _check_masks(groups, scores, within)
    costs = groups.sizes if costs is None else costs
    _check(groups, costs, "costs")
    _check_there(scores, costs, "costs")
    for name, values in costs.items():
        expect_number(f"keep: costs of {name}", values)
    classes = [groups[name] for name in scores]
    _check_ignore(groups, ignore)
    whole = {c.name for c in classes if _matches(c, ignore)}
    free = [c for c in classes if c.name not in whole]
    total = {c.name: float(np.sum(costs[c.name])) for c in classes}
    if density is None:
        _check_apart(classes)
        density = _share(budget, total, whole)
    even = {c.name for c in free if scope == "class" and np.ptp(costs[c.name]) == 0}
    ranks = {c.name: _rank(c, scores, within) for c in free if c.name not in even}
    least = {c.name: min(c.count, -(-minimum // round_to) * round_to) for c in free}
    if scope == "class":
        shares = _by_class(groups, density)
        rooms = {c.name: shares.get(c.name, 1.0) * total[c.name] for c in free}
        fits = {
            c.name: _fitting_evenly(costs[c.name], rooms[c.name])
            if c.name in even
            else _fitting(ranks[c.name], costs[c.name], rooms[c.name])
            for c in free
        }
    elif isinstance(density, Mapping):
        raise ValueError("keep: densities by class go with scope='class'")
    else:
        room = jnp.asarray(density) * sum(total[c.name] for c in free)
        fits = _fitting_together(free, scores, within, ranks, least, costs, room)
    masks: dict[str, Array] = {}
    for c in classes:
        mask = jnp.ones(c.shape, bool)
        if c.name not in whole:
            down = jnp.maximum(fits[c.name] // round_to * round_to, least[c.name])
            kept = jnp.where(fits[c.name] >= c.count, c.count, down)
            if c.name in even:
                best = _best(_keys(c, scores, within), kept)
            else:
                best = ranks[c.name] < kept
            mask = best.reshape(c.shape)
        masks[c.name] = mask & within[c.name] if within else mask
    return masks


def n_of_m(
    groups: Groups,
    scores: Scores,
    density: Density,
    *,
    m: int = 4,
    axis: int = -2,
    within: Masks | None = None,
) -> dict[str, Array]:
    """Keep the `n = density * m` best of every m neighbours: N:M sparsity.

    Args:
        groups: The groups; hardware expects `WEIGHT`.
        scores: Class name -> score per group.
        density: n / m, for all classes, or by name or kind of class; n is rounded
            down, but is at least 1.
        m: Number of neighbours that compete.
        axis: Axis of the class's shape along which groups are neighbours; -2 is a
            kernel's input axis.
        within: As in `keep`.

    Returns:
        Class name -> whether the group is kept.

    Raises:
        ValueError: m does not divide the axis.
    """
    expect_groups(groups)
    _check_density("n_of_m", density)
    expect_number("n_of_m: m", m, 1, whole=True)
    _check(groups, scores, "scores")
    _check_masks(groups, scores, within)
    shares = _by_class(groups, density)
    masks: dict[str, Array] = {}
    for name, score in scores.items():
        shape = groups[name].shape
        if not -len(shape) <= axis < len(shape) or shape[axis] % m:
            raise ValueError(
                f"n_of_m: {name}: axis {axis} of {shape} must be a multiple of {m}"
            )
        if within:
            score = jnp.where(within[name], _ordered(score), -jnp.inf)
        runs = jnp.moveaxis(_ordered(score), axis, -1)
        order = jnp.argsort(-runs.reshape(-1, m), axis=1, stable=True)
        rank = jnp.argsort(order, axis=1)
        n = jnp.floor(jnp.asarray(shares.get(name, 1.0)) * m * _SLACK)
        mask = (rank < jnp.maximum(n, 1)).reshape(runs.shape)
        mask = jnp.moveaxis(mask, -1, axis)
        masks[name] = mask & within[name] if within else mask
    return masks


def macs_of(groups: Groups, cost: Cost) -> dict[str, np.ndarray]:
    """Multiply-accumulates of each group: its entries times how often each is used.

    The products of a kernel are divided evenly over its entries, so that disjoint
    groups that cover all entries add up to what `measure.cost` counts, also for leaves
    that are used several times, stacked for a `scan`, split, transposed or normalised.
    Where a kernel is computed from several leaves (a direction and its length), its
    products belong to the largest of them that is in the groups, the first of equals.

    Args:
        groups: The groups.
        cost: Cost of the dense function. Layers are matched by the paths of their
            kernels, with or without a leading `params/`.

    Returns:
        Class name -> multiply-accumulates per group; leaves that are not kernels, such
        as biases, count 0.
    """
    expect_groups(groups)
    expect("cost", cost, Cost, "as measure.cost(fn, variables, x) gives it")
    sizes = {
        m.path.removeprefix("params/"): math.prod(m.shape)
        for c in groups.classes
        for m in c.members
    }
    uses = dict.fromkeys(sizes, 0.0)
    for layer in cost.layers:
        names = [layer.name, *layer.name.split("+")]
        paths = [name.removeprefix("params/") for name in names]
        known = [path for path in paths if path in sizes]
        if known and layer.weights:
            owner = max(known, key=sizes.__getitem__)
            uses[owner] += layer.macs / max(sizes[owner], 1)
    return _weighted(groups, lambda path: uses[path.removeprefix("params/")])


def bytes_of(groups: Groups, params: PyTree) -> dict[str, np.ndarray]:
    """Bytes of each group: its entries times the item size of their dtype.

    Args:
        groups: The groups.
        params: Pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        Class name -> bytes per group.
    """
    expect_groups(groups)
    leaves, _ = flatten(params)
    present(groups, leaves)
    return _weighted(groups, lambda path: float(leaves[path].dtype.itemsize))


def _weighted(groups: Groups, weight: Callable[[str], float]) -> dict[str, np.ndarray]:
    """Entries of each group, those of every leaf times its weight."""
    totals = {}
    for c in groups.classes:
        parts = [
            weight(m.path) * GroupClass(c.name, c.shape, (m,)).sizes for m in c.members
        ]
        totals[c.name] = np.sum(parts, axis=0)
    return totals


def _check_density(what: str, density: Any) -> None:
    each = density if isinstance(density, Mapping) else {"": density}
    for name, share in each.items():
        if share is not None:
            expect_number(f"{what}: density{name and f' of {name}'}", share, high=1)


def _check_masks(groups: Groups, scores: Scores, within: Masks | None) -> None:
    if not within:
        return
    _check(groups, within, "within")
    _check_there(scores, within, "within")
    wrong = [name for name, mask in within.items() if jnp.asarray(mask).dtype != bool]
    if wrong:
        raise TypeError(f"within: masks must be boolean; those of {wrong} are not")


def _check_there(scores: Scores, values: Mapping[str, Any], what: str) -> None:
    missing = [name for name in scores if name not in values]
    if missing:
        raise ValueError(
            f"{what}: nothing for the classes {missing}, which have scores"
        )


def _check_ignore(groups: Groups, ignore: str | Sequence[str]) -> None:
    for pattern in (ignore,) if isinstance(ignore, str) else ignore:
        expect_pattern("keep: ignore", pattern)
        if not any(_matches(c, pattern) for c in groups.classes):
            raise ValueError(
                f"keep: ignore {pattern!r} matches nothing; there are"
                f" {list(groups.names)}"
            )


def _check(groups: Groups, values: Any, what: str) -> None:
    expect(what, values, Mapping, "class name -> one number per group")
    errors = []
    for name, value in values.items():
        if name not in groups.names:
            errors.append(f"unknown class {name}; there are {list(groups.names)}")
        elif np.shape(value) != groups[name].shape:
            expected, got = groups[name].shape, np.shape(value)
            errors.append(f"{name} must have shape {expected}, got {got}")
    if errors:
        raise ValueError(f"{what}: " + "; ".join(errors))


def _matches(c: GroupClass, patterns: str | Sequence[str]) -> bool:
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    names = [c.name, *(m.path for m in c.members)]
    return any(re.search(pattern, name) for pattern in patterns for name in names)


def _by_class(groups: Groups, density: Density) -> dict[str, Array]:
    if isinstance(density, Mapping):
        kinds = {c.kind for c in groups.classes if c.kind}
        unknown = sorted(set(density) - set(groups.names) - kinds)
        if unknown:
            raise ValueError(
                f"densities for unknown classes {unknown}; there are"
                f" {list(groups.names)}, of kinds {sorted(kinds)}"
            )
        shares = {
            c.name: density.get(c.name, density.get(c.kind)) for c in groups.classes
        }
        return {n: jnp.asarray(x) for n, x in shares.items() if x is not None}
    return dict.fromkeys(groups.names, jnp.asarray(density))


def _check_apart(classes: list[GroupClass]) -> None:
    """Raise if groups share entries: their costs would count those twice."""
    first, *rest = sets_apart(classes) or [[]]
    if rest:
        raise ValueError(
            "keep: costs under a budget add up only over groups that share no entry;"
            f" {rest[0][0].name} crosses one of {[c.name for c in first]}. Fix: choose"
            " by density, or within_budget with the cost of the compacted network"
        )


def _share(
    budget: float | int | None, total: Mapping[str, float], whole: set[str]
) -> float:
    fixed = sum(total[name] for name in whole)
    rest = sum(total.values()) - fixed
    if budget is None or budget < fixed:
        raise ValueError(
            f"keep: the ignored classes cost {fixed:g}, the budget is {budget}"
        )
    return min((budget - fixed) / rest, 1.0) if rest else 1.0


def _keys(c: GroupClass, scores: Scores, within: Masks | None) -> Array:
    """Unsigned integers in the order of the scores; 0 for groups outside."""
    score = _ordered(scores[c.name]).reshape(-1)
    width = jnp.finfo(score.dtype).bits
    bits = jax.lax.bitcast_convert_type(jnp.where(score == 0, 0, score), f"uint{width}")
    sign = jnp.asarray(1 << (width - 1), bits.dtype)
    keys = jnp.where(bits < sign, bits | sign, ~bits)
    return jnp.where(jnp.reshape(within[c.name], -1), keys, 0) if within else keys


def _best(keys: Array, count: Array) -> Array:
    """Whether a key is among the `count` largest, of equal ones the first.

    The smallest of them is found bit by bit, which takes a fraction of the time of
    sorting on a CPU.
    """
    width = 8 * keys.dtype.itemsize

    def refine(k: Array, least: Array) -> Array:
        higher = least | (jnp.asarray(1 << (width - 1), keys.dtype) >> k)
        return jnp.where(jnp.sum(keys >= higher) >= count, higher, least)

    zero = jnp.zeros((), keys.dtype)
    places = jnp.arange(width, dtype=keys.dtype)
    least, _ = jax.lax.scan(lambda t, k: (refine(k, t), None), zero, places)
    above, equal = keys > least, keys == least
    return above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))


def _fitting_evenly(cost: np.ndarray, room: ArrayLike) -> Array:
    """How many groups of equal cost cost no more than `room`."""
    each, count = float(np.reshape(cost, -1)[0]), np.size(cost)
    if not each:
        return jnp.asarray(count)
    most = jnp.floor(jnp.asarray(room) * _SLACK / each).astype(int)
    return jnp.clip(most, 0, count)


def _rank(c: GroupClass, scores: Scores, within: Masks | None) -> Array:
    """Place of each group from the best, 0, down; flat, groups outside come last."""
    keys = [-_ordered(scores[c.name]).reshape(-1)]
    if within:
        keys.append(~jnp.asarray(within[c.name]).reshape(-1))
    return _inverse(jnp.lexsort(keys))


def _ordered(score: Array | np.ndarray) -> Array:
    """Scores to sort: NaN counts as infinite."""
    score = jnp.asarray(score)
    if not jnp.issubdtype(score.dtype, jnp.floating):
        return score.astype(float)
    return jnp.where(jnp.isnan(score), jnp.inf, score)


def _inverse(order: Array) -> Array:
    places = jnp.arange(order.size, dtype=order.dtype)
    return jnp.zeros_like(order).at[order].set(places, unique_indices=True)


def _fitting(rank: Array, cost: np.ndarray, room: ArrayLike) -> Array:
    """How many groups, in the order of their ranks, cost no more than `room`."""
    spent = jnp.cumsum(_flat(cost)[_inverse(rank)])
    return jnp.sum(spent <= jnp.asarray(room) * _SLACK)


def _fitting_together(
    classes: list[GroupClass],
    scores: Scores,
    within: Masks | None,
    ranks: Mapping[str, Array],
    least: Mapping[str, int],
    costs: Costs,
    room: Array,
) -> dict[str, Array]:
    """The same for all classes in one order, each class's `least` best first."""
    if not classes:
        return {}
    join = lambda parts: jnp.concatenate([jnp.reshape(x, -1) for x in parts])
    names = [c.name for c in classes]
    first = join(ranks[name] < least[name] for name in names)
    keys = [-join(_ordered(scores[name]) for name in names)]
    if within:
        keys.append(~join(within[name] for name in names))
    order = jnp.lexsort([*keys, ~first])
    spent = jnp.cumsum(_flat(np.concatenate([costs[n].ravel() for n in names]))[order])
    fits = (spent <= room * _SLACK)[_inverse(order)] | first
    ends = np.cumsum([c.count for c in classes])[:-1]
    parts = jnp.split(fits, ends)
    return {name: jnp.sum(part) for name, part in zip(names, parts, strict=True)}


def _flat(cost: np.ndarray) -> Array:
    return jnp.asarray(np.reshape(cost, -1), jax.dtypes.canonicalize_dtype(float))
