"""Objects that hold arrays and code: sizes in their attributes after arrays shrank.

Sizes that the arrays allow (`_sizes`) are tried until the module runs and computes what
it did; what remains open is asked for.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sslx._compact.analysis.report import Held
from sslx._compact.compact import compact
from sslx._compact.compacted import Compact
from sslx._compact.plan import apply_plan
from sslx._groups.groups import flatten, unflatten
from sslx.adapters import _sizes
from sslx.adapters._runs import Failure, Reference, Side, concrete
from sslx.adapters._sizes import Build, Part, Place, Sizes

_TRIES = 64

Call = Callable[..., Any]


def call_module(module: Any, *args: Any, **kwargs: Any) -> Any:
    """The module's own `__call__`."""
    return module(*args, **kwargs)


class Unfit(ValueError):
    """No sizes were found with which a module runs and is right.

    Attributes:
      failure: with the likeliest sizes.
    """

    def __init__(self, text: str, failure: Failure):
        super().__init__(text)
        self.failure = failure


class Resized(NamedTuple):
    """A module of the reduced size, and the compaction it came from."""

    module: Any
    small: Compact


def reduced(
    fn: Callable[..., Any],
    variables: Any,
    resize: Callable[[Compact], Any],
    strict: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Resized:
    """The compaction that a module's own code can run: nothing moved, nothing added.

    The arrays of a submodule whose code cannot be right at smaller sizes stay whole,
    which `held_back` says; with `strict`, or where that is the whole module, it raises.

    Args:
      fn: the module as a function of its arrays.
      variables: the arrays.
      resize: makes a module of a compaction.
      strict: raise where something has to stay whole.
      args: of an example call.
      kwargs: of the call.
    """
    options = {"alignment": "align", "constants": "keep", "strict": strict}
    held: dict[str, Held] = {}
    first: Unfit | None = None
    while True:
        whole, paths = _filled(variables, held)
        small = compact(fn, **options)(whole, *args, **kwargs)
        if held:
            back = tuple(
                dataclasses.replace(h, paths=paths[p]) for p, h in held.items()
            )
            small = dataclasses.replace(
                small,
                variables=apply_plan(small.plan, variables),
                held_back=small.held_back + back,
            )
        try:
            return Resized(resize(small), small)
        except Unfit as error:
            first = first or error
            place, text = error.failure.place or "", error.failure.text
            while any(place == p or place.startswith(f"{p}/") for p in held):
                place = place.rpartition("/")[0]
            if strict or not place:
                raise first from None
            held[place] = Held("the module", f"{place} ({text.splitlines()[0]})", ())


def _filled(
    variables: Any, held: Iterable[str]
) -> tuple[Any, dict[str, tuple[str, ...]]]:
    """Variables without the zeros of some modules, and where those were."""
    leaves, treedef = flatten(variables)
    paths: dict[str, tuple[str, ...]] = {}
    for place in held:
        for path, leaf in leaves.items():
            inside = path.startswith(f"{place}/")
            if inside and jnp.issubdtype(leaf.dtype, jnp.inexact) and (leaf == 0).any():
                leaves[path] = jnp.where(leaf == 0, 1, leaf)
                paths[place] = (*paths.get(place, ()), path)
    return unflatten(treedef, leaves), {place: paths.get(place, ()) for place in held}


class Library(NamedTuple):
    """What differs between libraries.

    Attributes:
      modules: of a module, itself included, with their paths; in the same order for
        modules of the same structure.
      arrays: what stands in the place of a module's arrays, by path.
      build: calls a constructor with some arguments, without memory.
      assign: sets an attribute.
      clone: a copy, of which a call may change the state.
    """

    modules: Callable[[Any], Iterator[tuple[str, Any]]]
    arrays: Callable[[Any], Mapping[str, Any]]
    build: Build
    assign: Callable[[Any, str, Any], None]
    clone: Callable[[Any], Any]


class Versions(NamedTuple):
    """A module as it was, with zeros for what is removed, reduced, and what is kept.

    The last has a `LeafPlan` in the place of each array.
    """

    was: Any
    full: Any
    now: Any
    kept: Any


def fit(
    library: Library,
    versions: Versions,
    small: Compact,
    call: Call,
    given: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: Any,
) -> None:
    """Give a module whose arrays shrank the sizes with which it runs and is right.

    Args:
      library: what the module is made with.
      versions: of the module; `now` is changed.
      small: the compaction.
      call: of the module.
      given: sizes that the user names, by paths of attributes.
      args: of a call; shapes stand for random numbers.
      kwargs: of the call.

    Raises:
      ValueError: if the module cannot run, computes something else, or leaves a size
        open; if a given size is that of no attribute.
    """
    args, kwargs = jax.tree.map(concrete, (args, kwargs))
    parts = _parts(library, versions)
    fixed = _given(given, parts)
    seen = _seen(small, args, kwargs)
    now = dict(library.modules(versions.now))
    reference = Reference(lambda: _side(library, versions.full, call), args, kwargs)
    search = _Search(
        {
            path: _Choice(part, fixed.get(path, {}), library.build, seen)
            for path, part in parts.items()
        }
    )

    def attempt() -> Failure | None:
        for path, choice in search.choices.items():
            for name, value in choice.attributes().items():
                library.assign(now[path], name, value)
        return reference.compare(lambda: _side(library, versions.now, call))

    first = attempt()
    failure, tries = first, 1
    while failure is not None and first is not None:
        if tries == _TRIES or not search.next(failure.suspects):
            raise Unfit(_refused(first, parts, seen), first)
        failure, tries = attempt(), tries + 1
    _refuse_ties(search, attempt)


def _side(library: Library, module: Any, call: Call) -> Side:
    module = library.clone(module)
    modules = {id(m): (path, m) for path, m in library.modules(module)}
    return Side(functools.partial(call, module), modules)


def _parts(library: Library, versions: Versions) -> dict[str, Part]:
    pairs = zip(
        library.modules(versions.was), library.modules(versions.kept), strict=True
    )
    parts = {}
    for (path, was), (_, kept) in pairs:
        inner = [f"{name}/" for name, _ in library.modules(kept) if name]
        arrays = library.arrays(kept)
        depths = {p: sum(map(p.startswith, inner)) for p in arrays}
        parts[path] = Part(path, was, arrays, depths)
    return parts


def _seen(small: Compact, args: tuple[Any, ...], kwargs: Any) -> dict[int, set[int]]:
    """To which sizes the axes of each size went, over the values of the program."""
    if not small.reductions:
        jax.eval_shape(lambda v: small.apply(v, *args, **kwargs), small.variables)
    found: dict[int, set[int]] = {}
    for traced, reduced in small.reductions.items():
        for equation in traced.program.equations:
            for value in equation.outputs:
                for mask in reduced.live.alive(value):
                    found.setdefault(mask.size, set()).add(int(mask.sum()))
    return found


# Search.


class _Choice:
    """The sizes of one module, and what else they may be."""

    def __init__(
        self, part: Part, fixed: Sizes, build: Build, seen: Mapping[int, set[int]]
    ):
        self.part = part
        self.old = _sizes.recorded(part.was)
        options, known = _sizes.near(part, build, seen)
        least = [o for o in options if o.cost == options[0].cost]
        self.ties = _distinct(o.sizes | fixed for o in least)
        self.tried = _distinct(o.sizes | fixed for o in options)
        rest = () if known else _sizes.far(part, seen)
        self.rest = (option | fixed for option in rest)
        self.position = 0

    @property
    def sizes(self) -> Sizes:
        return self.tried[self.position]

    def next(self) -> bool:
        """Take the next sizes; whether there are any."""
        self.position += 1
        while self.position >= len(self.tried):
            option = next(self.rest, None)
            if option is None:
                return False
            if option not in self.tried:
                self.tried.append(option)
        return True

    def attributes(self) -> dict[str, Any]:
        """The attributes that hold a size, with the present ones."""
        recorded = vars(self.part.was)
        found: dict[str, Any] = {}
        for (name, *keys), size in self.sizes.items():
            value = found.get(name, recorded[name])
            found[name] = _sizes.replaced(value, tuple(keys), size)
        return found


def _distinct(options: Any) -> list[Sizes]:
    found: list[Sizes] = []
    for option in options:
        if option not in found:
            found.append(option)
    return found


class _Search:
    """Choices of all modules: those that ran last before a failure change first."""

    def __init__(self, choices: dict[str, _Choice]):
        self.choices = choices

    def next(self, suspects: list[str]) -> bool:
        """Choose anew; whether there was something to choose."""
        for path in reversed(suspects):
            if self.choices[path].next():
                return True
            self.choices[path].position = 0
        return False


def _refuse_ties(search: _Search, attempt: Callable[[], Failure | None]) -> None:
    """Ask for sizes that fit as well as those chosen, and that nothing reads."""
    for choice in search.choices.values():
        chosen = choice.position
        for other in range(chosen + 1, len(choice.ties)):
            choice.position = other
            failure = attempt()
            if failure is None:
                a, b = choice.tried[chosen], choice.tried[other]
                place = next(p for p in a if a[p] != b[p])
                name = _name(choice.part.path, place)
                raise ValueError(
                    f"{name} was {choice.old[place]}, and may now be {a[place]} or "
                    f"{b[place]}: this call is right with both\n"
                    f'fix: name it, sizes={{"{name}": {a[place]}}}'
                )
        if choice.position != chosen:
            choice.position = chosen
            attempt()


# Words.


def _name(path: str, place: Place) -> str:
    return ".".join([*path.split("/"), *map(str, place)]).lstrip(".")


def _refused(failure: Failure, parts: Mapping[str, Part], seen: Any) -> str:
    part = parts.get(failure.place or "")
    lines = [failure.text]
    sizes = _sizes.recorded(part.was) if part is not None else {}
    if part is not None and sizes:
        named = [
            f"{_name(part.path, place)} = {size}"
            + "".join(f" (or {n})" for n in sorted(seen.get(size, set()) - {size}))
            for place, size in sizes.items()
        ]
        lines.append("its sizes were " + ", ".join(named))
        lines.append('fix: name those that changed, sizes={"PATH": SIZE}; or')
    lines.append(_FIX)
    return "\n".join(lines)


_FIX = (
    "fix: use the function, fn, variables = function(module); "
    "small = sslx.compact(fn)(variables, ...), "
    "which has no such limits"
)


def _given(given: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Sizes]:
    """Sizes that the user names, by module and place."""
    known = {
        _name(path, (name,)): (path, name)
        for path, part in parts.items()
        for name, *_ in _sizes.recorded(part.was)
    }
    known |= {
        _name(path, place): (path, *place)
        for path, part in parts.items()
        for place in _sizes.recorded(part.was)
    }
    found: dict[str, Sizes] = {}
    for key, value in given.items():
        name = key.replace("/", ".")
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.5) or sorted(known)[:5]
            raise ValueError(
                f"sizes: the module has no size {key!r}; it has {', '.join(near)}"
            )
        path, *place = known[name]
        old = _sizes.at(parts[path].was, tuple(place))
        found.setdefault(path, {}).update(_validated(key, old, value, tuple(place)))
    return found


def _validated(key: str, old: Any, value: Any, place: Place) -> Sizes:
    if _sizes.is_size(old) and _sizes.is_size(value) and value >= 0:
        return {place: int(value)}
    if isinstance(old, tuple | list) and isinstance(value, tuple | list):
        if len(old) == len(value):
            pairs = zip(old, value, strict=True)
            rows = [
                _validated(key, a, b, (*place, k)) for k, (a, b) in enumerate(pairs)
            ]
            return {p: n for row in rows for p, n in row.items()}
    raise ValueError(f"sizes: {key} got {value!r}, expected the like of {old!r}")


def refuse_constants(small: Compact) -> None:
    """Raise if slices were folded into constants, which no module holds."""
    if small.folded:
        raise ValueError(
            "constants were folded, and a module has no place for them: "
            + ", ".join(sorted(small.folded))
            + '\nfix: sslx.compact(..., constants="keep", alignment="align")'
        )
