"""Time of calls on this machine, measured side by side."""

import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sslx._table import Table, Tabular


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds per call of one candidate, and its speed-up over the first one.

    Attributes:
        name: The candidate.
        median: Median over the rounds, in seconds, as are the next four.
        q1: First quartile.
        q3: Third quartile.
        minimum: Fastest round.
        maximum: Slowest round.
        speedup: Median of the ratio first candidate's time / this one's, per round.
        speedup_q1: First quartile of these ratios.
        speedup_q3: Third quartile of these ratios.
        calls: Calls per round.
    """

    name: str
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    calls: int


@dataclasses.dataclass(frozen=True)
class Latencies(Tabular):
    """What `latency` measured, on which device.

    Attributes:
        device: Name of the device; of a CPU, with the number of cores.
        repeats: Number of rounds.
        entries: One `Latency` per candidate, in the order given.
    """

    device: str
    repeats: int
    entries: tuple[Latency, ...]

    def __getitem__(self, name: str) -> Latency:
        """The entry of one candidate."""
        found = {entry.name: entry for entry in self.entries}
        if name not in found:
            raise KeyError(f"{name!r} was not measured; measured: {sorted(found)}")
        return found[name]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able dict per candidate."""
        return [dataclasses.asdict(entry) for entry in self.entries]

    def as_dict(self) -> dict[str, Any]:
        """Device, repeats and rows, JSON-able."""
        return {"device": self.device, "repeats": self.repeats, "rows": self.rows()}

    def _table(self) -> Table:
        rows = [
            [
                e.name,
                f"{e.median * 1e3:.3f}",
                f"{e.q1 * 1e3:.3f} - {e.q3 * 1e3:.3f}",
                f"{e.speedup:.2f}x",
                f"{e.speedup_q1:.2f} - {e.speedup_q3:.2f}",
            ]
            for e in self.entries
        ]
        head = ["candidate", "ms", "quartiles", "speed-up", "quartiles"]
        return Table(head, rows, [f"{self.repeats} rounds on {self.device}"])


def latency(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 30,
    warmup: int = 3,
    round_seconds: float = 0.005,
    control: bool = False,
) -> Latencies:
    """Time zero-argument calls side by side, waiting for each result.

    Every round times every candidate, in a new random order, so that drift of the
    machine affects all of them alike; a fast candidate is called several times per
    round. Speed-ups are ratios within a round. Their quartiles, and the ratio of the
    `control`, show how small a difference the measurement can resolve.

    Args:
        candidates: Name -> call, such as `lambda: jitted(variables, x)`. The first is
            the reference.
        repeats: Number of rounds.
        warmup: Calls of each candidate before the first round (compilation).
        round_seconds: Least time per candidate and round, in seconds.
        control: Measure the first candidate a second time, as `NAME (again)`, whose
            true speed-up is 1.

    Returns:
        Medians, spreads and speed-ups, with the name of the device.

    Raises:
        ValueError: Nothing to measure, or repeats or warmup below 1.
    """
    if not candidates or repeats < 1 or warmup < 1:
        raise ValueError(
            f"latency: got {len(candidates)} candidates, {repeats=}, {warmup=}; "
            "expected at least one of each"
        )
    calls = dict(candidates)
    if control:
        first = next(iter(calls))
        calls[f"{first} (again)"] = calls[first]
    counts = {
        name: _calls_per_round(call, warmup, round_seconds)
        for name, call in calls.items()
    }
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name in order.permutation(list(calls)).tolist():
            times[name].append(_seconds(calls[name], counts[name]))
    reference = np.asarray(next(iter(times.values())))
    entries = [
        _entry(name, np.asarray(samples), reference, counts[name])
        for name, samples in times.items()
    ]
    return Latencies(_device(), repeats, tuple(entries))


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / count


def _calls_per_round(call: Callable[[], Any], warmup: int, seconds: float) -> int:
    for _ in range(warmup):
        jax.block_until_ready(call())
    return max(1, math.ceil(seconds / max(_seconds(call, 1), 1e-9)))


def _entry(
    name: str, samples: np.ndarray, reference: np.ndarray, calls: int
) -> Latency:
    low, middle, high = np.percentile(samples, [25, 50, 75]).tolist()
    slow, usual, fast = np.percentile(reference / samples, [25, 50, 75]).tolist()
    return Latency(
        name=name,
        median=middle,
        q1=low,
        q3=high,
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        speedup=usual,
        speedup_q1=slow,
        speedup_q3=fast,
        calls=calls,
    )


def _device() -> str:
    """The default device; for a CPU its model name and number of cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            names = [line.split(":", 1)[1] for line in info if "model name" in line]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores"
