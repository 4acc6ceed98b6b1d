"""Ways to call a primitive, and all primitives of JAX."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import lax


class Form(NamedTuple):
    """One way to call a primitive.

    Attributes:
      fn: makes the equation, perhaps with a few others.
      operands: shapes, or arrays.
      kinds: of the random operands: f float64, h bfloat16, i int8, b bool, c complex.
    """

    fn: Callable[..., Any]
    operands: tuple[Any, ...]
    kinds: str = "f"


def primitives() -> dict[str, Any]:
    """All primitives of JAX and what they are called, experimental modules apart."""
    import jax.scipy.fft
    import jax.scipy.linalg
    import jax.scipy.ndimage
    import jax.scipy.signal
    import jax.scipy.special
    import jax.scipy.stats  # noqa: F401

    kind = type(lax.add_p).__mro__[-2]
    found = {}
    for name, module in list(sys.modules.items()):
        ours = ".pallas" not in name and ".experimental" not in name
        if ours and name.startswith("jax."):
            rows = vars(module).values()
            found.update((v.name, v) for v in list(rows) if isinstance(v, kind))
    return found


PRIMITIVES = primitives()


def bind(name: str, **params: Any) -> Callable[..., Any]:
    return lambda *xs: PRIMITIVES[name].bind(*xs, **params)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


X, ROW, COLUMN, NONE = (4, 5), (1, 5), (4, 1), ()
KEY = np.array([3, 7], np.uint32)
PLACES = ints([0], [9], [2])
