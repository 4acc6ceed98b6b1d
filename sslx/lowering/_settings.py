"""Which arguments of a call are settings, which `jax.jit` calls static."""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sslx._calls import is_array, struct

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Settings(NamedTuple):
    """Places of positional arguments and names of keyword arguments."""

    places: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        argnums: int | Sequence[int] | None,
        argnames: str | Iterable[str] | None,
    ) -> "Settings":
        """From `static_argnums` and `static_argnames`, each completed by the other."""
        places = {argnums} if isinstance(argnums, int) else set(argnums or ())
        names = {argnames} if isinstance(argnames, str) else set(argnames or ())
        parameters = list(enumerate(_parameters(fn)))
        named = {k for k, name in parameters if name in names}
        placed = {name for k, name in parameters if k in places}
        return cls(tuple(places | named), tuple(names | placed))

    def among(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Settings":
        """The settings of a call: these, and arguments that cannot be anything else."""
        places = {*self.places, *(k + len(args) for k in self.places if k < 0)}
        return Settings(
            tuple(k for k, x in enumerate(args) if k in places or _is_setting(x)),
            tuple(n for n, x in kwargs.items() if n in self.names or _is_setting(x)),
        )

    def wrap(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """The arguments, with each setting wrapped as one leaf."""
        places, names = self.among(args, kwargs)
        return (
            tuple(
                _Setting(type(x), x) if k in places else x for k, x in enumerate(args)
            ),
            {n: _Setting(type(x), x) if n in names else x for n, x in kwargs.items()},
        )


def unwrapping(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for arguments that `Settings.wrap` returned."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*map(_value, args), **{n: _value(x) for n, x in kwargs.items()})

    return run


def signature(args: Any, kwargs: Any) -> Hashable:
    """Shapes, dtypes and settings of a call whose settings are wrapped."""
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    return treedef, tuple(map(_kind, leaves))


@dataclasses.dataclass(frozen=True)
class _Setting:
    """A value with its type, since 1 and True are different settings."""

    kind: type
    value: Any


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, _Setting) else argument


def _kind(leaf: Any) -> Hashable:
    if is_array(leaf):
        return struct(leaf)
    return leaf if isinstance(leaf, Hashable) else repr(leaf)


def _is_setting(x: Any) -> bool:
    plain = x is None or isinstance(x, int | str)
    return plain or (callable(x) and jax.tree_util.all_leaves([x]))


def _parameters(fn: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; empty if Python does not know them."""
    try:
        return list(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        return []
