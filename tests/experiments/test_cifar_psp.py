import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sslx
from experiments import models
from experiments.cifar_psp import __main__ as cifar_psp
from experiments.cifar_psp import stages as psp_stages
from experiments.cifar_psp.stages import Config
from experiments.cifar_ssl import report as ssl_report
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.psp_sweep import __main__ as psp_sweep
from experiments.psp_sweep import curves
from experiments.training import runs
from sslx import psp

METHODS = ("decay", "l1", "sss", "fixed", "prune")


@pytest.fixture(scope="module")
def few():
    """96 digits to train on, 32 to test, 8x8: fast, and not noise."""
    whole = image_sets.load("digits")
    small = lambda images, n: np.ascontiguousarray(images[:n, ::4, ::4])
    return dataclasses.replace(
        whole,
        train_images=small(whole.train_images, 96),
        train_labels=whole.train_labels[:96],
        test_images=small(whole.test_images, 32),
        test_labels=whole.test_labels[:32],
    )


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """The folder of a baseline; every test continues from it."""
    folder = tmp_path_factory.mktemp("baseline")
    context = make(few, folder, Config())
    assert context.trained["params"]
    return folder


def make(arrays, folder, config, stage="sparse"):
    config = dataclasses.replace(
        config, data="digits", model="convnet", batch=32, baseline_epochs=1
    )
    return psp_stages.Context(
        config, runs.Run(folder, psp_stages.STAGES), arrays, stage
    )


NEAR = {"threshold": 0.95, "strength": 0.01}  # a few columns start below
SHORT = {
    "decay": NEAR,
    "l1": NEAR,
    "sss": {"strength": 1.5},
    "fixed": {"sparsity": 0.5},
    "prune": {"sparsity": 0.5},
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=() if m in ("decay", "prune") else pytest.mark.slow)
        for m in METHODS
    ],
)
def test_every_method_ends_with_exact_zeros(few, trained, method):
    config = Config(method=method, sparse_epochs=1, **SHORT[method])
    context = make(few, trained, config, f"stage-{method}")
    result = psp_stages.sparse(context)
    kernels = [m.path for c in context.groups.classes for m in c.members]
    leaves, _ = sslx._groups.groups.flatten(context.sparse["params"])
    columns = [np.asarray(leaves[k]).reshape(-1, leaves[k].shape[-1]) for k in kernels]
    zero = sum(int((~x.any(axis=1)).sum()) for x in columns)
    assert zero == sum(result["zero_groups"].values())
    assert result["group_sparsity"] == zero / context.groups.count
    if method in ("fixed", "prune"):
        assert result["group_sparsity"] == pytest.approx(0.5, abs=0.01)
    else:
        assert 0.02 < result["group_sparsity"] < 1
    logits = jax.jit(context.model.apply)(context.sparse, context.images(32))
    right = float((logits.argmax(-1) == few.test_labels).mean())
    assert right == pytest.approx(result["test_accuracy"], abs=1e-6)
    if method == "decay":
        compared = ssl_stages.compact(context)
        assert compared["relative_error"] < 1e-5


def test_blocks_of_filters_shrink_the_network(few, trained):
    config = Config(
        method="fixed", structure="coupled", block=8, sparse_epochs=1, sparsity=0.5
    )
    context = make(few, trained, config, "stage-blocks")
    assert psp_stages.sparse(context)["group_sparsity"] == 0.5
    small = sslx.compact(context.model.apply)(context.sparse, context.images(1))
    shapes = {k: v["kernel"].shape for k, v in small.variables["params"].items()}
    assert shapes["conv1"] == (5, 5, 3, 16) and shapes["conv2"] == (5, 5, 16, 16)


@pytest.mark.parametrize("start", ["ones", "norms"])
def test_the_first_factors_leave_the_network_as_it_is(start):
    params = models.init(models.create("resnet8"))["params"]
    groups = sslx.groups(params, {r"stage.*conv\d/kernel": sslx.SHAPE})
    first = psp_stages.first_parameters(groups, params, start)
    folded = psp.fold(groups, first, psp.Threshold(0.0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), folded, params
    )
    norms = sslx.norms(groups, params)
    for name, alpha in first.alphas.items():
        expected = norms[name] / norms[name].mean() if start == "norms" else 1
        np.testing.assert_allclose(alpha, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rounds", "seen"), [(1, [0.6] * 8), (2, [0.3] * 2 + [0.6] * 6)]
)
def test_pruning_goes_step_by_step_over_the_first_half(rounds, seen):
    params = {"kernel": jnp.arange(1.0, 91.0).reshape(3, 3, 5, 2)}
    groups = sslx.groups(params, {"kernel": sslx.SHAPE})
    config = Config(method="prune", sparsity=0.6, prune_rounds=rounds)
    tx = psp_stages.pruning(groups, config, 8)
    state, shares = tx.init(params), []
    for _ in range(8):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        (alive,) = sslx.alive(groups, params).values()
        shares.append(float(1 - alive.mean()))
    np.testing.assert_allclose(shares, seen, atol=0.03)
    assert bool(alive.reshape(-1)[-1]) and not bool(alive.reshape(-1)[0])


