"""Which leaves of a tree belong to which parameters: copies of the parameter tree.

Optimiser state, averages and masks hold trees of the structure of the parameters, at
places and under names that only their authors know. `Mirror` finds them by structure:
from the root down, the largest subtree whose leaves have the paths of the parameters
below some point, and shapes that can be theirs (the same, with axes in front, with axes
averaged away), is a copy of that part (`_copies`). Where the parameters' places hold
trees of leaves, one per axis for instance, so do `_nests`.

Several parts may fit. The one whose path has most in common with the subtree's is
taken; if others have as much and the plan would shrink the leaf differently, that is an
error, not a guess. What looks like parameters but is no copy is found by `unexplained`.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax

Parts: TypeAlias = tuple[str, ...]
Shape: TypeAlias = tuple[int, ...]

_FACTORED = {"v_row": -1, "v_col": -2}  # the axis averaged away, by rank of its size
_LEAST_FACTORED = 128  # axes below this are not factored, by optax's default


class ShapePair(NamedTuple):
    """A parameter's shape in the tree at hand, and on the other side of the plan."""

    here: Shape
    there: Shape


class Match(NamedTuple):
    """A leaf's parameter, and per axis of the leaf the parameter's axis or None."""

    name: str
    axes: tuple[int | None, ...]


@dataclasses.dataclass
class Mirror:
    """Finds copies of parameter trees.

    Attributes:
      sizes: by parameter path.
      kept: by parameter path, per axis what is kept of it.
      errors: what could not be decided, one line per leaf.
    """

    sizes: Mapping[str, ShapePair]
    kept: Mapping[str, tuple[Any, ...]]
    errors: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self._names = {parts_of(name): name for name in self.sizes}
        self._roots: dict[Parts, list[Parts]] = {}
        self._below: dict[Parts, int] = {}
        for parts in self._names:
            for cut in range(len(parts) + 1):
                self._roots.setdefault(parts[cut:], []).append(parts[:cut])
                self._below[parts[:cut]] = self._below.get(parts[:cut], 0) + 1

    def find(self, leaves: Mapping[str, Any]) -> dict[str, Match]:
        """The matches of a tree's leaves, by path; the others belong to nothing."""
        rows = [(parts_of(path), path) for path in leaves]
        found: dict[str, Match] = {}
        self._descend((), rows, leaves, found, self._copies)
        self._descend((), rows, leaves, found, self._nests)
        return found

    def in_one_vector(self, shape: Shape) -> tuple[str, ...]:
        """The parameters below one point that together fill a vector of this shape."""
        totals: dict[tuple[str, ...], tuple[str, ...]] = {}
        for origin in self._below:
            names = [
                name
                for parts, name in self._names.items()
                if parts[: len(origin)] == origin
            ]
            if len(names) > 1 and shape == (
                sum(math.prod(self.sizes[n].here) for n in names),
            ):
                outcome = tuple(map(str, (self.kept[n] for n in names)))
                totals[outcome] = tuple(names)
        return totals.popitem()[1] if len(totals) == 1 else ()

    def _descend(self, root, rows, leaves, found, look) -> None:
        """Take the largest subtrees that are copies, from the root down."""
        if all(path in found for _, path in rows):
            return
        choices = look(root, rows, leaves)
        if choices:
            found |= self._decide(root, choices)
            return
        below: dict[str, list[tuple[Parts, str]]] = {}
        for parts, path in rows:
            if len(parts) > len(root):
                below.setdefault(parts[len(root)], []).append((parts, path))
        for key, group in below.items():
            self._descend((*root, key), group, leaves, found, look)

    def _copies(
        self, root: Parts, rows: Sequence[tuple[Parts, str]], leaves: Mapping[str, Any]
    ) -> list[tuple[Parts, bool, dict[str, list[Match]]]]:
        """Roots of parameters that a subtree may be a copy of, leaf for leaf."""
        rests = [(parts[len(root) :], path) for parts, path in rows]
        choices = []
        for origin in self._roots.get(rests[0][0], ()):
            if rests[0][0] == () and not _is_tail(root, origin):
                continue
            ways: dict[str, list[Match]] = {}
            for rest, path in rests:
                name = self._names.get(origin + rest)
                ways[path] = (
                    [] if name is None else self._ways(name, leaves[path], root)
                )
                if not ways[path]:
                    break
            else:
                choices.append((origin, len(rows) == self._below[origin], ways))
        return choices

    def _nests(
        self, root: Parts, rows: Sequence[tuple[Parts, str]], leaves: Mapping[str, Any]
    ) -> list[tuple[Parts, bool, dict[str, list[Match]]]]:
        """The same for subtrees with a tree of leaves in place of each parameter."""
        rests = [(parts[len(root) :], path) for parts, path in rows]
        first = rests[0][0]
        origins = {
            origin
            for cut in range(1, len(first) + 1)
            for origin in self._roots.get(first[:cut], ())
        }
        choices = []
        for origin in sorted(origins):
            parts: dict[str, list[str]] = {}
            for rest, path in rests:
                heads = (origin + rest[:cut] for cut in range(1, len(rest) + 1))
                name = next((self._names[h] for h in heads if h in self._names), None)
                parts.setdefault(name or "", []).append(path)
            if "" in parts or len(parts) < self._below[origin]:
                continue
            ways: dict[str, list[Match]] = {}
            for name, paths in parts.items():
                ways |= self._nested_ways(name, paths, leaves, root)
            if all(ways.values()):
                choices.append((origin, True, ways))
        return choices

    def _nested_ways(
        self, name: str, paths: list[str], leaves: Mapping[str, Any], root: Parts
    ) -> dict[str, list[Match]]:
        """One vector per axis, or leaves that each have the parameter's shape."""
        here = self.sizes[name].here
        if [_shape(leaves[path]) for path in paths] == [(n,) for n in here]:
            return {path: [Match(name, (axis,))] for axis, path in enumerate(paths)}
        return {path: self._ways(name, leaves[path], root) for path in paths}

    def _ways(self, name: str, leaf: Any, root: Parts) -> list[Match]:
        """How a leaf's axes may be those of a parameter."""
        here, shape = self.sizes[name].here, _shape(leaf)
        if _is_masked(leaf):
            return [Match(name, ())]
        if shape == here:
            return [Match(name, tuple(range(len(here))))]
        if math.prod(shape) <= 1:
            return [Match(name, (None,) * len(shape))]
        more = len(shape) - len(here)
        if more > 0:
            whole = (*(None,) * more, *range(len(here)))
            return [Match(name, whole)] if here and shape[more:] == here else []
        factored = [_FACTORED[part] for part in root[-1:] if part in _FACTORED]
        if more == 0:
            fits = all(n in (m, 1) for n, m in zip(shape, here, strict=True))
            ones = tuple(None if n == 1 else a for a, n in enumerate(shape))
            return [Match(name, ones)] if fits else []
        kept = itertools.combinations(range(len(here)), len(shape))
        if factored and more == -1 and len(here) > 1:
            gone = int(np.argsort(here)[factored[0]])
            kept = [tuple(a for a in range(len(here)) if a != gone)]
        return [Match(name, k) for k in kept if tuple(here[a] for a in k) == shape]

    def _decide(
        self, root: Parts, choices: list[tuple[Parts, bool, dict[str, list[Match]]]]
    ) -> dict[str, Match]:
        """The most likely origin; an error where others would give other results."""
        rank = lambda choice: (_common_tail(root, choice[0]), choice[1])
        best = max(map(rank, choices))
        ways: dict[str, list[Match]] = {}
        for choice in choices:
            if rank(choice) == best:
                for path, matches in choice[2].items():
                    ways.setdefault(path, []).extend(matches)
        for path, matches in ways.items():
            if len({self._outcome(match) for match in matches}) > 1:
                names = ", ".join(dict.fromkeys(m.name for m in matches))
                self.errors.append(
                    f"  {path}: may belong to several axes or parameters ({names})"
                )
            self._check_factors(path, root, matches[0])
        return {path: matches[0] for path, matches in ways.items()}

    def _outcome(self, match: Match) -> tuple[Any, ...]:
        kept = self.kept[match.name]
        return tuple(None if axis is None else kept[axis] for axis in match.axes)

    def _check_factors(self, path: str, root: Parts, match: Match) -> None:
        """Adafactor chooses by size the axes that it averages over."""
        here, there = self.sizes[match.name]
        factored = root and root[-1] in _FACTORED and None not in match.axes
        if not factored or len(match.axes) != len(here) - 1 or here == there:
            return
        axes = [np.argsort(shape)[-2:].tolist() for shape in (here, there)]
        least = [
            shape[pair[0]] for shape, pair in zip((here, there), axes, strict=True)
        ]
        enough = min(least) >= min(_LEAST_FACTORED, max(least))
        if axes[0] != axes[1] or not enough:
            self.errors.append(
                f"  {path}: row and column averages of shape {here} do not carry over"
                f" to {there}, which is averaged over other axes or not at all"
            )


