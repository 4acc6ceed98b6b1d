"""Checks of what `compact`, `units` and `apply` are given."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from sslx import _jax_compat
from sslx._calls import as_jax
from sslx._groups.groups import flatten


def read_variables(variables: PyTree, *, values: bool) -> tuple[dict[str, Any], Any]:
    """The leaves of variables by path, as JAX arrays or shapes, and their structure.

    Args:
      variables: as the user gave them.
      values: whether zeros will be looked for in them.

    Raises:
      TypeError: there are no leaves, or some are not arrays.
      ValueError: zeros cannot be looked for.
    """
    if callable(variables) and jax.tree_util.all_leaves([variables]):
        raise TypeError(
            f"variables: got {type(variables).__name__}, expected a tree of arrays; "
            "fix: the function comes first, then the variables"
        )
    leaves, treedef = flatten(variables)
    wrong = [
        f"  {path or 'variables'}: got {type(leaf).__name__} {leaf!r:.40}"
        for path, leaf in leaves.items()
        if not _is_numeric(leaf)
    ]
    if wrong or not leaves:
        raise TypeError(
            "variables: expected a tree of arrays"
            + "".join(f"\n{line}" for line in wrong or ["  there are no leaves"])
            + "\nfix: leave out what is no array, such as a dictionary of settings"
        )
    leaves = {path: as_jax(leaf) for path, leaf in leaves.items()}
    if values:
        _require_values(leaves)
    return leaves, treedef


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return True
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind not in "OSUTMm"
    return isinstance(leaf, bool | int | float | complex)


def _require_values(leaves: dict[str, Any]) -> None:
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"{path}: got a shape, which says nothing of zeros; fix: give arrays, "
                "or say which groups are kept, compact(fn, groups=..., masks=...)"
            )
        if _jax_compat.is_traced(leaf):
            raise ValueError(
                f"{path}: got a traced array, whose zeros cannot be read; fix: call "
                "sslx.compact outside of jit, grad and vmap, or give masks"
            )


def refuse_captured(fn: Callable[..., Any], jaxpr: Any, given: int) -> None:
    """Refuse a function that closes over arrays which are still being traced.

    Args:
      fn: the function.
      jaxpr: what it was traced to.
      given: the number of arrays that it was traced with.

    Raises:
      ValueError: with the shape of the first.
    """
    extra = len(jaxpr.in_avals) - given
    captured = [x for x in jaxpr.consts if _jax_compat.is_traced(x)]
    for array in [*jaxpr.in_avals[: max(extra, 0)], *captured]:
        raise ValueError(
            f"{getattr(fn, '__qualname__', fn)} captures a traced array of shape "
            f"{array.shape}; fix: pass it as an argument"
        )
