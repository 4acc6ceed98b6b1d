"""Equinox: get back a smaller module that runs its own code.

Needs: pip install sslx equinox
"""

import equinox as eqx
import jax
import jax.numpy as jnp

import sslx
from sslx.adapters import equinox as adapter


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 32, 3, key=one)
        self.mlp = eqx.nn.MLP(32, 10, width_size=64, depth=2, key=two)

    def __call__(self, x):
        """The logits of one image (C, H, W)."""
        return self.mlp(jax.nn.relu(self.conv(x)).mean((1, 2)))


model = Net(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (3, 16, 16))

# The module as a function of its arrays; units are named after its attributes.
fn, variables = adapter.function(model)
units = sslx.units(fn)(variables, x)
print(units.describe())

# Keep a quarter of the hidden units and half of the filters, by norm.
scores = sslx.norms(units, variables)
shares = {name: 0.5 if "conv" in name else 0.25 for name in scores}
masks = sslx.select.keep(units, scores, shares)
pruned = eqx.combine(sslx.scale(units, variables, masks), model)

smaller, small = adapter.compact(pruned)(x)
print(small.summary())
print(f"conv: {model.conv.out_channels} -> {smaller.conv.out_channels} filters")
print("hidden:", *(layer.out_features for layer in smaller.mlp.layers))
assert jnp.allclose(smaller(x), pruned(x), atol=1e-5)

# An ordinary Equinox module: batch it, train it, save it.
images = jnp.stack([x, -x])
gradient = eqx.filter_grad(lambda m: jnp.square(jax.vmap(m)(images)).mean())(smaller)
assert gradient.conv.weight.shape == smaller.conv.weight.shape
