"""Modules of Flax NNX and Equinox made smaller; Linen and Haiku as plain functions."""

import copy
import functools
import pathlib
import subprocess
import sys
from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import PyTree

import sslx
import sslx.adapters.equinox
import sslx.adapters.nnx
from tests.arrays import normals
from tests.public.harness import distance, perturbed

KEY = jax.random.key(0)
DEAD = np.array([1, 2, 5])


def noise(*shape: int) -> jax.Array:
    return normals()(*shape)


def without(index: object) -> Callable[[jax.Array], jax.Array]:
    """A function that sets a part of an array to zero."""

    def zeroed(leaf: jax.Array) -> jax.Array:
        array = np.array(leaf)
        array[index] = 0
        return jnp.asarray(array)

    return zeroed


def zero(variable: nnx.Variable, index: object) -> None:
    variable[...] = without(index)(variable[...])


class Net(nnx.Module):
    """Plain, depthwise, strided and dense layers, a norm, dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(16, rngs=rngs)
        self.depthwise = nnx.Conv(16, 32, (3, 3), feature_group_count=16, rngs=rngs)
        self.conv2 = nnx.Conv(32, 8, (3, 3), strides=2, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.depthwise(nnx.relu(self.bn(self.conv1(x))))
        x = nnx.relu(self.conv2(x)).mean((1, 2))
        return self.out(self.drop(x))


def net() -> Net:
    """A `Net` in which three first and two second filters are dead, biases included."""
    model = Net(nnx.Rngs(0))
    nnx.update(model, perturbed(nnx.state(model)))
    model.eval()
    for variable in (model.conv1.kernel, model.conv1.bias, model.bn.scale):
        zero(variable, (..., DEAD))
    zero(model.bn.bias, DEAD)
    for variable in (model.depthwise.kernel, model.depthwise.bias):
        zero(variable, (..., np.concatenate([2 * DEAD, 2 * DEAD + 1])))
    for variable in (model.conv2.kernel, model.conv2.bias):
        zero(variable, (..., np.array([0, 7])))
    return model


@functools.cache
def resized() -> tuple[Net, Net, sslx.Compact, jax.Array]:
    model, x = net(), noise(2, 8, 8, 3)
    return model, *sslx.adapters.nnx.compact(model)(x), x


def test_nnx_module_comes_back_smaller_in_every_attribute() -> None:
    model, small, _, x = resized()
    assert distance(small(x), model(x)) < 1e-5
    assert small.conv1.out_features == 13
    assert small.conv1.kernel_shape == small.conv1.kernel.shape == (3, 3, 3, 13)
    assert small.bn.num_features == small.bn.mean.shape[0] == 13
    assert small.depthwise.in_features == small.depthwise.feature_group_count == 13
    assert small.depthwise.out_features == small.conv2.in_features == 26
    assert small.conv2.out_features == small.out.in_features == 6
    assert (small.conv2.strides, small.out.out_features) == (2, 5)


def test_nnx_module_given_is_left_as_it_is() -> None:
    model, fresh = resized()[0], net()
    assert model.conv1.out_features == 16
    assert distance(nnx.state(model, nnx.Param), nnx.state(fresh, nnx.Param)) == 0


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.heads = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.heads(self.norm(x))


def attention() -> Attention:
    model = Attention(nnx.Rngs(0))
    nnx.update(model, perturbed(nnx.state(model)))
    return model


def test_nnx_attention_loses_a_whole_head() -> None:
    model, x = attention(), noise(2, 5, 32)
    for part in (model.heads.query, model.heads.key, model.heads.value):
        zero(part.kernel, (slice(None), 1))
        zero(part.bias, 1)
    zero(model.heads.out.kernel, 1)
    small, _ = sslx.adapters.nnx.compact(model)(x)
    assert distance(small(x), model(x)) < 1e-5
    assert (small.heads.num_heads, small.heads.qkv_features) == (3, 24)
    assert small.heads.head_dim == 8
    assert small.heads.query.out_features == small.heads.out.in_features == (3, 8)


def test_nnx_module_whose_code_divides_by_a_size_that_shrank_is_refused_by_name() -> (
    None
):
    model, x = attention(), noise(2, 5, 32)
    for part in (model.heads.query, model.heads.key):
        zero(part.kernel, (..., DEAD))
        zero(part.bias, (..., DEAD))
    zero(model.heads.value.kernel, (..., DEAD))
    zero(model.heads.value.bias, (..., DEAD))
    with pytest.raises(ValueError, match=r"output of heads/out \(LinearGeneral\)"):
        sslx.adapters.nnx.compact(model, strict=True)(x)
    new, small = sslx.adapters.nnx.compact(model)(x)
    assert distance(new(x), model(x)) < 1e-5
    assert new.heads.head_dim == 8
    assert "holds back heads/key/bias" in str(small.held_back[-1])
    fn, variables = sslx.adapters.nnx.function(model)
    small = sslx.compact(fn)(variables, x)
    assert distance(small.apply(small.variables, x), model(x)) < 1e-5
    assert small.variables["heads"]["query"]["kernel"].shape == (32, 4, 5)


class HardCoded(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = nnx.Linear(4, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.inner(x).reshape(-1, 2, 4).reshape(-1, 8))


def test_nnx_module_that_cannot_run_is_refused_by_name() -> None:
    model = HardCoded(nnx.Rngs(0))
    zero(model.inner.kernel, (..., DEAD))
    with pytest.raises(ValueError, match=r"the module \(HardCoded\) cannot run"):
        sslx.adapters.nnx.compact(model)(noise(2, 4))


def test_folded_constants_have_no_place_in_a_module() -> None:
    model, x = net(), noise(2, 8, 8, 3)
    model.conv2.bias[...] = model.conv2.bias[...] + 1  # its dead filters speak
    fn, variables = sslx.adapters.nnx.function(model)
    small = sslx.compact(fn)(variables, x)
    assert small.folded
    with pytest.raises(ValueError, match=r'constants were folded.*\n.*"keep"'):
        sslx.adapters.nnx.resize(model, small)(x)


def test_nnx_module_is_resized_from_a_file(tmp_path: pathlib.Path) -> None:
    model, first, small, x = resized()
    sslx.save(tmp_path / "small", small)
    fn, variables = sslx.adapters.nnx.function(model)
    loaded = sslx.load(tmp_path / "small", fn, like=variables)
    again = sslx.adapters.nnx.resize(model, loaded)(x)
    assert distance(again(x), first(x)) == 0
    assert again.conv1.out_features == 13


# State and optimizers.


class Normed(nnx.Module):
    """Two layers with a norm whose statistics are state."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def normed(speaks: bool) -> Normed:
    """Three first neurons are zero; the norm still speaks for them, or is zero too."""
    model = Normed()
    nnx.update(model, perturbed(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    silent = () if speaks else (model.norm.scale, model.norm.bias)
    for variable in (model.first.kernel, model.first.bias, *silent):
        zero(variable, (..., DEAD))
    return model


@nnx.jit
def trained(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array) -> None:
    """A step of training, nested in two calls of `nnx.jit`."""
    _step(model, optimizer, x)


@nnx.jit
def _step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array) -> None:
    optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).mean())(model))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("speaks", "width"), [(False, 5), (True, 8)])
