"""Compaction is exact on the papers' networks, and their shapes really shrink."""

import jax
import numpy as np
import pytest

import sslx
from experiments import models
from sslx import measure, select
from tests import small_models
from tests.arrays import relative_error, sparse_variables

NARROW = {
    "mlp": models.MLP(hidden=(40, 30)),
    "preresnet11": models.PreResNet(11, width=8),
    "densenet10": models.DenseNet(10, growth=6, first=8),
    "densenet10bc": models.DenseNet(
        10, growth=4, bottleneck=True, compression=0.5, first=8
    ),
}
FULL = ("resnet164", "densenet40", "densenet100", "densenet100bc", "vgg16", "vgg19")


def sparse(model, dead: float, dtype=np.float64, size=16):
    """Random variables of which a share of all inner outputs is zero, and an image."""
    return sparse_variables(
        model,
        (2, size, size, 3),
        dead,
        dtype,
        lambda path, leaf: path.endswith("kernel") and leaf.shape[-1] != 10,
    )


def concatenated(fn, variables, x) -> list[int]:
    """Channels of every concatenation, in order of execution."""
    equations = jax.make_jaxpr(fn)(variables, x).jaxpr.eqns
    return [
        e.outvars[0].aval.shape[-1]
        for e in equations
        if e.primitive.name == "concatenate" and e.outvars[0].aval.ndim == 4
    ]


@pytest.mark.parametrize("name", NARROW)
def test_compact_networks_compute_the_same_with_less(name: str, x64) -> None:
    model = NARROW[name]
    variables, x = sparse(model, 0.4)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-11
    before = measure.cost(model.apply, variables, x)
    after = measure.cost(small.apply, small.variables, x)
    assert after.macs < 0.7 * before.macs
    assert not small.held_back


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_compact_networks_of_full_size_compute_the_same(name: str) -> None:
    model = models.create(name)
    variables, x = sparse(model, 0.4, np.float32, size=32)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-5


def test_concatenations_shrink_to_the_channels_that_live(x64) -> None:
    model = models.DenseNet(10, growth=4, first=8)
    variables, x = sparse(model, 0.0)
    params = variables["params"]
    dead = {"conv1": 3, "stage1_1/conv1": 2, "stage1_2/conv1": 1, "stage2_1/conv1": 3}
    for path, count in dead.items():
        layer, *inner = path.split("/")
        leaf = params[layer][inner[0]] if inner else params[layer]
        leaf["kernel"] = leaf["kernel"].at[..., :count].set(0)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-12
    dense = concatenated(model.apply, variables, x)
    assert dense == [12, 16, 20, 24, 28, 32]
    # Two layers in each of three blocks; a transition mixes all channels anew.
    assert concatenated(small.apply, small.variables, x) == [
        12 - 3 - 2,
        16 - 3 - 2 - 1,
        20 - 3,
        24 - 3,
        28,
        32,
    ]
    kernel = small.variables["params"]["stage1_2"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 12, 4 - 1)  # constants are made of removed ones


@pytest.mark.parametrize("reader", ["stage1_2", "transition1"])
def test_a_channel_that_no_layer_reads_leaves_the_concatenations(reader, x64) -> None:
    model = models.DenseNet(10, growth=4, first=8)
    variables, x = sparse(model, 0.0)
    params, width = variables["params"], {"stage1_2": 12, "transition1": 16}
    readers = ["stage1_1", "stage1_2", "transition1"]
    for name in readers[: readers.index(reader) + 1]:
        inner = "conv" if name == "transition1" else "conv1"
        kernel = params[name][inner]["kernel"]
        params[name][inner]["kernel"] = kernel.at[:, :, 5].set(0)
    small = sslx.compact(model.apply)(variables, x)
    want = jax.jit(model.apply)(variables, x)
    got = jax.jit(small.apply)(small.variables, x)
    assert relative_error(got, want) < 1e-12
    gone = reader == "transition1"  # the last of the three that read channel 5
    assert small.variables["params"]["conv1"]["kernel"].shape[-1] == 8 - gone
    inner = "conv" if gone else "conv1"
    kept = small.variables["params"][reader][inner]["kernel"].shape[2]
    assert kept == width[reader] - 1


@pytest.mark.parametrize("name", ["mixer", "vision_transformer"])
def test_the_rows_of_a_summary_add_up_to_the_cost(name: str) -> None:
    made = small_models.model(name)
    with jax.numpy_rank_promotion("allow"):
        units = sslx.units(made.fn)(made.params, made.x)
        masks = select.keep(units, sslx.norms(units, made.params), 0.6)
        small = sslx.compact(made.fn)(sslx.scale(units, made.params, masks), made.x)
        rows = small.rows()
        before = measure.cost(made.fn, made.params, made.x)
        after = measure.cost(small.apply, small.variables, made.x)
    assert sum(row["macs_before"] for row in rows) == before.macs
    assert sum(row["macs_after"] for row in rows) == after.macs < before.macs
