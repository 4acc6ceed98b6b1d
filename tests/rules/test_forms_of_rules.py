"""Programs on which a rule was wrong once: compact is exact on each, in every setting.

Column 2 of `a` is zero; `e` has no zeros.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sslx
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.program import trace

SETTINGS = list(itertools.product(("auto", "align", "scatter"), ("fold", "keep")))
RNG = np.random.default_rng(0)
E = RNG.normal(size=(4, 6))
PARAMS = {
    "a": E * (np.arange(6) != 2),
    "e": E,
    "o": RNG.normal(size=(6, 3)),
    "s": np.array(0.5),
    "c": np.array([0.25, 0.0]),
}
INPUT = RNG.normal(size=(5, 4))
NEIGHBOURS = jnp.array([[0, 1], [2, 9], [9, 9], [4, 3], [1, 1]])

Net = Callable[[Any, Any], Any]


def exact(net: Net, settings=SETTINGS) -> list[sslx.Compact]:
    """Compact with all settings; each gives what the dense function gives."""
    p, x = jax.tree.map(jnp.asarray, (PARAMS, INPUT))
    small = [
        sslx.compact(net, alignment=alignment, constants=constants)(p, x)
        for alignment, constants in settings
    ]
    run = lambda rows, p, x: (
        [s.apply(v, x) for s, v in zip(small, rows, strict=True)],
        net(p, x),
    )
    variables = [s.variables for s in small]
    fast = jax.jit(run)
    outs, want = fast(variables, p, x)
    for setting, got in zip(settings, outs, strict=True):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), setting
            np.testing.assert_allclose(a, b, 1e-10, 1e-10, err_msg=str(setting))
    return small


def h(p, x):
    return x @ p["a"]


def columns(p, x):
    return (x @ p["a"])[:, :0]


PADS: dict[str, Net] = {
    "a literal, rows": lambda p, x: lax.pad(h(p, x), 1.5, ((1, 1, 0), (0, 0, 0))),
    "a literal, channels": lambda p, x: lax.pad(h(p, x), 1.5, ((0, 0, 0), (1, 1, 0))),
    "a literal, both, then cosine": lambda p, x: (
        jnp.cos(lax.pad(h(p, x), 1.5, ((1, 0, 0), (1, 1, 0)))) @ jnp.ones((8, 2))
    ),
    "data, rows": lambda p, x: lax.pad(h(p, x), x.sum(), ((1, 1, 0), (0, 0, 0))),
    "data, channels": lambda p, x: lax.pad(h(p, x), x[0, 0], ((0, 0, 0), (1, 1, 0))),
    "data beside what has no zeros": lambda p, x: lax.pad(
        x @ p["e"], x.sum(), ((0, 0, 0), (1, 1, 0))
    ),
    "a parameter": lambda p, x: lax.pad(h(p, x), p["s"], ((0, 0, 0), (1, 2, 0))),
    "an entry of a parameter": lambda p, x: lax.pad(
        h(p, x), p["c"][0], ((0, 0, 0), (1, 2, 0))
    ),
    "an entry that is zero": lambda p, x: lax.pad(
        h(p, x), p["c"][1], ((0, 0, 0), (1, 2, 0))
    ),
    "between": lambda p, x: lax.pad(h(p, x), p["s"], ((0, 0, 1), (0, 0, 1))),
    "less than nothing": lambda p, x: lax.pad(h(p, x), 0.5, ((-1, 0, 0), (-2, 3, 1))),
    "zeros, less than nothing": lambda p, x: lax.pad(
        h(p, x), 0.0, ((2, -1, 0), (1, -1, 0))
    ),
    "zeros, read by a sum": lambda p, x: (
        jnp.pad(h(p, x), ((0, 0), (1, 2))) @ jnp.ones((9, 2))
    ),
    "jnp.pad with a parameter": lambda p, x: jnp.pad(
        h(p, x), ((1, 0), (1, 2)), constant_values=p["s"]
    ),
    "of the data alone": lambda p, x: (
        lax.pad(x, p["s"], ((0, 0, 0), (1, 1, 0))) @ jnp.ones((6, 2)) + p["a"].sum()
    ),
}


@pytest.mark.parametrize("name", PADS)
def test_padding_with(name: str, x64) -> None:
    exact(PADS[name])


@pytest.mark.parametrize("value", [-np.inf, -1e9, None, 1.0])
def test_padding_before_a_max_pool(value, x64) -> None:
    def net(p, x):
        fill = x.min() if value is None else value
        image = jnp.pad(h(p, x)[None], ((0, 0), (1, 1), (0, 0)), constant_values=fill)
        pool = lax.reduce_window(
            image, -jnp.inf, lax.max, (1, 3, 1), (1, 2, 1), "VALID"
        )
        return pool.mean(1) @ p["o"]

    exact(net)


SEVERAL: dict[str, Net] = {
    "optimization_barrier": lambda p, x: lax.optimization_barrier(
        (h(p, x), x @ p["e"], x.sum())
    ),
    "optimization_barrier, one read": lambda p, x: lax.optimization_barrier(
        (h(p, x), x @ p["e"])
    )[1],
    "optimization_barrier of constants": lambda p, x: (
        jnp.cos(lax.optimization_barrier((h(p, x) + 1, x[0] @ p["e"]))[0]) @ p["o"]
    ),
    "optimization_barrier of parameters": lambda p, x: (
        lambda p: jnp.tanh(x @ p["a"]) @ p["o"]
    )(lax.optimization_barrier(p)),
    "device_put": lambda p, x: jax.device_put((h(p, x), x @ p["e"]))[1],
    "device_put of parameters": lambda p, x: (lambda p: jnp.tanh(x @ p["a"]) @ p["o"])(
        jax.device_put(p)
    ),
    "sort by key": lambda p, x: lax.sort((h(p, x), x @ p["e"]), 0, num_keys=1),
    "sort of zeros by key": lambda p, x: lax.sort((x @ p["e"], h(p, x)), 0, num_keys=1),
    "top_k": lambda p, x: lax.top_k(h(p, x).T, 2),
    "unstack": lambda p, x: sum(jnp.unstack(h(p, x))[1:3]) @ p["o"],
    "split with nothing": lambda p, x: [
        y.sum() for y in lax.split(h(p, x), (2, 0, 4), 1)
    ],
    "scalars of a scan": lambda p, x: lax.scan(
        lambda c, r: (c + r.sum(), c), 0.0, h(p, x)
    )[1][:2],
}
FILLS: dict[str, Net] = {
    "gather, 1": lambda p, x: (
        h(p, x).at[NEIGHBOURS].get(mode="fill", fill_value=1.0).max(1) @ p["o"]
    ),
    "gather, -1e30": lambda p, x: (
        h(p, x).at[NEIGHBOURS].get(mode="fill", fill_value=-1e30).max(1) @ p["o"]
    ),
    "gather, 0": lambda p, x: (
        h(p, x).at[NEIGHBOURS].get(mode="fill", fill_value=0.0).sum(1) @ p["o"]
    ),
    "gather, NaN": lambda p, x: h(p, x).at[NEIGHBOURS[:, 1]].get(mode="fill"),
    "gather, NaN and then not": lambda p, x: (
        jnp.nan_to_num(jnp.take(h(p, x), NEIGHBOURS, axis=0), nan=0.25).sum(1) @ p["o"]
    ),
    "gather, smallest integer": lambda p, x: jnp.take(
        (8 * h(p, x)).astype(jnp.int32), NEIGHBOURS[:, 1], axis=0, mode="fill"
    ),
    "take, 2": lambda p, x: (
        jnp.take(h(p, x), NEIGHBOURS, axis=0, mode="fill", fill_value=2.0).sum(1)
        @ p["o"]
    ),
    "scatter with a function": lambda p, x: h(p, x).at[1].apply(jnp.cos),
    "scatter over a background": lambda p, x: (
        jnp.full((5, 6), 0.5).at[NEIGHBOURS[:, 0]].set(h(p, x), mode="drop") @ p["o"]
    ),
    "scatter of products": lambda p, x: (
        jax.ops.segment_prod(h(p, x), jnp.array([0, 0, 1, 3, 3]), 5) @ p["o"]
    ),
    "scatter of differences": lambda p, x: (
        jnp.ones((5, 6)).at[NEIGHBOURS[:, 0]].subtract(h(p, x)) @ p["o"]
    ),
}
NOTHING: dict[str, Net] = {
    "prod": lambda p, x: jnp.prod(columns(p, x), -1),
    "prod over an empty batch": lambda p, x: jnp.prod(h(p, x)[:0], 0),
    "sum": lambda p, x: jnp.sum(columns(p, x), -1),
    "max": lambda p, x: jnp.max(columns(p, x), -1, initial=-jnp.inf),
    "max from -3": lambda p, x: jnp.max(columns(p, x), -1, initial=-3.0),
    "min from 3": lambda p, x: jnp.min(columns(p, x), -1, initial=3.0),
    "all": lambda p, x: jnp.all(columns(p, x) > 0, -1),
    "any": lambda p, x: jnp.any(columns(p, x) > 0, -1),
    "dot": lambda p, x: columns(p, x) @ jnp.ones((0, 3)) + 1,
    "cumprod": lambda p, x: jnp.cumprod(columns(p, x), -1),
    "reduce": lambda p, x: lax.reduce(h(p, x), 7.0, lambda a, b: a + 1.5 * b, (1,)),
    "a window of padding": lambda p, x: lax.reduce_window(
        h(p, x), -jnp.inf, lax.max, (2, 1), (1, 1), ((3, 0), (0, 0))
    ),
    "a window that starts at 2": lambda p, x: lax.reduce_window(
        h(p, x), 2.0, lax.add, (1, 1), (1, 1), ((0, 0), (1, 1))
    ),
}
ENTRIES: dict[str, Net] = {
    "0 / 0": lambda p, x: jnp.isfinite(h(p, x) / h(p, x)) * 1.0 @ p["o"],
    "whole numbers over nothing": lambda p, x: lax.div(
        h(p, x).astype(jnp.int32), (x @ p["a"] * 0).astype(jnp.int32)
    ),
    "nextafter": lambda p, x: jnp.nextafter(h(p, x), 1.0) * 1e300 @ p["o"],
    "wrapped": lambda p, x: (
        (jnp.abs(h(p, x)).astype(jnp.uint8) - jnp.uint8(1)).astype(float) @ p["o"]
    ),
    "leading zeros": lambda p, x: lax.clz(h(p, x).astype(jnp.int32)),
    "clip by parameters": lambda p, x: jnp.clip(h(p, x), -p["s"], p["s"]) @ p["o"],
    "clip above zero": lambda p, x: jnp.clip(h(p, x), 0.5, 1.0) @ p["o"],
    "clip by columns": lambda p, x: (
        jnp.maximum(h(p, x), np.linspace(-1, 1, 6)[None]) @ p["o"]
    ),
    "a case where the predicate holds": lambda p, x: (
        jnp.where(h(p, x) < 1, x @ p["e"], h(p, x)) @ p["o"]
    ),
    "power of a parameter": lambda p, x: jnp.abs(h(p, x)) ** p["c"][1] @ p["o"],
    "argmax of ties": lambda p, x: jnp.argmax(jax.nn.relu(h(p, x)), -1),
    "cumprod from behind": lambda p, x: lax.cumprod(h(p, x), 1, reverse=True) @ p["o"],
}
GROUPS = {"several": SEVERAL, "fill": FILLS, "nothing": NOTHING, "entry": ENTRIES}


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(net, id=f"{group}: {name}")
        for group, nets in GROUPS.items()
        for name, net in nets.items()
    ],
)
def test_compact_is_exact(net: Net, x64) -> None:
    exact(net, [("auto", "fold"), ("align", "keep")])


@pytest.mark.parametrize("name", ["scatter with a function"])
def test_forms_without_a_rule_are_reported(name: str, x64) -> None:
    (small, *_) = exact(FILLS[name], SETTINGS[:1])
    (held,) = small.held_back
    assert held.primitive == "scatter" and "no rule for this form" in str(held)


# Zero at zero.

VANISHING = {
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, -1, 2),
    "min of max": lambda x: jnp.minimum(jnp.maximum(x, 0), 6),
    "max with a large negative": lambda x: jnp.maximum(x, -1e30),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_swish": jax.nn.hard_swish,
    "leaky_relu": jax.nn.leaky_relu,
    "soft_sign": jax.nn.soft_sign,
    "pow": lambda x: x**3.0,
    "nan_to_num": jnp.nan_to_num,
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "round": jnp.round,
    "remainder": lambda x: jnp.fmod(x, 0.3),
    "division": lambda x: x / 7,
    "normalised": lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6),
    "shift": lambda x: jnp.left_shift(x.astype(int), 2),
}
MOVED = {
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "exp": jnp.exp,
    "max with 1": lambda x: jnp.maximum(x, 1),
    "clip above": lambda x: jnp.clip(x, 0.5, 1),
    "power of nothing": lambda x: x**0.0,
    "reciprocal": lambda x: 1 / (x - 1),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
@pytest.mark.parametrize("name", [*VANISHING, *MOVED])
def test_what_a_function_does_at_zero_is_known(name: str, wrap, x64) -> None:
    fn = {**VANISHING, **MOVED}[name]
    program, _, _ = trace(wrap(fn), np.ones((4, 5)))
    live = Liveness(program, fold_constants=True)
    (x,) = program.inputs
    dead = np.arange(5) == 2
    masks = [full(x, False)[0], dead]
    (facts,) = live.forward([Facts(masks, masks)])
    assert facts.constant[1][2]
    np.testing.assert_array_equal(facts.zero[1], dead & (name in VANISHING))
