"""Constant channels: computed from the variables in every call, trained with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sslx

DEAD = slice(0, 3)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = nn.Conv(8, (3, 3), use_bias=False, param_dtype=jnp.float64)(x)
            x = nn.BatchNorm(not train, momentum=0.9, param_dtype=jnp.float64)(x)
            x = jnp.tanh(x)
        return nn.Dense(3, param_dtype=jnp.float64)(x.mean((1, 2)))


def trained():
    """A network with dead filters whose norms still speak."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 8, 8, 3)))
    variables = jax.eval_shape(Net().init, jax.random.key(0), x)
    variables = jax.tree.map(
        lambda a: jnp.asarray(0.5 * np.abs(rng.normal(size=a.shape))), variables
    )
    kernel = variables["params"]["Conv_0"]["kernel"]
    variables["params"]["Conv_0"]["kernel"] = kernel.at[..., DEAD].set(0)
    return variables, x


def distance(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("constants", ["fold", "keep"])
def test_statistics_of_constant_channels_are_recalibrated(constants):
    dense, x = trained()
    net = Net()
    small = sslx.compact(net.apply, constants=constants)(dense, x)
    compact = small.variables

    @jax.jit
    def step(dense, compact):
        mode = {"train": True, "mutable": ["batch_stats"]}
        _, a = net.apply(dense, x, **mode)
        _, b = small.apply(compact, x, **mode)
        return {**dense, **a}, {**compact, **b}

    for _ in range(10):
        dense, compact = step(dense, compact)
        assert distance(small.apply(compact, x), net.apply(dense, x)) < 1e-10


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("constants", ["fold", "keep"])
def test_a_compact_network_trains_as_the_dense_one_with_frozen_zeros(constants):
    dense, x = trained()
    net, y = Net(), jnp.eye(8, 3)
    small = sslx.compact(net.apply, constants=constants)(dense, x)
    groups = sslx.groups(dense["params"], {"Conv_0/kernel": sslx.FILTER})
    few = sslx.groups(small.variables["params"], {"Conv_0/kernel": sslx.FILTER})

    def trainer(apply, groups):
        tx = optax.chain(optax.sgd(0.1, momentum=0.9), sslx.keep_zeros(groups))

        def loss(params, stats):
            variables = {"params": params, **stats}
            mode = {"train": True, "mutable": ["batch_stats"]}
            out, stats = apply(variables, x, **mode)
            return ((out - y) ** 2).mean(), stats

        @jax.jit
        def step(variables, state):
            params = variables["params"]
            stats = {"batch_stats": variables["batch_stats"]}
            grads, stats = jax.grad(loss, has_aux=True)(params, stats)
            updates, state = tx.update(grads, state, params)
            return {"params": optax.apply_updates(params, updates), **stats}, state

        return tx.init, step

    compact = small.variables
    (init, step), (init_small, step_small) = (
        trainer(net.apply, groups),
        trainer(small.apply, few),
    )
    state, state_small = init(dense["params"]), init_small(compact["params"])
    for _ in range(20):
        dense, state = step(dense, state)
        compact, state_small = step_small(compact, state_small)
    assert distance(small.apply(compact, x), net.apply(dense, x)) < 1e-8
    wide = small.expand(compact)
    assert distance(net.apply(wide, x), net.apply(dense, x)) < 1e-8


def token_net(p, x):
    token = jnp.tile(p["token"], (x.shape[0], 1, 1))
    h = jnp.concatenate([token, x @ p["embed"]], 1)
    q, k, v = (h @ p[name] for name in "qkv")
    return (jax.nn.softmax(q @ k.swapaxes(1, 2), -1) @ v).mean(1) @ p["out"]


def token_params(width=16):
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (3, width),
        "token": (1, 1, width),
        **dict.fromkeys("qkv", (width, width)),
        "out": (width, 3),
    }
    params = {n: jnp.asarray(rng.normal(size=s)) / 4 for n, s in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(2, 6, 3)))


def test_a_class_token_costs_nothing():
    p, x = token_params()
    small = sslx.compact(token_net)(p, x)
    before = sslx.measure.cost(token_net, p, x)
    assert sslx.measure.cost(small.apply, small.variables, x).macs == before.macs


@pytest.mark.parametrize("alignment", ["auto", "align", "scatter"])
def test_the_width_around_a_class_token_shrinks(alignment):
    p, x = token_params()
    units = sslx.units(token_net)(p, x)
    name = next(c.name for c in units.classes if "embed" in str(c.members))
    p = sslx.scale(units, p, {name: np.arange(16) % 2})
    small = sslx.compact(token_net, alignment=alignment)(p, x)
    assert small.variables["token"].shape == (1, 1, 8)
    assert small.variables["embed"].shape == (3, 8)
    np.testing.assert_allclose(
        small.apply(small.variables, x), token_net(p, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rows", [1, 7])
def test_constant_channels_never_cost_more_than_the_dense_network(rows):
    rng = np.random.default_rng(0)
    p = {"a": rng.normal(size=(5, 32)), "b": rng.normal(size=32)}
    p |= {"c": rng.normal(size=(32, 32)), "d": rng.normal(size=(32, 2))}
    p = jax.tree.map(jnp.asarray, p)
    p["a"] = p["a"].at[:, :9].set(0)
    x = jnp.ones((rows, 5))

    def net(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"]) @ p["d"]

    small = sslx.compact(net)(p, x)
    assert small.variables["a"].shape == (5, 23)
    dense = sslx.measure.cost(net, p, x).macs
    compact = sslx.measure.cost(small.apply, small.variables, x).macs
    assert compact == dense - 9 * rows * 5 - 9 * (rows - 1) * 32
