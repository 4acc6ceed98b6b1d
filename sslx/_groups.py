"""Groups of weights: making them, measuring them, scaling them.

A group is a set of entries of a parameter pytree. Everything else in the library is
an expression in two operations on groups: `norms` measures them, `scale` multiplies
them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from sslx._classes import GroupClass as GroupClass
from sslx._classes import Groups as Groups
from sslx._classes import Member as Member
from sslx._classes import first_matches
from sslx._structure import BLOCK as BLOCK
from sslx._structure import CHANNEL as CHANNEL
from sslx._structure import FILTER as FILTER
from sslx._structure import KERNEL as KERNEL
from sslx._structure import LAYER as LAYER
from sslx._structure import SHAPE as SHAPE
from sslx._structure import VECTOR as VECTOR
from sslx._structure import WEIGHT as WEIGHT
from sslx._structure import Layout, view
from sslx._structure import Structure as Structure
from sslx._structure import Structures as Structures

__all__ = [
    "BLOCK",
    "CHANNEL",
    "FILTER",
    "KERNEL",
    "LAYER",
    "SHAPE",
    "VECTOR",
    "WEIGHT",
    "GroupClass",
    "Groups",
    "Member",
    "Structure",
    "Structures",
    "alive",
    "coupled",
    "groups",
    "norms",
    "scale",
]

Leaves: TypeAlias = dict[str, Any]
TreeDef: TypeAlias = Any


def groups(
    tree: PyTree,
    rules: Mapping[str, Structure | Structures | None],
    *,
    layout: Layout = "...IO",
) -> Groups:
    r"""The groups that a set of rules makes of a parameter pytree.

    Each leaf is divided by the first rule whose expression is found in its path
    (`"block1/conv2/kernel"`), into one class of groups per structure of that rule.
    Leaves that no rule names are in no group.

    Args:
        tree: Arrays or `jax.ShapeDtypeStruct`s, as any pytree.
        rules: Regular expression -> structure, several joined with `|`, or None for
            leaves to leave out.
        layout: Order of a kernel's axes: `"...IO"`, spatial axes, input, output
            (Flax, Haiku, Keras), or `"OI..."` (Equinox).

    Returns:
        Groups with one class per leaf and structure, named `"path:STRUCTURE"`.

    Raises:
        ValueError: A rule decides about no leaf, or a structure does not fit a leaf.

    Example:
        >>> groups(params, {r"conv\d+/kernel": FILTER | CHANNEL, r"dense/": SHAPE})
    """
    leaves, _ = flatten(tree)
    first = first_matches(rules, leaves, "leaf")
    classes, errors = [], []
    for path, rule in first.items():
        for structure in _structures(rules[rule]):
            try:
                classes.append(_leaf_class(path, leaves[path], structure, layout))
            except ValueError as error:
                errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return Groups(tuple(classes))


def coupled(
    tree: PyTree,
    members: Mapping[str, Structure],
    *,
    name: str | None = None,
    layout: Layout = "...IO",
) -> Groups:
    """One class of groups whose slices lie in several leaves.

    Group `k` is the union over the leaves of the leaf's slice number `k`: a hidden
    channel is a filter of one kernel, an entry of a bias and an input channel of the
    next kernel.

    Args:
        tree: Arrays or `jax.ShapeDtypeStruct`s, as any pytree.
        members: Path (exact) -> structure that indexes the leaf's slices.
        name: Name of the class; the members joined with `+` if None.
        layout: As in `groups`.

    Returns:
        Groups with a single class. Join several with `+`.

    Raises:
        ValueError: No such path, or the leaves have different numbers of slices.

    Example:
        >>> coupled(params, {"conv1/kernel": FILTER, "conv2/kernel": CHANNEL})
    """
    leaves, _ = flatten(tree)
    missing = [path for path in members if path not in leaves]
    if missing:
        raise ValueError(f"no leaf {missing}; there are {list(leaves)}")
    parts = [_leaf_class(p, leaves[p], s, layout) for p, s in members.items()]
    if len({part.shape for part in parts}) != 1:
        shapes = {part.name: part.shape for part in parts}
        raise ValueError(f"coupled leaves must have equally many slices, got {shapes}")
    joined = name or "+".join(part.name for part in parts)
    slices = tuple(member for part in parts for member in part.members)
    return Groups((GroupClass(joined, parts[0].shape, slices),))


def norms(groups: Groups, tree: PyTree) -> dict[str, Array]:
    """The l2 norm of every group.

    `norm_g = sqrt(sum_{i in g} |w_i|^2)`, with derivative 0 where `norm_g = 0`.

    Args:
        groups: The groups.
        tree: Parameters, or anything shaped like them.

    Returns:
        Class name -> norms, shaped by the axes that index the groups; float32, or
        float64 for leaves in double precision. Classes whose leaves are all
        `optax.MaskedNode` are left out.

    Raises:
        ValueError: A leaf is missing or has another shape.
    """
    leaves, _ = flatten(tree)
    return {c.name: class_norms(c, leaves) for c in present(groups, leaves)}


def scale(groups: Groups, tree: PyTree, factors: Mapping[str, ArrayLike]) -> PyTree:
    """Every entry times the factors of all groups it is in.

    `w_i <- w_i * prod_{g containing i} factor_g`

    Args:
        groups: The groups.
        tree: Parameters, or anything shaped like them.
        factors: Class name -> factors, shaped as in `norms(groups, tree)`. Classes
            that are left out count as factor 1.

    Returns:
        A pytree like `tree`, same dtypes; leaves without a factor are the same object.

    Raises:
        ValueError: An unknown class, a wrong shape, or a missing leaf.
    """
    leaves, treedef = flatten(tree)
    classes = [groups[name] for name in factors if name in groups.names]
    unknown = [name for name in factors if name not in groups.names]
    if unknown:
        raise ValueError(
            f"factors for unknown classes {unknown}; there are {list(groups.names)}"
        )
    for c in present(Groups(tuple(classes)), leaves):
        if np.shape(factors[c.name]) != c.shape:
            got = np.shape(factors[c.name])
            raise ValueError(f"{c.name}: factors must have shape {c.shape}, got {got}")
        leaves.update(scale_class(c, leaves, factors[c.name]))
    return unflatten(treedef, leaves)


def alive(groups: Groups, tree: PyTree) -> dict[str, Array]:
    """Whether a group has any entry that is not exactly zero (NaN counts as alive).

    Unlike `norms(...) > 0` it is not fooled by squares that underflow.

    Args:
        groups: The groups.
        tree: Parameters, or anything shaped like them.

    Returns:
        Class name -> booleans, shaped as in `norms(groups, tree)`.
    """
    leaves, _ = flatten(tree)
    return {c.name: class_alive(c, leaves) for c in present(groups, leaves)}


def class_norms(group_class: GroupClass, leaves: Leaves) -> Array:
    """The norms of one class from leaves by path."""
    parts = [
        _to_groups(group_class, m, _squares(m, jnp.asarray(leaves[m.path])))
        for m in group_class.members
    ]
    total = sum(parts[1:], parts[0])
    positive = total > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), 0)


def class_alive(group_class: GroupClass, leaves: Leaves) -> Array:
    """Whether each group of one class has a nonzero entry."""
    parts = []
    for member in group_class.members:
        nonzero = (jnp.asarray(leaves[member.path]) != 0).reshape(member.view)
        slices = jnp.any(nonzero, axis=_summed(member))
        parts.append(_to_groups(group_class, member, slices.astype(jnp.int32)))
    return sum(parts[1:], parts[0]) > 0


def scale_class(
    group_class: GroupClass, leaves: Leaves, factors: ArrayLike
) -> dict[str, Array]:
    """The leaves of one class with its groups multiplied by `factors`."""
    scaled: dict[str, Array] = {}
    for member in group_class.members:
        leaf = jnp.asarray(scaled.get(member.path, leaves[member.path]))
        slices = to_slices(member, jnp.asarray(factors), 1)
        product = leaf.reshape(member.view) * slices
        scaled[member.path] = product.reshape(member.shape).astype(leaf.dtype)
    return scaled


def select_class(
    group_class: GroupClass, leaves: Leaves, marks: Array
) -> dict[str, Array]:
    """The leaves of one class with the groups not marked set to zero."""
    chosen: dict[str, Array] = {}
    for member in group_class.members:
        leaf = jnp.asarray(chosen.get(member.path, leaves[member.path]))
        slices = to_slices(member, marks, True)
        new = jnp.where(slices, leaf.reshape(member.view), jnp.zeros((), leaf.dtype))
        chosen[member.path] = new.reshape(member.shape)
    return chosen


def to_slices(member: Member, values: Array, fill: int | bool) -> Array:
    """Values per group -> values that broadcast against the member's view."""
    if member.ids is not None:
        ids = np.asarray(member.ids, np.int32)
        inside = np.where(ids < 0, values.size, ids)
        values = values.reshape(-1).at[inside].get(mode="fill", fill_value=fill)
    values = values.reshape(member.index_shape)
    return jnp.expand_dims(values, _summed(member))


