"""Callbacks and prints: never removed, reordered, duplicated, or run while tracing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import sslx

LOG: list[Any] = []
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def note(tag: str) -> Callable[..., Any]:
    def write(*values: Any) -> np.float32:
        LOG.append((tag, *(np.shape(v) for v in values)))
        return np.float32(1)

    return write


def quiet(tag: str) -> Callable[..., None]:
    def write(*values: Any) -> None:
        note(tag)(*values)

    return write


def io(tag: str, *values: Any, ordered: bool = False) -> jax.Array:
    return io_callback(note(tag), SCALAR, *values, ordered=ordered)


def say(tag: str, *values: Any) -> None:
    jax.debug.callback(quiet(tag), *values)


def unused(h: jax.Array, ordered: bool) -> jax.Array:
    io("unused", h.sum(), ordered=ordered)
    return h


def in_order(h: jax.Array) -> jax.Array:
    io("first", h.sum(), ordered=True)
    h = h + 0 * io("second", h.sum(), ordered=True)
    io("third", h, ordered=True)
    return h


def loop(h: jax.Array) -> jax.Array:
    def step(i: Any, carry: jax.Array) -> jax.Array:
        say("loop", carry)
        return carry + 1

    jax.lax.fori_loop(0, 3, step, h.sum())
    return h


def scan(h: jax.Array) -> jax.Array:
    def step(carry: Any, row: jax.Array) -> tuple[Any, jax.Array]:
        return carry, io("scan", row)

    jax.lax.scan(step, 0.0, h)
    return h


def loop_test(h: jax.Array) -> jax.Array:
    def test(carry: Any) -> Any:
        say("test", carry[0])
        return carry[0] < 2

    return jax.lax.while_loop(test, lambda c: (c[0] + 1, c[1] * 2), (0, h))[1]


def choice(h: jax.Array) -> jax.Array:
    jax.lax.cond(h.sum() > -1e9, lambda h: say("yes", h), lambda h: say("no", h), h)
    return h


def remat(h: jax.Array) -> jax.Array:
    jax.checkpoint(lambda h: say("remat", h.sum()))(h)
    return h


@jax.custom_vjp
def clipped(h: jax.Array) -> jax.Array:
    say("forward", h)
    return h


def backward(_: Any, g: jax.Array) -> tuple[jax.Array]:
    say("backward", g)
    return (g,)


clipped.defvjp(lambda h: (clipped(h), None), backward)


@jax.custom_jvp
def doubled(h: jax.Array) -> jax.Array:
    say("value", h)
    return 2 * h


doubled.defjvp(lambda p, t: (doubled(*p), 2 * t[0]))


def constant(h: jax.Array) -> jax.Array:
    say("constant", jnp.int32(3) + jnp.int32(4))
    io("integers", np.arange(3), ordered=True)
    return h


def nested(h: jax.Array) -> jax.Array:
    def step(carry: Any, row: jax.Array) -> tuple[Any, None]:
        inner = jax.jit(lambda r: say("nested", r))
        jax.lax.cond(carry > 0, lambda: inner(row), lambda: None)
        return carry + 1, None

    jax.lax.scan(jax.checkpoint(step), 0, h)
    return h


BETWEEN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "unused result": lambda h: unused(h, False),
    "unused ordered result": lambda h: unused(h, True),
    "in order": in_order,
    "loop": loop,
    "scan": scan,
    "test of a loop": loop_test,
    "cond": choice,
    "remat": remat,
    "custom_vjp": clipped,
    "custom_jvp": doubled,
    "constant": constant,
    "nested": nested,
}


def parameters() -> dict[str, jax.Array]:
    a = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32)
    return {"a": a.at[:, 2].set(0), "c": jnp.ones((6, 3))}


def logged(fn: Callable[..., Any], *args: Any) -> list[Any]:
    LOG.clear()
    jax.block_until_ready(fn(*args))
    jax.effects_barrier()
    return list(LOG)


@pytest.mark.parametrize("name", BETWEEN)
def test_compact_and_tuned_functions_do_what_the_dense_one_does(name: str) -> None:
    between, x = BETWEEN[name], jnp.ones((2, 4))
    net = lambda p, x: between(x @ p["a"]) @ p["c"]
    params = parameters()
    want = logged(jax.jit(net), params, x)
    LOG.clear()
    small = sslx.compact(net)(params, x)
    tuned = sslx.tune(net)
    tuned.choices(params, x)
    jax.effects_barrier()
    assert not LOG
    assert logged(jax.jit(small.apply), small.variables, x) == want
    assert logged(jax.jit(tuned.apply), params, x) == want


def test_derivatives_call_back_as_often_as_those_of_the_dense_function() -> None:
    x = jnp.ones((2, 4))
    for between in (clipped, doubled, remat):
        loss = lambda p, x, f=between: (f(x @ p["a"]) @ p["c"]).sum()
        params = parameters()
        small = sslx.compact(loss)(params, x)
        want = logged(jax.jit(jax.grad(loss)), params, x)
        assert logged(jax.jit(jax.grad(small.apply)), small.variables, x) == want


def test_units_count_what_a_callback_sees_as_read() -> None:
    net = lambda p, x: clipped(x @ p["a"]) @ p["c"]
    assert not sslx.units(net)(parameters(), jnp.ones((2, 4))).classes


def test_an_effect_in_a_custom_derivative_is_reported() -> None:
    net = lambda p, x: clipped(x @ p["a"]) @ p["c"]
    (held,) = sslx.compact(net)(parameters(), jnp.ones((2, 4))).held_back
    assert "custom_vjp_call" in str(held) and "it has effects" in str(held)