def test_nnx_statistics_go_on_as_in_the_dense_module(
    train: bool, speaks: bool, width: int
) -> None:
    dense, x = normed(speaks), noise(16, 6)
    dense.set_attributes(deterministic=not train, use_running_average=not train)
    small, found = sslx.adapters.nnx.compact(dense)(x)
    assert small.norm.mean.shape == (width,)
    assert small.drop.deterministic is not train
    assert not found.held_back
    for model in (dense, small):
        model.train()
        model.drop.eval()
        tx = optax.chain(optax.sgd(0.1, momentum=0.9), sslx.keep_zeros())
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(3):
            trained(model, optimizer, x)
        model.eval()
    assert distance(small(x), dense(x)) < 1e-5
    if not speaks:
        assert distance(small.norm.var[...], np.delete(dense.norm.var, DEAD)) < 1e-5


def test_nnx_state_that_a_call_returns_has_the_reduced_shape() -> None:
    def call(module: Normed, x: jax.Array) -> PyTree:
        return module(x), nnx.state(module, nnx.BatchStat)

    dense, x = normed(speaks=False), noise(16, 6)
    dense.drop.eval()
    small, found = sslx.adapters.nnx.compact(dense, call=call)(x)
    assert small.norm.mean.shape == (5,)
    _, state = found.apply(found.variables, x)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) == {
        "norm": {"mean": (5,), "var": (5,)}
    }


