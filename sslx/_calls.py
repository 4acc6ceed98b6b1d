"""The arguments of a call: arrays, and real and complex numbers, are traced.

Everything else is fixed: integers are sizes and switches as a rule, and a number that
counts may be given as an array.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat


class Call(NamedTuple):
    """Positional and keyword arguments, taken apart.

    `treedef` and `fixed` (with None in place of arrays) say what the call is; `arrays`
    are its data.
    """

    treedef: Any
    fixed: tuple[Any, ...]
    arrays: tuple[Any, ...]

    def rebuild(self, arrays: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with other arrays."""
        it = iter(arrays)
        leaves = [next(it) if f is _ARRAY else f for f in self.fixed]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    def run(self, fn: Callable[..., Any], arrays: Any, *before: Any) -> Any:
        """`fn(*before, *args, **kwargs)` with other arrays in the arguments."""
        args, kwargs = self.rebuild(arrays)
        try:
            return fn(*before, *args, **kwargs)
        except (
            jax.errors.ConcretizationTypeError,
            jax.errors.TracerIntegerConversionError,
        ) as error:
            error.add_note(
                "real and complex numbers in a call are traced, as jax.jit traces "
                "them; fix: bind one that is a setting, functools.partial(fn, rate=0.1)"
            )
            raise


class _Array:
    def __repr__(self) -> str:
        return "<array>"


_ARRAY = _Array()


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data rather than a setting."""
    arrays = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, (*arrays, float, complex))


def take_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Separate the arrays of a call from what stays fixed."""
    leaves, treedef = jax.tree_util.tree_flatten((args, kwargs))
    fixed = tuple(_ARRAY if is_array(x) else x for x in leaves)
    return Call(treedef, fixed, tuple(as_jax(x) for x in leaves if is_array(x)))


def as_jax(array: Any) -> Any:
    """An array in the precision JAX gives it, numbers weakly typed; shapes stay."""
    return array if isinstance(array, jax.ShapeDtypeStruct) else jnp.asarray(array)


def on_host(array: Any) -> bool:
    """Whether NumPy can read an array where it is."""
    if isinstance(array, np.ndarray):
        return True
    if _jax_compat.is_traced(array) or not isinstance(array, jax.Array):
        return False
    plain = not jnp.issubdtype(array.dtype, jax.dtypes.extended)
    return plain and array.devices() == {jax.devices("cpu")[0]}


def like(array: np.ndarray, other: Any) -> jax.Array:
    """A host array as a JAX array, on the device of another if that was chosen."""
    chosen = isinstance(other, jax.Array) and other.committed
    return jax.device_put(array, other.sharding if chosen else None)


def struct(array: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, weak types included."""
    aval = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=bool(aval.weak_type))


def require_function(fn: Any, variables: Any = None) -> None:
    """Raise unless a value is a function of `(variables, ...)`.

    Raises:
      TypeError: `fn` is something else, and what to give instead.
    """
    name = type(fn).__name__
    if callable(fn) and not (hasattr(fn, "init") and hasattr(fn, "apply")):
        return
    fix = "give a JAX function of (variables, *args)"
    if hasattr(fn, "apply"):
        fix = "give its method, fn.apply"
    elif callable(variables):
        fix = "the function comes first, then the variables"
    raise TypeError(f"fn: got {name}, expected a function; fix: {fix}")


def require_two_steps(call: str, example: tuple[Any, ...]) -> None:
    """Raise if an example call is given with the function rather than after it.

    Raises:
      TypeError: with how to write it.
    """
    if example:
        raise TypeError(
            f"got {len(example)} arguments after the first; fix: options first, then "
            f"the call, {call}"
        )


def require_word(name: str, got: Any, words: tuple[str, ...]) -> None:
    """Refuse an option that is none of its words.

    Raises:
      ValueError: with all that would do.
    """
    if not isinstance(got, str) or got not in words:
        raise ValueError(f"{name}: got {got!r}, expected one of {', '.join(words)}")


def require_count(name: str, got: Any) -> None:
    """Raise unless a value is a positive integer.

    Raises:
      TypeError: it is not an integer.
      ValueError: it is less than 1.
    """
    if isinstance(got, bool) or not isinstance(got, int | np.integer):
        raise TypeError(f"{name}: got {got!r}, expected an integer")
    if got < 1:
        raise ValueError(f"{name}: got {got}, expected at least 1")