def parts_of(path: str) -> Parts:
    """A path taken apart."""
    return tuple(path.split("/")) if path else ()


def unexplained(
    leaves: Mapping[str, Any],
    found: Mapping[str, Match],
    sizes: Mapping[str, ShapePair],
) -> list[str]:
    """Paths of leaves that are no copy of a parameter but look like one.

    They have the full shape of a parameter that changes, perhaps with more axes in
    front; or they are vectors as long as several parameters together, where no sibling
    is a copy.
    """
    changing = [s for s in sizes.values() if s.here != s.there]
    beside = {parts_of(p)[:-1] for p in found if not _passes(leaves[p])}
    beside |= {parent[:cut] for parent in beside for cut in range(len(parent))}
    sums = _sums(sizes.values())
    strange = []
    for path, leaf in leaves.items():
        if path in found or _passes(leaf) or _is_random_key(leaf):
            continue
        shape = _shape(leaf)
        copied = any(
            shape[len(shape) - len(s.here) :] == s.here for s in changing if s.here
        )
        alone = parts_of(path)[:-1] not in beside
        if copied or (alone and sums >> shape[-1] & 1):
            strange.append(path)
    return strange


def _sums(sizes: Iterable[ShapePair]) -> int:
    """Bit n is set if some parameters, one of them changing, have n entries."""
    same, changed = 1, 0
    for here, there in sizes:
        n = math.prod(here)
        changed |= changed << n
        if here == there:
            same |= same << n
        else:
            changed |= same << n
    return changed


def _passes(leaf: Any) -> bool:
    """Whether a leaf is a single number, empty or masked: no plan changes it."""
    return _is_masked(leaf) or math.prod(_shape(leaf)) <= 1


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _is_random_key(leaf: Any) -> bool:
    """Whether a leaf holds keys of random numbers, typed or raw."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.unsignedinteger) or not isinstance(dtype, np.dtype)
    )


def _shape(leaf: Any) -> Shape:
    return tuple(np.shape(leaf))


def _is_tail(root: Parts, origin: Parts) -> bool:
    """Whether a lone leaf has a parameter's path, its collection left out or not."""
    common = _common_tail(root, origin)
    return common == len(origin) or (common == len(origin) - 1 and common >= 2)


def _common_tail(a: Parts, b: Parts) -> int:
    pairs = zip(reversed(a), reversed(b), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