class Memory(nnx.Variable):
    """What earlier calls have left."""


class Remembers(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
        self.memory = Memory(jnp.zeros((1, 8)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.first(x) * self.memory[...])


def test_nnx_state_that_is_zero_is_not_taken_for_dead() -> None:
    dense, x = Remembers(), noise(4, 6)
    small, _ = sslx.adapters.nnx.compact(dense)(x)
    for model in (dense, small):
        model.memory[...] = jnp.ones((1, 8))
    assert distance(small(x), dense(x)) < 1e-6
    assert abs(small(x)).max() > 0.1


FILTERS = {r"first/kernel$": sslx.FILTER}
LASSO = sslx.GroupLasso(20.0)


@pytest.mark.parametrize(
    ("make", "zeros"),
    [
        (lambda groups: sslx.proximal(LASSO, groups, learning_rate=0.1), 8),
        (lambda groups: sslx.select.prune(groups, 0.5), 4),
        (sslx.keep_zeros, 3),
    ],
    ids=["proximal", "prune", "keep_zeros"],
)
def test_nnx_optimizer_and_groups_have_the_same_paths(
    make: Callable, zeros: int
) -> None:
    model = normed(speaks=False)
    before = model.first.kernel[...]
    groups = sslx.groups(nnx.state(model, nnx.Param), FILTERS)
    assert groups == sslx.groups(sslx.adapters.nnx.function(model)[1], FILTERS)
    tx = optax.chain(optax.sgd(0.1), make(groups))
    trained(model, nnx.Optimizer(model, tx, wrt=nnx.Param), noise(16, 6))
    dead = ~np.asarray(model.first.kernel).any(0)
    assert dead[DEAD].all()
    assert dead.sum() == zeros
    assert distance(model.first.kernel[...], before) > 1e-3


def test_nnx_parameters_train_with_learned_factors() -> None:
    model, x = normed(speaks=False), noise(16, 6)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    groups, gate = sslx.groups(params, FILTERS), sslx.psp.Threshold(0.9)
    parameters = sslx.psp.init(groups, params)
    tx = sslx.psp.optimizer(optax.sgd(0.1), optax.sgd(0.5))

    def loss(parameters: sslx.psp.Parameters) -> jax.Array:
        weights = sslx.psp.materialize(groups, parameters, gate)
        return (nnx.merge(graph, weights, rest)(x) ** 2).mean()

    @jax.jit
    def step(parameters: PyTree, state: PyTree) -> PyTree:
        updates, state = tx.update(jax.grad(loss)(parameters), state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters, _ = step(parameters, tx.init(parameters))
    nnx.update(model, sslx.psp.fold(groups, parameters, gate))
    (alphas,) = parameters.alphas.values()
    closed = np.asarray(abs(alphas) < 0.9)
    kernel = np.asarray(model.first.kernel)
    assert (kernel[:, closed] == 0).all()
    assert distance(alphas, jnp.ones(8)) > 1e-4


def stepping(model: nnx.Module) -> nnx.Optimizer:
    return nnx.Optimizer(
        model, optax.chain(optax.adam(0.1), sslx.keep_zeros()), wrt=nnx.Param
    )


@functools.cache
def shrunk() -> tuple[Normed, Normed, sslx.Plan, nnx.Optimizer]:
    """A module trained for a step, made smaller, and its optimizer."""
    model, x = normed(speaks=False), noise(16, 6)
    model.drop.eval()
    optimizer = stepping(model)
    trained(model, optimizer, x)
    small, found = sslx.adapters.nnx.compact(model)(x)
    return model, small, found.plan, optimizer


FORMS = {
    "state": lambda optimizer: nnx.state(optimizer, nnx.OptState),
    "variables": lambda optimizer: optimizer.opt_state,
    "optimizer": lambda optimizer: optimizer,
    "dictionary": lambda optimizer: nnx.to_pure_dict(nnx.state(optimizer)),
}


@pytest.mark.parametrize("form", FORMS)
def test_nnx_optimizer_state_shrinks(form: str) -> None:
    _, small, plan, optimizer = shrunk()
    got = sslx.apply_plan(plan, FORMS[form](optimizer))
    want = FORMS[form](stepping(small))
    shapes = lambda tree: list(map(jnp.shape, jax.tree.leaves(tree)))
    assert shapes(got) == shapes(want)
    assert (6, 5) in shapes(got)


def test_nnx_module_trains_on_with_its_optimizer() -> None:
    model, small, plan, optimizer = map(copy.deepcopy, shrunk())
    new, x = stepping(small), noise(16, 6)
    state = nnx.state(optimizer)
    nnx.update(new, sslx.apply_plan(plan, state, like=nnx.state(new)))
    for net, step in ((model, optimizer), (small, new)):
        trained(net, step, x)
    assert distance(small(x), model(x)) < 1e-5


class EqxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    mix: eqx.nn.Conv2d
    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array):
        a, b, c = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, 16, 3, key=a)
        self.norm = eqx.nn.BatchNorm(16, "batch", mode="ema")
        self.mix = eqx.nn.Conv2d(16, 16, 3, groups=16, key=b)
        self.mlp = eqx.nn.MLP(16, 4, 16, 1, key=c)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> jax.Array:
        x, _ = self.norm(self.conv(x), state)
        return self.mlp(self.mix(jax.nn.relu(x)).mean((1, 2)))


def batched(pair: tuple[EqxNet, eqx.nn.State], x: jax.Array) -> jax.Array:
    model, state = pair
    return jax.vmap(model, (0, None), axis_name="batch")(x, state)


def test_equinox_module_comes_back_smaller_in_every_attribute() -> None:
    pair = eqx.nn.make_with_state(EqxNet)(KEY)
    pair = perturbed(eqx.nn.inference_mode(pair))

    slices = lambda p: (
        *(p[0].conv.weight, p[0].conv.bias, p[0].norm.weight, p[0].norm.bias),
        *(p[0].mix.weight, p[0].mix.bias),
        *(p[0].mlp.layers[0].weight, p[0].mlp.layers[0].bias),
    )
    pair, x = eqx.tree_at(slices, pair, replace_fn=without(DEAD)), noise(2, 3, 8, 8)
    resized = sslx.adapters.equinox.compact(pair, call=batched)(x)
    model, _ = resized.module
    assert distance(batched(resized.module, x), batched(pair, x)) < 1e-5
    assert (model.conv.in_channels, model.conv.out_channels) == (3, 13)
    assert model.norm.input_size == 13
    assert model.mix.groups == model.mix.in_channels == model.mix.out_channels == 13
    assert (model.mlp.in_size, model.mlp.width_size, model.mlp.out_size) == (13, 13, 4)
    assert model.mlp.layers[1].in_features == model.mlp.layers[0].out_features == 13
    assert pair[0].conv.out_channels == 16


class EqxNormed(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        self.first = eqx.nn.Linear(6, 8, key=key)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
        self.last = eqx.nn.Linear(8, 3, key=key)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> PyTree:
        x, state = self.norm(self.first(x), state)
        return self.last(jax.nn.relu(x)), state


@eqx.filter_jit
def normed_batch(pair: tuple[EqxNormed, eqx.nn.State], x: jax.Array) -> PyTree:
    model, state = pair
    axes = {"in_axes": (0, None), "out_axes": (0, None)}
    return jax.vmap(model, axis_name="batch", **axes)(x, state)


@pytest.mark.parametrize("train", [False, True])
def test_equinox_state_goes_on_as_in_the_dense_module(
    train: bool, tmp_path: pathlib.Path
) -> None:
    pair, x = perturbed(eqx.nn.make_with_state(EqxNormed)(KEY)), noise(16, 6)
    slices = lambda p: (
        *(p[0].first.weight, p[0].first.bias, p[0].norm.weight, p[0].norm.bias),
    )
    pair = eqx.tree_at(slices, pair, replace_fn=without(DEAD))
    pair = eqx.nn.inference_mode(pair, not train)
    small, found = sslx.adapters.equinox.compact(pair, call=normed_batch)(x)
    assert not found.held_back
    assert small[0].first.out_features == small[0].norm.input_size == 5
    assert sorted(map(jnp.shape, jax.tree.leaves(small[1]))) == [(), (5,), (5,)]

    @eqx.filter_jit
    def step(model: EqxNormed, state: eqx.nn.State) -> PyTree:
        loss = lambda m: ((y := normed_batch((m, state), x))[0].var(), y[1])
        grads, state = eqx.filter_grad(loss, has_aux=True)(model)
        old = eqx.filter(model, eqx.is_inexact_array)
        updates = jax.tree.map(lambda g, w: -0.1 * g * (w != 0), grads, old)
        return eqx.apply_updates(model, updates), state

    outputs = []
    for start in (pair, small):
        model, state = step(*eqx.nn.inference_mode(start, False))
        assert not eqx.tree_equal(state, start[1])
        quiet = eqx.nn.inference_mode((model, state))
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", quiet)
        quiet = eqx.tree_deserialise_leaves(tmp_path / "net.eqx", quiet)
        outputs.append(normed_batch(quiet, x)[0])
    assert distance(*outputs) < 1e-5


def test_equinox_attention_loses_a_whole_head() -> None:
    model = perturbed(eqx.nn.MultiheadAttention(4, 32, key=KEY))
    rows = lambda m: [
        getattr(m, f"{part}_proj").weight for part in ("query", "key", "value")
    ]
    model = eqx.tree_at(rows, model, replace_fn=without(np.s_[8:16]))
    model = eqx.tree_at(
        lambda m: m.output_proj.weight, model, replace_fn=without(np.s_[:, 8:16])
    )
    x, call = noise(5, 32), lambda m, x: m(x, x, x)
    small, _ = sslx.adapters.equinox.compact(model, call=call)(x)
    assert distance(call(small, x), call(model, x)) < 1e-5
    assert small.num_heads == 3
    assert small.query_proj.out_features == small.output_proj.in_features == 24


def test_equinox_norm_over_what_shrank_is_refused_by_name() -> None:
    a, b = jax.random.split(KEY)
    layers = [eqx.nn.Linear(4, 8, key=a), eqx.nn.LayerNorm(8)]
    model = perturbed(eqx.nn.Sequential([*layers, eqx.nn.Linear(8, 2, key=b)]))
    slices = lambda m: (m[0].weight, m[0].bias, m[1].weight, m[1].bias)
    model = eqx.tree_at(slices, model, replace_fn=without(DEAD))
    with pytest.raises(ValueError, match="computes something else: output is off by"):
        sslx.adapters.equinox.compact(model, strict=True)(noise(4))
    new, small = sslx.adapters.equinox.compact(model)(noise(4))
    assert distance(new(noise(4)), model(noise(4))) < 1e-5
    assert "LayerNorm.__call__) holds back layers/0/weight" in str(small.held_back[0])
    fn, variables = sslx.adapters.equinox.function(model)
    small = sslx.compact(fn)(variables, noise(4))
    assert small.variables[0].weight.shape == (5, 4)
    assert distance(small.apply(small.variables, noise(4)), model(noise(4))) < 1e-5


def test_linen_needs_no_adapter() -> None:
    model = nn.Sequential([nn.Dense(16), nn.BatchNorm(True), nn.relu, nn.Dense(3)])
    x = noise(2, 4)
    variables = perturbed(model.init(KEY, x))
    first = variables["params"]["layers_0"]
    first["kernel"] = without(np.s_[:, DEAD])(first["kernel"])
    small = sslx.compact(model.apply)(variables, x)
    assert small.variables["params"]["layers_0"]["kernel"].shape == (4, 13)
    got = jax.jit(small.apply)(small.variables, x)
    assert distance(got, model.apply(variables, x)) < 1e-5


def test_haiku_needs_no_adapter() -> None:
    def forward(x: jax.Array, train: bool) -> jax.Array:
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(16, 3)(x), train)
        return hk.Linear(3)(jax.nn.relu(x).mean((1, 2)))

    model, x = hk.transform_with_state(forward), noise(2, 8, 8, 3)
    params, state = perturbed(model.init(KEY, x, True))
    kernel = without(np.s_[..., DEAD])(params["conv2_d"]["w"])
    params["conv2_d"]["w"] = kernel

    def fn(variables: dict, x: jax.Array) -> jax.Array:
        return model.apply(variables["params"], variables["state"], None, x, False)[0]

    variables = {"params": params, "state": state}
    small = sslx.compact(fn)(variables, x)
    assert small.variables["params"]["conv2_d"]["w"].shape == (3, 3, 3, 13)
    assert distance(small.apply(small.variables, x), fn(variables, x)) < 1e-5


def test_the_library_imports_no_network_library() -> None:
    code = (
        "import sys, sslx, sslx.adapters; names = {'flax', 'equinox', 'haiku'}; "
        "sys.exit(str(names & set(sys.modules)) if names & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
