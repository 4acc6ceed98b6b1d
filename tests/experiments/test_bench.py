"""Every benchmark command runs at its smallest setting; its figures are what they say.

How fast anything is, is not tested here: `python -m experiments.bench` tells.
"""

import json
import math
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import sslx
from experiments import models
from experiments.bench import alexnet as bench_alexnet
from experiments.bench import analysis as bench_analysis
from experiments.bench import functions, mobilenet, timing, workers
from experiments.bench import lowerings as bench_lowerings
from experiments.bench import networks as bench_networks
from experiments.bench import products as bench_products
from experiments.bench import runtimes as bench_runtimes
from experiments.bench import training as bench_training
from experiments.bench.alexnet_cases import SHAPES, TABLE, Pattern, draw
from sslx import lowering

TINY = {
    "conv1": ((11, 11, 3), (3, 3, 3, 16), 1, 1, 1),
    "conv2": ((5, 5, 16), (3, 3, 8, 32), 1, 1, 2),
    "conv3": ((2, 2, 32), (3, 3, 32, 48), 1, 1, 1),
    "conv4": ((2, 2, 48), (3, 3, 24, 48), 1, 1, 2),
    "conv5": ((2, 2, 48), (3, 3, 24, 32), 1, 1, 2),
}
SSL = "ssl, 2% loss"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """AlexNet's layers made small, and few forms to choose from."""
    for layer, shape in TINY.items():
        monkeypatch.setitem(SHAPES, layer, shape)

    def timings(cache: Any, conv: lowering.Conv, options: Any) -> dict[Any, float]:
        del cache, options
        return {lowering.XLA: 2.0, lowering.rule(conv): 1.0}

    monkeypatch.setattr(lowering.Cache, "timings", timings)
    for place in ("sslx.lowering", "sslx.lowering._programs"):
        monkeypatch.setattr(f"{place}.option_sets", lambda: [{}])


# Rounds.


def rounds(a: list[float], b: list[float], again: list[float]) -> timing.Rounds:
    return timing.Rounds({"a": a, "b": b, "a (again)": again})


def test_a_ratio_within_the_spread_of_the_control_is_a_tie() -> None:
    noisy, calm = [1.0, 1.2, 0.8, 1.0, 1.1], [1.0, 1.01, 0.99, 1.0, 1.0]
    fast = [0.92] * 5
    assert rounds([1.0] * 5, fast, noisy).speedup("b", "a").tie
    found = rounds([1.0] * 5, fast, calm).speedup("b", "a")
    assert not found.tie
    assert found.median == pytest.approx(1 / 0.92)


def test_speed_ups_are_taken_round_by_round() -> None:
    drifting = [1.0, 2.0, 4.0, 8.0, 16.0]
    half = [t / 2 for t in drifting]
    found = rounds(drifting, half, drifting).speedup("b", "a")
    assert (found.q1, found.median, found.q3) == (2.0, 2.0, 2.0)


def test_interleaved_times_every_candidate_and_the_control() -> None:
    calls = {"slow": 0, "quick": 0}

    def count(name: str, seconds: float) -> timing.Timer:
        def run(times: int) -> float:
            calls[name] += times
            return seconds * times

        return run

    timers = {"slow": count("slow", 0.1), "quick": count("quick", 0.001)}
    found = timing.interleaved(timers, 6, timers=True)
    assert set(found.seconds) == {"slow", "slow (again)", "quick"}
    assert found.speedup("quick", "slow").median == pytest.approx(100)
    assert calls == {"slow": 2 * (3 + 6), "quick": 3 + 6 * 20}
    assert timing.fastest(timers, timers=True) == "quick"


def test_rounds_stay_within_their_budget() -> None:
    timers = {"a": lambda count: 2.0 * count}
    found = timing.interleaved(timers, 30, timers=True, budget=24.0)
    assert len(found.seconds["a"]) == 6


