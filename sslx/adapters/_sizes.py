"""Which sizes the attributes of an object may have, after its arrays shrank.

No library and no layer is known here. A size is an integer in an attribute, in a tuple
or a list of them, or in a plain object such as a configuration. What it may be now is
read in two ways:

- the object's constructor is called again, without memory, with the arguments that its
  attributes of the same names record: the sizes with which it makes the arrays at hand
  are the new ones, and whatever attributes follow from them;
- where that cannot be done, a size is that of an axis of the object's arrays, or a
  factor of one (4 heads of 6 are an axis of 24), and became what of it was kept.
"""

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np

from sslx._compact.plan import LeafPlan

Arrays = Mapping[str, LeafPlan]
Shapes = dict[str, tuple[int, ...]]
Place = tuple[Any, ...]
Sizes = dict[Place, int]

_BUILDS = 256
_GONE = 7
_OPTIONS = 32


class Built(NamedTuple):
    """What a constructor made: shapes of the arrays, by path, and attributes."""

    shapes: Shapes
    attributes: Mapping[str, Any]


Build = Callable[[type, dict[str, Any]], Built]


class Part(NamedTuple):
    """One module.

    Attributes:
      path: of it in the whole.
      was: as it was; it is not changed.
      arrays: what is kept of its arrays, by their paths in it.
      depths: how many modules of it lie around each of them.
    """

    path: str
    was: Any
    arrays: Arrays
    depths: Mapping[str, int]


class Option(NamedTuple):
    """Sizes that a module may have; those of least cost are the likeliest."""

    cost: int
    sizes: Sizes


# Places.


def recorded(module: Any) -> Sizes:
    """The sizes that the attributes of an object hold, by place."""
    found: Sizes = {}
    for name, value in vars(module).items():
        found.update(_within(value, (name,)))
    return found


def _within(value: Any, place: Place) -> Iterator[tuple[Place, int]]:
    if is_size(value):
        if value >= 0:
            yield place, int(value)
        return
    if isinstance(value, tuple | list):
        entries: Iterable[tuple[Any, Any]] = enumerate(value)
    elif is_settings(value):
        entries = vars(value).items()
    else:
        return
    for key, entry in entries:
        yield from _within(entry, (*place, key))


def is_size(value: Any) -> bool:
    """Whether it is an integer, and no truth value or name of one."""
    return type(value) is int or isinstance(value, np.integer)


