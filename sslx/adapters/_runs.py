"""Two modules called with the same arguments: whether, and from where, they differ."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx._compact.jaxpr.state import stated
from sslx._compact.plan import LeafPlan
from sslx._groups.paths import leaves_by_path

_LARGEST = 2**24


class Side(NamedTuple):
    """A module's call, and its modules by `id`, with their paths."""

    call: Callable[..., Any]
    modules: Mapping[int, tuple[str, Any]]


class Failure(NamedTuple):
    """Why a module is not right.

    Attributes:
      text: one sentence.
      suspects: paths of the modules that may be the cause, first entered first: those
        that ran until then and did not return what they should; all, if none was seen.
      place: the path of the module in which it showed; None if that is not known.
    """

    text: str
    suspects: list[str]
    place: str | None


class Reference:
    """What a module is to compute, with its modules' outputs where they are asked for.

    Args:
      side: makes a fresh copy for each call, which may change state.
      args: of the call, as arrays.
      kwargs: of the call.
      state: what is kept of variables that a call may return, by path.
    """

    def __init__(
        self,
        side: Callable[[], Side],
        args: tuple[Any, ...],
        kwargs: Any,
        state: Mapping[str, LeafPlan],
    ):
        self._side, self._args, self._kwargs = side, args, kwargs
        self._state = state
        self.want = side().call(*args, **kwargs)

    @functools.cached_property
    def notes(self) -> "_Notes":
        """What the modules return."""
        return _Notes(self._side(), self._args, self._kwargs)

    def compare(self, small: Callable[[], Side]) -> Failure | None:
        """Call a module that should compute the same; None if it does, to rounding."""
        side, place = small(), None
        try:
            got = side.call(*self._args, **self._kwargs)
        except Exception as error:
            place, name = _place(error, side)
            text = f"{name} cannot run at its new sizes: {error}"
        else:
            difference = _difference(got, self.want, self._state)
            if not difference:
                return None
            text = f"at its new sizes the module computes something else: {difference}"
        notes = _Notes(small(), self._args, self._kwargs)
        wrong, right = _first_wrong(self.notes.returns, notes.returns)
        entered = notes.entered
        if wrong is not None:
            entered = entered[: wrong.entered]
            if place is None:
                place = wrong.path
                text += f", seen first in the output of {wrong.name}"
        if not any(self.notes.entered):
            return Failure(text, [path for path, _ in side.modules.values()], place)
        suspects = [
            path
            for path in entered
            if not any(path == r or path.startswith(f"{r}/") for r in right)
        ]
        return Failure(text, suspects, place)


def concrete(leaf: Any) -> Any:
    """Random numbers for a shape; anything else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        values = np.random.default_rng(0).normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _place(error: Exception, side: Side) -> tuple[str | None, str]:
    """The innermost module that was running when an error came up."""
    place, name, step = None, "the module", error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if id(owner) in side.modules:
            place, name = side.modules[id(owner)][0], _named(owner, side)
        step = step.tb_next
    return place, name


def _first_wrong(
    wants: list["_Return"], gots: list["_Return"]
) -> "tuple[_Return | None, set[str]]":
    """The first output that is no part of what it was, and whose are right."""
    right: set[str] = set()
    for want, got in zip(wants, gots, strict=False):
        if (want.path, len(want.values)) != (got.path, len(got.values)):
            return None, right
        found = list(map(_is_part, got.values, want.values))
        if False in found:
            return got, right - {got.path}
        if got.path and found and None not in found:
            right.add(got.path)
    return None, right


def _named(module: Any, side: Side) -> str:
    path, _ = side.modules[id(module)]
    return f"{path or 'the module'} ({type(module).__name__})"


class _Return(NamedTuple):
    """An output: whose, how many modules had been entered, and its arrays."""

    path: str
    name: str
    entered: int
    values: list[list[np.ndarray]]


class _Notes:
    """What the modules of a call return, in order, and in which order they start.

    Attributes:
      entered: paths, by first call.
      returns: of every call; arrays under `vmap` come as one for each example.
    """

    def __init__(self, side: Side, args: tuple[Any, ...], kwargs: Any):
        self.entered: list[str] = []
        self.returns: list[_Return] = []
        self._side = side
        previous = sys.getprofile()
        sys.setprofile(self._note)
        try:
            side.call(*args, **kwargs)
        except Exception:
            pass  # the same call has raised before, and was reported
        finally:
            sys.setprofile(previous)
        jax.effects_barrier()

    def _note(self, frame: Any, event: str, value: Any) -> None:
        name = frame.f_code.co_name
        if event not in ("call", "return") or (name[0] in "_<" and name != "__call__"):
            return
        owner = frame.f_locals.get("self")
        if id(owner) not in self._side.modules:
            return
        path, _ = self._side.modules[id(owner)]
        if event == "call":
            if path not in self.entered:
                self.entered.append(path)
            return
        leaves = [x for x in jax.tree.leaves(value) if isinstance(x, jax.Array)]
        leaves = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
        values: list[list[np.ndarray]] = [[] for _ in leaves]
        for leaf, store in zip(leaves, values, strict=True):
            if leaf.size <= _LARGEST:
                jax.debug.callback(functools.partial(_append, store), leaf)
        named = _named(owner, self._side)
        self.returns.append(_Return(path, named, len(self.entered), values))


def _append(store: list[np.ndarray], value: Any) -> None:
    store.append(np.asarray(value))


def _difference(got: Any, want: Any, state: Mapping[str, LeafPlan]) -> str:
    """What differs by more than rounding, or nothing; of state, what is kept."""
    wants, _ = leaves_by_path(want)
    gots = jax.tree.leaves(got)
    if len(wants) != len(gots):
        return f"it returns {len(gots)} arrays, expected {len(wants)}"
    for (path, a), b in zip(wants, gots, strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        where, name = path or "output", stated(path, state)
        if name is not None and a.shape == state[name].shape:
            a = state[name].shrink(a)
        if a.shape != b.shape:
            return f"{where} has shape {b.shape}, expected {a.shape}"
        if not jnp.issubdtype(a.dtype, jnp.inexact) or not a.size:
            continue
        error, size = float(jnp.abs(a - b).max()), float(jnp.abs(a).max())
        if not error <= _tolerance(a) * size:
            return f"{where} is off by {error:.3g} (its largest entry is {size:.3g})"
    return ""


def _is_part(gots: list[np.ndarray], wants: list[np.ndarray]) -> bool | None:
    """Whether arrays are what remains of others along one axis; None if not known."""
    if not gots or not wants:
        return None  # never computed: a later module could not even be traced
    if len(gots) != len(wants):
        return False
    found = list(map(_is_slices, gots, wants))
    return False if False in found else None if None in found or not found else True


def _is_slices(got: np.ndarray, want: np.ndarray) -> bool | None:
    if got.ndim != want.ndim or any(map(int.__gt__, got.shape, want.shape)):
        return False
    axes = [a for a in range(got.ndim) if got.shape[a] != want.shape[a]]
    if len(axes) > 1 or not got.size:
        return None
    bound = _tolerance(want) * np.abs(want).max()
    if not axes:
        return bool((np.abs(got - want) <= bound).all())
    rows = iter(np.moveaxis(want, axes[0], 0))
    return all(
        any((np.abs(row - other) <= bound).all() for other in rows)
        for row in np.moveaxis(got, axes[0], 0)
    )


def _tolerance(array: Any) -> float:
    return float(jnp.finfo(array.dtype).eps) ** 0.5
