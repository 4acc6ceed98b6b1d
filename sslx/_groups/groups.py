"""Groups of weights: making them, measuring them, scaling them.

A group is a set of entries of a parameter pytree. Everything else in the library is
an expression in two operations on groups: `norms` measures them, `scale` multiplies
them.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from sslx._arguments import expect, expect_word
from sslx._groups import arithmetic
from sslx._groups.classes import GroupClass as GroupClass
from sslx._groups.classes import Groups as Groups
from sslx._groups.classes import Member as Member
from sslx._groups.classes import first_matches
from sslx._groups.paths import leaves_by_path
from sslx._groups.structure import BLOCK as BLOCK
from sslx._groups.structure import CHANNEL as CHANNEL
from sslx._groups.structure import FILTER as FILTER
from sslx._groups.structure import KERNEL as KERNEL
from sslx._groups.structure import LAYER as LAYER
from sslx._groups.structure import SHAPE as SHAPE
from sslx._groups.structure import VECTOR as VECTOR
from sslx._groups.structure import WEIGHT as WEIGHT
from sslx._groups.structure import Layout, view
from sslx._groups.structure import Structure as Structure
from sslx._groups.structure import Structures as Structures

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
    r"""Divide the leaves of a parameter pytree into groups, by rules.

    The first rule whose expression matches within a leaf's path
    (`"block1/conv2/kernel"`) divides that leaf, into one class of groups per structure.
    Leaves that no rule matches are in no group.

    Args:
        tree: Pytree of arrays or of `jax.ShapeDtypeStruct`.
        rules: Regular expression -> structure, several joined with `|`, or None to
            leave those leaves out.
        layout: Order of a kernel's axes: `"...IO"`, spatial axes, input, output
            (Flax, Haiku, Keras), or `"OI..."` (Equinox).

    Returns:
        Groups with one class per leaf and structure, named `"path:STRUCTURE"`.

    Raises:
        ValueError: A rule applies to no leaf (nothing matches, or earlier rules take
            every match), or a structure does not fit a leaf.

    Example:
        >>> groups(params, {r"conv\d+/kernel": FILTER | CHANNEL, r"dense/": SHAPE})
    """
    expect("rules", rules, Mapping, "regular expression -> structure, after the tree")
    expect_word("layout", layout, ("...IO", "OI..."))
    for rule, structure in rules.items():
        kinds = (Structure, Structures, NoneType)
        fix = "such as sslx.FILTER, without quotes"
        expect(f"the rule of {rule!r}", structure, kinds, fix)
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

    Group `k` is the union of slice `k` of every leaf: a hidden channel is a filter of
    one kernel, an entry of a bias and an input channel of the next kernel.

    Args:
        tree: Pytree of arrays or of `jax.ShapeDtypeStruct`.
        members: Path (exact) -> structure that indexes the leaf's slices.
        name: Name of the class; None joins the members' names with `+`.
        layout: As in `groups`.

    Returns:
        Groups with a single class. Join several with `+`.

    Raises:
        ValueError: No such path, or the leaves have different numbers of slices.

    Example:
        >>> coupled(params, {"conv1/kernel": FILTER, "conv2/kernel": CHANNEL})
    """
    leaves, _ = flatten(tree)
    expect("members", members, Mapping, "path -> structure, after the tree")
    expect_word("layout", layout, ("...IO", "OI..."))
    if not members:
        raise ValueError("coupled: give at least one member")
    for path, structure in members.items():
        fix = "such as sslx.FILTER"
        expect(f"the structure of {path!r}", structure, Structure, fix)
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
        Class name -> norms, in the order of the classes, shaped by the axes that index
        the groups; float32, or float64 for leaves in double precision. Classes whose
        leaves are all `optax.MaskedNode` are left out.

    Raises:
        ValueError: A leaf is missing or has another shape.
    """
    expect_groups(groups)
    leaves, _ = flatten(tree)
    return class_norms(present(groups, leaves), leaves)


def scale(groups: Groups, tree: PyTree, factors: Mapping[str, ArrayLike]) -> PyTree:
    """Multiply every entry by the factors of all groups that contain it.

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
    expect_groups(groups)
    expect("factors", factors, Mapping, "class name -> factors, as norms gives them")
    leaves, treedef = flatten(tree)
    classes = [groups[name] for name in factors if name in groups.names]
    unknown = [name for name in factors if name not in groups.names]
    if unknown:
        raise ValueError(
            f"factors for unknown classes {unknown}; there are {list(groups.names)}"
        )
    found = present(Groups(tuple(classes)), leaves)
    for c in found:
        if np.shape(factors[c.name]) != c.shape:
            got = np.shape(factors[c.name])
            raise ValueError(f"{c.name}: factors must have shape {c.shape}, got {got}")
    leaves.update(scale_classes(found, leaves, factors))
    return unflatten(treedef, leaves)


