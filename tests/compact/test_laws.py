"""The laws of compaction, on networks made at random, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from tests.networks import network


def check(seed: int, alignment: str = "auto", constants: str = "fold") -> None:
    with jax.numpy_rank_promotion("allow"):
        check_network(network(seed), seed, alignment, constants)


def check_network(net, seed: int, alignment: str, constants: str) -> None:
    x = jax.random.normal(jax.random.key(seed), net.image, jnp.float64)
    params = net.params
    small = sslx.compact(net.apply, alignment=alignment, constants=constants)(params, x)
    fn, apply = jax.jit(net.apply), jax.jit(small.apply)
    dense = fn(params, x)
    close(apply(small.variables, x), dense, net)
    more = jnp.concatenate([x, 2 * x])
    close(apply(small.variables, more), fn(params, more), net)
    close(fn(small.expand(), x), dense, net)
    check_gradients(net, small, x)
    if alignment != "auto":
        check_idempotent(net, small, x, alignment, constants)


def check_idempotent(net, small, x, alignment: str, constants: str) -> None:
    twice = sslx.compact(small.apply, alignment=alignment, constants=constants)(
        small.variables, x
    )
    left = {p: leaf.kept for p, leaf in twice.plan.leaves.items()}
    assert all(k is None for kept in left.values() for k in kept), net.description


def close(got, want, net) -> None:
    scale = float(jnp.abs(want).max()) + 1e-30
    error = float(jnp.abs(got - want).max()) / scale
    assert error < 1e-10, f"{net.description}: relative error {error:.1e}"


def check_gradients(net, small, x) -> None:
    shape = jax.eval_shape(net.apply, net.params, x).shape
    weights = jax.random.normal(jax.random.key(0), shape)
    dense = jax.jit(jax.grad(lambda p: (net.apply(p, x) * weights).sum()))(net.params)
    reduced = jax.jit(jax.grad(lambda p: (small.apply(p, x) * weights).sum()))(
        small.variables
    )
    scale = max(float(jnp.abs(g).max()) for g in dense.values()) + 1e-30
    want = sslx.apply_plan(small.plan, dense)
    for path, g in reduced.items():
        if g.size:
            error = float(np.abs(g - want[path]).max()) / scale
            assert error < 1e-9, f"{net.description}: gradient of {path}: {error:.1e}"


def check_tiny(seed: int) -> None:
    """One block; the output always, gradients and idempotence now and then."""
    net, (alignment, constants) = network(seed, tiny=True), SETTINGS[seed % 6]
    x = jax.random.normal(jax.random.key(seed), net.image, jnp.float64)
    options = {"alignment": alignment, "constants": constants}
    with jax.numpy_rank_promotion("allow"):
        small = sslx.compact(net.apply, **options)(net.params, x)
        fn = jax.jit(net.apply)
        dense = fn(net.params, x)
        close(jax.jit(small.apply)(small.variables, x), dense, net)
        if seed % 4 == 0:
            close(fn(small.expand(), x), dense, net)
        if seed % 8 == 0:
            check_gradients(net, small, x)
        if seed % 8 == 1 and alignment != "auto":
            check_idempotent(net, small, x, alignment, constants)


SETTINGS = [(a, c) for a in ("auto", "align", "scatter") for c in ("fold", "keep")]


def test_compaction_of_one_block_is_exact(x64) -> None:
    for seed in range(5020, 5044):
        check_tiny(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(5000, 5400, 20))
def test_compaction_of_one_block_is_exact_on_many(start: int, x64) -> None:
    for seed in range(start, start + 20):
        check_tiny(seed)


@pytest.mark.parametrize("seed", [*range(2, 6), 1016])
def test_compaction_is_exact(seed: int, x64) -> None:
    check(seed, *SETTINGS[seed % 6])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, *range(1000, 1400)])
def test_compaction_is_exact_on_many(seed: int, x64) -> None:
    for alignment, constants in SETTINGS:
        check(seed, alignment, constants)