def present(groups: Groups, leaves: Mapping) -> list[GroupClass]:
    """The classes whose leaves are there, checked against the leaves' shapes.

    A class is passed over if all its leaves are masked (`optax.MaskedNode`).
    """
    masked = tuple(path for path, leaf in leaves.items() if _is_masked(leaf))
    found, errors = [], []
    for group_class in groups.classes:
        hidden = [_below(m.path, masked) for m in group_class.members]
        if all(hidden):
            continue
        errors += [
            f"{group_class.name}: leaf {m.path} is masked, others of its groups are not"
            for m, is_hidden in zip(group_class.members, hidden, strict=True)
            if is_hidden
        ]
        errors += _mismatches(group_class, leaves) if not any(hidden) else []
        found.append(group_class)
    if errors:
        raise ValueError("the tree does not fit the groups:\n" + "\n".join(errors))
    return found


def flatten(tree: PyTree) -> tuple[dict, TreeDef]:
    """Leaves by path, `optax.MaskedNode` counted as a leaf.

    Raises:
        ValueError: Two leaves have the same path.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    leaves = {}
    for keys, leaf in pairs:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in leaves:
            raise ValueError(f"two leaves have the same path {path!r}")
        leaves[path] = leaf
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: Mapping) -> PyTree:
    """The inverse of `flatten`."""
    return jax.tree_util.tree_unflatten(treedef, list(leaves.values()))


def _is_masked(leaf: object) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _below(path: str, prefixes: Iterable[str]) -> bool:
    return any(p in ("", path) or path.startswith(p + "/") for p in prefixes)


def _mismatches(group_class: GroupClass, leaves: Mapping) -> list[str]:
    errors = []
    for member in group_class.members:
        if member.path not in leaves:
            errors.append(f"{group_class.name}: no leaf {member.path}")
        elif np.shape(leaves[member.path]) != member.shape:
            got = np.shape(leaves[member.path])
            errors.append(
                f"{group_class.name}: leaf {member.path} must have shape"
                f" {member.shape}, got {got}"
            )
    return errors


def _structures(rule: Structure | Structures | None) -> tuple[Structure, ...]:
    if rule is None:
        return ()
    return rule.structures if isinstance(rule, Structures) else (rule,)


def _leaf_class(
    path: str, leaf: Any, structure: Structure, layout: Layout
) -> GroupClass:
    shape = tuple(np.shape(leaf))
    try:
        sizes, kept = view(shape, structure, layout)
    except ValueError as error:
        raise ValueError(f"{path} with shape {shape}: {error}") from None
    member = Member(path, shape, sizes, kept)
    return GroupClass(f"{path}:{structure}", member.index_shape, (member,))


def _summed(member: Member) -> tuple[int, ...]:
    return tuple(a for a in range(len(member.view)) if a not in member.kept)


def _squares(member: Member, leaf: Array) -> Array:
    """Sums of squares of the slices, in at least single precision."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    if jnp.iscomplexobj(wide):
        squares = jnp.square(wide.real) + jnp.square(wide.imag)
    else:
        squares = jnp.square(wide)
    return jnp.sum(squares.reshape(member.view), axis=_summed(member))


def _to_groups(group_class: GroupClass, member: Member, slices: Array) -> Array:
    """Sums over the slices of each group."""
    if member.ids is None:
        return slices
    ids = np.asarray(member.ids, np.int32)
    inside = np.where(ids < 0, group_class.count, ids)
    total = jnp.zeros(group_class.count, slices.dtype)
    total = total.at[inside].add(slices.reshape(-1), mode="drop")
    return total.reshape(group_class.shape)
