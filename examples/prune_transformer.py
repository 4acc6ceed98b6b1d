"""A transformer decoder block: remove attention heads and hidden units.

Needs: pip install sslx
"""

import jax
import jax.numpy as jnp

import sslx

WIDTH, HEADS, HEAD, HIDDEN, LENGTH = 64, 8, 8, 256, 16
SHAPES = {
    "query": (WIDTH, HEADS, HEAD),
    "key": (WIDTH, HEADS, HEAD),
    "value": (WIDTH, HEADS, HEAD),
    "out": (HEADS, HEAD, WIDTH),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}


def norm(x):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def block(params, x):
    """Causal self-attention and an MLP, both added to the stream (N, T, WIDTH)."""
    read = norm(x)
    q, k, v = (
        jnp.einsum("ntd,dhe->nthe", read, params[name])
        for name in ("query", "key", "value")
    )
    logits = jnp.einsum("nthe,nshe->nhts", q, k) / HEAD**0.5
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9))
    mixed = jnp.einsum("nhts,nshe->nthe", weights, v)
    x = x + jnp.einsum("nthe,hed->ntd", mixed, params["out"])
    return x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]


keys = dict(zip(SHAPES, jax.random.split(jax.random.key(0), len(SHAPES)), strict=True))
params = {name: jax.random.normal(keys[name], SHAPES[name]) / 8 for name in SHAPES}
x = jax.random.normal(jax.random.key(1), (2, LENGTH, WIDTH))

# A unit is a head (its queries, keys, values and output), one of a head's entries, or a
# hidden unit of the MLP. The stream reaches the output of the block and stays whole.
units = sslx.units(block)(params, x)
print(units.describe())

# Half of the heads and a quarter of the hidden units, those whose removal changes the
# loss most by a first-order Taylor expansion; the other classes are kept whole.
scores = sslx.select.taylor(units, params, lambda p: jnp.square(block(p, x)).mean())
masks = sslx.select.keep(units, scores, density={"query[1]": 0.5, "up[1]": 0.25})
pruned = sslx.scale(units, params, masks)

small = sslx.compact(block)(pruned, x)
print(small.summary())
before, after = params["query"].shape[1], small.variables["query"].shape[1]
print(f"{before} -> {after} heads")
want, got = block(pruned, x), small.apply(small.variables, x)
assert jnp.allclose(got, want, atol=1e-4)

# Other lengths need no new plan.
longer = jax.random.normal(jax.random.key(2), (1, 2 * LENGTH, WIDTH))
want, got = block(pruned, longer), small.apply(small.variables, longer)
assert jnp.allclose(got, want, atol=1e-4)
