"""Programs whose images are stored channels first compute what they did."""

import collections

import jax
import jax.numpy as jnp
import pytest

from experiments import models
from sslx._compact.jaxpr.program import Program, trace
from sslx.adapters import _channels_first
from tests.arrays import normals, relative_error
from tests.networks import network


def laid_out(fn, *args) -> Program:
    program, _, _ = trace(fn, *args)
    flat = jax.tree.leaves(args)
    return trace(lambda *a: _channels_first.run(program, a), *flat)[0]


def computed(program: Program, *args):
    return _channels_first.run(program, args)


@pytest.mark.parametrize("seed", range(12))
def test_any_network_computes_the_same(seed: int, x64) -> None:
    """Parameters are constants in every second network, and inputs in the others."""
    constant = seed % 2 == 0
    net = network(seed, zeros=False, tiny=seed % 4 > 0)
    x = jax.random.normal(jax.random.key(seed), net.image, jnp.float64)
    with jax.numpy_rank_promotion("allow"):
        fn = (lambda p, x: net.apply(net.params, x)) if constant else net.apply
        want = jax.jit(net.apply)(net.params, x)
        program = laid_out(fn, net.params, x)
        (got,) = jax.jit(lambda *a: computed(program, *a))(*_flat(net.params, x))
    assert relative_error(got, want) < 1e-12, net.description


def _flat(*tree):
    return jax.tree.leaves(tree)


POOLS = {
    "max": lambda x: _pool(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1)),
    "mean": lambda x: _pool(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1)),
    "padded sum": lambda x: _pool(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1)),
    "over channels": lambda x: _pool(x, 0.0, jax.lax.add, (1, 1, 1, 2), (1, 1, 1, 2)),
    "over all but rows": lambda x: _pool(x, 0.0, jax.lax.add, (2, 1, 2, 3), (1,) * 4),
    "of one pixel": lambda x: _pool(x, 0.0, jax.lax.add, (1,) * 4, (1,) * 4),
    "of integers": lambda x: _pool(
        x.astype(jnp.int32), 0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1)
    ).astype(x.dtype),
    "one axis": lambda x: _pool(
        x.reshape(-1), 0.0, jax.lax.add, (4,), (3,), padding="VALID"
    ),
    "transposed": lambda x: jnp.transpose(jnp.transpose(x, (1, 3, 0, 2)), (3, 2, 1, 0)),
    "sliced": lambda x: x[:, 1:, ::2, 1:3],
    "reduced": lambda x: x.max(2) + x.sum((1,)),
}


def _pool(x, start, function, window, strides, padding="SAME"):
    return jax.lax.reduce_window(x, start, function, window, strides, padding)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("after_convolution", [True, False])
def test_pools_and_moves_are_the_same(name: str, after_convolution: bool) -> None:
    draw = normals()
    x, kernel = draw(2, 6, 6, 3), draw(3, 3, 3, 4)

    def fn(x: jax.Array) -> jax.Array:
        if after_convolution:
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=numbers
            )
        return POOLS[name](x)

    (got,) = computed(laid_out(fn, x), x)
    assert relative_error(got, fn(x)) < 1e-5


NETWORKS = {
    "resnet": models.ResNet(depth=8),
    "densenet": models.DenseNet(depth=10),
    "vgg": models.create("vgg16"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_transposed_once(name: str) -> None:
    model, image = NETWORKS[name], jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), variables)
    program = laid_out(lambda x: model.apply(variables, x), image)
    kinds = collections.Counter(e.name for e in program.equations)
    layouts = {
        e.params["dimension_numbers"].lhs_spec
        for e in program.equations
        if e.name == "conv_general_dilated"
    }
    assert kinds["transpose"] == 1 and layouts == {(0, 1, 2, 3)}, kinds
