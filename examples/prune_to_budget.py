"""Plain JAX: prune a network to a budget of multiply-adds and run the smaller one.

Needs: pip install sslx
"""

import jax
import jax.numpy as jnp

import sslx


def net(params, x):
    """A convolution, a depthwise one, and a classifier, on images (N, H, W, C)."""
    layout = ("NHWC", "HWIO", "NHWC")
    for name, stride in (("stem", 1), ("wide", 2)):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )
        x = jax.nn.relu(x + bias)
    return x.mean((1, 2)) @ params["head"]


def init(key):
    stem, wide, head = jax.random.split(key, 3)
    return {
        "stem": {
            "kernel": jax.random.normal(stem, (3, 3, 3, 32)) / 5,
            "bias": jnp.zeros(32),
        },
        "wide": {
            "kernel": jax.random.normal(wide, (3, 3, 32, 64)) / 17,
            "bias": jnp.zeros(64),
        },
        "head": jax.random.normal(head, (64, 10)) / 8,
    }


params = init(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))

# The slices that can only go together, found in the program itself.
units = sslx.units(net)(params, x)
print(units.describe())

# Keep the units of largest norm, as many as half of the multiply-adds allow.
scores = sslx.norms(units, params)
dense = sslx.measure.cost(net, params, x)


def compacted(masks):
    return sslx.compact(net)(sslx.scale(units, params, masks), x)


def macs(masks):
    small = compacted(masks)
    return sslx.measure.cost(small.apply, small.variables, x).macs


masks = sslx.select.within_budget(
    lambda density: sslx.select.keep(units, scores, density),
    macs,
    budget=dense.macs // 2,
    tolerance=0.02,
)

# What is left is an ordinary function of smaller arrays.
small = compacted(masks)
print(small.summary())
print(f"{dense.macs:,} multiply-adds before, {macs(masks):,} after")
want = net(sslx.scale(units, params, masks), x)
got = jax.jit(small.apply)(small.variables, x)
assert jnp.allclose(got, want, atol=1e-4)
