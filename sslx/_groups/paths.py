"""Paths of leaves: how a leaf is named, wherever it lies."""

from collections.abc import Callable
from typing import Any

import jax

_VALUE = jax.tree_util.GetAttrKey("value")


def leaves_by_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves of a tree with their paths, and its structure.

    A path is the keys, indices and attributes on the way, such as `block/0/kernel`. A
    node whose only part is its attribute `value` (a variable of NNX, a box of Linen's)
    has the path of what it holds: `kernel`, not `kernel/value`.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    if any(_VALUE in keys for keys, _ in pairs):
        steps = zip(pairs, _alone(treedef), strict=True)
        pairs = [
            (
                tuple(
                    k
                    for k, one in zip(keys, alone, strict=True)
                    if k != _VALUE or not one
                ),
                leaf,
            )
            for (keys, leaf), alone in steps
        ]
    name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    return [(name(keys), leaf) for keys, leaf in pairs], treedef


def _alone(treedef: Any) -> list[tuple[bool, ...]]:
    """Per leaf and step on the way to it, whether the step is the only one there."""
    if jax.tree_util.treedef_is_leaf(treedef):
        return [()] * treedef.num_leaves
    parts = treedef.children()
    return [(len(parts) == 1, *rest) for part in parts for rest in _alone(part)]