def test_a_wrong_output_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match=r"gemm: differs .* by 5.0e-01"):
        timing.check("gemm", np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    with pytest.raises(RuntimeError, match=r"gemm: shape \(2,\), expected \(1,\)"):
        timing.check("gemm", np.ones(2), np.ones(1))
    with pytest.raises(RuntimeError, match="gemm: differs"):
        timing.check("gemm", np.array([np.nan]), np.ones(1))


# alexnet_speed.


@pytest.mark.parametrize("pattern", ["random", "blocks", "classes"])
@pytest.mark.parametrize("layer", ["conv2", "conv3", "conv4", "conv5"])
def test_zeros_are_at_the_ratios_of_the_table(layer: str, pattern: Pattern) -> None:
    row, at = TABLE[SSL], list(SHAPES).index(layer)
    case = draw(layer, row, 1, 0, pattern)
    groups = case.dense.groups
    dead = 1 - case.filters.mean()
    step = 16 if pattern == "blocks" else 1
    assert dead == pytest.approx(row.rows[at], abs=2 * step / case.filters.size)
    columns = case.alive.any(-1) if groups == 1 else _columns(case.alive, groups)
    room = {"random": 1, "blocks": 16, "classes": np.prod(case.dense.window)}[pattern]
    assert abs(columns.mean() - (1 - row.columns[at])) <= room * groups / columns.size
    before = draw(list(SHAPES)[at - 1], row, 1, 0, pattern)
    np.testing.assert_array_equal(case.channels, before.filters)
    assert case.small.macs == pytest.approx(case.dense.macs / case.mac_ratio)


def _columns(alive: np.ndarray, groups: int) -> np.ndarray:
    return np.stack([part.any(-1) for part in np.split(alive, groups, -1)], -1)


def test_blocks_are_alive_or_dead_as_a_whole() -> None:
    case = draw("conv3", TABLE[SSL], 1, 0, "blocks")
    mask = case.small.mask[..., 0]
    starts = range(0, mask.shape[-1], 16)
    shares = {float(mask[i, j, s : s + 16].mean()) for s in starts for i, j in _TAPS}
    shares |= set(case.filters.reshape(-1, 16).mean(-1).tolist())
    assert shares == {0.0, 1.0}


def test_classes_are_few() -> None:
    mask = draw("conv4", TABLE[SSL], 1, 0, "classes").small.mask[..., 0]
    supports = np.unique(np.moveaxis(mask, -1, 0).reshape(mask.shape[-1], -1), axis=0)
    assert len(supports) <= 3


_TAPS = list(np.ndindex(3, 3))


def test_products_are_convolutions(tiny: None) -> None:
    case = draw("conv4", TABLE["l1, 2% loss"], 2, 0, "random")
    x = np.random.default_rng(0).standard_normal(case.dense.lhs, np.float32)
    patches = bench_products.patches(case.dense, x)
    matrices = bench_products.matrices(case.dense, case.masked)
    rows = [w @ p for w, p in zip(matrices, patches, strict=True)]
    out = np.concatenate(rows).T.reshape(2, *case.dense.out, -1)
    expected = case.dense.run(jnp.asarray(x), jnp.asarray(case.masked))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_wrong_sparse_kernel_is_found(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(matrix: np.ndarray) -> Any:
        return scipy.sparse.csc_array(2 * matrix)

    monkeypatch.setattr(scipy.sparse, "csr_array", wrong)
    case = draw("conv3", TABLE["l1, 2% loss"], 1, 0, "random")
    with pytest.raises(RuntimeError, match="scipy CSR: differs"):
        bench_products.calls(case, np.ones(case.dense.lhs, np.float32))


def test_alexnet_speed_end_to_end(
    tiny: None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench_alexnet.Config(
        batches=(2,),
        seeds=(0,),
        layers=("conv2", "conv3"),
        rows=(SSL, "l1, 2% loss"),
        rounds=2,
        cache=tmp_path,
        out=tmp_path / "out",
    )
    bench_alexnet.main(config)
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert (tmp_path / "out/speedup.png").stat().st_size > 10_000
    assert len(record["cases"]) == 2 * 2
    ssl = [c for c in record["cases"] if c["row"] == SSL]
    for case in ssl:
        assert {"gemm, compact", "compact over dense", "compact over XLA"} <= set(
            case["speedups"]
        )
        assert case["chosen"]["compact"] != "xla"
        assert case["calls"]["aa_spread"] >= 1
    figures = {(f["row"], f["layer"]): f for f in record["figures"]}
    assert figures[SSL, "mean"]["paper"] == pytest.approx((3.37 + 6.27) / 2)
    assert {"BCOO", "BCSR", "scipy CSR"} <= set(
        figures["l1, 2% loss", "conv2"]["speedups"]
    )
    printed = capsys.readouterr().out
    assert "Speed-ups at batch 2" in printed
    assert "whole/best" in printed


def test_figures_are_medians_over_seeds_and_means_over_layers() -> None:
    speedups = {"conv2": (2.0, 3.0, 7.0), "conv3": (5.0, 4.0, 6.0)}
    cases = [
        {"layer": layer, "row": SSL, "batch": 1, "mac_ratio": 8.0, "paper": 4.0}
        | {"speedups": {"gemm": {"median": s, "tie": s < 3.5}}}
        for layer, ratios in speedups.items()
        for s in ratios
    ]
    rows = {r["layer"]: r["speedups"]["gemm"] for r in bench_alexnet.summary(cases)}
    assert rows["conv2"] == {"median": 3.0, "low": 2.0, "high": 7.0, "tie": True}
    assert rows["conv3"] == {"median": 5.0, "low": 4.0, "high": 6.0, "tie": False}
    assert rows["mean"] == {"median": 4.0, "low": 3.0, "high": 6.5, "tie": False}


def test_the_five_layers_run_as_one_program(tiny: None, tmp_path: pathlib.Path) -> None:
    config = bench_alexnet.Config(rounds=2, cache=tmp_path)
    found = bench_alexnet.time_stack(SSL, 1, 0, config)
    assert set(found["speedups"]) == {
        "compact over dense",
        "compact over XLA",
        "dense over XLA",
    }
    assert found["mac_ratio"] > 2


# networks.


def test_half_of_every_family_goes_and_inner_ones_spare_the_stream() -> None:
    network = bench_networks.create("resnet8")
    found = bench_networks.thinned(network, ("inner", "all"))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = {
        width: jax.tree.map(jnp.shape, sslx.compact(network.apply)(zeros, x).variables)
        for width, zeros in found.items()
    }
    inner, every = shapes["inner"]["params"], shapes["all"]["params"]
    assert inner["stage1_1"]["conv1"]["kernel"] == (3, 3, 16, 8)
    assert inner["stage1_1"]["conv2"]["kernel"] == (3, 3, 8, 16)
    assert every["stage1_1"]["conv2"]["kernel"] == (3, 3, 8, 8)
    assert every["stage3_1"]["shortcut"]["kernel"] == (1, 1, 16, 32)


def test_depthwise_families_are_inner(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mobilenet.MobileNet(stages=((1, 8, 1, 1), (2, 8, 2, 2)), first=8, last=16)
    monkeypatch.setattr(bench_networks, "_model", lambda _: (model, (8, 8, 3)))
    network = bench_networks.create("mobilenet")
    zeros = bench_networks.thinned(network, ("inner",))["inner"]
    x = jnp.ones((2, 8, 8, 3))
    small = sslx.compact(network.apply)(zeros, x)
    params = small.variables["params"]
    assert params["stage2_2"]["depth"]["kernel"].shape == (3, 3, 1, 8)
    assert params["stage2_2"]["project"]["kernel"].shape == (1, 1, 8, 8)
    out = small.apply(small.variables, x)
    np.testing.assert_allclose(out, network.apply(zeros, x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_networks_end_to_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench_networks.Config(
        networks=("resnet8",),
        widths=("all",),
        batches=(1,),
        lowering="rule",
        rounds=2,
        out=tmp_path,
    )
    bench_networks.main(config)
    record = json.loads((tmp_path / "record.json").read_text())
    (case,) = record["cases"]
    assert case["mac_ratio"] == pytest.approx(3.86, abs=0.01)
    assert set(case["compile"]) == {"dense", "compact", "dense, XLA", "compact, XLA"}
    assert (tmp_path / "networks.png").stat().st_size > 5_000
    line = next(x for x in capsys.readouterr().out.splitlines() if "resnet8" in x)
    assert line.split()[:4] == ["resnet8,", "all", "1", "3.86"]


def test_what_needs_too_much_memory_is_left_out() -> None:
    network = bench_networks.create("resnet8")
    config = bench_networks.Config(memory=1e-6)
    assert bench_networks.time_case(network, network.variables, 1, config) is None


# lowerings.


def test_lowerings_end_to_end(
    tiny: None, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench_lowerings.Config(
        networks=("lenet",), batches=(1,), count=2, rounds=2, out=tmp_path
    )
    bench_lowerings.main(config)
    record = json.loads((tmp_path / "record.json").read_text())
    ratios = [c["rule_over_fastest"]["median"] for c in record["cases"]]
    assert len(ratios) == 2
    mean = math.exp(sum(map(math.log, ratios)) / 2)
    assert record["geometric_means"]["rule_over_fastest"] == pytest.approx(mean)
    assert (tmp_path / "lowerings.png").stat().st_size > 3_000
    assert "2 convolutions, geometric means" in capsys.readouterr().out


# runtimes.


def test_runtimes_end_to_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench_runtimes.Config(
        networks=("resnet8",), batches=(1,), lowering="rule", rounds=2, out=tmp_path
    )
    bench_runtimes.main(config)
    (case,) = json.loads((tmp_path / "record.json").read_text())["cases"]
    assert case["images_per_second"]["XLA"] > 0
    for runtime in ("onnxruntime", "openvino"):
        missing = isinstance(case["notes"][runtime], str)
        assert missing != (runtime in case["images_per_second"])
    assert (tmp_path / "runtimes.png").stat().st_size > 3_000
    assert "resnet8 at half of its widths, batch 1" in capsys.readouterr().out


def test_a_worker_says_why_it_cannot() -> None:
    with workers.Worker(sys.executable) as worker:
        assert worker.ask("calls") == {"names": []}
        with pytest.raises(workers.WorkerError, match="run: KeyError: 'no such'"):
            worker.timer("no such")(1)
        assert worker.ask("calls") == {"names": []}
    with pytest.raises(workers.WorkerError, match="does not start"):
        workers.Worker("/no/such/python")


@pytest.mark.skipif(
    "SSLX_TORCH_PYTHON" not in os.environ,
    reason="SSLX_TORCH_PYTHON: an interpreter with torch and torch-pruning",
)
@pytest.mark.parametrize("name", ["resnet8", "vgg16", "densenet40"])
def test_torch_networks_are_the_same_ones(name: str) -> None:
    with workers.Worker(os.environ["SSLX_TORCH_PYTHON"]) as worker:
        made = worker.ask(
            "torch", name=name, network=name, batch=1, modes=["eager"], threads=2
        )
        assert worker.timer(f"{name} eager")(1) > 0
    network = bench_networks.create(name)
    params = jax.tree.leaves(network.variables["params"])
    assert made["before"]["parameters"] == sum(map(jnp.size, params))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    zeros = bench_networks.thinned(network, ("all",))["all"]
    small = sslx.compact(network.apply)(zeros, x)
    kernels = jax.tree.leaves(small.variables["params"])
    assert made["after"]["parameters"] == sum(map(jnp.size, kernels))


# training.


def test_training_end_to_end(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = os.environ.get("SSLX_TORCH_PYTHON")
    config = bench_training.Config(
        networks=("resnet8",),
        batch=4,
        rounds=2,
        torch_python=pathlib.Path(python) if python else None,
        out=tmp_path,
    )
    bench_training.main(config)
    (case,) = json.loads((tmp_path / "record.json").read_text())["cases"]
    names = {"sslx", "XLA alone"}
    if python:
        names |= {"torch eager", "torch channels-last"}
    assert set(case["images_per_second"]) == set(case["sslx_over"]) == names
    assert "training resnet8, batch 4" in capsys.readouterr().out


# analysis.


@pytest.mark.parametrize(
    "model",
    [
        models.ResNet(8, width=4),
        models.DenseNet(10, growth=4),
        models.DenseNet(22, growth=4, bottleneck=True, compression=0.5, first=8),
    ],
    ids=["resnet", "densenet", "densenet-bc"],
)
def test_networks_without_flax_are_the_same(model: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda v: rng.uniform(0.1, 0.6, v.shape), shapes)
    plain = functions.FUNCTIONS[type(model)]
    found, expected = (jax.jit(fn)(variables, x) for fn in (plain, model.apply))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_compilation_is_timed_against_itself() -> None:
    programs = {
        "dense": (lambda w, x: x @ w, jnp.ones((4, 4))),
        "compact": (lambda w, x: x @ w, jnp.ones((4, 2))),
    }
    found = bench_analysis.compile_times(programs, (jnp.ones((2, 4)),), 2)
    assert set(found.seconds) == {"dense", "compact", "dense (again)"}
    assert math.isfinite(found.noise)


def test_analysis_end_to_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that no other one has to start."""

    class Here:
        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *exception: object) -> None: ...

        def apply(self, fn: Any, args: Any) -> Any:
            return fn(*args)

    class Context:
        Pool = staticmethod(lambda count: Here())

    monkeypatch.setattr("multiprocessing.get_context", lambda method: Context)
    config = bench_analysis.Config(
        cases=("depth-2",), compiled=("depth-2",), rounds=1, out=tmp_path
    )
    bench_analysis.main(config)
    (row,) = json.loads((tmp_path / "record.json").read_text())["cases"]
    assert row["parameters_compact"] < row["parameters"]
    assert row["compile"]["compact_over_dense"]["median"] > 0
