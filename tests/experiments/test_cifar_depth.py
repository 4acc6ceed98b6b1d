import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sslx
from experiments import models
from experiments.cifar_depth import __main__ as cifar_depth
from experiments.cifar_depth import report as depth_report
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl import stages as ssl_stages
from experiments.training import checkpoints
from sslx import measure


def compacted(dead):
    """Layers of ResNet-8 with these kernels at zero, as a run records them."""
    model = models.create("resnet8")
    variables = models.init(model)
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32),
        variables["batch_stats"],
    )
    groups = sparsity.make_groups("layer", variables["params"])
    alive = {f"{path}/kernel": np.zeros(()) for path in dead}
    zeroed = {**variables, "params": sslx.scale(groups, variables["params"], alive)}
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    small = sslx.compact(model.apply)(zeroed, x)
    wanted = jax.jit(model.apply)(zeroed, x)
    got = jax.jit(small.apply)(small.variables, x)
    np.testing.assert_allclose(got, wanted, atol=1e-5 * float(jnp.abs(wanted).max()))
    before = measure.cost(model.apply, zeroed, x)
    return ssl_stages.layers(before, measure.cost(small.apply, small.variables, x))


@pytest.mark.parametrize(
    ("dead", "left"),
    [
        (["stage1_1/conv2", "stage3_1/conv1"], (1, 2, 0)),
        pytest.param(
            ["stage2_1/conv1", "stage2_1/conv2"], (3, 0, 2), marks=pytest.mark.slow
        ),
    ],
)
def test_a_dead_layer_takes_the_other_one_of_its_block_along(dead, left):
    assert depth_report.surviving(compacted(dead)) == left


def test_every_convolution_between_shortcut_ends_is_one_group():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = models.create("resnet20")
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    groups = sparsity.make_groups("layer", params)
    assert groups.count == 18
    sizes = sorted(int(size) for size in groups.sizes.values())
    shapes = [(16, 144)] * 6 + [(32, 144)] + [(32, 288)] * 5
    shapes += [(64, 288)] + [(64, 576)] * 5
    # Kernel and BatchNorm's scale.
    assert sizes == sorted(width * columns + width for width, columns in shapes)


def test_the_papers_counts_give_the_papers_layers():
    for name, (*counts, _) in depth_report.PAPER.items():
        assert sum(counts) + 1 == int(name.split("-")[-1])


def test_layers_are_decayed_while_ssl_regularises_them(tmp_path):
    config = cifar_depth.Config(data="digits", model="resnet8", run=tmp_path)
    params = {"stage1_1": {"conv1": {"kernel": jnp.ones((3, 3, 2, 2))}}}
    for skip, moved in (((), True), (("stage1_1/conv1/kernel",), False)):
        schedule = optax.constant_schedule(0.1)
        tx = ssl_stages.sgd(schedule, config.weight_decay, skip)
        updates, _ = tx.update(
            jax.tree.map(jnp.zeros_like, params), tx.init(params), params
        )
        assert bool(jnp.any(updates["stage1_1"]["conv1"]["kernel"] != 0)) == moved


def test_checkpoints_hold_the_empty_arrays_of_removed_layers(tmp_path):
    state = {"gone": jnp.zeros((3, 3, 0, 4)), "kept": jnp.arange(4.0)}
    store = checkpoints.Checkpoints(tmp_path / "checkpoints")
    store.save(1, state)
    store.wait()
    found, _ = store.restore(jax.tree.map(jnp.zeros_like, state))
    store.close()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, state)
    np.testing.assert_array_equal(found["kept"], state["kept"])


def test_presets_and_options():
    assert cifar_depth.parse([]) == cifar_depth.PRESETS["cpu"]
    assert cifar_depth.parse([]).structure == "layer"
    paper = cifar_depth.parse(["--preset", "paper", "--strength", "0.05"])
    assert (paper.baseline_epochs, paper.strength) == (328, 0.05)
    with pytest.raises(SystemExit):
        cifar_depth.parse(["--model", "convnet"])


@pytest.mark.slow
def test_the_whole_road_on_digits(tmp_path):
    command = [sys.executable, "-m", "experiments.cifar_depth", "--data", "digits"]
    command += ["--preset", "smoke", "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "convolutions by image size" in done.stdout
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    assert record["compact"]["relative_error"] < 1e-4
    left = depth_report.surviving(record["compact"]["layers"])
    assert 1 <= sum(left) < 7
    assert record["baseline"]["test_accuracy"] > 0.8
    penalties = [row["penalty"] for row in record["metrics"] if "penalty" in row]
    assert penalties[-1] < penalties[0]
