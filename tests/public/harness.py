"""Public models under compaction, with no word about any of them.

A model comes as a function of a tree of arrays and an input. Nothing in its parameters
is left trivially zero; half of the output slices of every kernel then are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import sslx

Layout = Literal["...IO", "OI..."]
Variant = Literal["kernels", "channels"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A function, its variables and an input; `layout` tells where filters lie."""

    fn: Callable[..., Any]
    variables: Any
    args: tuple[Any, ...]
    layout: Layout = "...IO"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a subject.

    Attributes:
      small: the compact network.
      error: largest difference to the zeroed network, relative to its largest output.
      change: what zeroing changed of the output, measured the same way.
      size: entries of all variables, before and after.
      unexplained: per kernel, zero filters that are still computed, and that neither
        `held_back` nor `kept_zeros` accounts for.
    """

    small: sslx.Compact
    error: float
    change: float
    size: tuple[int, int]
    unexplained: dict[str, int]


def examine(subject: Subject, variant: Variant, **options: Any) -> Outcome:
    """Perturb, zero, compact, and compare."""
    dense = perturbed(subject.variables)
    zeroed = with_zeros(dense, subject.layout, variant)
    small = sslx.compact(subject.fn, **options)(zeroed, *subject.args)
    full = jax.jit(subject.fn)
    reduced = jax.jit(small.apply)
    want = full(zeroed, *subject.args)
    return Outcome(
        small,
        distance(reduced(small.variables, *subject.args), want),
        distance(full(dense, *subject.args), want),
        (_entries(zeroed), _entries(small.variables)),
        _unexplained(small, zeroed, subject),
    )


def units_of(subject: Subject, alignment: str = "align") -> tuple[Outcome, int]:
    """What becomes of a subject half of whose units are zero, and their classes.

    `Outcome.unexplained` counts, per axis of a leaf, slices that stay though their unit
    is zero and nothing says so, and, negative, slices that go though it is not.
    """
    dense, args = perturbed(subject.variables), subject.args
    units = sslx.units(subject.fn)(dense, *args)
    factors = {c.name: np.arange(c.count) % 2 for c in units.classes}
    zeroed = sslx.scale(units, dense, factors)
    small = sslx.compact(subject.fn, alignment=alignment)(zeroed, *args)
    before = sslx.compact(subject.fn, alignment=alignment)(dense, *args)
    full = jax.jit(subject.fn)
    reduced = jax.jit(small.apply)
    want = full(zeroed, *args)
    outcome = Outcome(
        small,
        distance(reduced(small.variables, *args), want),
        distance(full(dense, *args), want),
        (_entries(zeroed), _entries(small.variables)),
        _other_than(units, small, before),
    )
    return outcome, len(units.classes)


def _other_than(
    units: sslx.Groups, small: sslx.Compact, before: sslx.Compact
) -> dict[str, int]:
    """Slices kept beyond those of units that are left, and slices missing."""
    dead: dict[tuple[str, int], np.ndarray] = {}
    for c in units.classes:
        for m in c.members:
            ids = np.arange(c.count) if m.ids is None else np.asarray(m.ids)
            key = (m.path, m.kept[0])
            dead[key] = dead.get(key, False) | ((ids >= 0) & (ids % 2 == 0))
    reported = {(k.path, k.axis): k.count for k in small.kept_zeros}
    found = {}
    for path, leaf in small.plan.leaves.items():
        for axis in range(len(leaf.shape)):
            want = set(before.plan.leaves[path].indices(axis).tolist())
            want -= set(np.flatnonzero(dead.get((path, axis), False)).tolist())
            have = set(leaf.indices(axis).tolist())
            more = len(have - want) - reported.get((path, axis), 0)
            if more or want - have:
                found[f"{path}[{axis}]"] = more - len(want - have)
    return found


def perturbed(variables: Any, seed: int = 0) -> Any:
    """Every parameter moved a little; what is never negative (variances) stays so."""
    rng = np.random.default_rng(seed)

    def move(leaf: Any) -> Any:
        if not _is_real(leaf):
            return leaf
        array = np.asarray(leaf)
        if array.size and array.min() > -1e-6:
            new = np.abs(array) * rng.uniform(0.7, 1.3, array.shape)
            new += rng.uniform(0.02, 0.1, array.shape)
        else:
            size = 0.1 * (array.std() or 1.0)
            new = array + size * rng.normal(size=array.shape)
        return jnp.asarray(new.astype(array.dtype))

    return jax.tree.map(move, variables)


def with_zeros(variables: Any, layout: Layout, variant: Variant) -> Any:
    """Half of the output slices at zero.

    `kernels`: of every kernel, each its own half; biases and norms still speak.
    `channels`: the same half of all axes of one size, in kernels, biases and norms.
    """
    rng = np.random.default_rng(1)

    def halves(leaf: Any) -> Any:
        if not _is_real(leaf) or leaf.ndim == 0:
            return leaf
        if variant == "kernels" and not _is_kernel(leaf):
            return leaf
        axis = _filter_axis(leaf, layout)
        n = leaf.shape[axis]
        order = rng if variant == "kernels" else np.random.default_rng(n)
        array = np.array(leaf)
        np.moveaxis(array, axis, 0)[order.permutation(n)[: n // 2]] = 0
        return jnp.asarray(array)

    return jax.tree.map(halves, variables)


def distance(got: Any, want: Any) -> float:
    """Largest difference of two trees, relative to the largest entry."""
    errors = [0.0]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        if jnp.issubdtype(b.dtype, jnp.floating) and b.size:
            wide = np.promote_types(b.dtype, np.float32)
            a, b = np.asarray(a, wide), np.asarray(b, wide)
            assert np.isfinite(b).all(), "the original is not finite"
            errors.append(float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)))
    return max(errors)


def _filter_axis(leaf: Any, layout: Layout) -> int:
    return 0 if layout == "OI..." else leaf.ndim - 1


def _is_real(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_kernel(leaf: Any) -> bool:
    return _is_real(leaf) and sum(n > 1 for n in leaf.shape) > 1


def _entries(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _unexplained(small: sslx.Compact, zeroed: Any, subject: Subject) -> dict[str, int]:
    cost = sslx.measure.cost(subject.fn, zeroed, *subject.args)
    kernels = {layer.name for layer in cost.layers}
    held = {path for entry in small.held_back for path in entry.paths}
    reported = {(k.path, k.axis): k.count for k in small.kept_zeros}
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(zeroed):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in kernels or not _is_kernel(leaf) or name in held:
            continue
        axis = _filter_axis(leaf, subject.layout)
        plan = small.plan.leaves[name]
        alive = np.moveaxis(np.asarray(leaf), axis, 0)[plan.indices(axis)]
        dead = int((~alive.any(tuple(range(1, alive.ndim)))).sum())
        more = dead - reported.get((name, axis), 0)
        if more > 0 and 0 not in plan.small_shape:
            found[name] = more
    return found
