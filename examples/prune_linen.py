"""Flax Linen: train with a group penalty, compact, fine-tune.

Needs: pip install sslx flax
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import sslx


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(4)(x.mean((1, 2)))


def loss(params, stats, apply):
    """Cross-entropy in training mode, and the new running statistics."""
    variables = {"params": params, "batch_stats": stats}
    logits, new = apply(variables, x, train=True, mutable=["batch_stats"])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return entropy.mean(), new["batch_stats"]


def train(variables, apply, tx, steps):
    """Some steps of an optax transformation; returns the variables."""
    params, stats = variables["params"], variables["batch_stats"]
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, stats), grads = gradient(params, stats, apply)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    for _ in range(steps):
        params, stats, state, value = step(params, stats, state)
    print(f"loss {value:.3f} after {steps} steps")
    return {"params": params, "batch_stats": stats}


# Four classes of images: a bright quarter in noise.
y = jnp.arange(64) % 4
x = jax.random.normal(jax.random.key(0), (64, 12, 12, 1))
corner = jnp.stack([y // 2, y % 2], -1)[:, :, None] == jnp.arange(12) // 6
x = x + 3 * (corner[:, 0, :, None] & corner[:, 1, None, :])[..., None]

model = Net()
variables = model.init(jax.random.key(1), x, train=False)

# A group per filter: the proximal step sets whole filters to exact zero.
groups = sslx.groups(variables["params"], {"Conv_./kernel": sslx.FILTER})
rate = 0.1
prox = sslx.proximal(sslx.GroupLasso(0.5), groups, learning_rate=rate)
tx = optax.chain(optax.sgd(rate, momentum=0.9), prox)
variables = train(variables, model.apply, tx, steps=120)

# The same plan serves training and evaluation.
small = sslx.compact(model.apply)(variables, x, train=False)
print(small.summary())
tuned = train(small.variables, small.apply, optax.sgd(rate), steps=60)
right = small.apply(tuned, x, train=False).argmax(-1) == y
print(f"accuracy {right.mean():.0%}")
assert small.variables["params"]["Conv_1"]["kernel"].shape[3] < 32
assert right.mean() > 0.9
