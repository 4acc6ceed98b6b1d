"""Forms between and around products: calls, branches, loops, normalisations."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx

RNG = np.random.default_rng(0)
DEAD = np.array([1, 0, 1, 1, 0, 1, 1, 0])
OTHER = np.array([1, 0, 1, 1, 1, 0, 1, 1])


def random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


@jax.custom_vjp
def rounded(x):
    return jnp.round(x * 4) / 4


rounded.defvjp(lambda x: (rounded(x), x), lambda r, g: (g * (jnp.abs(r) < 2),))


@jax.custom_vjp
def product(x, w):
    return jnp.sin(x) @ w


def _product_back(saved, g):
    x, w = saved
    return 2 * jnp.cos(x) * (g @ w.T), 3 * jnp.sin(x).T @ g


product.defvjp(lambda x, w: (product(x, w), (x, w)), _product_back)


@jax.custom_jvp
def spread(x):
    return jax.scipy.special.logsumexp(x, -1, keepdims=True) + 0 * x


@spread.defjvp
def _(primals, tangents):
    (x,), (d,) = primals, tangents
    slope = 3 * jnp.sum(jax.nn.softmax(x) * d, -1, keepdims=True)
    return spread(x), slope + 0 * x


def normalised(h, axis: int = -1):
    mean = h.mean(axis, keepdims=True)
    return (h - mean) / jnp.sqrt(h.var(axis, keepdims=True) + 1e-5)


def layer_norm(p, x):
    h = normalised(x @ p["a"]) * p["scale"] + p["bias"]
    return h @ p["c"]


def group_norm(p, x):
    h = normalised((x @ p["a"]).reshape(5, 2, 4)).reshape(5, 8)
    return (h * p["scale"]) @ p["c"]


def standardised(p, x):
    return (x @ p["a"]) @ normalised(p["c"], 0)


def branches(p, x):
    h = jax.nn.relu(x @ p["a"])
    dense = lambda h: jnp.sin(h) + h @ p["d"]
    return jax.lax.cond(x.sum() > 0, lambda h: h * 2, dense, h) @ p["c"]


def switch(p, x):
    h = jax.nn.relu(x @ p["a"])
    which = jnp.argmax(x[0]) % 3
    rows = [jnp.tanh, lambda h: h @ p["d"], jnp.zeros_like]
    return jax.lax.switch(which, rows, h) @ p["c"]


def loop(p, x):
    def step(carry):
        h, last, k = carry
        return jnp.tanh(h @ p["d"]) + h, last @ p["d"], k + 1

    def go_on(carry):
        h, _, k = carry
        return (k < 5) & (jnp.sum(h**2) < 1e3)

    h = jax.nn.relu(x @ p["a"])
    return jax.lax.while_loop(go_on, step, (h, h, 0))[0] @ p["c"]


def nested(p, x):
    def step(h, scale):
        inner = lambda h: jax.lax.cond(scale > 0, jnp.tanh, lambda h: h @ p["d"], h)
        return jax.checkpoint(inner)(h), h.sum(-1)

    h, sums = jax.lax.scan(step, x @ p["a"], jnp.array([1.0, -1.0, 2.0]))
    return h @ p["c"], sums


class Form(NamedTuple):
    fn: Callable[..., Any]
    params: dict[str, np.ndarray]
    small: dict[str, tuple[int, ...]]
    differentiable: bool = True


A, B, C = random(4, 8), random(1, 8), random(8, 3)
FORMS = {
    "layer norm in two passes": Form(
        layer_norm,
        {"a": A * DEAD, "scale": B * DEAD, "bias": B * DEAD, "c": C},
        {"a": (4, 5), "scale": (1, 5), "bias": (1, 5), "c": (5, 3)},
    ),
    "group norm in two passes": Form(
        group_norm,
        {"a": A * OTHER, "scale": B * OTHER, "c": C},
        {"a": (4, 6), "scale": (1, 6), "c": (6, 3)},
    ),
    "weight standardisation, rows dead": Form(
        standardised,
        {"a": A * DEAD, "c": C * DEAD[:, None]},
        {"a": (4, 5), "c": (5, 3)},
    ),
    "weight standardisation, rows live": Form(
        standardised, {"a": A * DEAD, "c": C}, {"a": (4, 5), "c": (8, 3)}
    ),
    "cond": Form(
        branches,
        {"a": A * DEAD, "d": random(8, 8) * DEAD, "c": C},
        {"a": (4, 5), "d": (5, 5), "c": (5, 3)},
    ),
    "cond whose branches disagree": Form(
        branches,
        {"a": A * DEAD, "d": random(8, 8) * OTHER, "c": C},
        {"a": (4, 7), "d": (7, 7), "c": (7, 3)},
    ),
    "switch": Form(
        switch,
        {"a": A * DEAD, "d": random(8, 8) * DEAD, "c": C},
        {"a": (4, 5), "d": (5, 5), "c": (5, 3)},
    ),
    "while": Form(
        loop,
        {"a": A * DEAD, "d": random(8, 8) * DEAD, "c": C},
        {"a": (4, 5), "d": (5, 5), "c": (5, 3)},
        differentiable=False,
    ),
    "scan over remat over cond": Form(
        nested,
        {"a": A * DEAD, "d": random(8, 8) * DEAD, "c": C},
        {"a": (4, 5), "d": (5, 5), "c": (5, 3)},
    ),
    "custom_vjp along an axis": Form(
        lambda p, x: rounded(x @ p["a"]) @ p["c"],
        {"a": A * DEAD, "c": C},
        {"a": (4, 5), "c": (5, 3)},
    ),
    "custom_vjp with a sum": Form(
        lambda p, x: product(x @ p["a"], p["c"]) @ p["e"],
        {"a": A * DEAD, "c": C * np.array([1, 0, 1]), "e": random(3, 2)},
        {"a": (4, 5), "c": (5, 2), "e": (2, 2)},
    ),
    "custom_vjp of constants": Form(
        lambda p, x: product(x @ p["a"] + p["b"], p["c"]) @ p["e"],
        {"a": A * DEAD, "b": B, "c": C * np.array([1, 0, 1]), "e": random(3, 2)},
        {"a": (4, 5), "b": (1, 8), "c": (8, 2), "e": (2, 2)},
    ),
    "custom_jvp with a sum": Form(
        lambda p, x: spread(x @ p["a"] + p["b"]) @ p["c"],
        {"a": A * DEAD, "b": B, "c": C},
        {"a": (4, 5), "b": (1, 8), "c": (8, 3)},
    ),
}


def total(outputs: Any) -> jax.Array:
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(outputs))


def close(got: Any, want: Any) -> None:
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    jax.tree.map(same, got, want)


@pytest.mark.parametrize("alignment", ["align", "scatter"])
@pytest.mark.parametrize("name", FORMS)
def test_the_small_function_is_the_large_one(name: str, alignment, x64) -> None:
    form = FORMS[name]
    params = {k: jnp.asarray(v) for k, v in form.params.items()}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
    small = sslx.compact(form.fn, alignment=alignment)(params, x)
    large, reduced = jax.jit(form.fn), jax.jit(small.apply)
    slopes = jax.jit(jax.grad(lambda p, x: total(form.fn(p, x))))
    slopes_reduced = jax.jit(jax.grad(lambda p, x: total(small.apply(p, x))))
    for inputs in (x, -jnp.abs(x), jnp.abs(x)):
        close(reduced(small.variables, inputs), large(params, inputs))
        if form.differentiable:
            want = sslx.apply_plan(small.plan, slopes(params, inputs))
            close(slopes_reduced(small.variables, inputs), want)
    assert not small.held_back
    if alignment == "align":
        assert {k: v.shape for k, v in small.variables.items()} == form.small


def _read_by_index(e):
    return jax.lax.scan(lambda c, i: (c, e[i]), 0.0, jnp.arange(2))[1]


def _read_by_step(e):
    return jax.lax.scan(lambda c, row: (c * row, c), e[0], e)[1]


CONSTANT_OPERANDS = {
    "scan, whole": _read_by_index,
    "scan, by step": _read_by_step,
    "while": lambda e: jax.lax.fori_loop(0, e.shape[0], lambda i, c: c + e * i, e),
    "cond": lambda e: jax.lax.cond(e[0, 1] > 0, jnp.tanh, jnp.negative, e),
}


@pytest.mark.parametrize("alignment", ["auto", "align", "scatter"])
@pytest.mark.parametrize("name", CONSTANT_OPERANDS)
def test_constant_channels_that_enter_a_body(name: str, alignment, x64) -> None:
    read = CONSTANT_OPERANDS[name]
    v = {"w": jnp.ones((1, 2)).at[:, 0].set(0), "b": jnp.array([[3.0, 4.0]])}
    x = jnp.array([[1.0], [2.0]])
    net = lambda v, x: read(jnp.exp(x @ v["w"] + v["b"]))
    small = sslx.compact(net, alignment=alignment)(v, x)
    close(small.apply(small.variables, x), net(v, x))


def test_zeros_that_stay_say_why() -> None:
    w = random(3, 3, 8, 16)
    w[..., :6] = 0
    w[..., 8:10] = 0

    def grouped(v, x):
        y = jax.lax.conv_general_dilated(
            x,
            v["w"],
            (1, 1),
            "SAME",
            feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y @ v["u"]

    small = sslx.compact(grouped)({"w": w, "u": random(16, 3)}, jnp.ones((1, 5, 5, 16)))
    (kept,) = small.kept_zeros
    assert (kept.path, kept.axis) == ("w", 3)
    assert (kept.count, kept.primitive) == (4, "conv_general_dilated")
    assert "4 zero slices of w" in small.summary()

    v = {"w": jnp.ones((4, 5)).at[:, :2].set(0)}
    x = jnp.ones((2, 4))
    small = sslx.compact(lambda v, x: x @ v["w"], alignment="align")(v, x)
    assert small.variables["w"].shape == (4, 5)
    assert "with what the function returns" in small.summary()
    small = sslx.compact(lambda v, x: x @ v["w"], alignment="scatter")(v, x)
    assert (small.variables["w"].shape, small.kept_zeros) == ((4, 3), ())


def test_experts_of_a_ragged_product(x64) -> None:
    def net(p, x, sizes):
        h = jax.nn.gelu(jax.lax.ragged_dot(x @ p["a"], p["up"], sizes))
        best, _ = jax.lax.top_k(h, 2)
        return jax.lax.ragged_dot(h, p["down"], sizes), best

    p = {"a": A * DEAD, "up": random(3, 8, 6), "down": random(3, 6, 4)}
    p = {k: jnp.asarray(v) for k, v in p.items()}
    p["up"] = p["up"].at[..., 2].set(0)
    x, sizes = jnp.asarray(random(7, 4)), jnp.array([2, 4, 1])
    small = sslx.compact(net)(p, x, sizes)
    close(small.apply(small.variables, x, sizes), net(p, x, sizes))
    assert small.variables["up"].shape == (3, 5, 6)
    small = sslx.compact(lambda *a: net(*a)[0])(p, x, sizes)
    assert small.variables["up"].shape == (3, 5, 5)


def test_prints_and_checks_stay(capfd) -> None:
    def net(p, x):
        h = x @ p["a"]
        jax.debug.print("mean {}", h.mean())
        return h @ p["c"]

    p = {"a": jnp.asarray(A * DEAD), "c": jnp.asarray(C)}
    x = jnp.ones((5, 4))
    small = sslx.compact(net)(p, x)
    small.apply(small.variables, x)
    jax.effects_barrier()
    assert "mean" in capfd.readouterr().out
    assert small.variables["a"].shape == (4, 5)


SHARDED = """
import jax, numpy as np, sslx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
rng = np.random.default_rng(0)
w = {"a": rng.normal(size=(4, 16)), "c": rng.normal(size=(16, 4))}
w["a"][:, 1::4] = 0
net = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["c"]
x = rng.normal(size=(8, 4)).astype(np.float32)
wide = {"a": put(w["a"], None, "b"), "c": put(w["c"], "b", None)}
small = sslx.compact(net)(wide, put(x, "a", None))
assert small.variables["a"].shape == (4, 12)
specs = {"a": (None, "b"), "c": ("b", None)}
narrow = {k: put(v, *specs[k]) for k, v in small.variables.items()}
got = jax.jit(small.apply)(narrow, put(x, "a", None))
np.testing.assert_allclose(got, net(w, x), rtol=1e-4, atol=1e-5)
"""


def test_sharded_variables_and_inputs() -> None:
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="4")
    ran = subprocess.run(
        [sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_keys_of_random_numbers_may_be_constants_parameters_and_arguments() -> None:
    key = jax.random.key(0)

    def fn(v, x, k):
        keep = jax.random.bernoulli(jax.random.fold_in(k, v["n"]), 0.5, (2, 3))
        noise = jax.random.normal(key, (2, 3)) + jax.random.normal(v["k"], (2, 3))
        return ((x @ v["w"]) * keep) @ v["u"] + noise

    w = jnp.ones((4, 3)).at[:, 1].set(0)
    v = {"w": w, "k": key, "n": jnp.uint32(3), "u": jnp.ones((3, 3))}
    x = jnp.ones((2, 4))
    for form in (fn, jax.checkpoint(fn)):
        small = sslx.compact(form)(v, x, key)
        got = jax.jit(small.apply)(small.variables, x, key)
        np.testing.assert_allclose(got, fn(v, x, key), rtol=1e-6)
        assert small.variables["w"].shape == (4, 2)


def test_a_derivative_that_reads_what_the_function_does_not_says_so() -> None:
    @jax.custom_vjp
    def half(x):
        return x[:, :4]

    half.defvjp(
        lambda x: (half(x), x), lambda x, g: (jnp.pad(g * x[:, 4:], [(0, 0), (0, 4)]),)
    )
    params = {"a": jnp.asarray(A), "c": jnp.asarray(C[:4])}
    net = lambda p, x: half(x @ p["a"]) @ p["c"]
    x = jnp.ones((5, 4))
    small = sslx.compact(net)(params, x)
    with pytest.raises(ValueError, match="derivative rule of this custom_vjp_call"):
        jax.grad(lambda p: small.apply(p, x).sum())(small.variables)
