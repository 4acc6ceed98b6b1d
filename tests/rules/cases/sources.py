"""Forms of the primitives of `rules/sources.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.rules.cases.forms import KEY, Form, X, bind

CASES: dict[str, list[Form]] = {}


CASES["iota"] = [Form(lambda x: x + lax.broadcasted_iota(x.dtype, X, 1), (X,), "fi")]
CASES["rng_bit_generator"] = [
    Form(
        lambda x: (
            x * lax.rng_bit_generator(np.zeros(4, np.uint32), X)[1].astype(x.dtype)
        ),
        (X,),
    )
]


def _threefry(x):
    halves = np.arange(20, dtype=np.uint32).reshape(2, 10)
    bits = bind("threefry2x32")(*np.broadcast_to(KEY[:, None], (2, 10)), *halves)
    return x * jnp.concatenate(bits).reshape(X).astype(x.dtype)


CASES["threefry2x32"] = [Form(_threefry, (X,))]


def _keys(x):
    key = jax.random.clone(jax.random.fold_in(jax.random.key(3), 1))
    first, _ = jax.random.split(key)
    data = jax.random.key_data(first)
    again = jax.random.wrap_key_data(data, impl="threefry2x32")
    return x * jax.random.bits(again, X, np.uint8).astype(x.dtype)


for _name in "seed wrap unwrap bits split fold_in clone".split():
    CASES[f"random_{_name}"] = [Form(_keys, (X,))]
CASES["random_gamma"] = [
    Form(lambda x: x + jax.random.gamma(jax.random.key(0), 2.0, X, x.dtype), (X,))
]
