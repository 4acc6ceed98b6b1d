"""What a compaction keeps of every parameter axis, as plain data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._calls import like, on_host
from sslx._groups import flatten, unflatten

Axes = tuple[tuple[int, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """The part of one array that stays.

    Attributes:
      shape: its full shape.
      kept: per axis, the kept indices in ascending order; None means all.
      zero: per axis, which of the removed indices hold nothing but zeros, as far as
        the kept slices of the other axes go; None means none.
    """

    shape: tuple[int, ...]
    kept: Axes
    zero: Axes

    @property
    def small_shape(self) -> tuple[int, ...]:
        """The shape after compaction."""
        return tuple(
            n if k is None else len(k)
            for n, k in zip(self.shape, self.kept, strict=True)
        )

    def indices(self, axis: int) -> np.ndarray:
        """The kept indices of an axis."""
        kept = self.kept[axis]
        return np.arange(self.shape[axis]) if kept is None else np.array(kept, int)

    def shrink(self, array: Any) -> Any:
        """The kept part of an array of the full shape."""
        if isinstance(array, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.small_shape, array.dtype)
        if on_host(array) and any(k is not None for k in self.kept):
            part = np.asarray(array)
            for axis, kept in enumerate(self.kept):
                part = (
                    part if kept is None else np.take(part, np.array(kept, int), axis)
                )
            return like(part, array)
        for axis, kept in enumerate(self.kept):
            if kept is not None:
                array = jnp.take(
                    array,
                    np.array(kept, int),
                    axis=axis,
                    mode="clip",
                    unique_indices=True,
                    indices_are_sorted=True,
                )
        return array

    def expand(self, array: Any) -> Any:
        """An array of the full shape: the given part, and zeros elsewhere."""
        if all(k is None for k in self.kept):
            return array
        places = np.ix_(*(self.indices(a) for a in range(len(self.shape))))
        if on_host(array):
            wide = np.zeros(self.shape, array.dtype)
            wide[places] = np.asarray(array)
            return like(wide, array)
        return jnp.zeros(self.shape, array.dtype).at[places].set(array)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Kept indices of every leaf, by path; comparable, and JSON both ways."""

    leaves: Mapping[str, LeafPlan]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return {path: dataclasses.asdict(leaf) for path, leaf in self.leaves.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_json`, also after a trip through a file.

        Raises:
          ValueError: if indices are not ascending, or do not fit the shape.
        """
        return cls({path: _leaf_from_json(path, d) for path, d in data.items()})


def _leaf_from_json(path: str, data: Mapping[str, Any]) -> LeafPlan:
    shape = tuple(data["shape"])

    def axes(name: str) -> Axes:
        for axis, (size, row) in enumerate(zip(shape, data[name], strict=True)):
            steps = np.diff([-1, *row, size]) if row is not None else [size + 1]
            if min(steps) < 1:
                raise ValueError(
                    f"{path}: {name} indices of axis {axis} must ascend from 0 to "
                    f"below {size}"
                )
        return tuple(None if row is None else tuple(row) for row in data[name])

    return LeafPlan(shape, axes("kept"), axes("zero"))


def apply_plan(plan: Plan, tree: PyTree) -> PyTree:
    """Shrink whatever in a tree is shaped like the parameters.

    A leaf belongs to the parameter whose whole path its own path ends with, if the
    shapes agree: so optimizer states of any optax chain, moving averages and gradients
    shrink with the parameters, and counters stay as they are.

    Args:
      plan: `Compact.plan`.
      tree: any tree of arrays.

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: if a leaf has the path of a parameter but not its shape.
    """
    return _each(plan, tree, small=False)


def expand_plan(plan: Plan, tree: PyTree) -> PyTree:
    """The inverse of `apply_plan`, with zeros where slices were removed."""
    return _each(plan, tree, small=True)


def named(plan: Plan, path: str) -> str | None:
    """The longest parameter path that a path ends with."""
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail in plan.leaves), None)


def owner(plan: Plan, path: str) -> str | None:
    """The parameter a path belongs to, its collection left out or not."""
    return named(plan, path) or _without_collection(plan, path.split("/"))


def _without_collection(plan: Plan, parts: list[str]) -> str | None:
    """The parameter that is the path's tail, but for its own leading collection."""
    found = {
        name
        for name in plan.leaves
        for tail in (name.split("/")[1:],)
        if len(tail) > 1 and parts[-len(tail) :] == tail
    }
    return found.pop() if len(found) == 1 else None


def _each(plan: Plan, tree: PyTree, small: bool) -> PyTree:
    leaves, treedef = flatten(tree)
    errors, out = [], {}
    for path, leaf in leaves.items():
        name = owner(plan, path)
        out[path] = leaf
        if name is None:
            continue
        entry = plan.leaves[name]
        expected = entry.small_shape if small else entry.shape
        if np.shape(leaf) == expected:
            out[path] = entry.expand(leaf) if small else entry.shrink(leaf)
        elif np.ndim(leaf):
            errors.append(f"  {path}: got shape {np.shape(leaf)}, expected {expected}")
    if errors:
        raise ValueError("the tree does not fit the plan:\n" + "\n".join(errors))
    return unflatten(treedef, out)
