"""Forms of the primitives of `rules/layout.py`."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.cases.forms import NONE, ROW, Form, X

CASES: dict[str, list[Form]] = {}


CASES["broadcast_in_dim"] = [
    Form(lambda x: lax.broadcast_in_dim(x, (2, 4, 3, 5), (1, 3)), (X,), "fhib"),
    Form(lambda x: lax.broadcast_in_dim(x, (3, 5), (0, 1)), (ROW,)),
    Form(lambda x: lax.broadcast_in_dim(x, (3, 5), ()), (NONE,)),
    Form(lambda x: lax.broadcast_in_dim(x, (0, 5), (0, 1)), (ROW,)),
]
CASES["reshape"] = [
    Form(lambda x: x.reshape(20), (X,), "fhi"),
    Form(lambda x: x.reshape(2, 2, 5, 1), (X,)),
    Form(lambda x: x.reshape(10, 2), (X,)),
    Form(lambda x: x.reshape(4, 1, 5), ((1, 4, 5, 1),)),
    Form(lambda x: x.reshape(0, 3), ((4, 0),)),
    Form(lambda x: x.reshape(1, 1), (NONE,)),
]
CASES["squeeze"] = [Form(lambda x: lax.squeeze(x, (0, -1)), ((1, 4, 5, 1),), "fi")]
CASES["transpose"] = [Form(lambda x: x.transpose(2, 0, 1), ((3, 4, 5),), "fi")]
CASES["rev"] = [Form(lambda x: lax.rev(x, (0, 2)), ((3, 4, 5),), "fi")]
CASES["slice"] = [
    Form(lambda x: x[1:3, ::2], (X,), "fi"),
    Form(lambda x: x[2:2], (X,)),
    Form(lambda x: lax.slice(x, (1, 0), (4, 5), (2, 3)), (X,)),
]
CASES["split"] = [
    Form(lambda x: lax.split(x, (2, 0, 3), 1), (X,), "fi"),
    Form(lambda x: lax.split(x, (4,), 0), (X,)),
]
CASES["concatenate"] = [
    Form(lambda *xs: lax.concatenate(xs, 1), (X, (4, 0), (4, 2)), "fhi"),
    Form(lambda *xs: lax.concatenate(xs, 0), (X, X)),
    Form(lambda x: lax.concatenate([x], 0), (X,)),
    Form(lambda x: jnp.concatenate([x, np.ones((4, 2))], 1), (X,)),
]
CASES["stack"] = [
    Form(lambda *xs, a=a: jnp.stack(xs, a), (X, X, X), "fi") for a in (0, 1, 2)
]
CASES["unstack"] = [
    Form(lambda x, a=a: jnp.unstack(x, axis=a), (X,), "fi") for a in (0, 1)
]
CASES["tile"] = [
    Form(lambda x: jnp.tile(x, (2, 1, 3)), (X,), "fi"),
    Form(lambda x: jnp.tile(x, (2, 2)), (X,)),
    Form(lambda x: jnp.tile(x, 2), ((4, 0),)),
]
PADS = {
    "both": ((1, 2, 0), (0, 1, 0)),
    "one": ((0, 0, 0), (2, 0, 0)),
    "inside": ((0, 0, 0), (0, 0, 2)),
    "crop": ((-1, 0, 0), (1, -2, 1)),
    "none": ((0, 0, 0), (0, 0, 0)),
}
CASES["pad"] = [
    *(
        Form(lambda x, c=c, v=v: lax.pad(x, np.asarray(v, x.dtype), c), (X,), "fi")
        for c in PADS.values()
        for v in (0, 3)
    ),
    *(Form(lambda x, y, c=c: lax.pad(x, y, c), (X, NONE)) for c in PADS.values()),
    Form(lambda x: lax.pad(x, -jnp.inf, PADS["both"]), (X,)),
    Form(lambda x: jnp.pad(x, 1), (X,), "fhi"),
    Form(lambda x, v: jnp.pad(x, ((0, 0), (1, 1)), constant_values=v[0]), (X, (3,))),
    Form(lambda x: lax.pad(x, x.sum(), PADS["one"]), (X,)),
]
