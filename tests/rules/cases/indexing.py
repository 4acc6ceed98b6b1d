"""Forms of the primitives of `rules/indexing.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.cases.forms import PLACES, Form, X, ints

CASES: dict[str, list[Form]] = {}


CASES["dynamic_slice"] = [
    Form(
        lambda x, i: lax.dynamic_slice(x, (i[0], np.int32(0)), (2, 5)),
        (X, ints(7)),
        "fi",
    ),
    Form(lambda x, i: lax.dynamic_slice(x, (np.int32(0), i[0]), (4, 5)), (X, ints(2))),
    Form(lambda x: lax.dynamic_slice(x, (1, 1), (2, 2)), (X,)),
]
CASES["dynamic_update_slice"] = [
    Form(
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i[0], np.int32(0))),
        (X, (2, 5), ints(7)),
        "fi",
    ),
    Form(
        lambda x, y, i: lax.dynamic_update_slice(x, y, (np.int32(0), i[0])),
        (X, (4, 2), ints(1)),
    ),
    Form(lambda x, y: lax.dynamic_update_slice(x, y, (0, 0)), (X, X)),
]


def _gathered(**options):
    return lambda x, i: x.at[i[:, 0]].get(**options)


def _along(x, i):
    return jnp.take_along_axis(x, i, 1, mode="clip")


CASES["gather"] = [
    *(
        Form(_gathered(**options), (X, places), kinds)
        for places, options, kinds in (
            (PLACES, {"mode": "clip"}, "fhi"),
            (PLACES, {"mode": "fill"}, "fhi"),
            (PLACES, {"mode": "fill", "fill_value": 1}, "fi"),
            (PLACES, {"mode": "fill", "fill_value": 0}, "fi"),
            (PLACES, {"mode": "fill", "fill_value": np.nan}, "f"),
            (ints([1], [3]), {"mode": "promise_in_bounds"}, "fi"),
        )
    ),
    Form(lambda x, i: x.at[:, i].get(mode="fill", fill_value=2), (X, ints(1, 8))),
    Form(lambda x, i: jnp.take(x, i, axis=0), (X, ints(1, 3))),
    Form(_along, (X, ints(*[[1, 7]] * 4)), "f"),
    Form(
        jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=3)),
        ((3, 4, 5), ints([1, 9], [0, 0], [2, 3])),
    ),
]
SCATTERS = {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-min": "min",
    "scatter-max": "max",
}
for _name, _method in SCATTERS.items():

    def _write(x, y, i, method=_method, **options):
        return getattr(x.at[i[:, 0]], method)(y, **options)

    def _write_columns(x, y, i, method=_method):
        return getattr(x.at[:, i], method)(y)

    CASES[_name] = [
        Form(_write, (X, (3, 5), PLACES), "fhi"),
        Form(
            lambda x, y, i, write=_write: write(x, y, i, mode="clip"),
            (X, (3, 5), PLACES),
        ),
        Form(_write_columns, (X, (4, 2), ints(1, 1))),
        Form(
            lambda y, i, write=_write: write(jnp.full(X, 0.5), y, i),
            ((3, 5), PLACES),
        ),
    ]
CASES["scatter"] += [
    Form(lambda x: x.at[1].apply(jnp.cos), (X,)),
    Form(lambda x, y: lax.dynamic_update_slice(x, y, (1, 0)), (X, (1, 5))),
    Form(
        jax.vmap(lambda x, i, y: x.at[i].set(y)),
        ((3, 4, 5), ints(1, 9, 2), (3, 5)),
    ),
]
