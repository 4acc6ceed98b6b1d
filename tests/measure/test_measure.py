"""Counts against hand counts and XLA's, times against calls of known length."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import models
from sslx.measure import cost, latency

F32 = jnp.float32


def _xla_flops(fn, *args) -> float:
    return jax.jit(fn).lower(*args).cost_analysis().get("flops", 0.0)


def _model_cost(name: str, shape: tuple[int, ...]):
    model = models.create(name)
    images = jax.ShapeDtypeStruct((1, *shape), F32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, cost(model.apply, variables, images, train=False)


def test_resnet20_is_the_papers():
    variables, found = _model_cost("resnet20", (32, 32, 3))
    assert round(found.macs / 1e6, 2) == 40.81
    assert found.weights == 270_896
    leaves = jax.tree.leaves(variables)
    assert found.parameters == sum(leaf.size for leaf in leaves)
    assert found.parameter_bytes == 4 * found.parameters
    assert [r.name for r in found.layers[:2]] == [
        "params/conv1/kernel",
        "params/stage1_1/conv1/kernel",
    ]


def test_lenet_by_hand():
    _, found = _model_cost("lenet", (28, 28, 1))
    assert [r.macs for r in found.layers] == [
        24 * 24 * 20 * 5 * 5,
        8 * 8 * 50 * 20 * 5 * 5,
        800 * 500,
        500 * 10,
    ]
    assert found.weights == 500 + 25_000 + 400_000 + 5_000
    assert found.activation_bytes == 4 * (24 * 24 * 20 + 8 * 8 * 50 + 500 + 10)
    assert found.macs == found.macs_inside, "VALID convolutions have no padding"


@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 0)), ((2, 1), (0, 3))]),
    st.sampled_from([(1, 1), (2, 1), (1, 2)]),
)
def test_convolutions_agree_with_xla(taps, stride, holes, gaps, padding, groups):
    feature_groups, batch_groups = groups
    x = jax.ShapeDtypeStruct((2, 7, 6, 4), F32)
    w = jax.ShapeDtypeStruct((taps, 2, 4 // feature_groups, 8), F32)

    def conv(w, x):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, 1),
            padding,
            lhs_dilation=(holes, 1),
            rhs_dilation=(1, gaps),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=feature_groups,
            batch_group_count=batch_groups,
        )

    (layer,) = cost(conv, w, x).layers
    assert 2 * layer.macs_inside == _xla_flops(conv, w, x)
    out = jax.eval_shape(conv, w, x)
    every = out.size * taps * 2 * (4 // feature_groups)
    assert layer.macs_inside <= layer.macs <= every
    if holes == 1:
        assert layer.macs == every


def test_matrix_products_agree_with_xla():
    params = {"q": jnp.ones((8, 6)), "k": jnp.ones((8, 6))}
    x = jnp.ones((3, 5, 8))

    def scores(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return jnp.einsum("bid,bjd->bij", q, k)

    found = cost(scores, params, x)
    assert 2 * found.macs == _xla_flops(scores, params, x)
    assert [r.name for r in found.layers[:2]] == ["q", "k"]
    assert found.layers[2].kernel == ()
    assert found.layers[2].weights == 0
    assert found.weights == 96


def test_kernel_is_found_through_what_is_done_to_it():
    def standardised(params, x):
        w = params["w"].astype(F32).reshape(6, 4)
        return x @ ((w - w.mean(0, keepdims=True)) / w.std(0, keepdims=True))

    params = {"w": jnp.arange(24.0).reshape(2, 3, 4)}
    (layer,) = cost(standardised, params, jnp.ones((5, 6))).layers
    assert layer.name == "w"
    assert layer.kernel == (6, 4)


def test_shared_kernel_is_stored_once():
    found = cost(lambda p, x: x @ p["w"] @ p["w"], {"w": jnp.ones((4, 4))}, jnp.eye(4))
    assert len(found.layers) == 2
    assert found.weights == 16


def test_loops_branches_and_nested_programs():
    params = {"w": jnp.ones((4, 4))}

    def recurrent(params, x):
        @jax.checkpoint
        def step(state, _):
            return jax.jit(jnp.tanh)(state @ params["w"]), None

        return jax.lax.scan(step, x, length=7)[0]

    (layer,) = cost(recurrent, params, jnp.ones((2, 4))).layers
    assert (layer.macs, layer.times, layer.name) == (7 * 2 * 4 * 4, 7, "w")

    def either(params, x):
        return jax.lax.cond(
            x.sum() > 0, lambda: x @ params["w"], lambda: x @ params["w"] @ params["w"]
        )

    assert cost(either, params, jnp.ones((2, 4))).macs == 2 * 2 * 4 * 4

    def until(params, x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ params["w"], x)

    found = cost(until, params, jnp.ones((2, 4)))
    assert found.macs == 2 * 4 * 4
    assert "while" in found.notes[0]


def test_cost_is_data():
    found = cost(lambda p, x: x @ p, jnp.ones((3, 5), jnp.bfloat16), jnp.ones((2, 3)))
    record = json.loads(json.dumps(found.as_dict()))
    assert record["macs"] == 30
    assert record["parameter_bytes"] == 30
    assert record["layers"] == json.loads(json.dumps(found.rows()))
    assert "30" in str(found)


def test_options_are_not_traced_wherever_they_stand():
    def fn(params, x, double, *, scale=None, train=True):
        y = x @ params["w"]
        return (y @ params["w"] if double else y) * scale["s"]

    params, x = {"w": jnp.ones((4, 4)), "name": "w"}, jax.ShapeDtypeStruct((2, 4), F32)
    scale = {"s": jax.ShapeDtypeStruct((), F32)}
    assert cost(fn, params, x, True, scale=scale, train=False).macs == 2 * 2 * 16
    assert cost(fn, params, x, False, scale=scale).parameters == 16


def test_cost_without_arguments_says_so():
    with pytest.raises(ValueError, match="got no arguments"):
        cost(lambda: 0)


def test_latency_sees_known_times():
    found = latency(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)},
        repeats=5,
        warmup=1,
        control=True,
    )
    assert 0.02 <= found["slow"].median < 0.2
    assert found["fast"].speedup > 1.5
    assert 0.5 < found["slow (again)"].speedup < 2
    for entry in found.entries:
        assert entry.minimum <= entry.q1 <= entry.median <= entry.q3 <= entry.maximum
        assert entry.speedup_q1 <= entry.speedup <= entry.speedup_q3
    assert json.loads(json.dumps(found.as_dict()))["repeats"] == 5
    assert "slow (again)" in str(found)


def test_latency_interleaves_and_waits():
    order = []

    def call(name):
        order.append(name)
        return jnp.ones(3) * 2

    found = latency(
        {"a": lambda: call("a"), "b": lambda: call("b")},
        repeats=20,
        warmup=1,
        round_seconds=0.0,
    )
    rounds = np.array(order[4:]).reshape(20, 2)
    assert all(set(pair) == {"a", "b"} for pair in rounds.tolist())
    assert len(set(rounds[:, 0])) == 2, "the order within a round changes"
    assert found["a"].calls == 1
    with pytest.raises(KeyError, match="measured"):
        found["c"]


def test_short_calls_are_repeated_within_a_round():
    found = latency({"tiny": lambda: None}, repeats=2, round_seconds=1e-3)
    assert found["tiny"].calls > 10


def test_latency_refuses_nothing():
    with pytest.raises(ValueError, match="0 candidates"):
        latency({})
