"""Objects that hold arrays and code: sizes in their attributes after arrays shrank.

No library and no layer is known here. An object's constructor is called again, without
memory, with the arguments that its attributes of the same names record; the sizes
with which it makes the arrays at hand are the new ones, and whatever attributes follow
from them are copied.
"""

import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx._compact import Compact, compact
from sslx._jax_compat import is_traced

Shapes = dict[str, tuple[int, ...]]
_BUILDS = 256
_TRIES = 16


Call = Callable[..., Any]


def call_module(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The module's own `__call__`."""
    return module(*args, **kwargs)


def aligned(
    fn: Callable[..., Any],
    variables: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    strict: bool,
) -> Compact:
    """The compaction that a module's own code can run: nothing moved, nothing added."""
    options = {"alignment": "align", "constants": "keep", "strict": strict}
    return compact(fn, variables, *args, **options, **kwargs)


class Built(NamedTuple):
    """What a constructor made: shapes of the arrays, by path, and attributes."""

    shapes: Shapes
    attributes: Mapping[str, Any]


class Resized(NamedTuple):
    """A module of the reduced size, and the compaction it came from."""

    module: Any
    small: Compact


Build = Callable[[type, dict[str, Any]], Built]


def fit(
    pairs: Iterable[tuple[Any, Any]],
    shapes: Callable[[Any], Shapes],
    build: Build,
    assign: Callable[[Any, str, Any], None],
    verify: Callable[[], None],
) -> None:
    """Give modules whose arrays shrank the sizes with which they run and are right.

    Shapes may leave a choice (4 heads of 6, or 3 of 8); it is the same for all modules
    of one class, and the first that `verify` accepts.

    Args:
      pairs: every module as it was, and as it is.
      shapes: of the arrays of a module.
      build: calls a constructor with some arguments, without memory.
      assign: sets an attribute.
      verify: raises ValueError if the modules cannot run, or are wrong.

    Raises:
      ValueError: what `verify` said of the first choice, if none was accepted.
    """
    options = [
        (now, found)
        for was, now in pairs
        if (found := sizes(was, shapes(was), shapes(now), build))
    ]
    counts: dict[type, int] = {}
    for now, found in options:
        counts[type(now)] = max(counts.get(type(now), 1), len(found))
    errors = []
    choices = itertools.product(*map(range, counts.values()))
    for choice in itertools.islice(choices, _TRIES):
        chosen = dict(zip(counts, choice, strict=True))
        for now, found in options:
            for name, value in found[min(chosen[type(now)], len(found) - 1)].items():
                assign(now, name, value)
        try:
            return verify()
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def sizes(
    old: Any, before: Shapes, after: Shapes, build: Build
) -> list[dict[str, Any]]:
    """Attributes that an object may have for arrays of other shapes.

    Args:
      old: the object, as it was.
      before: shapes of its arrays, by path.
      after: what they are now.
      build: calls a constructor with some arguments, without memory.

    Returns:
      Values by name; none where no arguments make arrays of these shapes. Those that
      change most come first.
    """
    if before == after:
        return []
    kind, arguments = type(old), _arguments(old)
    first = _attempt(build, kind, arguments)
    if first is None or first.shapes != before:
        return []
    names = {
        name
        for name, value in vars(old).items()
        if _is_size(value) and first.attributes.get(name) == value
    }
    places = [
        place
        for place in _places(arguments)
        if _matters(build, kind, arguments, place, before)
    ]
    matches: list[dict[str, Any]] = []
    changes = _changes(arguments, places, _ratios(before, after))
    for change in itertools.islice(changes, _BUILDS):
        found = _attempt(build, kind, _changed(arguments, change))
        if found is not None and found.shapes == after:
            match = {name: found.attributes[name] for name in names}
            if match not in matches:
                matches.append(match)
    return matches


Place = tuple[str, int | None]


def _arguments(module: Any) -> dict[str, Any]:
    """The constructor's arguments, as far as attributes of their names record them."""
    recorded = vars(module)
    names = inspect.signature(type(module).__init__).parameters
    return {name: recorded[name] for name in names if name in recorded}


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


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_size(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def _places(arguments: Mapping[str, Any]) -> list[Place]:
    found: list[Place] = []
    for name, value in arguments.items():
        if isinstance(value, tuple) and _is_size(value):
            found += [(name, k) for k, v in enumerate(value) if isinstance(v, int)]
        elif _is_size(value):
            found.append((name, None))
    return [p for p in found if _value(arguments, p) > 1]


def _value(arguments: Mapping[str, Any], place: Place) -> int:
    name, k = place
    return arguments[name] if k is None else arguments[name][k]


def _changed(
    arguments: Mapping[str, Any], changes: Mapping[Place, int]
) -> dict[str, Any]:
    new = dict(arguments)
    for (name, k), value in changes.items():
        old = new[name]
        new[name] = value if k is None else (*old[:k], value, *old[k + 1 :])
    return new


def _matters(
    build: Build, kind: type, arguments: dict[str, Any], place: Place, shapes: Shapes
) -> bool:
    """Whether arrays have other shapes, or none, with twice that size."""
    twice = {place: 2 * _value(arguments, place)}
    found = _attempt(build, kind, _changed(arguments, twice))
    return found is None or found.shapes != shapes


def _ratios(before: Shapes, after: Shapes) -> set[Fraction]:
    return {
        Fraction(m, n)
        for path, shape in before.items()
        for n, m in zip(shape, after.get(path, shape), strict=True)
        if n != m
    }


def _changes(
    arguments: Mapping[str, Any], places: list[Place], ratios: set[Fraction]
) -> Iterator[dict[Place, int]]:
    """New sizes to try; those that change most places come first."""
    options = []
    for place in places:
        value = _value(arguments, place)
        scaled = {int(value * r) for r in ratios if (value * r).denominator == 1}
        options.append([*sorted(scaled), value])
    tried = itertools.islice(itertools.product(*options), 16 * _BUILDS)

    def kept(values: tuple[int, ...]) -> int:
        pairs = zip(values, places, strict=True)
        return sum(v == _value(arguments, p) for v, p in pairs)

    for values in sorted(tried, key=kept):
        yield dict(zip(places, values, strict=True))


class Side(NamedTuple):
    """A module's call, and the paths of its modules by `id`."""

    call: Callable[..., Any]
    paths: Mapping[int, str]


def check(full: Side, small: Side, args: tuple[Any, ...], kwargs: Any) -> None:
    """Call two modules, and compare.

    Args:
      full: what is to be computed.
      small: what should compute it.
      args: of the call; shapes stand for random numbers.
      kwargs: of the call.

    Raises:
      ValueError: if the results differ by more than rounding, or there is none; says
        in which module.
    """
    args, kwargs = jax.tree.map(_concrete, (args, kwargs))
    want = full.call(*args, **kwargs)
    try:
        got = small.call(*args, **kwargs)
    except Exception as error:
        place = _place(error, small.paths) or "the module"
        raise ValueError(
            f"{place} cannot run at its new sizes: {error}\n{_FIX}"
        ) from error
    difference = _difference(got, want)
    if difference:
        place = _first_difference(full, small, args, kwargs)
        seen = f", seen first in the output of {place}" if place else ""
        raise ValueError(
            "at its new sizes the module computes something else: "
            f"{difference}{seen}\n{_FIX}"
        )


_FIX = (
    "fix: use the compact function, small = sslx.compact(*function(module), ...), "
    "which has no such limits"
)


def _difference(got: Any, want: Any) -> str:
    """What differs by more than rounding, or nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(want)
    for (path, a), b in zip(leaves, jax.tree.leaves(got), strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        where = jax.tree_util.keystr(path, simple=True, separator="/") or "output"
        if a.shape != b.shape:
            return f"{where} has shape {b.shape}, expected {a.shape}"
        if not jnp.issubdtype(a.dtype, jnp.inexact) or not a.size:
            continue
        error, size = float(jnp.abs(a - b).max()), float(jnp.abs(a).max())
        if not error <= float(jnp.finfo(a.dtype).eps) ** 0.5 * size:
            return f"{where} is off by {error:.3g} (its largest entry is {size:.3g})"
    return ""


def _first_difference(
    full: Side, small: Side, args: tuple[Any, ...], kwargs: Any
) -> str | None:
    """The first module whose output differs, of those that keep its shape."""
    wants, gots = _outputs(full, args, kwargs), _outputs(small, args, kwargs)
    for (name, want), (other, got) in zip(wants, gots, strict=False):
        both = isinstance(want, jax.Array) and isinstance(got, jax.Array)
        if name != other or not both or is_traced(want):
            continue
        if want.shape == got.shape and _difference(got, want):
            return name
    return None


def _outputs(side: Side, args: tuple[Any, ...], kwargs: Any) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def note(frame: Any, event: str, value: Any) -> None:
        if event == "return" and frame.f_code.co_name == "__call__":
            owner = frame.f_locals.get("self")
            if id(owner) in side.paths:
                seen.append((_named(owner, side.paths), value))

    previous = sys.getprofile()
    sys.setprofile(note)
    try:
        side.call(*args, **kwargs)
    finally:
        sys.setprofile(previous)
    return seen


def _named(module: Any, paths: Mapping[int, str]) -> str:
    return f"{paths[id(module)] or 'the module'} ({type(module).__name__})"


def _concrete(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        values = np.random.default_rng(0).normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def refuse_constants(small: Compact) -> None:
    """Raise if slices were folded into constants, which no module holds."""
    if small.folded:
        raise ValueError(
            "constants were folded, and a module has no place for them: "
            + ", ".join(sorted(small.folded))
            + '\nfix: sslx.compact(..., constants="keep", alignment="align")'
        )


def _place(error: BaseException, paths: Mapping[int, str]) -> str | None:
    """The innermost module that was running when an error came up."""
    found, step = None, error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if id(owner) in paths:
            found = _named(owner, paths)
        step = step.tb_next
    return found
