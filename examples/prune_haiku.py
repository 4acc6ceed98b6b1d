"""Haiku: prune a network with running statistics, its state in the same tree.

Needs: pip install sslx dm-haiku
"""

import haiku as hk
import jax
import jax.numpy as jnp

import sslx


def forward(x, train):
    for width in (32, 64):
        x = hk.Conv2D(width, 3, stride=2, with_bias=False)(x)
        x = hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=train)
        x = jax.nn.relu(x)
    return hk.Linear(10)(x.mean((1, 2)))


net = hk.without_apply_rng(hk.transform_with_state(forward))
x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
params, state = net.init(jax.random.key(1), x, train=True)
variables = {"params": params, "state": state}


def fn(variables, x, train=False):
    """Haiku's apply on one tree: logits, and the new state in its place."""
    logits, new = net.apply(variables["params"], variables["state"], x, train)
    return logits, {"state": new}


# `state=` names what a call returns anew, so that it shrinks instead of staying.
units = sslx.units(fn, state="^state/")(variables, x)
print(units.describe())
masks = sslx.select.keep(units, sslx.norms(units, variables), density=0.5)
pruned = sslx.scale(units, variables, masks)

small = sslx.compact(fn, state="^state/")(pruned, x)
print(small.summary())
want, _ = fn(pruned, x)
got, _ = small.apply(small.variables, x)
assert jnp.allclose(got, want, atol=1e-5)

# The same plan serves training: statistics are updated in their smaller shape.
_, new = small.apply(small.variables, x, train=True)
shapes = [leaf.shape for leaf in jax.tree.leaves(new["state"])]
assert shapes == [leaf.shape for leaf in jax.tree.leaves(small.variables["state"])]
