"""Sums over removed slices that still speak: constants, and copies of one another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx

T, C = 4, 8
SETTINGS = list(itertools.product(("auto", "align", "scatter"), ("fold", "keep")))


def weights(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def variables():
    p = {
        "e": weights(3, C).at[:, ::2].set(0),  # four of eight channels are dead
        "c": weights(C, seed=1),
        "t": weights(T, 1, seed=2),
        "s": weights(seed=3),
        "one": weights(1, seed=4),
        "v": weights(T, seed=5),
        "w": weights(T, 6, seed=6),
        "b": weights(6, seed=7),
        "half": weights(6, seed=8).at[:3].set(0),
    }
    return p, weights(2, T, 3, seed=9)


def channels(p, x):
    return x @ p["e"]


def rows(p, x):
    return (x @ p["e"]).swapaxes(1, 2)


def mixed(p, x):
    return rows(p, x) @ p["w"]


SUMS = {
    "a literal": lambda p, x: (channels(p, x) + 1.0).sum(-1),
    "a scalar": lambda p, x: (channels(p, x) + p["s"]).sum(-1),
    "one entry": lambda p, x: (channels(p, x) + p["one"]).sum(-1),
    "an entry per row": lambda p, x: (channels(p, x) + p["t"]).sum(-1),
    "an entry per channel": lambda p, x: (channels(p, x) + p["c"]).sum(-1),
    "exp": lambda p, x: jnp.exp(channels(p, x)).sum(-1),
    "exp of a sum": lambda p, x: jnp.exp(channels(p, x) + p["t"]).sum(-1),
    "a product with ones": lambda p, x: (channels(p, x) + p["t"]) @ jnp.ones(C),
    "transposed": lambda p, x: (rows(p, x) + p["v"]).mean(1),
    "two axes": lambda p, x: (rows(p, x) + p["v"]).mean((1, 2)),
    "einsum": lambda p, x: jnp.einsum("bct,c->bt", rows(p, x) + p["v"], jnp.ones(C)),
    "mixed": lambda p, x: (mixed(p, x) + p["b"]).sum(1),
    "mixed, scaled": lambda p, x: ((mixed(p, x) + p["b"]) * p["s"]).sum(1),
    "mixed, relu": lambda p, x: jax.nn.relu(mixed(p, x) + p["b"]).sum(1),
    "mixed, tanh": lambda p, x: jnp.tanh(mixed(p, x) + p["b"]).sum(1),
    "mixed, bias after": lambda p, x: (jnp.tanh(mixed(p, x)) + p["b"]).sum(1),
    "mixed, bias before": lambda p, x: (jnp.tanh(rows(p, x) + p["v"]) @ p["w"]).sum(1),
    "maximum": lambda p, x: jnp.tanh(mixed(p, x) + p["b"]).max(1),
    "no sum": lambda p, x: jnp.tanh(mixed(p, x) + p["b"]),
}


def check(net, alignment, constants):
    p, x = variables()
    small = sslx.compact(net, alignment=alignment, constants=constants)(p, x)
    want = net(p, x)
    np.testing.assert_allclose(small.apply(small.variables, x), want, 1e-11, 1e-12)
    np.testing.assert_allclose(net(small.expand(), x), want, 1e-11, 1e-12)


def settled(names):
    """Every case in two of the six settings; in the others too, slowly."""
    rows = []
    for at, name in enumerate(names):
        quick = (at % 6, (at + 3) % 6)
        rows += [
            pytest.param(
                name, *setting, marks=() if place in quick else pytest.mark.slow
            )
            for place, setting in enumerate(SETTINGS)
        ]
    return pytest.mark.parametrize(("name", "alignment", "constants"), rows)


@pytest.mark.usefixtures("x64")
@settled(SUMS)
def test_constants_broadcast_over_dead_channels_stay_in_sums(
    name, alignment, constants
):
    with jax.numpy_rank_promotion("allow"):
        check(SUMS[name], alignment, constants)


ALONG_ROWS = {
    "cumsum": lambda h: jnp.cumsum(h, 1),
    "sort": lambda h: jnp.sort(h, 1),
    "roll": lambda h: jnp.roll(h, 1, 1),
    "reversed": lambda h: h[:, ::-1],
    "gathered": lambda h: h[:, jnp.array([3, 2, 1, 0])],
    "softmax": lambda h: jax.nn.softmax(h, 1),
    "updated": lambda h: jax.lax.dynamic_update_slice(h, h[:, :2], (0, 1, 0)),
    "squared twice": lambda h: jnp.square(jnp.square(h)),
    "scanned": lambda h: jax.lax.scan(
        lambda c, r: (c + r, c), h[:, 0], h.swapaxes(0, 1)
    )[1].swapaxes(0, 1),
}


@pytest.mark.usefixtures("x64")
@settled(ALONG_ROWS)
def test_copies_of_a_mean_go_through_what_mixes_rows(name, alignment, constants):
    def net(p, x):
        h = channels(p, x)
        h = ALONG_ROWS[name](h - h.mean(-1, keepdims=True))
        return (h.sum(-1) * p["half"][2:]).sum(-1)  # half of the rows are read

    with jax.numpy_rank_promotion("allow"):
        check(net, alignment, constants)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_many_equal_terms_are_counted_in_full_precision(dtype):
    w = np.zeros((2, 70_000))
    w[:, :3] = [[1, 2, 3], [1, -1, 1]]
    p, x = {"w": jnp.asarray(w, dtype)}, jnp.full((1, 2), 1e-3, dtype)

    def net(p, x):
        h = x @ p["w"]
        return (h + jnp.asarray(1e-3, dtype)).sum(-1)

    small = sslx.compact(net)(p, x)
    assert small.variables["w"].shape == (2, 3)
    want = 70_000e-3 + 7e-3
    np.testing.assert_allclose(
        np.float64(small.apply(small.variables, x)), want, rtol=0.02
    )
