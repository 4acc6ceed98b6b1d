"""The figure and the table of `experiments.psp_sweep`, beside the paper's points."""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cifar_psp.stages import TITLES
from experiments.reports.report import Report
from experiments.training import progress, runs
from sslx import report
from sslx.report import style

PAPER: dict[str, tuple[tuple[float, float], ...]] = {
    "prune": (
        (0, 6.35), (20, 6.16), (40, 6.51), (50, 6.66), (60, 7.24), (70, 8.12),
        (80, 10.21),
    ),
    "fixed": (
        (0, 6.72), (10, 6.31), (20, 6.07), (30, 6.31), (40, 6.33), (50, 6.51),
        (60, 6.80), (70, 7.18), (80, 8.47),
    ),
    "l1": (
        (7.8, 7.08), (12, 6.85), (22.9, 6.96), (36.2, 6.89), (49.7, 6.79),
        (62.6, 6.92), (67.8, 6.99), (75.7, 7.22), (79.7, 7.10), (82, 7.49),
        (86.6, 7.95),
    ),
    "decay": (
        (0, 6.72), (13.8, 6.03), (19.1, 5.85), (26.2, 6.18), (36.9, 6.08),
        (43.8, 6.22), (49.5, 6.17), (55.5, 6.32), (66.9, 6.37), (72.4, 6.44),
        (76.3, 6.54), (79.9, 6.98), (82.0, 6.89), (83.7, 7.19), (87.5, 7.47),
    ),
}  # fmt: skip
"""(column sparsity, validation error) in %, ResNet-56 on CIFAR-10: figure 3 of
Schindler et al. 2019, read off an image of it, +-0.4 and +-0.05."""
PAPER_BASELINE = 6.35

_COLOURS = dict(
    zip(("decay", "prune", "fixed", "l1", "sss"), style.SERIES, strict=True)
)


def write(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """`record.json` and the pictures in the folder, and the table on the terminal."""
    runs.write_json(folder / "record.json", record)
    REPORT.write(folder, record)
    progress.print_rows("error against sparsity", rows(record))


def points(record: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Method -> (sparsity, test error) of every point in %, by sparsity."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in record["points"]:
        at = 100 * row["group_sparsity"], 100 * (1 - row["test_accuracy"])
        found.setdefault(row["options"]["method"], []).append(at)
    return {method: sorted(rows) for method, rows in found.items()}


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Error against sparsity, and against the strength of the methods that have one."""
    return {"curves": _curves(record), **_sweep(record)}


@style.styled
def _curves(record: dict[str, Any]) -> Figure:
    """Ours above, the paper's below: networks and lengths differ."""
    options = record["options"]
    kind = "columns" if options["structure"] == "shape" else "groups"
    figure = style.picture("Test error against sparsity, here and in the paper", 5.6)
    ours, paper = figure.subplots(2, 1, sharex=True)
    _panel(ours, points(record), _baseline(record))
    ours.set_title(f"{options['model']} on {options['data']}, this run")
    _panel(paper, PAPER, PAPER_BASELINE, ls="--", mfc="white")
    paper.set_title("ResNet-56 on CIFAR-10, Schindler et al. 2019, figure 3")
    paper.set_xlabel(f"{kind} at zero")
    paper.set_xlim(left=0)
    return figure


def _panel(
    axis: Axes, series: Mapping[str, Any], baseline: float, **options: Any
) -> None:
    for method, curve in series.items():
        color = _COLOURS[method]
        axis.plot(
            *zip(*curve, strict=True),
            label=TITLES[method],
            color=color,
            marker="o",
            lw=1,
            **options,
        )
    axis.axhline(baseline, color=style.DENSE_TUNED, lw=1, ls=":")
    style.halo(
        axis,
        0.99,
        baseline,
        "baseline",
        ha="right",
        transform=axis.get_yaxis_transform(),
        color=style.DENSE_TUNED,
        fontsize=8,
        va="center",
    )
    axis.set_ylabel("test error")
    style.percent(axis, "x", whole=100)
    style.percent(axis, "y", whole=100)
    axis.legend(loc="upper left")


def _baseline(record: dict[str, Any]) -> float:
    """Mean test error of the dense networks in %."""
    return statistics.mean(
        100 * (1 - row["test_accuracy"]) for row in record["baselines"]
    )


def _sweep(record: dict[str, Any]) -> dict[str, Figure]:
    rows = [row for row in record["points"] if "strength" in row["options"]]
    if len({row["options"]["strength"] for row in rows}) < 2:
        return {}
    found = [
        {
            "series": TITLES[row["options"]["method"]],
            "value": row["options"]["strength"],
            "error": 1 - row["test_accuracy"],
            "zero": row["group_sparsity"],
        }
        for row in rows
    ]
    return {
        "sweep": report.sweep(
            found,
            parameter="lambda",
            reference=_baseline(record) / 100,
        )
    }


def rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """One row per point: what was asked for, the sparsity and the error it has."""
    table = []
    for row in record["points"]:
        options = row["options"]
        level = options.get("strength", options.get("sparsity"))
        table.append(
            {
                "method": TITLES[options["method"]],
                "level": f"{level:.4g}",
                "seed": str(options["seed"]),
                "zero": f"{100 * row['group_sparsity']:.1f}%",
                "error": f"{100 * (1 - row['test_accuracy']):.2f}%",
            }
        )
    return sorted(table, key=lambda r: (r["method"], r["seed"], r["zero"]))


REPORT = Report(pictures)
