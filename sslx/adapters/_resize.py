"""Objects that hold arrays and code: sizes in their attributes after arrays shrank.

Sizes that the arrays allow (`_sizes`) are tried until the module runs and computes what
it did; what remains open is asked for.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sslx._calls import take_apart
from sslx._compact.analysis.report import HeldBack
from sslx._compact.compacted import Compact
from sslx._compact.in_place import compact_in_place
from sslx._compact.jaxpr.state import state_of
from sslx._groups.groups import flatten
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
    library: "Library",
    module: Any,
    resize: Callable[[Compact], Any],
    call: Call,
    strict: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Resized:
    """The compaction that a module's own code can run: nothing moved, nothing added.

    What the code needs in the module's mode and in that for inference stays. The arrays
    of a submodule whose code cannot be right at smaller sizes stay whole, and so do the
    operands of means, which `held_back` says; with `strict`, or where that is the whole
    module, it raises.

    Args:
      library: what the module is made with.
      module: to reduce.
      resize: makes a module of a compaction.
      call: of the module.
      strict: raise where something has to stay whole.
      args: of an example call.
      kwargs: of the call.
    """
    modes = [library.function(mode, call) for mode in library.modes(module)]
    fns, variables = [fn for fn, _ in modes], modes[0][1]
    leaves, _ = flatten(variables)
    state = library.state(module)
    run = functools.partial(
        *(compact_in_place, fns, variables, args, kwargs), state=state, strict=strict
    )
    held: dict[str, HeldBack] = {}
    first: Unfit | None = None
    while True:
        whole = {p for p in leaves if any(p.startswith(f"{h}/") for h in held)}
        small, some = run(whole=whole, some=()), ()
        gone = set() if strict else _gone(small)
        if gone:
            small = run(whole=whole, some=gone)
            some = gone - _gone(small)
        back = (*_kept_for_means(small), *_kept_for_code(some), *held.values())
        small = dataclasses.replace(small, held_back=small.held_back + back)
        try:
            new = resize(small)
            if len(modes) > 1:
                _require_shapes(library.function(new, call), args, kwargs)
            return Resized(new, small)
        except Unfit as error:
            first = first or error
            place, text = error.failure.place or "", error.failure.text
            while any(place == p or place.startswith(f"{p}/") for p in held):
                place = place.rpartition("/")[0]
            if strict or not place:
                raise first from None
            held = {p: h for p, h in held.items() if not p.startswith(f"{place}/")}
            paths = tuple(p for p in leaves if p.startswith(f"{place}/"))
            why = f"{place} ({text.splitlines()[0]})"
            held[place] = HeldBack("the module", why, paths, "it stays whole")


def _gone(small: Compact) -> set[str]:
    """The variables of which nothing is left."""
    plan = small.plan.leaves
    return {p for p, x in plan.items() if 0 in x.small_shape and 0 not in x.shape}


def _kept_for_code(paths: Iterable[str]) -> list[HeldBack]:
    """The modules of which a slice stays that is zero."""
    found: dict[str, list[str]] = {}
    for path in sorted(paths):
        found.setdefault(path.rpartition("/")[0], []).append(path)
    reason = "nothing else is left of it, and its code runs all the same"
    return [HeldBack("the module", at, tuple(p), reason) for at, p in found.items()]


def _kept_for_means(small: Compact) -> list[HeldBack]:
    """The means for which zero slices stay."""
    found: dict[str, list[str]] = {}
    for kept in small.kept_zeros:
        if kept.primitive == "reduce_sum":
            found.setdefault(kept.source, []).append(kept.path)
    reason = "a mean counts the slices that are there"
    return [
        HeldBack("reduce_sum", source, tuple(dict.fromkeys(paths)), reason)
        for source, paths in found.items()
    ]


def _require_shapes(
    function: tuple[Callable[..., Any], Any], args: tuple[Any, ...], kwargs: Any
) -> None:
    """Raise unless a module runs in its own mode."""
    fn, variables = function
    call = take_apart(args, kwargs)
    try:
        jax.eval_shape(lambda v, x: call.run(fn, x, v), variables, list(call.arrays))
    except Exception as error:
        text = f"in its own mode the module cannot run at its new sizes: {error}"
        raise Unfit(f"{text}\n{_FIX}", Failure(text, [], None)) from error


class Library(NamedTuple):
    """What differs between libraries.

    Attributes:
      modules: of a module, itself included, with their paths; in the same order for
        modules of the same structure.
      arrays: what stands in the place of a module's arrays, by path.
      build: calls a constructor with some arguments, without memory.
      assign: sets an attribute.
      modes: a module, if it is in another mode, and last a copy of it in the mode for
        inference, of which a call may change the state.
      function: a module as a pure function, and its arrays.
      state: paths of the arrays that calls change.
    """

    modules: Callable[[Any], Iterator[tuple[str, Any]]]
    arrays: Callable[[Any], Mapping[str, Any]]
    build: Build
    assign: Callable[[Any, str, Any], None]
    modes: Callable[[Any], Sequence[Any]]
    function: Callable[[Any, Call], tuple[Callable[..., Any], Any]]
    state: Callable[[Any], Collection[str]]


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
    plan = small.plan.leaves
    state = {path: plan[path] for path in state_of(call, kwargs, small.state, plan)}
    full = lambda: _side(library, versions.full, call)
    reference = Reference(full, args, kwargs, state)
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
    module = library.modes(module)[-1]
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
    if not small._programs:
        jax.eval_shape(lambda v: small.apply(v, *args, **kwargs), small.variables)
    found: dict[int, set[int]] = {}
    for traced, reduced in small._programs.items():
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
