"""What sslx and the training loop cost, in ratios, measured side by side.

    python -m experiments.bench overhead      ResNet-20, batch 128; 3 minutes on 2 cores
    python -m experiments.bench analysis      see experiments/bench/analysis.py
    python -m experiments.bench alexnet_speed see experiments/bench/alexnet.py
    python -m experiments.bench networks      see experiments/bench/networks.py
    python -m experiments.bench runtimes      see experiments/bench/runtimes.py
    python -m experiments.bench lowerings     see experiments/bench/lowerings.py
    python -m experiments.bench training      see experiments/bench/training.py

All of them keep freed memory (`sslx.keep_memory`), for every candidate alike. The first
prints ratios, and an A/A control that tells how small a difference shows:

    group lasso     median of (step with subgradient / plain step), expected <= 1.05
    proximal step   median of (step with proximal / plain step), expected <= 1.05
    masks           median of (step with pruning schedule / plain step), <= 1.05
    PSP             median of (step with factors / plain step), expected <= 1.05
    training loop   median of (images/s of `train.fit` / of the bare step), >= 0.95
"""

import contextlib
import dataclasses
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tyro

import sslx
from experiments import models
from experiments.bench import alexnet as bench_alexnet
from experiments.bench import analysis as bench_analysis
from experiments.bench import lowerings as bench_lowerings
from experiments.bench import networks as bench_networks
from experiments.bench import runtimes as bench_runtimes
from experiments.bench import timing
from experiments.bench import training as bench_training
from experiments.cifar_psp import stages as psp_stages
from experiments.cifar_ssl import sparsity
from experiments.data import image_sets
from experiments.reports import overhead
from experiments.training import checkpoints, loop, runs
from sslx import measure, psp


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the training step with and without its parts."""

    model: str = "resnet20"
    """Network."""
    batch: int = 128
    """Images per step."""
    rounds: int = 15
    """Rounds of the interleaved timing of steps."""
    loop_rounds: int = 5
    """Rounds of loop against bare steps."""
    loop_steps: int = 60
    """Steps in each of these."""
    out: pathlib.Path | None = None
    """Folder for record.json."""


def _noise(count: int) -> image_sets.Arrays:
    """Images of CIFAR's shape; their content does not matter here."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    classes = tuple(map(str, range(10)))
    return image_sets.Arrays("noise", images, labels, images[:1], labels[:1], classes)


_SCHEDULE = optax.constant_schedule(1e-3)


def _plain(model_name: str) -> loop.Stage:
    model = models.create(model_name)
    optimizer = optax.sgd(_SCHEDULE, momentum=0.9, nesterov=True)
    variables = models.init(model)
    return loop.Stage("bench", model.apply, variables, optimizer, _SCHEDULE)


def _groups(stage: loop.Stage, structure: sparsity.Structure) -> sslx.Groups:
    return sparsity.make_groups(structure, stage.variables["params"])


def _lasso(model_name: str, structure: sparsity.Structure) -> loop.Stage:
    """The penalty's gradient is added to the loss's."""
    plain = _plain(model_name)
    lasso = sslx.subgradient(sslx.GroupLasso(1e-4), _groups(plain, structure))
    return dataclasses.replace(plain, optimizer=optax.chain(lasso, plain.optimizer))


def _proximal(model_name: str, structure: sparsity.Structure) -> loop.Stage:
    plain = _plain(model_name)
    groups = _groups(plain, structure)
    proximal = sslx.proximal(sslx.GroupLasso(1e-4), groups, _SCHEDULE)
    return dataclasses.replace(plain, optimizer=optax.chain(plain.optimizer, proximal))


def _masked(model_name: str, structure: sslx.Structure, every: int) -> loop.Stage:
    """Groups pruned along a cubic schedule, chosen anew after `every` steps."""
    plain = _plain(model_name)
    kernels = {r"(?!.*shortcut).*kernel": structure}
    groups = sslx.groups(plain.variables["params"], kernels)
    density = optax.polynomial_schedule(1.0, 0.2, 3, 1000)
    pruning = sslx.select.prune(groups, density, every=every)
    return dataclasses.replace(plain, optimizer=optax.chain(plain.optimizer, pruning))


def _factored(
    model_name: str, structure: sparsity.Structure, gradient: psp.Gradient
) -> loop.Stage:
    """A factor per group, learned beside the weights."""
    plain = _plain(model_name)
    groups = _groups(plain, structure)
    config = psp_stages.Config(gradient=gradient)
    variables = plain.variables
    return dataclasses.replace(
        plain,
        apply=psp_stages.parameterized(plain.apply, groups, config),
        variables={**variables, "params": psp.init(groups, variables["params"])},
        optimizer=psp.optimizer(plain.optimizer, psp.sgd(_SCHEDULE, decay=1e-4)),
    )


def _stepper(
    stage: loop.Stage, options: loop.Options, arrays: image_sets.Arrays
) -> Callable[[], Any]:
    """A call that does one step on its own state and data on the device."""
    mesh = loop.device_mesh()
    step = loop.make_step(stage, options, arrays, mesh)
    step = sslx.tune(step, donate_argnums=0)
    state = loop.initial_state(stage, options, mesh)
    images = jax.device_put(arrays.train_images)
    labels = jax.device_put(arrays.train_labels)
    order = jax.device_put(loop.epoch_order(0, 0, len(labels), options.batch))

    def once() -> Any:
        nonlocal state
        state = step(state, images, labels, order)
        return state

    return once


