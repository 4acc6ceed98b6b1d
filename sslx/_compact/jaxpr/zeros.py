"""Which slices of the parameters are zero."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx._calls import on_host
from sslx._compact.jaxpr.masks import Masks


@functools.partial(jax.jit, static_argnames="axis")
def _any_along(nonzero: Any, regions: tuple[Any, ...], axis: int) -> Any:
    for a, region in enumerate(regions):
        if a != axis:
            shape = [-1 if b == a else 1 for b in range(nonzero.ndim)]
            nonzero = nonzero & region.reshape(shape)
    return nonzero.any(tuple(b for b in range(nonzero.ndim) if b != axis))


def leaf_zeros(leaf: Any, regions: Masks | None = None) -> Masks:
    """Per axis, the slices that are zero within the product of some regions."""
    if not (jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool):
        return [np.zeros(n, bool) for n in leaf.shape or (1,)]
    if leaf.ndim == 0:
        return [np.asarray(leaf == 0).reshape(1)]
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


def zeros_of(leaves: Mapping[str, Any]) -> dict[str, Masks]:
    """Per leaf, per axis, the slices that are zero."""
    return {path: leaf_zeros(leaf) for path, leaf in leaves.items()}


def given_zeros(
    leaves: Mapping[str, Any], masks: Mapping[str, Mapping[int, Any]]
) -> dict[str, Masks]:
    """The same from masks that the user gave.

    Raises:
      ValueError: if a path or the length of a mask does not fit the leaves.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"masks: got {type(masks).__name__}, expected {{path: {{axis: booleans}}}}"
        )
    errors = [
        f"  {path}: there is no such leaf; there are {', '.join(leaves)}"
        for path in masks
        if path not in leaves
    ]
    out = {}
    for path, leaf in leaves.items():
        out[path] = [np.zeros(n, bool) for n in leaf.shape or (1,)]
        rows = masks.get(path, {})
        if not isinstance(rows, Mapping):
            errors.append(f"  {path}: got {type(rows).__name__}, expected axis: mask")
            continue
        for axis, mask in rows.items():
            wrong = _misfit(leaf, axis, mask)
            if wrong:
                errors.append(f"  {path}: {wrong}")
            else:
                out[path][axis] = out[path][axis] | np.asarray(mask)
    if errors:
        raise ValueError("masks do not fit the variables:\n" + "\n".join(errors))
    return out


def _misfit(leaf: Any, axis: Any, mask: Any) -> str:
    """Why a mask does not say which slices of an axis are zero; empty if it does."""
    rank = len(leaf.shape)
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        return f"axis {axis!r} is no integer"
    if not -rank <= axis < rank:
        return f"there is no axis {axis} in the shape {tuple(leaf.shape)}"
    if isinstance(mask, jax.ShapeDtypeStruct):
        return f"mask of axis {axis} is a shape, expected booleans (True: zero)"
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        return f"mask of axis {axis} has dtype {mask.dtype}, expected bool (True: zero)"
    if mask.shape != (leaf.shape[axis],):
        return f"mask of axis {axis} has shape {mask.shape}, the leaf {leaf.shape}"
    return ""
