"""The study of grains: a small run from end to end, and what its figures mean."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from experiments import models
from experiments.granularity import __main__ as granularity
from experiments.granularity import report as granularity_report
from experiments.granularity import stages as granularity_stages
from experiments.training import runs

SMALL = dataclasses.replace(
    granularity.PRESETS["smoke"],
    data="digits",
    model="lenet",
    batch=64,
    baseline_epochs=1,
    learning_rate=0.01,
    retrain_learning_rate=0.01,
    grains=("kernel",),
    densities=(0.2, 0.5),
    sensitivity_images=32,
    account_images=1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = dataclasses.replace(SMALL, run=tmp_path_factory.mktemp("run"))
    granularity.main(config)
    return config


def check(config):
    record = json.loads((config.run / "report" / "record.json").read_text())
    assert len(record["seeds"]) == len(config.seeds)
    for seed in record["seeds"].values():
        assert len(seed["retrain"]["points"]) == 2 * len(config.grains)
        for point in seed["account"]["points"]:
            bits, entries = point["storage"], 25 * 3 * 20 + 25 * 20 * 50
            kept = point["density"] * entries
            assert kept - 2 * 25 < bits["kept"] <= kept
            size = {"fine": 1, "kernel": 25}[point["grain"]]
            assert bits["kept"] == size * bits["stored"]
            cells = bits["stored"] + bits["fillers"]
            assert bits["relative"] == cells * (4 + 8 * size)
    page = (config.run / "report" / "report.html").read_text()
    assert page.count("data:image/png") == 4
    return record


def test_a_small_run_prunes_to_each_density(finished):
    check(finished)


@pytest.mark.slow
def test_grains_of_two_seeds_have_error_bars(tmp_path):
    config = dataclasses.replace(
        SMALL, run=tmp_path, seeds=(0, 1), grains=("fine", "kernel")
    )
    granularity.main(config)
    record = check(config)
    for grain in config.grains:
        rows = granularity_report.rows_of(record, grain)
        points = [s["retrain"]["points"] for s in record["seeds"].values()]
        for row in rows[1:]:
            pair = [
                p["test_accuracy"]
                for seed in points
                for p in seed
                if (p["grain"], p["density"]) == (grain, row["target"])
            ]
            assert row["accuracy"] == pytest.approx(np.mean(pair))
            assert row["accuracy_sd"] == pytest.approx(np.std(pair, ddof=1))


def test_zeros_stay_and_the_next_density_starts_from_them(finished):
    run = runs.Run(finished.run / "seed-0", granularity.STAGES[:-1])
    seeded = granularity.Seeded(**vars(finished), seed=0)
    arrays = granularity.image_sets.load("digits")
    context = granularity_stages.Context(seeded, run, arrays)
    networks = {(p.grain, p.density): p for p in granularity_stages.points(context)}
    for grain in finished.grains:
        wide, thin = networks[grain, 0.5], networks[grain, 0.2]
        groups = granularity_stages.grain_groups(wide.variables["params"], grain)
        before = sslx.alive(groups, wide.variables["params"])
        after = sslx.alive(groups, thin.variables["params"])
        assert all((after[name] <= before[name]).all() for name in after)
        for name, share in thin.shares.items():
            assert after[name].mean() == pytest.approx(share, abs=1 / after[name].size)


def test_the_same_command_again_trains_nothing(finished):
    logs = sorted(finished.run.rglob("metrics.jsonl"))
    assert len(logs) == 3
    before = [log.read_text() for log in logs]
    granularity.main(finished)
    assert [log.read_text() for log in logs] == before
    with pytest.raises(runs.RunError, match="--redo retrain"):
        granularity.main(dataclasses.replace(finished, densities=(0.3,)))
    with pytest.raises(runs.RunError, match="seed 5 not complete"):
        granularity_report.collect(
            finished.run, dataclasses.replace(finished, seeds=(0, 5))
        )


def test_convolutions_are_noted_as_they_were_called():
    model = models.create("resnet8")
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), shapes)
    layers = granularity_stages.convolutions(model, variables, images)
    assert len(layers) == 9
    assert [x.strides for x in layers].count((2, 2)) == 4
    for layer in layers:
        assert layer.padding == ((1, 1) if layer.kernel.shape[0] == 3 else (0, 0))
    np.testing.assert_allclose(layers[0].inputs, images)
    assert (layers[1].inputs >= 0).all(), "the input of the second one is a ReLU's"


@pytest.mark.parametrize(
    ("padding", "strides", "expected"),
    [
        ("SAME", 2, (0, 0)),
        ("SAME", 1, (1, 1)),
        ("VALID", None, (0, 0)),
        (2, (2, 1), (2, 2)),
        (((1, 0), (2, 1)), 1, (1, 2)),
    ],
)
def test_leading_padding_of_every_spelling(padding, strides, expected):
    conv = nn.Conv(2, (3, 3), strides=strides, padding=padding)
    images = jnp.ones((1, 8, 8, 1))
    variables = conv.init(jax.random.key(0), images)
    (layer,) = granularity_stages.convolutions(conv, variables, images)
    assert layer.padding == expected
    across = strides if isinstance(strides, tuple) else (strides or 1,) * 2
    assert layer.strides == across


def test_where_a_curve_crosses_an_accuracy():
    curve = [(1.0, 0.9), (0.5, 0.92), (0.3, 0.88), (0.1, 0.5)]
    rows = [{"x": x, "accuracy": accuracy} for x, accuracy in curve]
    cross = granularity_report.at_loss
    assert cross(rows, "x", 0.0) == pytest.approx(0.4)
    assert cross(rows, "x", 0.02) == pytest.approx(0.3)
    assert cross(rows[:2], "x", 0.0) == 0.5
    assert cross([rows[0], rows[2]], "x", 0.0) is None


def test_presets_and_wrong_options(capsys):
    assert granularity.parse([]) == granularity.PRESETS["cpu"]
    assert granularity.parse(["--preset", "paper"]).model == "vgg16"
    for words, text in [
        (["--densities", "0.5", "0.01"], r"--densities: got [0.01]"),
        (["--seeds"], "--seeds: expected at least one"),
    ]:
        with pytest.raises(SystemExit):
            granularity.parse(words)
        assert text in "".join(capsys.readouterr())
