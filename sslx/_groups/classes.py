"""Classes of groups as plain frozen data; `sslx._groups.groups` makes and uses them."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sslx._arguments import expect_number, expect_pattern
from sslx._jax_compat import is_traced
from sslx._table import Table, Tabular

__all__ = ["GroupClass", "Groups", "Member", "first_matches"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One leaf's share of a class of groups.

    The leaf is seen as an array of shape `view`; the axes `kept` of the view index
    slices of the leaf, and slice number `k` (in row-major order over the kept axes)
    belongs to group number `ids[k]` of the class.

    Attributes:
        path: Path of the leaf, such as `"conv1/kernel"`.
        shape: Shape of the leaf.
        view: A shape with the same number of entries.
        kept: Axes of `view` that index slices, ascending.
        ids: Group number per slice, -1 for a slice in no group; None where slice `k`
            is group `k`.
        role: Where units were found in a program: `"out"` for slices that a layer
            computes, `"in"` for those that it reads, else empty.
    """

    path: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    kept: tuple[int, ...]
    ids: tuple[int, ...] | None = None
    role: str = ""

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Shape of the kept axes."""
        return tuple(self.view[axis] for axis in self.kept)

    @property
    def slice_size(self) -> int:
        """Number of entries per slice."""
        return math.prod(self.view) // max(math.prod(self.index_shape), 1)


@dataclasses.dataclass(frozen=True)
class GroupClass:
    """Groups of one kind, numbered in row-major order over `shape`.

    Attributes:
        name: Unique name, such as `"conv1/kernel:FILTER"`.
        shape: Shape of every array with one entry per group.
        members: The leaves the groups have slices in.
        weight: Multiplier of the class in every penalty.
        kind: For groups that `sslx.units` found, what they are: filter, unit, FFN unit,
            head, KV group, head width, expert, residual stream, recurrent unit or
            channel; else empty.
    """

    name: str
    shape: tuple[int, ...]
    members: tuple[Member, ...]
    weight: float | int = 1.0
    kind: str = ""

    def __post_init__(self):
        for member in self.members:
            _check_member(self, member)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.name, self.shape, self.members, self.weight, self.kind))

    @property
    def count(self) -> int:
        """Number of groups."""
        return math.prod(self.shape)

    @property
    def chain(self) -> str:
        """The layers of its leaves, in order: `conv1 out -> bn1 -> conv2 in`.

        A layer is named by the path of its leaves, without the collection (first part)
        and the leaf (last part).
        """
        steps: list[list[str]] = []
        for member in self.members:
            layer = _layer(member.path)
            known = next(
                (s for s in steps if s[0] == layer and s[1] == member.role), None
            )
            same = [s for s in steps if s[0] == layer]
            if (not member.role and same) or known:
                continue
            bare = next((s for s in same if not s[1]), None)
            if bare:
                bare[1] = member.role
            else:
                steps.append([layer, member.role])
        return " -> ".join(" ".join(filter(None, step)) for step in steps)

    @property
    def sizes(self) -> np.ndarray:
        """Number of entries of each group, shaped `shape`."""
        total = np.broadcast_to(np.zeros((), np.int64), self.shape)
        for member in self.members:
            if member.ids is None:
                total = total + np.broadcast_to(member.slice_size, self.shape)
            else:
                ids = np.asarray(member.ids, np.int64)
                slices = np.bincount(ids[ids >= 0], minlength=self.count)
                total = total + member.slice_size * slices.reshape(self.shape)
        return np.asarray(total)


@dataclasses.dataclass(frozen=True)
class Groups(Tabular):
    """All groups of a parameter pytree, as plain hashable data.

    A function may close over it or take it as a static argument of `jax.jit`.

    Attributes:
        classes: The classes of groups, in the order of the rules that made them.
        notes: Remarks on leaves that are in no group; printed by `describe`.
    """

    classes: tuple[GroupClass, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        names = [c.name for c in self.classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two classes of groups have the same name: {twice}")

    def __getitem__(self, name: str) -> GroupClass:
        """The class called `name`."""
        for group_class in self.classes:
            if group_class.name == name:
                return group_class
        raise KeyError(f"no class of groups {name!r}; there are {list(self.names)}")

    def __add__(self, other: "Groups") -> "Groups":
        """The classes of both."""
        return Groups(self.classes + other.classes, self.notes + other.notes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, the keys of `norms(...)`."""
        return tuple(c.name for c in self.classes)

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """Number of entries of each group, by class."""
        return {c.name: c.sizes for c in self.classes}

    @property
    def count(self) -> int:
        """Number of groups in all classes."""
        return sum(c.count for c in self.classes)

    def weighted(self, multipliers: Mapping[str, float | int]) -> "Groups":
        """The same groups with class weights multiplied: a penalty strength per layer.

        Args:
            multipliers: Regular expression, searched in class names -> factor. The
                first match counts; classes without a match keep their weight.

        Returns:
            New groups; `self` is unchanged.

        Raises:
            ValueError: An expression matches no class, or a factor is negative, not
                finite, traced or several numbers.
        """
        for name, value in multipliers.items():
            what = f"the multiplier of {name!r}"
            expect_number(what, value)
            if is_traced(value) or np.ndim(value) or not np.isfinite(value):
                raise ValueError(
                    f"{what} must be one finite number, as groups are plain data, got"
                    f" {value}; what changes from call to call goes into the penalty's"
                    " strength"
                )
        first = first_matches(multipliers, self.names, "class of groups")
        classes = tuple(
            dataclasses.replace(c, weight=c.weight * float(multipliers[first[c.name]]))
            if c.name in first
            else c
            for c in self.classes
        )
        return dataclasses.replace(self, classes=classes)

    def below(self, prefix: str) -> "Groups":
        """The groups of a part of the tree, such as an optimizer's `params`.

        Args:
            prefix: Path of the part, such as `"params"`.

        Returns:
            The classes with their leaves below `prefix` and paths relative to it.
            Leaves elsewhere (running statistics) are left out; class names stay.

        Raises:
            ValueError: No leaf lies there.
        """
        start = prefix.rstrip("/") + "/"
        classes = []
        for c in self.classes:
            members = tuple(
                dataclasses.replace(m, path=m.path.removeprefix(start))
                for m in c.members
                if m.path.startswith(start)
            )
            if members:
                classes.append(dataclasses.replace(c, members=members))
        if not classes:
            paths = sorted({m.path for c in self.classes for m in c.members})
            raise ValueError(f"no leaf lies below {prefix!r}; there are {paths}")
        return Groups(tuple(classes), self.notes)

    def of_kind(self, *kinds: str) -> "Groups":
        """The classes of some kinds, such as `units.of_kind("head", "FFN unit")`.

        Raises:
            ValueError: One of them has no class.
        """
        known = sorted({c.kind for c in self.classes if c.kind})
        lacking = [kind for kind in kinds if kind not in known]
        if lacking:
            raise ValueError(f"no groups of kind {lacking}; there are {known}")
        classes = tuple(c for c in self.classes if c.kind in kinds)
        return Groups(classes, self.notes)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class: class, kind, groups, entries, weight, members.

        `entries` is the smallest and the largest number of entries of a group;
        `members` is a chain of layers, `conv1 out -> bn1 -> conv2 in`.
        """
        return [
            {
                "class": c.name,
                "kind": c.kind,
                "groups": c.count,
                "entries": (int(c.sizes.min()), int(c.sizes.max()))
                if c.count
                else (0, 0),
                "weight": c.weight,
                "members": c.chain,
            }
            for c in self.classes
        ]

    def describe(self) -> str:
        """The rows and notes as text of at most 80 columns; long lists are cut."""
        lines = []
        for row in self.rows():
            low, high = row["entries"]
            entries = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            weight = "" if row["weight"] == 1 else f", weight {row['weight']:g}"
            kind = f"{row['kind']}, " if row["kind"] else ""
            noun = "group" if row["groups"] == 1 else "groups"
            facts = f"{kind}{row['groups']:,} {noun} of {entries}{weight}"
            lines.append(_short(f"{row['class']}: {facts}", 80))
            if "->" in row["members"] or not row["class"].startswith(row["members"]):
                lines.append("    " + _short(row["members"], 76, " -> "))
        return "\n".join([*lines, *(_short(note, 80, ", ") for note in self.notes)])

    def __str__(self) -> str:
        return self.describe()

    def _table(self) -> Table:
        lines = []
        for row in self.rows():
            low, high = row["entries"]
            entries = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            counts = f"{row['groups']:,}", entries, f"{row['weight']:g}"
            lines.append([row["class"], row["kind"], *counts, row["members"]])
        head = ["class", "kind", "groups", "entries", "weight", "members"]
        return Table(head, lines, self.notes)


def _layer(path: str) -> str:
    """The layer of a leaf: its path without collection (first) and name (last)."""
    parts = path.split("/")
    return "/".join(parts[1:-1] if len(parts) > 2 else parts[:-1] or parts)


def _short(text: str, width: int, between: str = " ") -> str:
    """A text cut between its parts, with the number of those left out."""
    if len(text) <= width:
        return text
    parts = text.split(between)
    for count in range(len(parts) - 1, 0, -1):
        cut = between.join(parts[:count]) + f"{between}... ({len(parts) - count} more)"
        if len(cut) <= width:
            return cut
    return text[: width - 3] + "..."


def first_matches(
    rules: Mapping[Any, object], names: Iterable[str], kind: str
) -> dict[str, str]:
    """Name -> first rule found in it; every rule must be first for some name."""
    for rule in rules:
        expect_pattern(f"a rule for a {kind}", rule)
    names = list(names)
    first = {
        name: next(rule for rule in rules if re.search(rule, name))
        for name in names
        if any(re.search(rule, name) for rule in rules)
    }
    idle = [rule for rule in rules if rule not in first.values()]
    if idle:
        raise ValueError(
            f"rules {idle} decide about no {kind}: none matches, or an earlier rule"
            f" does. There are: {', '.join(names)}"
        )
    return first


def _check_member(group_class: GroupClass, member: Member) -> None:
    index, count = member.index_shape, group_class.count
    if math.prod(member.view) != math.prod(member.shape):
        problem = f"view {member.view} has not the entries of {member.shape}"
    elif member.ids is None and index != group_class.shape:
        problem = f"index shape {index} is not the class's {group_class.shape}"
    elif member.ids is not None and len(member.ids) != math.prod(index):
        problem = f"{len(member.ids)} ids for {math.prod(index)} slices"
    elif member.ids and not (-1 <= min(member.ids) and max(member.ids) < count):
        problem = f"ids must be from -1 to {count - 1}"
    else:
        return
    raise ValueError(f"{group_class.name}, leaf {member.path}: {problem}")
