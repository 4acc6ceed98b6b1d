"""Arithmetic on classes of groups: values per group out to leaves, and sums back.

A *site* is one leaf seen by one set of axes. All members at a site share one pass over
the leaf, however many classes they belong to: the values of all classes stand in one
vector, every site takes what its slices want from it, and sums go back the same way.
So programs grow with the number of leaf axes, not with that of members.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx._groups.classes import GroupClass, Member

__all__ = [
    "added",
    "covered",
    "nonzero_in",
    "norms_of",
    "scaled",
    "selected",
    "sums_of",
]

Classes: TypeAlias = Sequence[GroupClass]
Leaves: TypeAlias = Mapping[str, Any]
Values: TypeAlias = Mapping[str, Any]


class _Site(NamedTuple):
    """A leaf and the axes of its view that index slices."""

    path: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def index_shape(self) -> tuple[int, ...]:
        return tuple(self.view[axis] for axis in self.kept)

    @property
    def summed(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.view)) if a not in self.kept)


class _Layout(NamedTuple):
    """Where the slices of each site find the values of their groups.

    Attributes:
        whole: Per site, classes whose group number is the slice's.
        layers: Per site, places in the vector of all values, one per slice; slices in
            no group have the place after the last.
        starts: First place of each class in that vector.
        size: Number of places.
    """

    whole: dict[_Site, list[str]]
    layers: dict[_Site, list[np.ndarray]]
    starts: dict[str, int]
    size: int


def scaled(classes: Classes, leaves: Leaves, factors: Values) -> dict[str, Array]:
    """The leaves of the classes with every group multiplied by its factor."""
    return _combined(classes, leaves, factors, 1, _times)


def selected(classes: Classes, leaves: Leaves, marks: Values) -> dict[str, Array]:
    """The leaves of the classes, 0 in groups not marked; NaN and infinities stay."""
    return _combined(
        classes, leaves, marks, True, lambda x, m: jnp.where(m, x, _finite_to_zero(x))
    )


def added(classes: Classes, leaves: Leaves, values: Values) -> dict[str, Array]:
    """The leaves of the classes plus the values of each entry's groups."""
    return _combined(classes, leaves, values, 0, lambda x, v: x + v.astype(x.dtype))


def norms_of(classes: Classes, leaves: Leaves) -> dict[str, Array]:
    """Class name -> l2 norms, with derivative 0 at 0."""

    def root(total: Array) -> Array:
        zero = total == 0
        return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, total)))

    return {name: root(s) for name, s in sums_of(classes, leaves, _squares).items()}


def nonzero_in(classes: Classes, leaves: Leaves) -> dict[str, Array]:
    """Class name -> whether each group has a nonzero entry."""

    def found(site: _Site, leaf: Array) -> Array:
        nonzero = (leaf != 0).reshape(site.view)
        return jnp.any(nonzero, axis=site.summed).astype(jnp.int32)

    return {name: s > 0 for name, s in _summed(classes, leaves, found).items()}


def sums_of(
    classes: Classes, leaves: Leaves, of: Callable[[Array], Array]
) -> dict[str, Array]:
    """Class name -> sum of a function of each group's entries, in float32 at least."""

    def slices(site: _Site, leaf: Array) -> Array:
        wide = leaf.astype(_wide(leaf.dtype))
        return jnp.sum(of(wide).reshape(site.view), axis=site.summed)

    return _summed(classes, leaves, slices)


def covered(members: Sequence[Member]) -> Array:
    """Which entries of a leaf are in a group; a scalar if all are."""
    marks = jnp.zeros((), bool)
    for member in members:
        if member.ids is None:
            return jnp.ones((), bool)
        site = _site(member)
        inside = (np.asarray(member.ids, np.int64) >= 0).reshape(site.index_shape)
        part = jnp.broadcast_to(np.expand_dims(inside, site.summed), site.view)
        marks = marks | part.reshape(site.shape)
    return marks


def _times(x: Array, factor: Array) -> Array:
    if x.dtype.itemsize == 1:  # no arithmetic of their own
        return (x.astype(jnp.float32) * factor).astype(x.dtype)
    return (x * factor).astype(x.dtype)


def _wide(dtype: Any) -> Any:
    """A type to add up in: float32 at least."""
    narrow = dtype.itemsize == 1 or not jnp.issubdtype(dtype, jnp.inexact)
    return jnp.dtype(jnp.float32) if narrow else jnp.promote_types(dtype, jnp.float32)


def _squares(wide: Array) -> Array:
    if jnp.iscomplexobj(wide):
        return jnp.square(wide.real) + jnp.square(wide.imag)
    return jnp.square(wide)


def _finite_to_zero(x: Array) -> Array:
    zero = jnp.zeros((), x.dtype)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return zero
    return jnp.where(jnp.isfinite(x), zero, x)


def _combined(
    classes: Classes,
    leaves: Leaves,
    values: Values,
    fill: int | bool,
    combine: Callable[[Array, Array], Array],
) -> dict[str, Array]:
    """Every leaf combined with the values of its slices' groups."""
    layout = _layout(classes)
    values = {c.name: jnp.asarray(values[c.name]) for c in classes}
    places = [layer for layers in layout.layers.values() for layer in layers]
    vector = _vector([values[name] for name in layout.starts], fill)
    taken = iter(_taken(vector, places))
    new: dict[str, Array] = {}
    for site, names in layout.whole.items():
        rows = [values[name] for name in names]
        rows += [next(taken) for _ in layout.layers[site]]
        leaf = jnp.asarray(new.get(site.path, leaves[site.path])).reshape(site.view)
        for row in rows:
            slices = jnp.expand_dims(row.reshape(site.index_shape), site.summed)
            leaf = combine(leaf, slices)
        new[site.path] = leaf.reshape(site.shape)
    return new


