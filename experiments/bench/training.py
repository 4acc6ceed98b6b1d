"""A training step, lowered by the rule, by XLA as it comes, and in PyTorch.

    python -m experiments.bench training --torch-python PYTHON --out FILE     2 minutes

SGD with momentum on the cross entropy, BatchNorm in train mode, images on the device.
With `--torch-python`, an interpreter that has `torch`, the same network is trained by
PyTorch in a process of its own, with as many threads as there are cores, in the same
rounds. The parameters after one step of ours are compared with those after one of XLA's
before the timing; PyTorch's network must have as many as ours.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import sslx
from experiments import models
from experiments.bench import timing, workers
from experiments.bench.timing import Call, Timer
from experiments.bench.workers import Worker
from experiments.reports import runtimes
from experiments.training import loop, steps

Mode = Literal["eager", "channels-last"]
OURS, XLA = "sslx", "XLA alone"


@dataclasses.dataclass(frozen=True)
class Config:
    """Time a training step here and in PyTorch."""

    networks: tuple[str, ...] = ("resnet20",)
    """Of experiments.models and experiments.bench.pytorch."""
    batch: int = 128
    """Images per step."""
    rounds: int = 21
    """Rounds of the timing."""
    torch_python: pathlib.Path | None = None
    """An interpreter with torch and torch-pruning, to compare with."""
    torch_modes: tuple[Mode, ...] = ("eager", "channels-last")
    """How PyTorch lays out its images."""
    out: pathlib.Path | None = None
    """Folder for record.json."""


def _stage(name: str) -> steps.Stage:
    model = models.create(name)
    schedule = optax.constant_schedule(0.1)
    optimizer = optax.sgd(schedule, momentum=0.9)
    return steps.Stage(name, model.apply, models.init(model), optimizer, schedule)


def _stepper(step: Any, state: steps.State, x: jax.Array, y: jax.Array) -> Call:
    def once() -> steps.State:
        nonlocal state
        state = step(state, x, y)
        return state

    return once


def time_network(name: str, config: Config) -> dict[str, Any]:
    """Ratios of one network's steps."""
    stage = _stage(name)
    options = steps.Options(epochs=1, batch=config.batch)
    update = steps.make_update(stage, options, lambda images: images)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((config.batch, 32, 32, 3), np.float32))
    y = jnp.asarray(rng.integers(0, 10, config.batch), jnp.int32)
    start = functools.partial(loop.initial_state, stage, options, loop.device_mesh())
    fast = sslx.tune(update, donate_argnums=0)
    plain = jax.jit(update, donate_argnums=0)
    expected, found = (
        jax.flatten_util.ravel_pytree(step(start(), x, y).variables["params"])[0]
        for step in (plain, fast)
    )
    timing.check(name, found, expected, 1e-3)
    timers: dict[str, Call | Timer] = {
        OURS: timing.timer(_stepper(fast, start(), x, y)),
        XLA: timing.timer(_stepper(plain, start(), x, y)),
    }
    with contextlib.ExitStack() as stack:
        if config.torch_python is not None:
            worker = stack.enter_context(Worker(config.torch_python))
            made = worker.ask(
                "training",
                name="torch",
                network=name,
                batch=config.batch,
                modes=config.torch_modes,
                threads=os.cpu_count(),
            )
            if made["parameters"] != expected.size:
                raise RuntimeError(
                    f"{name}: PyTorch's has {made['parameters']:,} parameters, ours "
                    f"{expected.size:,}; the comparison needs equal networks"
                )
            for mode in worker.ask("calls")["names"]:
                timers[mode] = worker.timer(mode)
        rounds = timing.interleaved(timers, config.rounds, timers=True, budget=180.0)
    return {
        "network": name,
        "batch": config.batch,
        "images_per_second": {k: config.batch / rounds.median(k) for k in timers},
        "sslx_over": {k: rounds.speedup(OURS, k).as_dict() for k in timers},
        "calls": rounds.as_dict(),
    }


def main(config: Config) -> dict[str, Any]:
    """Time all, print a table each, write JSON where asked."""
    versions = workers.torch_versions(config.torch_python)
    cases = []
    for name in config.networks:
        cases.append(time_network(name, config))
        print(text(cases[-1]), flush=True)
    record: dict[str, Any] = {"torch": versions, "cases": cases}
    return timing.finish(record, config.out, runtimes.TRAINING)


def text(case: dict[str, Any]) -> str:
    """Images per second, and how many times those of each ours are."""
    rows = [
        [k, f"{rate:.0f}", timing.cell(case["sslx_over"][k])]
        for k, rate in case["images_per_second"].items()
    ]
    title = f"training {case['network']}, batch {case['batch']}"
    return timing.table([title, "images/s", "sslx over it"], rows)
