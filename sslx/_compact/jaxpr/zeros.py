"""Which slices of the parameters are zero."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx._calls import on_host
from sslx._compact.jaxpr.masks import Masks
from sslx._groups.classes import Groups, Member


@functools.partial(jax.jit, static_argnames="axis")
def _any_along(nonzero: Any, regions: tuple[Any, ...], axis: int) -> Any:
    for a, region in enumerate(regions):
        if a != axis:
            shape = [-1 if b == a else 1 for b in range(nonzero.ndim)]
            nonzero = nonzero & region.reshape(shape)
    return nonzero.any(tuple(b for b in range(nonzero.ndim) if b != axis))


def leaf_zeros(leaf: Any, regions: Masks | None = None) -> Masks:
    """Per axis, the slices that are zero within the product of some regions.

    A scalar is never removed; as it stays, and may train, it does not count as zero.
    """
    numeric = jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
    if not numeric or leaf.ndim == 0:
        return [np.zeros(n, bool) for n in leaf.shape or (1,)]
    here = on_host(leaf)
    nonzero = np.asarray(leaf) != 0 if here else leaf != 0
    if regions is None:
        regions = [np.ones(n, bool) for n in leaf.shape]
    if here:
        part = nonzero[np.ix_(*regions)]
        masks = []
        for a, region in enumerate(regions):
            mask = np.zeros(region.size, bool)
            mask[region] = part.any(tuple(b for b in range(leaf.ndim) if b != a))
            masks.append(~mask)
        return masks
    rows = tuple(jnp.asarray(r) for r in regions)
    return [~np.asarray(_any_along(nonzero, rows, a)) for a in range(leaf.ndim)]


class Zeros(NamedTuple):
    """The slices of leaves that are zero by their values."""

    leaves: Mapping[str, Any]

    def __call__(self, path: str, region: Masks | None = None) -> Masks:
        """Per axis of a leaf, those within the product of some regions."""
        return leaf_zeros(self.leaves[path], region)


class Masked:
    """The slices of leaves that are zero where groups are not kept.

    A slice counts as zero if one class of groups covers all of it.

    Raises:
      TypeError: `masks` is no mapping, or there are no groups with it.
      ValueError: a class, a leaf, or the shape or dtype of a mask does not fit.
    """

    def __init__(
        self,
        leaves: Mapping[str, Any],
        groups: Groups | None,
        masks: Mapping[str, Any],
    ):
        if not isinstance(masks, Mapping):
            raise TypeError(
                f"masks: got {type(masks).__name__}, expected {{class of groups: True "
                "where kept}, such as sslx.select.keep gives"
            )
        if groups is None:
            groups = Groups(())
        if masks and not groups.classes:
            raise TypeError(
                "groups: got none, expected with masks the groups that they speak of; "
                "fix: compact(fn, groups=groups, masks=masks)"
            )
        self.leaves = leaves
        self.parts: dict[str, list[tuple[Member, np.ndarray]]] = {}
        errors = []
        for name, mask in masks.items():
            wrong = _misfit(groups, leaves, name, mask)
            if wrong:
                errors.append(f"  {name}: {wrong}")
                continue
            dead = ~np.asarray(mask).reshape(-1)
            for member in groups[name].members:
                self.parts.setdefault(member.path, []).append((member, dead))
        if errors:
            raise ValueError("masks do not fit the variables:\n" + "\n".join(errors))

    def __call__(self, path: str, region: Masks | None = None) -> Masks:
        """Per axis of a leaf, those within the product of some regions."""
        shape = self.leaves[path].shape
        regions = region or [np.ones(n, bool) for n in shape]
        zeros = [np.zeros(n, bool) for n in shape or (1,)]
        for member, dead in self.parts.get(path, ()):
            for axis, zero in enumerate(_covered(member, dead, regions)):
                zeros[axis] |= zero
        return zeros


def _misfit(groups: Any, leaves: Mapping[str, Any], name: Any, mask: Any) -> str:
    """Why a mask does not say which groups of a class are kept; empty if it does."""
    if name not in groups.names:
        return f"there is no such class; there are {', '.join(groups.names)}"
    for member in groups[name].members:
        leaf = leaves.get(member.path)
        if leaf is None:
            return f"there is no leaf {member.path}; there are {', '.join(leaves)}"
        if leaf.shape != member.shape:
            return f"{member.path} is {leaf.shape}, groups were made for {member.shape}"
    if isinstance(mask, jax.ShapeDtypeStruct):
        return "the mask is a shape, expected booleans (True: kept)"
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        return f"the mask has dtype {mask.dtype}, expected bool (True: kept)"
    if mask.shape != groups[name].shape:
        return f"the mask has shape {mask.shape}, the class {groups[name].shape}"
    return ""


def _covered(member: Member, dead: np.ndarray, regions: Masks) -> Masks:
    """Per axis of a leaf, the slices all of whose entries in the regions are dead."""
    ids = np.arange(dead.size) if member.ids is None else np.asarray(member.ids, int)
    gone = np.append(dead, False)[ids].reshape(member.index_shape)
    runs = _runs(member)
    inside = [_projected(member, run, r) for run, r in zip(runs, regions, strict=True)]
    zeros = []
    for axis, (n, run) in enumerate(zip(member.shape, runs, strict=True)):
        rest = gone
        for other, mask in enumerate(inside):
            if other != axis:
                rest = rest | ~mask
        others = [k for k, a in enumerate(member.kept) if a not in run]
        line = rest.all(tuple(others))
        kept = [member.view[a] if a in member.kept else 1 for a in run]
        sizes = [member.view[a] for a in run]
        zeros.append(np.broadcast_to(line.reshape(kept), sizes).reshape(n))
    return zeros or [gone.reshape(1)]


def _runs(member: Member) -> list[range]:
    """Per axis of the leaf, the axes of the view that it is the product of."""
    runs, start = [], 0
    for n in member.shape:
        stop, size = start + 1, member.view[start]
        while size < n:
            size *= member.view[stop]
            stop += 1
        runs.append(range(start, stop))
        start = stop
    return runs


def _projected(member: Member, run: range, region: np.ndarray) -> np.ndarray:
    """Slices that the region of one axis touches, broadcast over all axes."""
    apart = region.reshape([member.view[a] for a in run])
    met = np.asarray(
        apart.any(tuple(a - run.start for a in run if a not in member.kept))
    )
    return met.reshape([member.view[a] if a in run else 1 for a in member.kept])