def alive(groups: Groups, tree: PyTree) -> dict[str, Array]:
    """Whether a group has any entry that is not exactly zero (NaN counts as alive).

    Unlike `norms(...) > 0` it is not fooled by squares that underflow.

    Args:
        groups: The groups.
        tree: Parameters, or anything shaped like them.

    Returns:
        Class name -> booleans, in order and shape as in `norms(groups, tree)`.
    """
    expect_groups(groups)
    leaves, _ = flatten(tree)
    return class_alive(present(groups, leaves), leaves)


def class_norms(classes: Sequence[GroupClass], leaves: Leaves) -> dict[str, Array]:
    """Class name -> norms, from leaves by path."""
    return in_order(classes, _norms(tuple(classes), _inside(classes, leaves)))


def class_alive(classes: Sequence[GroupClass], leaves: Leaves) -> dict[str, Array]:
    """Class name -> whether a group has a nonzero entry."""
    return in_order(classes, _alive(tuple(classes), _inside(classes, leaves)))


def scale_classes(
    classes: Sequence[GroupClass], leaves: Leaves, factors: Mapping[str, ArrayLike]
) -> dict[str, Array]:
    """The leaves in the classes with their groups multiplied by `factors`."""
    given = {c.name: factors[c.name] for c in classes}
    return _scale(tuple(classes), _inside(classes, leaves), given)


def select_classes(
    classes: Sequence[GroupClass], leaves: Leaves, marks: Mapping[str, Array]
) -> dict[str, Array]:
    """The leaves in the classes with the groups not marked set to zero.

    What is not finite in them stays, so that it is noticed.
    """
    given = {c.name: marks[c.name] for c in classes}
    return _select(tuple(classes), _inside(classes, leaves), given)


def add_to_classes(
    classes: Sequence[GroupClass], leaves: Leaves, values: Mapping[str, Array]
) -> dict[str, Array]:
    """The leaves in the classes plus the values of each entry's groups."""
    given = {c.name: values[c.name] for c in classes}
    return _add(tuple(classes), _inside(classes, leaves), given)


_norms = jax.jit(arithmetic.norms_of, static_argnums=0)
_alive = jax.jit(arithmetic.nonzero_in, static_argnums=0)
_scale = jax.jit(arithmetic.scaled, static_argnums=0)
_add = jax.jit(arithmetic.added, static_argnums=0)
_select = jax.jit(arithmetic.selected, static_argnums=0)


def in_order(
    classes: Sequence[GroupClass], values: Mapping[str, Array]
) -> dict[str, Array]:
    """Values by class name in the order of the classes; JAX sorts the keys of dicts."""
    return {c.name: values[c.name] for c in classes}


def _inside(classes: Sequence[GroupClass], leaves: Leaves) -> Leaves:
    """The leaves that the classes have members in."""
    return {m.path: leaves[m.path] for c in classes for m in c.members}


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


def expect_groups(groups: Any) -> None:
    """Raise unless a value is `Groups`, such as parameters in the wrong place."""
    fix = (
        "make them with sslx.groups or sslx.units, and give them before the parameters"
    )
    expect("groups", groups, Groups, fix)


def flatten(tree: PyTree) -> tuple[dict, TreeDef]:
    """Leaves by path, `optax.MaskedNode` counted as a leaf.

    Raises:
        ValueError: Two leaves have the same path.
    """
    pairs, treedef = leaves_by_path(tree, _is_masked)
    leaves = {}
    for path, leaf in pairs:
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
        elif _is_key(leaves[member.path]):
            errors.append(f"{group_class.name}: leaf {member.path} is a random key")
        elif np.shape(leaves[member.path]) != member.shape:
            got = np.shape(leaves[member.path])
            errors.append(
                f"{group_class.name}: leaf {member.path} must have shape"
                f" {member.shape}, got {got}"
            )
    return errors


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.extended)


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
