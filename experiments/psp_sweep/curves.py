"""The figure and the table of `experiments.psp_sweep`, beside the paper's points."""

import pathlib
import statistics
from typing import Any

import rich.console
import rich.table
from matplotlib.figure import Figure

from experiments.cifar_psp.stages import TITLES
from experiments.training import runs
from sslx import report

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

_COLOURS = {
    "prune": "#64748b",
    "fixed": "#d97706",
    "l1": "#059669",
    "decay": "#2563eb",
    "sss": "#7c3aed",
}


def write(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """`record.json` and `curves.png` in the folder, and the table on the terminal."""
    runs.write_json(folder / "record.json", record)
    report.save_png(picture(record), folder / "curves.png")
    print_table(record)


def points(record: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Method -> (sparsity, test error) of every point in %, by sparsity."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in record["points"]:
        at = 100 * row["group_sparsity"], 100 * (1 - row["test_accuracy"])
        found.setdefault(row["options"]["method"], []).append(at)
    return {method: sorted(rows) for method, rows in found.items()}


def picture(record: dict[str, Any]) -> Figure:
    """Ours on the left, the paper's on the right: networks and lengths differ."""
    options = record["options"]
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    ours, paper = figure.subplots(1, 2)
    for method, rows in points(record).items():
        style = {"color": _COLOURS[method], "marker": "o", "ms": 4}
        ours.plot(*zip(*rows, strict=True), label=TITLES[method], lw=1, **style)
    errors = [100 * (1 - row["test_accuracy"]) for row in record["baselines"]]
    ours.axhline(statistics.mean(errors), color="k", ls=":", lw=1, label="baseline")
    ours.set_title(f"{options['model']} on {options['data']}, this run")
    for method, rows in PAPER.items():
        style = {"color": _COLOURS[method], "marker": "s", "ms": 3}
        paper.plot(*zip(*rows, strict=True), label=TITLES[method], lw=1, **style)
    paper.axhline(PAPER_BASELINE, color="k", ls=":", lw=1, label="baseline")
    paper.set_title("ResNet-56 on CIFAR-10, Schindler et al. 2019, figure 3")
    for axes in (ours, paper):
        kind = "columns" if options["structure"] == "shape" else "groups"
        axes.set_xlabel(f"{kind} at zero, %")
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)
    return figure


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


def print_table(record: dict[str, Any]) -> None:
    """The points, on the terminal."""
    table = rich.table.Table(title="error against sparsity")
    for name in ("method", "level", "seed", "zero", "error"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows(record):
        table.add_row(*row.values())
    rich.console.Console().print(table)