def is_settings(value: Any) -> bool:
    """Whether it is an object of plain values, such as a configuration."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    return jax.tree_util.all_leaves([value])


def at(value: Any, keys: Place) -> Any:
    """What lies inside a value, by attributes or indices."""
    for key in keys:
        value = value[key] if isinstance(value, tuple | list) else vars(value)[key]
    return value


def replaced(value: Any, keys: Place, new: int) -> Any:
    """A value in which one size is another; it is not changed itself."""
    if not keys:
        return type(value)(new)
    key, *rest = keys
    inner = replaced(at(value, (key,)), tuple(rest), new)
    if isinstance(value, tuple | list):
        entries = [inner if k == key else v for k, v in enumerate(value)]
        return getattr(type(value), "_make", type(value))(entries)
    other = copy.copy(value)
    object.__setattr__(other, key, inner)
    return other


# Options.


def near(
    part: Part, build: Build, seen: Mapping[int, set[int]]
) -> tuple[list[Option], bool]:
    """What the arrays of a module say of its sizes, the likeliest first.

    Args:
      part: the module.
      build: calls a constructor with some arguments, without memory.
      seen: to which sizes axes of a size went, anywhere in the program.

    Returns:
      The options, and whether there can be no others.
    """
    sizes = recorded(part.was)
    attributes = vars(part.was)
    readings = {
        place: [size]
        if is_settings(attributes[place[0]])
        else _readings(size, part, seen)
        for place, size in sizes.items()
    }
    options = []
    kept = [leaf.shape == leaf.small_shape for leaf in part.arrays.values()]
    for match in constructed(part, build):
        rest = {
            place: sorted({sizes[place], *found})
            for place, found in readings.items()
            if place not in match
        }
        cost = sum(size not in readings[place] for place, size in match.items())
        options += [Option(cost + o.cost, match | o.sizes) for o in _joint(sizes, rest)]
    known = bool(options) or (bool(kept) and all(kept))
    return sorted(options or _joint(sizes, readings), key=lambda o: o.cost), known


def far(part: Part, seen: Mapping[int, set[int]]) -> Iterator[Sizes]:
    """Less likely sizes: those that any axis of the program has."""
    sizes = recorded(part.was)
    options = {
        place: [n, *sorted(seen.get(n, {n}) - {n})] for place, n in sizes.items()
    }
    for option in _joint(sizes, options):
        yield option.sizes


def _joint(sizes: Sizes, readings: Mapping[Place, list[int]]) -> list[Option]:
    """Combinations of readings; one that leaves a size as it was costs nothing."""
    rows = []
    for place, found in readings.items():
        stays = sizes[place] in found
        row = [(int(stays and n != sizes[place]), n) for n in found]
        rows.append(sorted(row))
    options = [
        Option(
            sum(cost for cost, _ in picked),
            {p: n for p, (_, n) in zip(readings, picked, strict=True)},
        )
        for picked in itertools.islice(itertools.product(*rows), 64 * _OPTIONS)
    ]
    return sorted(options, key=lambda o: o.cost)[:_OPTIONS]


# Axes.


def _readings(size: int, part: Part, seen: Mapping[int, set[int]]) -> list[int]:
    """What became of the axes of a size that are nearest, or of the factors of axes."""
    if size < 1:
        return [size]
    exact: dict[int, set[int]] = {}
    for path, leaf in part.arrays.items():
        for before, after in zip(leaf.shape, leaf.small_shape, strict=True):
            if before == size:
                exact.setdefault(part.depths[path], set()).add(after)
    if exact:
        return sorted(exact[min(exact)])
    found: set[int] = set()
    for path, leaf in part.arrays.items():
        if part.depths[path] <= 1 and size > 1:
            found |= _factors(size, leaf)
    return sorted(found & (seen.get(size, set()) | {size})) or [size]


def _factors(size: int, leaf: LeafPlan) -> set[int]:
    """What is kept of a factor of an axis, or of a product of neighbouring axes."""
    found: set[int] = set()
    masks = [_mask(leaf, axis) for axis in range(len(leaf.shape))]
    for start in range(len(masks)):
        joint = masks[start]
        found |= _outer(size, joint)
        for other in masks[start + 1 :]:
            if joint.size * other.size > size:
                break
            joint = np.outer(joint, other).reshape(-1)
            if joint.size == size and not joint.all():
                found.add(int(joint.sum()))
    return found


def _outer(size: int, mask: np.ndarray) -> set[int]:
    """What is kept of an axis of a size, if the mask has it in some shape."""
    if mask.size % size or mask.all():
        return set()
    if not mask.any():
        return {0, size}
    rest = mask.size // size
    found = set()
    for leading in range(1, rest + 1):
        if rest % leading:
            continue
        cube = mask.reshape(leading, size, rest // leading)
        sides = [cube.any(tuple({0, 1, 2} - {axis})) for axis in range(3)]
        if (np.einsum("a,b,c->abc", *sides) == cube).all():
            found.add(int(sides[1].sum()))
    return found


def _mask(leaf: LeafPlan, axis: int) -> np.ndarray:
    mask = np.zeros(leaf.shape[axis], bool)
    mask[leaf.indices(axis)] = True
    return mask


# Constructors.


def constructed(part: Part, build: Build) -> list[Sizes]:
    """Sizes with which a module's constructor, or a base's, makes what is kept.

    Returns:
      Sizes of the attributes that go with the arrays; none where no arguments make
      arrays of these shapes. Those that change most come first.
    """
    before = {path: leaf.shape for path, leaf in part.arrays.items()}
    after = {
        path: tuple(
            m or _GONE * n for n, m in zip(leaf.shape, leaf.small_shape, strict=True)
        )
        for path, leaf in part.arrays.items()
    }
    if before == after:
        return []
    for kind in type(part.was).__mro__:
        if "__init__" in vars(kind) and kind is not object:
            found = _constructed(kind, part.was, before, after, build)
            if found:
                return found
    return []


def _constructed(
    kind: type, old: Any, before: Shapes, after: Shapes, build: Build
) -> list[Sizes]:
    arguments, first = _first(kind, old, before, build)
    if first is None:
        return []
    attributes = vars(old)
    sizes = {
        place: size
        for place, size in recorded(old).items()
        if place[0] in first.attributes
        and not is_settings(attributes[place[0]])
        and first.attributes[place[0]] == attributes[place[0]]
    }
    places, moved = _that_matter(build, kind, arguments, first, sizes)
    goal = {path: after[path] for path in first.shapes}
    matches: list[Sizes] = []
    changes = _changes(arguments, places, _ratios(first.shapes, goal))
    builds = max(16, _BUILDS * 8 // (8 + len(before)))
    for change in itertools.islice(changes, builds):
        found = _attempt(build, kind, _changed(arguments, change))
        if found is not None and found.shapes == goal:
            made = {place: _value(found, place) for place in sizes if place in moved}
            match = {p: 0 if n == _GONE * sizes[p] else n for p, n in made.items()}
            if match not in matches:
                matches.append(match)
    return matches


def _first(
    kind: type, old: Any, before: Shapes, build: Build
) -> tuple[dict[str, Any], Built | None]:
    """Recorded arguments that make the arrays as they were, or some of them.

    Of arguments that exclude one another (the number of groups, and their size), one
    that has a default is left out; an integer that no attribute records is that of an
    axis.
    """
    attributes = vars(old)
    parameters = inspect.signature(kind.__init__).parameters
    arguments = {name: attributes[name] for name in parameters if name in attributes}
    optional = [
        name
        for name, value in reversed(arguments.items())
        if is_size(value) and parameters[name].default is not inspect.Parameter.empty
    ]
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in arguments
        and parameter.default is inspect.Parameter.empty
        and parameter.annotation in (int, "int")
    ]
    tries = [arguments]
    for name in optional:
        tries.append({key: v for key, v in arguments.items() if key != name})
    axes = sorted({n for shape in before.values() for n in shape})
    for name in missing[:1]:
        tries = [known | {name: n} for known in tries for n in axes]
    for tried in tries:
        built = _attempt(build, kind, tried)
        if built is not None and built.shapes:
            if all(before.get(path) == shape for path, shape in built.shapes.items()):
                return tried, built
    return arguments, None


def with_random(
    kind: type, arguments: dict[str, Any], name: str, source: Any
) -> dict[str, Any]:
    """The arguments, with random numbers where the constructor takes them."""
    if name in inspect.signature(kind.__init__).parameters:
        return arguments | {name: source}
    return arguments


def _attempt(build: Build, kind: type, arguments: dict[str, Any]) -> Built | None:
    """None for arguments that the constructor refuses, however it says so."""
    try:
        return build(kind, arguments)
    except Exception:
        return None


def _places(arguments: Mapping[str, Any]) -> list[Place]:
    found: list[Place] = []
    for name, value in arguments.items():
        if is_size(value) or isinstance(value, tuple):
            found += [p for p, size in _within(value, (name,)) if size > 0]
    return found


def _changed(arguments: Mapping[str, Any], change: Sizes) -> dict[str, Any]:
    new = dict(arguments)
    for (name, *keys), size in change.items():
        new[name] = replaced(new[name], tuple(keys), size)
    return new


def _that_matter(
    build: Build, kind: type, arguments: dict[str, Any], first: Built, sizes: Sizes
) -> tuple[list[Place], set[Place]]:
    """Arguments on which arrays or other attributes depend, and attributes that do."""
    places: list[Place] = []
    moved: set[Place] = set()
    for place in _places(arguments):
        twice = {place: 2 * at(arguments[place[0]], place[1:])}
        other = _attempt(build, kind, _changed(arguments, twice))
        changed = {p for p in sizes if other is None or _value(other, p) != sizes[p]}
        if other is None or other.shapes != first.shapes or changed - {place}:
            places.append(place)
            moved |= changed | {place}
    return places, moved


def _value(built: Built, place: Place) -> int:
    return int(at(built.attributes[place[0]], place[1:]))


def _ratios(before: Shapes, after: Shapes) -> set[Fraction]:
    return {
        Fraction(m, n)
        for path, shape in before.items()
        for n, m in zip(shape, after[path], strict=True)
        if n != m
    }


def _changes(
    arguments: Mapping[str, Any], places: list[Place], ratios: set[Fraction]
) -> Iterator[Sizes]:
    """New sizes to try; those that change most places come first."""
    old = {place: at(arguments[place[0]], place[1:]) for place in places}
    options = []
    for size in old.values():
        scaled = {int(size * r) for r in ratios if (size * r).denominator == 1}
        options.append([*sorted(scaled), size])
    tried = itertools.islice(itertools.product(*options), 16 * _BUILDS)

    def kept(values: tuple[int, ...]) -> int:
        return sum(map(int.__eq__, values, old.values()))

    for values in sorted(tried, key=kept):
        yield dict(zip(places, values, strict=True))
