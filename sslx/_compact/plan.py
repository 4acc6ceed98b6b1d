"""What a compaction keeps of every parameter axis, as plain data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._arguments import expect
from sslx._calls import like as placed_like
from sslx._calls import on_host
from sslx._compact.mirror import Mirror, ShapePair, unexplained
from sslx._groups.groups import flatten, unflatten
from sslx._jax_compat import whole_along
from sslx._table import Table, Tabular, shape_text

Axes = tuple[tuple[int, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """The part of one array that is kept.

    Attributes:
      shape: its full shape.
      kept: per axis, the kept indices in ascending order; None means all.
      zero: per axis, the removed indices whose entries in the kept slices of the other
        axes are all zero; None means none.
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
            return placed_like(part, array)
        for axis, kept in enumerate(self.kept):
            if kept is not None:
                array = jnp.take(
                    whole_along(array, axis),
                    np.array(kept, int),
                    axis=axis,
                    mode="clip",
                    unique_indices=True,
                    indices_are_sorted=True,
                )
        return array

    def expand(self, array: Any) -> Any:
        """An array of the full shape, with zeros where indices were removed."""
        if all(k is None for k in self.kept):
            return array
        places = np.ix_(*(self.indices(a) for a in range(len(self.shape))))
        if on_host(array):
            wide = np.zeros(self.shape, array.dtype)
            wide[places] = np.asarray(array)
            return placed_like(wide, array)
        return jnp.zeros(self.shape, array.dtype).at[places].set(array)

    def then(self, later: "LeafPlan") -> "LeafPlan":
        """The part of this part that a later plan keeps."""
        kept, zero = [], []
        for axis in range(len(self.shape)):
            mine, more = self.indices(axis), later.kept[axis]
            left = mine if more is None else mine[list(more)]
            whole = self.kept[axis] is None and more is None
            kept.append(None if whole else tuple(left.tolist()))
            dead = mine[list(later.zero[axis] or ())].tolist()
            zero.append(tuple(sorted({*(self.zero[axis] or ()), *dead})) or None)
        return LeafPlan(self.shape, tuple(kept), tuple(zero))


@dataclasses.dataclass(frozen=True)
class Plan(Tabular):
    """Kept indices of every leaf, as plain data that compares and goes through JSON.

    Attributes:
      leaves: path -> the part of the leaf that is kept.
    """

    leaves: Mapping[str, LeafPlan]

    def then(self, later: "Plan") -> "Plan":
        """The plan of two compactions in a row, the later one of the smaller network.

        `apply_plan(p.then(q), tree) == apply_plan(q, apply_plan(p, tree))`

        Raises:
          ValueError: if the later plan has other leaves, or leaves of other shapes than
            this plan leaves.
        """
        errors = [
            f"  {path}: {leaf.small_shape} here, "
            f"{later.leaves[path].shape if path in later.leaves else 'absent'} later"
            for path, leaf in self.leaves.items()
            if path not in later.leaves or later.leaves[path].shape != leaf.small_shape
        ]
        errors += [
            f"  {p}: only in the later" for p in later.leaves.keys() - self.leaves
        ]
        if errors:
            raise ValueError(
                "the later plan is no plan of what is left:\n" + "\n".join(errors)
            )
        return Plan({p: leaf.then(later.leaves[p]) for p, leaf in self.leaves.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return {path: dataclasses.asdict(leaf) for path, leaf in self.leaves.items()}

    def _table(self) -> Table:
        shrunk = {p: x for p, x in self.leaves.items() if x.shape != x.small_shape}
        rows = [
            [path, shape_text(leaf.shape), shape_text(leaf.small_shape)]
            for path, leaf in shrunk.items()
        ]
        before = sum(math.prod(leaf.shape) for leaf in self.leaves.values())
        after = sum(math.prod(leaf.small_shape) for leaf in self.leaves.values())
        total = ["all entries", f"{before:,}", f"{after:,}"]
        whole = len(self.leaves) - len(shrunk)
        notes = [f"{whole} more leaves stay whole"] if whole else []
        return Table(["leaf", "shape", "kept"], [*rows, total], notes)

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


def apply_plan(plan: Plan, tree: PyTree, *, like: PyTree | None = None) -> PyTree:
    """Shrink everything in a tree that is shaped like the parameters.

    Copies of the variables, of one collection or of a part of them, are found by their
    structure, wherever they lie: from the root down, the largest subtrees whose leaves
    all have paths and shapes of parameters (`optax.MaskedNode` counts as a leaf of any
    shape). Gradients, moving averages, training states and the states of optax's
    transformations shrink with the parameters, whether they were made from `variables`
    or from `variables["params"]`. In such a copy a leaf may also have

    - more axes in front (the memory of L-BFGS);
    - fewer axes, or axes of size 1 (Adafactor's `v_row` and `v_col`);
    - one vector per axis (SM3) or several arrays of its shape in its place;
    - a single number or nothing in its place, which stays.

    A vector with as many entries as all parameters, or all of one collection or part,
    holds them one after the other (`optax.flatten`).

    Random keys, counters and leaves that resemble no parameter stay as they are.

    Args:
      plan: `Compact.plan`.
      tree: any pytree of arrays.
      like: a pytree of arrays or shapes with the structure, shapes and dtypes that the
        result must have, such as `tx.init(small.variables)`; compared if given.

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: if a leaf has the path of a parameter but not its shape, or its shape
        but not its path; if a vector is as long as some parameters together, but not
        as all of a part; if a leaf may belong to several parameters that are kept
        differently; if averages over rows and columns would differ for the small
        shape; if the result does not match `like`. The text names every such leaf.

    Example:
      >>> state = sslx.apply_plan(small.plan, state, like=tx.init(small.variables))
    """
    fix = "give Compact.plan, and the tree after it"
    expect("plan", plan, Plan, fix)
    new = _each(plan, tree, small=False, look=like is None)
    if like is not None:
        _compare(new, like)
    return new


def expand_plan(plan: Plan, tree: PyTree) -> PyTree:
    """The inverse of `apply_plan`, with zeros where slices were removed."""
    return _each(plan, tree, small=True, look=True)


def named(plan: Plan, path: str) -> str | None:
    """The longest parameter path that a path ends with."""
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail in plan.leaves), None)