def step_overhead(config: Config) -> dict[str, Any]:
    """Time of a step with each part over that of the plain step, in the same rounds."""
    model = config.model
    plain = _plain(model)
    stages = {
        "step": plain,
        "step, control": plain,
        "group lasso gradient, filter+channel": _lasso(model, "filter+channel"),
        "proximal, filter+channel": _proximal(model, "filter+channel"),
        "proximal, coupled": _proximal(model, "coupled"),
        "masks, filters, every step": _masked(model, sslx.FILTER, 1),
        "masks, kernels, every 10 steps": _masked(model, sslx.KERNEL, 10),
        "masks, weights, every 10 steps": _masked(model, sslx.WEIGHT, 10),
        "PSP, columns, sum": _factored(model, "shape", "sum"),
        "PSP, columns, chain": _factored(model, "shape", "chain"),
        "PSP, coupled, chain": _factored(model, "coupled", "chain"),
    }
    arrays = _noise(16 * config.batch)
    options = loop.Options(epochs=1, batch=config.batch)
    calls = {name: _stepper(stage, options, arrays) for name, stage in stages.items()}
    found = measure.latency(calls, repeats=config.rounds)
    print(found)
    ratios = {row["name"]: 1 / row["speedup"] for row in found.rows()}
    fastest = found["step"].minimum
    best = {row["name"]: row["minimum"] / fastest for row in found.rows()}
    return {"ratios": ratios, "best": best, "latency": found.as_dict()}


def loop_overhead(config: Config) -> dict[str, Any]:
    """Images per second of `train.fit` (data, log, checkpoint) and of bare steps.

    Bare steps are timed before and after every run of the loop, which is compared to
    their mean. `fit` compiles in its first steps, so its own log is read, from the
    first line on. Checkpoints are rarer than that: one is timed on its own, waited for
    to the end, and charged once per `Options.checkpoint_every` seconds:

        loop / bare = rate without checkpoints / bare rate * (1 - save / period)
    """
    arrays = _noise((config.loop_steps + 10) * config.batch)
    options = loop.Options(
        epochs=1, batch=config.batch, log_every=10, checkpoint_every=1e9
    )
    stage = _proximal(config.model, "coupled")
    bare = _stepper(stage, options, arrays)
    jax.block_until_ready(bare())
    save = _save_seconds(bare())
    period = loop.Options(epochs=1).checkpoint_every
    share = 1 - save / period
    loops, controls = [], []
    for _ in range(config.loop_rounds):
        first = _bare_rate(bare, config)
        looped = _loop_rate(stage, options, arrays, config)
        second = _bare_rate(bare, config)
        loops.append(2 * looped / (first + second) * share)
        controls.append(second / first)
        print(
            f"bare {first:.0f}, loop {looped:.0f}, bare {second:.0f} images/s: "
            f"loop / bare {loops[-1]:.3f}, control {controls[-1]:.3f}"
        )
    return {
        "loop_over_bare": statistics.median(loops),
        "loop_over_bare_rounds": loops,
        "control": statistics.median(controls),
        "seconds_per_checkpoint": save,
        "seconds_between_checkpoints": period,
    }


def _save_seconds(state: Any) -> float:
    """Median of three checkpoints, each from the call until all is on disk."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        store = checkpoints.Checkpoints(folder)
        for step in range(4):
            start = time.perf_counter()
            checkpoints.all_finite(state.variables).block_until_ready()
            store.save(step, state)
            store.wait()
            times.append(time.perf_counter() - start)
        store.close()
    return statistics.median(times[1:])


def _bare_rate(bare: Callable[[], Any], config: Config) -> float:
    start = time.perf_counter()
    for _ in range(config.loop_steps):
        last = bare()
    jax.block_until_ready(last)
    return config.loop_steps * config.batch / (time.perf_counter() - start)


def _loop_rate(
    stage: loop.Stage, options: loop.Options, arrays: image_sets.Arrays, config: Config
) -> float:
    """From the log line of step 10 to the last one."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            loop.fit(stage, arrays, options, folder)
        rows = loop.read_metrics(folder / "metrics.jsonl")[1:]
    images = options.log_every * options.batch
    seconds = sum(images / row["images_per_second"] for row in rows)
    return len(rows) * images / seconds


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and write JSON where asked."""
    steps, whole = step_overhead(config), loop_overhead(config)
    for name, ratio in steps["ratios"].items():
        best = steps["best"][name]
        print(f"{name}: {ratio:.3f} of the plain step's time (best calls {best:.3f})")
    print(
        f"training loop: {whole['loop_over_bare']:.3f} of the bare step's images/s "
        f"(control {whole['control']:.3f}; a checkpoint takes "
        f"{whole['seconds_per_checkpoint']:.2f} s)"
    )
    record = {"steps": steps, "loop": whole}
    return timing.finish(record, config.out, overhead.REPORT)


if __name__ == "__main__":
    COMMANDS = {
        "overhead": main,
        "analysis": bench_analysis.main,
        "alexnet_speed": bench_alexnet.main,
        "networks": bench_networks.main,
        "runtimes": bench_runtimes.main,
        "lowerings": bench_lowerings.main,
        "training": bench_training.main,
    }
    sslx.keep_memory()
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog=runs.program(),
        description=__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
