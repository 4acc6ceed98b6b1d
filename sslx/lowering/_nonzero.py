"""Which entries of the arrays of a call may differ from zero."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx.lowering._conv import Columns
from sslx.lowering._evaluate import Alive

Nonzero = tuple[Columns | None, ...]
"""Per array; None means all, as for arrays beyond its end."""


def nonzero_of(leaves: Sequence[Any]) -> Nonzero:
    """Per array, the columns that may be nonzero; None where no whole line is zero."""
    return tuple(_nonzero(leaf) for leaf in leaves)


def _nonzero(leaf: Any) -> Columns | None:
    if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.ndim < 3:
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return None
    mask = np.asarray(leaf != 0)
    lines = any(not mask.any(axis).all() for axis in range(mask.ndim))
    return Columns.of(mask) if lines else None


def masks(nonzero: Nonzero) -> list[Alive]:
    """One boolean per entry and array; None means all."""
    return [None if entries is None else entries.mask for entries in nonzero]
