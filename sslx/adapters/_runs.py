"""Two modules called with the same arguments: do they compute the same, and if not,
where does it start."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 2**24


class Side(NamedTuple):
    """A module's call, and its modules by `id`, with their paths."""

    call: Callable[..., Any]
    modules: Mapping[int, tuple[str, Any]]


class Failure(NamedTuple):
    """Why a module is not right.

    Attributes:
      text: one sentence.
      entered: paths of the modules that ran until then, first entered first.
      place: the path of the module in which it showed; None if that is not known.
    """

    text: str
    entered: list[str]
    place: str | None


def compare(
    full: Callable[[], Side],
    small: Callable[[], Side],
    args: tuple[Any, ...],
    kwargs: Any,
) -> Failure | None:
    """Call two modules and compare; None if they agree to rounding.

    Args:
      full: what is to be computed; a fresh copy for each call, which may change state.
      small: what should compute it; likewise.
      args: of the call, as arrays.
      kwargs: of the call.
    """
    want = full().call(*args, **kwargs)
    side = small()
    try:
        difference = _difference(side.call(*args, **kwargs), want)
    except Exception as error:
        return _raised(error, side, _Notes(small(), args, kwargs))
    if not difference:
        return None
    return _differs(difference, _Notes(full(), args, kwargs), small(), args, kwargs)


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


def _raised(error: Exception, side: Side, notes: "_Notes") -> Failure:
    """The innermost module that was running when an error came up."""
    place, name, step = None, "the module", error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        if id(owner) in side.modules:
            place, name = side.modules[id(owner)][0], _named(owner, side)
        step = step.tb_next
    text = f"{name} cannot run at its new sizes: {error}"
    return Failure(text, notes.entered, place)


def _differs(
    difference: str, wants: "_Notes", side: Side, args: tuple[Any, ...], kwargs: Any
) -> Failure:
    """The first module whose output is not a part of what it was."""
    gots = _Notes(side, args, kwargs)
    text = f"at its new sizes the module computes something else: {difference}"
    for want, got in zip(wants.returns, gots.returns, strict=False):
        if (want.path, len(want.values)) != (got.path, len(got.values)):
            break
        if not all(map(_is_part, got.values, want.values)):
            text += f", seen first in the output of {got.name}"
            return Failure(text, gots.entered[: got.entered], got.path)
    return Failure(text, gots.entered, None)


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


def _difference(got: Any, want: Any) -> str:
    """What differs by more than rounding, or nothing."""
    wants = jax.tree_util.tree_leaves_with_path(want)
    gots = jax.tree.leaves(got)
    if len(wants) != len(gots):
        return f"it returns {len(gots)} arrays, expected {len(wants)}"
    for (path, a), b in zip(wants, gots, strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        where = jax.tree_util.keystr(path, simple=True, separator="/") or "output"
        if a.shape != b.shape:
            return f"{where} has shape {b.shape}, expected {a.shape}"
        if not jnp.issubdtype(a.dtype, jnp.inexact) or not a.size:
            continue
        error, size = float(jnp.abs(a - b).max()), float(jnp.abs(a).max())
        if not error <= _tolerance(a) * size:
            return f"{where} is off by {error:.3g} (its largest entry is {size:.3g})"
    return ""


def _is_part(gots: list[np.ndarray], wants: list[np.ndarray]) -> bool:
    """Whether arrays are what remains of others along one axis, as far as is known."""
    if len(gots) != len(wants):
        return False
    return all(map(_is_slices, gots, wants))


def _is_slices(got: np.ndarray, want: np.ndarray) -> bool:
    if got.ndim != want.ndim or any(m > n for m, n in zip(got.shape, want.shape)):
        return False
    axes = [a for a in range(got.ndim) if got.shape[a] != want.shape[a]]
    if len(axes) > 1 or not got.size:
        return True
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
