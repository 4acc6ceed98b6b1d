"""Variables that are state: calls return their new values under their paths."""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any


def expressions(
    what: str, given: str | Sequence[str], paths: Collection[str]
) -> tuple[str, ...]:
    """Regular expressions for paths, as the user gave them under the name `what`.

    Raises:
      TypeError: they are not strings.
      ValueError: one is no regular expression, or is found in no path.
    """
    listed = isinstance(given, list | tuple | set | frozenset)
    found: tuple[Any, ...] = tuple(given) if listed else (given,)
    wrong = [x for x in found if not isinstance(x, str)]
    if wrong:
        raise TypeError(
            f"{what}: got {type(wrong[0]).__name__}, expected regular expressions for "
            f"paths of the variables; fix: if {what} is an argument of the function, "
            "bind it before, lambda v, x: fn(v, x, ...)"
        )
    for text in found:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(
                f"{what}: {text!r} is not a regular expression: {error}"
            ) from error
    idle = [text for text in found if not any(re.search(text, p) for p in paths)]
    if idle:
        raise ValueError(f"{what} {idle} is found in no leaf; there are {list(paths)}")
    return found


def state_of(
    fn: Callable[..., Any],
    kwargs: Mapping[str, Any],
    patterns: Sequence[str],
    paths: Iterable[str],
) -> frozenset[str]:
    """The variables that are state in a call.

    Those that a pattern is found in, and those of the collections that Linen's keyword
    `mutable` names, in the call or bound to the function by `functools.partial`.
    """
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    mutable = {**bound, **kwargs}.get("mutable", False)
    return frozenset(
        path
        for path in paths
        if any(re.search(p, path) for p in patterns)
        or _names(mutable, path.split("/")[0])
    )


def _names(mutable: Any, collection: str) -> bool:
    """Whether a filter of Linen's lets a collection through."""
    if isinstance(mutable, str):
        return mutable == collection
    if isinstance(mutable, Collection):
        return collection in mutable
    denied = getattr(mutable, "deny", None)
    return mutable is True if denied is None else not _names(denied, collection)


def stated(path: str, state: Collection[str]) -> str | None:
    """The longest path of a state variable that the path of an output ends with."""
    parts = path.split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail in state), None)