def _each(plan: Plan, tree: PyTree, small: bool, look: bool) -> PyTree:
    leaves, treedef = flatten(tree)
    shapes = {p: (leaf.shape, leaf.small_shape) for p, leaf in plan.leaves.items()}
    sizes = {p: ShapePair(*(s[::-1] if small else s)) for p, s in shapes.items()}
    mirror = Mirror(sizes, {p: leaf.kept for p, leaf in plan.leaves.items()})
    found = mirror.find(leaves)
    errors = mirror.errors
    out = dict(leaves)
    for path in unexplained(leaves, found, sizes):
        names = mirror.in_one_vector(np.shape(leaves[path]))
        if names:
            out[path] = _each_in_one_vector(plan, names, leaves[path], small)
        elif look:
            errors.append(_strange(plan, path, leaves[path]))
    errors += [
        _strange(plan, path, leaf)
        for path, leaf in leaves.items()
        if path not in found and np.size(leaf) > 1 and named(plan, path) is not None
    ]
    if errors:
        lines = "\n".join(dict.fromkeys(errors))
        raise ValueError(f"the tree does not fit the plan:\n{lines}")
    for path, match in found.items():
        if match.axes:
            entry = _entry(plan.leaves[match.name], match.axes, np.shape(leaves[path]))
            out[path] = (entry.expand if small else entry.shrink)(leaves[path])
    return unflatten(treedef, out)


def _each_in_one_vector(
    plan: Plan, names: tuple[str, ...], vector: Any, small: bool
) -> Any:
    """A vector of several parameters in sequence, each shrunk or expanded."""
    parts, start = [], 0
    for name in names:
        entry = plan.leaves[name]
        shape = entry.small_shape if small else entry.shape
        part = vector[start : start + math.prod(shape)].reshape(shape)
        parts.append((entry.expand if small else entry.shrink)(part).reshape(-1))
        start += math.prod(shape)
    return jnp.concatenate(parts)


def _entry(
    leaf: LeafPlan, axes: tuple[int | None, ...], shape: tuple[int, ...]
) -> LeafPlan:
    """The plan of an array some of whose axes are a parameter's."""
    rows = list(zip(axes, shape, strict=True))
    return LeafPlan(
        tuple(n if a is None else leaf.shape[a] for a, n in rows),
        tuple(None if a is None else leaf.kept[a] for a, _ in rows),
        (None,) * len(rows),
    )


def _strange(plan: Plan, path: str, leaf: Any) -> str:
    name = named(plan, path) or _without_collection(plan, path.split("/"))
    shape = np.shape(leaf)
    if name is None:
        return (
            f"  {path}: of shape {shape}, looks like parameters but lies in no copy of"
            " their tree, so that it cannot be shrunk"
        )
    entry = plan.leaves[name]
    return (
        f"  {path}: got shape {shape}, expected {entry.shape} as {name} has, or"
        f" {entry.small_shape} on the small side"
    )


def _without_collection(plan: Plan, parts: list[str]) -> str | None:
    """The parameter whose path, without its collection, the path ends with."""
    found = {
        name
        for name in plan.leaves
        for tail in (name.split("/")[1:],)
        if len(tail) > 1 and parts[-len(tail) :] == tail
    }
    return found.pop() if len(found) == 1 else None


def _compare(tree: PyTree, like: PyTree) -> None:
    """Raise unless two trees have one structure, the same shapes and types."""
    (got, first), (wanted, second) = flatten(tree), flatten(like)
    if first != second:
        differing = sorted(got.keys() ^ wanted.keys()) or [f"{first}, not {second}"]
        raise ValueError(f"the result is not built like `like`: {differing}")
    errors = [
        f"  {path}: got {_described(leaf)}, expected {_described(wanted[path])}"
        for path, leaf in got.items()
        if _described(leaf) != _described(wanted[path])
    ]
    if errors:
        raise ValueError("the result is not like `like`:\n" + "\n".join(errors))


def _described(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(np.shape(leaf))}"