def _summed(
    classes: Classes, leaves: Leaves, slices: Callable[[_Site, Array], Array]
) -> dict[str, Array]:
    """Sums over the slices of each group, given those of each site's slices."""
    layout = _layout(classes)
    shapes = {c.name: c.shape for c in classes}
    totals: dict[str, Array] = {}
    parts, places = [], []
    for site, names in layout.whole.items():
        part = slices(site, jnp.asarray(leaves[site.path]))
        for name in names:
            part_of = part.reshape(shapes[name])
            totals[name] = totals[name] + part_of if name in totals else part_of
        for layer in layout.layers[site]:
            parts.append(part.reshape(-1))
            places.append(layer)
    if parts:
        ends = [
            np.arange(start, start + int(np.prod(shapes[name], dtype=int)))
            for name, start in layout.starts.items()
        ]
        rows = _taken(_collected(parts, places, layout.size), ends)
        for name, row in zip(layout.starts, rows, strict=True):
            narrow = row.astype(_type_of(name, classes, leaves, row.dtype))
            part_of = narrow.reshape(shapes[name])
            totals[name] = totals[name] + part_of if name in totals else part_of
    return {c.name: totals[c.name] for c in classes}


def _type_of(name: str, classes: Classes, leaves: Leaves, given: Any) -> Any:
    """The type of a class's sums: that of its own leaves, in float32 at least."""
    if not jnp.issubdtype(given, jnp.floating):
        return given
    members = next(c.members for c in classes if c.name == name)
    types = {_wide(jnp.asarray(leaves[m.path]).dtype) for m in members}
    return jnp.finfo(jnp.result_type(jnp.float32, *types)).dtype


def _vector(values: Sequence[Array], fill: int | bool) -> Array:
    """All values in one vector, and what slices in no group get after the last."""
    dtype = jnp.result_type(*values) if values else jnp.result_type(fill)
    rows = [x.reshape(-1).astype(dtype) for x in values]
    row = jnp.concatenate([*rows, jnp.full((1,), fill, dtype)])
    return jax.lax.optimization_barrier(row)


def _taken(vector: Array, places: Sequence[np.ndarray]) -> list[Array]:
    """The vector's entries at the places of each row; `_collected` is the transpose.

    XLA compiles a gather in a tenth of the time of a slice, forward; backward, one
    concatenation and one scatter do for all rows.
    """

    def plain(vector: Array) -> list[Array]:
        return [_gather(vector, row) for row in places]

    if not places or not jnp.issubdtype(vector.dtype, jnp.inexact):
        return plain(vector)
    take = jax.custom_jvp(plain)

    @take.defjvp
    def _(primals, tangents):
        moved = _gather(tangents[0], np.concatenate(places))
        return take(*primals), list(jax.lax.split(moved, [row.size for row in places]))

    return take(vector)


def _collected(
    parts: Sequence[Array], places: Sequence[np.ndarray], size: int
) -> Array:
    """The sum at each place, of rows whose entries go to the given places.

    One scatter forward; backward, a gather for each row.
    """
    dtype = jnp.result_type(*parts)

    def plain(parts: list[Array]) -> Array:
        row = jax.lax.optimization_barrier(jnp.concatenate(parts))
        return _scatter_add(jnp.zeros(size + 1, dtype), np.concatenate(places), row)

    if not jnp.issubdtype(dtype, jnp.inexact):
        return plain([part.astype(dtype) for part in parts])
    collect = jax.custom_jvp(plain)

    @collect.defjvp
    def _(primals, tangents):
        total = jnp.zeros(size + 1, dtype)
        for part, row in zip(tangents[0], places, strict=True):
            total = _scatter_add(total, row, part)
        return collect(*primals), total

    return collect([part.astype(dtype) for part in parts])


_IN_BOUNDS = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def _gather(vector: Array, places: np.ndarray) -> Array:
    numbers = jax.lax.GatherDimensionNumbers((), (0,), (0,))
    rows = places.astype(np.int32)[:, None]
    return jax.lax.gather(vector, rows, numbers, (1,), mode=_IN_BOUNDS)


def _scatter_add(total: Array, places: np.ndarray, row: Array) -> Array:
    numbers = jax.lax.ScatterDimensionNumbers((), (0,), (0,))
    rows = places.astype(np.int32)[:, None]
    return jax.lax.scatter_add(total, rows, row, numbers, mode=_IN_BOUNDS)


def _site(member: Member) -> _Site:
    return _Site(member.path, member.shape, member.view, member.kept)


def _layout(classes: Classes) -> _Layout:
    gathered = [c for c in classes if any(m.ids is not None for m in c.members)]
    counts = [c.count for c in gathered]
    starts = dict(
        zip([c.name for c in gathered], np.cumsum([0, *counts]).tolist(), strict=False)
    )
    size = sum(counts)
    whole: dict[_Site, list[str]] = {}
    layers: dict[_Site, list[np.ndarray]] = {}
    for c in classes:
        for member in c.members:
            site = _site(member)
            names, rows = whole.setdefault(site, []), layers.setdefault(site, [])
            if member.ids is None:
                names.append(c.name)
                continue
            ids = np.asarray(member.ids, np.int64)
            _place(rows, np.where(ids < 0, size, ids + starts[c.name]), size)
    return _Layout(whole, layers, starts, size)


def _place(rows: list[np.ndarray], new: np.ndarray, nowhere: int) -> None:
    """Put places into the first row that is free where they are."""
    inside = new != nowhere
    for row in rows:
        if (row[inside] == nowhere).all():
            row[inside] = new[inside]
            return
    rows.append(new)
