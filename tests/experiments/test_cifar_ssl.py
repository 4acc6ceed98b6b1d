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
from experiments.cifar_ssl import __main__ as cifar_ssl
from experiments.cifar_ssl import sparsity
from experiments.training import runs
from sslx import measure


@pytest.fixture(scope="module")
def resnet():
    model = models.create("resnet8")
    return model, models.init(model)


def test_presets_differ_and_the_command_line_overrides_them():
    assert cifar_ssl.parse([]) == cifar_ssl.PRESETS["cpu"]
    assert cifar_ssl.parse([]).data == "cifar10"
    assert cifar_ssl.parse([]).model == "resnet20"
    paper = cifar_ssl.parse(["--preset", "paper", "--seed", "3"])
    assert paper.baseline_epochs == cifar_ssl.PRESETS["paper"].baseline_epochs
    assert (paper.preset, paper.seed) == ("paper", 3)
    assert cifar_ssl.parse(["--preset=smoke"]) == cifar_ssl.PRESETS["smoke"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--target", "1.5"], "--target: got 1.5"),
        (["--batch", "0"], "--batch: got 0"),
        (["--growth", "0.5"], "--growth: got 0.5"),
    ],
)
def test_values_out_of_range_are_refused(arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        cifar_ssl.parse(arguments)
    assert error.value.code != 0
    assert text in "".join(capsys.readouterr())


@pytest.mark.parametrize("word", ["--preset", "--data", "--model", "--structure"])
def test_unknown_words_are_refused_with_the_known_ones(word, capsys):
    with pytest.raises(SystemExit) as error:
        cifar_ssl.parse([word, "nonsense"])
    assert error.value.code != 0
    assert "nonsense" in "".join(capsys.readouterr())


def test_a_folder_of_other_options_is_refused(tmp_path):
    run = runs.Run(tmp_path, ("a", "b"))
    run.begin("a", {"rate": 0.1, "seed": 0})
    run.begin("a", {"rate": 0.1, "seed": 0})
    with pytest.raises(runs.RunError, match=r"rate was 0.1, now 0.2.*--redo a"):
        run.begin("a", {"rate": 0.2, "seed": 0})


def test_redo_forgets_what_follows_too(tmp_path):
    run = runs.Run(tmp_path, ("a", "b", "c"))
    for stage in run.stages:
        run.begin(stage, {})
        run.finish(stage, {"x": 1})
    run.redo(["b"])
    assert [run.result(stage) for stage in run.stages] == [{"x": 1}, None, None]


def test_a_later_stage_says_which_earlier_one_is_missing(tmp_path):
    config = cifar_ssl.Config(data="digits", run=tmp_path, stages=("compact",))
    with pytest.raises(runs.RunError, match="needs stage baseline"):
        cifar_ssl.main(config)


def test_the_command_says_errors_in_one_line(tmp_path):
    words = ["--data", "digits", "--stages", "ssl", "--run", str(tmp_path / "r")]
    said = r"error: --stages ssl: needs stage baseline.*\Z"
    with pytest.raises(SystemExit, match=said):
        runs.command(lambda: cifar_ssl.main(cifar_ssl.parse(words)))


def test_groups_of_every_structure(resnet):
    _, variables = resnet
    params = variables["params"]
    count = lambda name, block=1: sparsity.make_groups(name, params, block).count
    assert count("coupled") == count("filter") == count("channel") == 16 + 32 + 64
    assert count("filter+channel") == 2 * (16 + 32 + 64)
    assert count("coupled", 8) == (16 + 32 + 64) // 8
    assert count("depth") == 3
    assert count("shape") == 9 * (16 + 16 + 16 + 32 + 32 + 64)
    assert count("layer", 8) == 6
    plain = models.init(models.create("convnet"))["params"]
    assert sparsity.make_groups("coupled", plain).count == 32 + 32
    both = sparsity.make_groups("filter+shape", plain, 8)
    assert both.count == 32 + 75 + 32 + 800 + 64 + 800


def test_convnets_multipliers_are_those_of_the_authors_log():
    plain = models.init(models.create("convnet"))["params"]
    groups = sparsity.make_groups("filter+shape", plain)
    weighted = groups.weighted(sparsity.AUTHORS_MULTIPLIERS)
    assert {c.name.replace("/kernel", ""): c.weight for c in weighted.classes} == {
        "conv1:SHAPE": 0.2,
        "conv2:SHAPE": 1.0,
        "conv3:SHAPE": 1.0,
        "conv1:FILTER": 1.0,
        "conv2:FILTER": 1.0,
        "conv3:FILTER": 0.1,
    }
    assert set(sparsity.norm_arrays(groups, plain)) == {
        f"conv{k}:{kind}" for k in (1, 2, 3) for kind in ("FILTER", "SHAPE")
    }
    convnet = cifar_ssl.parse(["--preset", "convnet"])
    assert (convnet.structure, convnet.multipliers) == ("filter+shape", "authors")
    with pytest.raises(ValueError, match="only, got resnet20 and coupled"):
        cifar_ssl.Config(multipliers="authors")


def test_blocks_hold_neighbours_in_norm(resnet):
    _, variables = resnet
    params = variables["params"]
    single = sparsity.make_groups("coupled", params)
    blocks = sparsity.make_groups("coupled", params, 8)
    for one, many in zip(single.classes, blocks.classes, strict=True):
        norms = np.sort(sslx.norms(single, params)[one.name])
        expected = np.sqrt(np.sum(norms.reshape(-1, 8) ** 2, axis=1))
        found = np.sort(sslx.norms(blocks, params)[many.name])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("structure", ["coupled", "filter+channel", "depth"])
def test_share_of_zero_groups_is_what_compaction_removes(resnet, structure):
    model, variables = resnet
    image = jnp.zeros((1, 32, 32, 3))
    groups = sparsity.make_groups(structure, variables["params"])
    dense = measure.cost(model.apply, variables, image)
    macs = sparsity.group_macs(groups, dense)
    half = {
        c.name: (np.arange(c.count).reshape(c.shape) + 1) % 2 for c in groups.classes
    }
    params = sslx.scale(groups, variables["params"], half)
    share = sparsity.removed_share(groups, sslx.alive(groups, params), macs)
    if structure == "depth":
        assert float(share) == 0
        return
    small = sslx.compact(model.apply)({**variables, "params": params}, image)
    after = measure.cost(small.apply, small.variables, image)
    assert 1 - after.macs / dense.macs == pytest.approx(float(share), rel=1e-6)


def test_weights_in_two_zero_groups_count_once():
    model = models.create("convnet")
    image = jnp.zeros((1, 32, 32, 3))
    variables = models.init(model)
    groups = sparsity.make_groups("coupled", variables["params"])
    dense = measure.cost(model.apply, variables, image)
    half = {c.name: np.arange(c.count) % 2 for c in groups.classes}
    params = sslx.scale(groups, variables["params"], half)
    macs = sparsity.group_macs(groups, dense)
    share = sparsity.removed_share(groups, sslx.alive(groups, params), macs)
    small = sslx.compact(model.apply)({**variables, "params": params}, image)
    after = measure.cost(small.apply, small.variables, image)
    assert 1 - after.macs / dense.macs == pytest.approx(float(share), rel=1e-5)
    nothing = {c.name: np.zeros(c.shape, bool) for c in groups.classes}
    inner = sum(macs.values())
    every = sparsity.removed_share(groups, nothing, macs)
    assert float(every) == pytest.approx(inner, rel=1e-6) and inner < 1


def test_penalty_stops_at_the_target_and_zeros_stay(resnet):
    model, variables = resnet
    groups = sparsity.make_groups("coupled", variables["params"], 8)
    spread = {c.name: np.linspace(0.2, 1, c.count) for c in groups.classes}
    params = sslx.scale(groups, variables["params"], spread)
    cost = measure.cost(model.apply, variables, jnp.zeros((1, 32, 32, 3)))
    macs = sparsity.group_macs(groups, cost)
    transform = sparsity.proximal_to_target(
        groups, lambda step: 0.1, sparsity.growing(0.1, 2.0, 10), macs, 0.3
    )
    watch = jax.jit(sparsity.observe(sslx.GroupLasso(0.1), groups, macs))

    @jax.jit
    def step(params, state):
        push = jax.tree.map(lambda leaf: 1e-3 * jnp.sin(1e3 * leaf + 1), params)
        updates, state = transform.update(push, state, params)
        return optax.apply_updates(params, updates), state

    state, met_at, zeros = transform.init(params), None, None
    for count in range(200):
        params, state = step(params, state)
        if bool(state.met) and met_at is None:
            met_at, zeros = count, sslx.alive(groups, params)
            penalty = float(watch(params)["penalty"])
    assert met_at is not None and 10 < met_at < 150
    seen = watch(params)
    norms = seen.pop("norms")
    assert len(norms) == len(groups.classes)
    for (name, row), alive in zip(norms.items(), zeros.values(), strict=True):
        share = np.linspace(0, 1, 5)
        dead = np.mean(~alive)
        assert (np.diff(row) >= 0).all() and row[-1] > 0, name
        assert (row == 0).sum() == pytest.approx((share < dead).sum(), abs=1), name
    seen = {name: float(value) for name, value in seen.items()}
    assert 0.3 <= seen["removed_macs"] < 0.45
    assert seen["zero_groups"] == sum(int((~x).sum()) for x in zeros.values())
    now = sslx.alive(groups, params)
    for name in zeros:
        np.testing.assert_array_equal(now[name], zeros[name])
    assert seen["penalty"] > 0.9 * penalty  # nothing pulls any more


@pytest.mark.slow
def test_the_whole_road_on_digits(tmp_path):
    options = ["--data", "digits", "--preset", "smoke", "--model", "resnet8"]
    options += ["--run", str(tmp_path), "--ssl-epochs", "4"]
    command = [sys.executable, "-m", "experiments.cifar_ssl", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "report" / "report.html") in done.stdout.replace("\n", "")
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    assert record["baseline"]["test_accuracy"] > 0.9
    assert record["finetune"]["macs"] < 0.7 * record["baseline"]["macs"]
    assert (
        record["finetune"]["test_accuracy"] > record["baseline"]["test_accuracy"] - 0.05
    )
    assert record["compact"]["relative_error"] < 1e-5
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "baseline " not in again.stdout.split("before and after")[0]
