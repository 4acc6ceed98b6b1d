"""Flax NNX: get back a smaller module that runs its own code.

Needs: pip install sslx flax
"""

import jax
import jax.numpy as jnp
from flax import nnx

import sslx
from sslx.adapters import nnx as adapter


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.hidden = nnx.Linear(32, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(nnx.relu(self.hidden(x)))


model = Net(nnx.Rngs(0))
model.eval()
x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))

# The module as a function of its arrays; units are named after its attributes.
fn, variables = adapter.function(model)
units = sslx.units(fn)(variables, x)
print(units.describe())

# Set the weaker half of each class of units to zero, in the module.
masks = sslx.select.keep(units, sslx.norms(units, variables), density=0.5)
graph, state = nnx.split(model)
nnx.replace_by_pure_dict(state, sslx.scale(units, variables, masks))
pruned = nnx.merge(graph, state)

smaller, small = adapter.compact(pruned)(x)
print(small.summary())
print(f"conv: {model.conv.out_features} -> {smaller.conv.out_features} filters")
print(f"hidden: {model.hidden.out_features} -> {smaller.hidden.out_features} units")
assert jnp.allclose(smaller(x), pruned(x), atol=1e-5)

# An ordinary NNX module: train it, jit it, checkpoint it.
gradient = nnx.grad(lambda model: jnp.square(model(x)).mean())(smaller)
assert gradient["hidden"]["kernel"].shape == smaller.hidden.kernel.shape
