"""Forms of the primitives of `rules/reductions.py`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.cases.forms import (
    Form,
    X,
    bind,
)

CASES: dict[str, list[Form]] = {}


REDUCTIONS = {
    "reduce_sum": "fhi",
    "reduce_max": "fhi",
    "reduce_min": "fhi",
    "reduce_prod": "fhi",
    "reduce_and": "ib",
    "reduce_or": "ib",
    "reduce_xor": "i",
}
for _name, _kinds in REDUCTIONS.items():
    _more: dict[str, Any] = {"out_sharding": None}
    if _name in ("reduce_and", "reduce_or", "reduce_xor"):
        _more = {}

    def _reduce(axes, name=_name, more=_more):
        def fn(x):
            try:
                return bind(name, axes=axes, **more)(x)
            except TypeError:
                return bind(name, axes=axes)(x)

        return fn

    CASES[_name] = [
        Form(_reduce((1,)), (X,), _kinds),
        Form(_reduce((0, 2)), ((3, 4, 5),), _kinds[0]),
        Form(_reduce((0, 1)), (X,), _kinds[0]),
        Form(_reduce((1,)), ((4, 0),), _kinds[0]),
        Form(_reduce((0,)), ((0, 5),), _kinds[0]),
        Form(_reduce((1,)), ((0, 5),), _kinds[0]),
    ]
for _name in ("argmax", "argmin"):
    _best = getattr(lax, _name)
    CASES[_name] = [
        Form(lambda x, f=_best: f(x, 1, np.int32), ((3, 4, 5),), "fhi"),
        Form(lambda x, f=_best: f(x, 0, np.int8), (X,), "f"),
    ]


def _pooled(init, op, **options):
    def fn(x):
        start = np.asarray(init).astype(x.dtype)
        window = options.get("window", (1, 2, 3))
        strides = options.get("strides", (1, 1, 2))
        padding = options.get("padding", "VALID")
        more = {k: options[k] for k in options if k.endswith("dilation")}
        return lax.reduce_window(x, start, op, window, strides, padding, **more)

    return fn


POOLS: list[dict[str, Any]] = [
    {},
    {"padding": "SAME"},
    {"padding": ((0, 0), (3, 0), (0, 4))},
    {"base_dilation": (1, 3, 1), "window_dilation": (1, 2, 1)},
    {"window": (2, 1, 1), "strides": (2, 1, 1)},
]
for _name, _init, _op in (
    ("reduce_window_sum", 0, lax.add),
    ("reduce_window_max", -np.inf, lax.max),
    ("reduce_window_min", np.inf, lax.min),
    ("reduce_window", 2, lax.add),
):
    CASES[_name] = [
        Form(_pooled(_init, _op, **options), ((2, 4, 5),), "fh") for options in POOLS
    ]
CASES["reduce_window"] += [
    Form(_pooled(1, lambda a, b: a + 2 * b), ((2, 4, 5),)),
    Form(
        lambda x, y: lax.reduce_window(
            (x, y),
            (0.0, 1.0),
            lambda a, b: (a[0] + b[0], a[1] * b[1]),
            (1, 2),
            (1, 1),
            "SAME",
        ),
        (X, X),
    ),
]
CASES["select_and_scatter_add"] = [
    Form(
        lambda x, g, w=w, s=s, p=p: bind(
            "select_and_scatter_add",
            select_prim=lax.ge_p,
            window_dimensions=w,
            window_strides=s,
            padding=p,
        )(g, x),
        ((2, 4, 5), g),
        "f",
    )
    for w, s, p, g in (
        ((1, 2, 1), (1, 2, 1), ((0, 0), (0, 0), (0, 0)), (2, 2, 5)),
        ((1, 2, 2), (1, 2, 1), ((0, 0), (0, 0), (1, 0)), (2, 2, 5)),
    )
]


for _name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    _running = getattr(lax, _name)
    CASES[_name] = [
        Form(
            lambda x, f=_running, a=a, r=r: f(x, a, r),
            (shape,),
            "fh" if _name == "cumlogsumexp" else "fhi",
        )
        for a, r, shape in ((0, False, X), (1, True, X), (1, False, (4, 0)))
    ]
CASES["sort"] = [
    Form(lambda x: lax.sort(x, 1), (X,), "fhi"),
    Form(lambda x, y: lax.sort((x, y), 0, num_keys=1), (X, X), "fi"),
    Form(lambda x, y, z: lax.sort((x, y, z), 1, num_keys=2), (X, X, X)),
    Form(lambda x: jnp.argsort(x, axis=1), (X,)),
]
CASES["top_k"] = [
    Form(lambda x: lax.top_k(x, 2), (X,), "fhi"),
    Form(lambda x: lax.top_k(x, 3, axis=0), (X,)),
]
CASES["fft"] = [
    Form(lambda x: jnp.fft.fft(x), (X,), "c"),
    Form(lambda x: jnp.fft.ifft2(x), ((3, 4, 4),), "c"),
    Form(lambda x: jnp.fft.rfft(x, n=8), (X,), "f"),
    Form(lambda x: jnp.fft.irfft(x, n=6), (X,), "c"),
    Form(lambda x: jnp.fft.fft(x, axis=0), (X,), "c"),
]
