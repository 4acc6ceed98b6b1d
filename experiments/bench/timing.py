"""Timings in interleaved rounds, ratios with their spread, and what counts as a tie.

Every round times every candidate once, in an order drawn anew. The first candidate is
timed a second time as the A/A control; a ratio whose median is no farther from 1 than
the quartiles of the control's ratio is a tie.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import sslx
from experiments.reports.report import Report
from experiments.training import runs

Call = Callable[[], Any]
Timer = Callable[[int], float]
"""Makes that many calls, each waited for; the seconds of all of them."""

AGAIN = " (again)"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median and quartiles over the rounds of one candidate's time over another's."""

    median: float
    q1: float
    q3: float
    tie: bool

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Seconds per call of each candidate, one entry per round."""

    seconds: Mapping[str, Sequence[float]]

    def speedup(self, name: str, over: str) -> Ratio:
        """Time of `over` / time of `name`, round by round."""
        q1, median, q3 = self._quartiles(name, over)
        return Ratio(median, q1, q3, abs(math.log(median)) <= self.noise)

    def _quartiles(self, name: str, over: str) -> tuple[float, ...]:
        ratios = np.asarray(self.seconds[over]) / np.asarray(self.seconds[name])
        return tuple(np.percentile(ratios, [25, 50, 75]).tolist())

    @property
    def noise(self) -> float:
        """How far from 0 the quartiles of log(A / A) are."""
        again = next(name for name in self.seconds if name.endswith(AGAIN))
        quartiles = self._quartiles(again, again.removesuffix(AGAIN))
        return max(abs(math.log(q)) for q in quartiles)

    def median(self, name: str) -> float:
        """Of the seconds per call."""
        return statistics.median(self.seconds[name])

    def as_dict(self) -> dict[str, Any]:
        """All timings, with their medians and the A/A spread, JSON-able."""
        return {
            "median": {name: self.median(name) for name in self.seconds},
            "aa_spread": math.exp(self.noise),
            "rounds": {
                k: [float(f"{t:.4g}") for t in v] for k, v in self.seconds.items()
            },
        }


def timer(call: Call) -> Timer:
    """The timer of a call in this process."""

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(call())
        return time.perf_counter() - start

    return run


def interleaved(
    candidates: Mapping[str, Call | Timer],
    rounds: int,
    *,
    timers: bool = False,
    budget: float = 60.0,
    round_seconds: float = 0.02,
) -> Rounds:
    """Time candidates side by side.

    Args:
        candidates: name -> call, or timer where `timers`; the first is the control.
        rounds: at most; fewer, but at least five of them, where they would take more
            than `budget` seconds.
        timers: whether the candidates are timers.
        budget: seconds.
        round_seconds: how long a candidate runs at least in a round.
    """
    todo: dict[str, Any] = dict(candidates)
    first = next(iter(todo))
    todo[first + AGAIN] = todo[first]
    if not timers:
        todo = {name: timer(call) for name, call in todo.items()}
    counts, expected = {}, 0.0
    for name, run in todo.items():
        run(2)
        seconds = max(run(1), 1e-9)
        counts[name] = max(1, math.ceil(round_seconds / seconds))
        expected += counts[name] * seconds
    rounds = min(rounds, max(5, int(budget / expected)))
    times: dict[str, list[float]] = {name: [] for name in todo}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(todo)).tolist():
            times[name].append(todo[name](counts[name]) / counts[name])
    return Rounds(times)


def compiled(fn: Callable[..., Any], *args: Any, **options: str) -> tuple[Any, float]:
    """`fn` compiled for these arguments, and the seconds that XLA took for it."""
    lowered = jax.jit(fn, compiler_options=options).lower(*args)
    start = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - start


def fastest(candidates: Mapping[str, Call | Timer], *, timers: bool = False) -> str:
    """The name with the smallest median, in timings that are used for nothing else."""
    found = interleaved(candidates, 21, timers=timers, budget=20.0)
    return min(candidates, key=found.median)


def chosen(tuned: sslx.Tuned | None, *args: Any) -> dict[str, Any]:
    """The form of each convolution of a call; seconds of what it was chosen from."""
    if tuned is None:
        return {}
    found = tuned.choices(*args)
    rows = [{k: v for k, v in r.items() if k != "seconds"} for r in found.rows()]
    return {"forms": rows, "programs": dict(found.programs)}


def check(name: str, found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Compare an output with the dense one.

    Raises:
        RuntimeError: they differ by more than `tolerance` of the largest entry.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise RuntimeError(f"{name}: shape {found.shape}, expected {expected.shape}")
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if not error < tolerance:
        raise RuntimeError(
            f"{name}: differs from the dense output by {error:.1e} of its largest "
            f"entry, expected less than {tolerance:.0e}"
        )


def finish(
    record: dict[str, Any], out: pathlib.Path | None, report: Report
) -> dict[str, Any]:
    """Add where the record comes from; write it and its pictures where asked."""
    record["provenance"] = runs.provenance()
    record["load"] = load()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        runs.write_json(out / "record.json", record)
        report.write(out, record)
    return record


def load() -> float | None:
    """Runnable processes of the last 15 minutes, this one's threads included."""
    with contextlib.suppress(OSError, AttributeError):
        return os.getloadavg()[2]
    return None


def cell(ratio: Mapping[str, Any] | None) -> str:
    """The median, and `=` if it is a tie."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f}{'=' if ratio['tie'] else ''}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first one to the left."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