def test_presets_differ_and_the_command_line_overrides_them():
    assert cifar_psp.parse([]) == cifar_psp.PRESETS["cpu"]
    given = cifar_psp.parse(["--preset", "smoke", "--method", "l1", "--seed", "3"])
    assert (given.preset, given.method, given.seed) == ("smoke", "l1", 3)
    sweep = psp_sweep.parse(["--preset", "smoke", "--point.batch", "16"])
    assert sweep.point == dataclasses.replace(
        psp_sweep.PRESETS["smoke"].point, batch=16
    )


@pytest.mark.parametrize(
    ("parse", "arguments", "text"),
    [
        (cifar_psp.parse, ["--sparsity", "1.5"], "--sparsity: got 1.5"),
        (cifar_psp.parse, ["--method", "magic"], "magic"),
        (psp_sweep.parse, ["--curves", "prune"], "needs decay among --curves"),
    ],
)
def test_values_out_of_range_are_refused(parse, arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        parse(arguments)
    assert error.value.code != 0
    assert text in "".join(capsys.readouterr())


def test_options_of_other_methods_do_not_count(tmp_path):
    """Changing lambda must not forbid to continue a pruning, which has none."""
    assert "strength" not in psp_stages.fields("prune")
    assert "sparsity" not in psp_stages.fields("decay")
    for method in METHODS:
        names = {field.name for field in dataclasses.fields(Config)}
        assert set(psp_stages.fields(method)) <= names


@pytest.fixture
def untrained(few, monkeypatch):
    """Points that are made up: sparsity by lambda and seed, or as asked for."""
    done = []

    def sparse(context):
        config = context.config
        reached = 10 * config.strength + 0.01 * config.seed
        share = config.sparsity if config.method == "prune" else reached
        done.append(context.stage)
        return {"group_sparsity": share, "test_accuracy": 1 - share / 2}

    monkeypatch.setattr(image_sets, "load", lambda *_: few)
    monkeypatch.setattr(psp_stages, "sparse", sparse)
    monkeypatch.setattr(ssl_stages, "baseline", lambda _: {"test_accuracy": 0.9})
    return done


@pytest.mark.parametrize(
    "one_baseline", [pytest.param(True, marks=pytest.mark.slow), False]
)
def test_a_sweep_matches_sparsities_resumes_and_draws(
    untrained, tmp_path, one_baseline
):
    sweep = dataclasses.replace(
        psp_sweep.PRESETS["smoke"],
        curves=("prune", "decay", "fixed"),
        decay=(0.02,),
        sparsities=(0.5,),
        seeds=(0, 1),
        one_baseline=one_baseline,
        run=tmp_path,
    )
    record = psp_sweep.main(sweep)
    assert len(record["baselines"]) == (1 if one_baseline else 2)
    found = {
        method: sorted(
            (row["options"]["seed"], row["group_sparsity"])
            for row in record["points"]
            if row["options"]["method"] == method
        )
        for method in sweep.curves
    }
    assert found["prune"] == found["decay"]
    assert len(found["decay"]) == len(found["fixed"]) == 2
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved["points"] == record["points"]
    assert len(untrained) == 6
    psp_sweep.main(sweep)
    assert len(untrained) == 6
    point = dataclasses.replace(sweep.point, alpha_learning_rate=0.1)
    with pytest.raises(runs.RunError, match=r"alpha_learning_rate was 0\.3, now 0\.1"):
        psp_sweep.main(dataclasses.replace(sweep, point=point))


def test_the_paper_s_points_say_what_its_text_is_remembered_for():
    """PSP by weight decay stays within 0.2 of the baseline to 76% of the columns."""
    near = [(x, y) for x, y in curves.PAPER["decay"] if 10 < x < 76.4]
    assert max(y for _, y in near) <= curves.PAPER_BASELINE + 0.2
    for rows in curves.PAPER.values():
        sparsities = [x for x, _ in rows]
        assert sparsities == sorted(sparsities)


def test_the_report_names_the_method():
    assert ssl_report._method({}) == "SSL"
    assert ssl_report._trained({"sparse": {}}) == ("baseline", "sparse", "finetune")
    assert psp_stages.TITLES.keys() == set(METHODS)


@pytest.mark.slow
def test_the_whole_road_on_digits(tmp_path):
    config = cifar_psp.PRESETS["smoke"]
    config = dataclasses.replace(config, data="digits", model="resnet8", run=tmp_path)
    cifar_psp.main(config)
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    dense, compact = record["baseline"], record["finetune"]
    assert record["sparse"]["group_sparsity"] > 0.2
    assert compact["test_accuracy"] > dense["test_accuracy"] - 0.05
    assert record["compact"]["relative_error"] < 1e-5
