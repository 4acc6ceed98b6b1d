"""One compact network in several runtimes, and Torch-Pruning's of equal widths.

    python -m experiments.bench runtimes --torch-python PYTHON --out FOLDER

Half of all widths are removed (as in `bench networks`). The compact network runs in
XLA, lowered by measurement, and as an ONNX file in ONNX Runtime and OpenVINO (extras
`onnx` and `openvino`). With `--torch-python`, an interpreter that has `torch` and
`torch-pruning`, the same network in PyTorch is halved by Torch-Pruning. Each runtime
but XLA is a process of its own with as many threads as there are cores; all are timed
in the same rounds, and what is not installed is left out. Outputs of the exported
networks are compared with the dense one's before the timing.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import sslx
from experiments.bench import networks as bench_networks
from experiments.bench import timing, workers
from experiments.bench.timing import Timer
from experiments.bench.workers import Worker, WorkerError
from experiments.reports import runtimes
from sslx.lowering import Lowering

Runtime = Literal["onnxruntime", "openvino"]
Mode = Literal["eager", "channels-last", "compile"]
XLA = "XLA"
_MISMATCH = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """Time one compact network in all runtimes at hand."""

    networks: tuple[str, ...] = ("resnet56", "vgg16", "densenet40")
    """CIFAR networks, of experiments.models and bench_torch."""
    batches: tuple[int, ...] = (1, 32)
    """Images per call."""
    lowering: Lowering = "measure"
    """How XLA's forms are chosen."""
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "openvino")
    """Besides XLA."""
    torch_python: pathlib.Path | None = None
    """An interpreter with torch and torch-pruning."""
    torch_modes: tuple[Mode, ...] = ("eager", "channels-last", "compile")
    """Ways to run the network in PyTorch; the last two with norms folded."""
    rounds: int = 21
    """Rounds of the timing that is reported."""
    cache: pathlib.Path | None = None
    """Folder of the timings that choices are made on [~/.cache/sslx]."""
    out: pathlib.Path | None = None
    """Folder for record.json and runtimes.png."""


@dataclasses.dataclass
class Bench:
    """Timers of one network and batch size, and what is known about them."""

    timers: dict[str, Timer] = dataclasses.field(default_factory=dict)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def time_network(name: str, batch: int, config: Config) -> dict[str, Any]:
    """One network at one batch size in all runtimes."""
    network = bench_networks.create(name)
    zeros = bench_networks.thinned(network, ("all",))["all"]
    x = jax.random.normal(jax.random.key(2), (batch, *network.shape))
    small = sslx.compact(network.apply)(zeros, x)
    bench = Bench()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        expected = _add_xla(bench, small, x, config)
        timing.check(XLA, expected, jax.jit(network.apply)(zeros, x))
        _add_exported(bench, stack, folder, small, x, expected, config)
        if config.torch_python is not None:
            _add_torch(bench, stack, name, small, batch, config)
        fastest = _fastest(bench)
        found = timing.interleaved(bench.timers, config.rounds, timers=True)
    return {
        "network": name,
        "batch": batch,
        "parameters": _parameters(small),
        "notes": bench.notes,
        "images_per_second": {k: batch / found.median(k) for k in bench.timers},
        "over_xla": {k: found.speedup(k, XLA).as_dict() for k in bench.timers},
        "fastest": fastest,
        "exported_over_torch": _compared(found, fastest),
        "calls": found.as_dict(),
    }


def _add_xla(
    bench: Bench, small: sslx.Compact, x: jax.Array, config: Config
) -> np.ndarray:
    fast = small.lowered(x, lowering=config.lowering, cache=config.cache)
    program, _ = timing.compiled(fast.apply, fast.variables, x, **fast.compiler_options)
    call = functools.partial(program, small.variables, x)
    bench.timers[XLA] = timing.timer(call)
    return np.asarray(call())


def _add_exported(
    bench: Bench,
    stack: contextlib.ExitStack,
    folder: pathlib.Path,
    small: sslx.Compact,
    x: jax.Array,
    expected: np.ndarray,
    config: Config,
) -> None:
    if importlib.util.find_spec("jax2onnx") is None:
        note = "jax2onnx is not installed (extra onnx)"
        bench.notes |= dict.fromkeys(config.runtimes, note)
        return
    from sslx.adapters import onnx

    path = onnx.save(folder / "network.onnx", small, x)
    images, out = folder / "images.npy", folder / "out.npy"
    np.save(images, np.asarray(x))
    for runtime in config.runtimes:
        worker = stack.enter_context(Worker(sys.executable))
        try:
            bench.notes[runtime] = worker.ask(
                runtime,
                name=runtime,
                path=str(path),
                images=str(images),
                threads=os.cpu_count(),
            )
        except WorkerError as error:
            bench.notes[runtime] = str(error)
            continue
        worker.ask("output", name=runtime, path=str(out))
        timing.check(runtime, np.load(out), expected, 1e-3)
        bench.timers[runtime] = worker.timer(runtime)


def _add_torch(
    bench: Bench,
    stack: contextlib.ExitStack,
    name: str,
    small: sslx.Compact,
    batch: int,
    config: Config,
) -> None:
    worker = stack.enter_context(Worker(config.torch_python or ""))
    made = worker.ask(
        "torch",
        name="torch",
        network=name,
        batch=batch,
        modes=config.torch_modes,
        threads=os.cpu_count(),
    )
    bench.notes["torch"] = made
    theirs, ours = made["after"]["parameters"], _parameters(small)
    if abs(theirs / ours - 1) > _MISMATCH:
        raise RuntimeError(
            f"{name}: Torch-Pruning left {theirs:,.0f} parameters, sslx {ours:,}; the "
            "comparison needs equal widths"
        )
    for mode in worker.ask("calls")["names"]:
        bench.timers[mode] = worker.timer(mode)


def _parameters(small: sslx.Compact) -> int:
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(small.variables["params"]))


def _fastest(bench: Bench) -> dict[str, str]:
    """Of the runtimes of exported networks, and of PyTorch's modes.

    In a timing of its own, but among all of them, as in the one that is reported:
    threads of a runtime go on looking for work, which slows the next one down.
    """
    earlier = timing.interleaved(bench.timers, 21, timers=True, budget=30.0)
    torch = [name for name in bench.timers if name.startswith("torch ")]
    exported = [name for name in bench.timers if name not in (XLA, *torch)]
    parts = {"exported": exported, "torch": torch}
    return {k: min(names, key=earlier.median) for k, names in parts.items() if names}


def _compared(found: timing.Rounds, fastest: dict[str, str]) -> Any:
    if len(fastest) < 2:
        return None
    return found.speedup(fastest["exported"], fastest["torch"]).as_dict()


def main(config: Config) -> dict[str, Any]:
    """Time all, print a table each, write record and picture where asked."""
    versions = workers.torch_versions(config.torch_python)
    cases = []
    for name in config.networks:
        for batch in config.batches:
            case = time_network(name, batch, config)
            jax.clear_caches()
            print(text(case), flush=True)
            cases.append(case)
    record = {"lowering": config.lowering, "torch": versions, "cases": cases}
    return timing.finish(record, config.out, runtimes.REPORT)


def text(case: dict[str, Any]) -> str:
    """Images per second and ratios to XLA, one runtime a line, and what is missing."""
    rows = [
        [k, f"{rate:.0f}", timing.cell(case["over_xla"][k])]
        for k, rate in case["images_per_second"].items()
    ]
    title = f"{case['network']} at half of its widths, batch {case['batch']}"
    lines = ["", timing.table([title, "images/s", "over XLA"], rows)]
    lines += [f"{k}: {v}" for k, v in case["notes"].items() if isinstance(v, str)]
    for mode, reason in case["notes"].get("torch", {}).get("failed", {}).items():
        lines.append(f"torch {mode}: {reason}")
    if case["exported_over_torch"]:
        best, ratio = case["fastest"], timing.cell(case["exported_over_torch"])
        lines.append(f"{best['exported']} over {best['torch']}: {ratio}")
    return "\n".join(lines)
