"""Tables of docs/results and docs/papers that show trained networks."""

from collections.abc import Iterable, Mapping

import numpy as np

from experiments.bench import alexnet_cases
from experiments.cifar_depth import report as depth_report
from experiments.granularity import report as granularity_report
from experiments.granularity_shapes import report as granularity_shapes
from experiments.mnist_ssl import report as mnist_report
from experiments.psp_sweep import curves
from experiments.reports.cells import NAMES, Record, Rows, percent

CONVNET = (
    ("paper: ConvNet 1 (dense)", "17.9%", "12.5-0-0%", "0-0-0%"),
    ("paper: ConvNet 2", "17.9%", "50.0-28.1-1.6%", "0-59.3-35.1%"),
    ("paper: ConvNet 3", "16.9%", "31.3-0-1.6%", "0-42.8-9.8%"),
)
"""Wen et al. 2016, Table 3: error, rows and columns at zero of conv1 to conv3."""


def cifar_ssl(record: Record) -> Rows:
    """Accuracy and size of the stages of one run."""
    options, dense = record["options"], record["baseline"]
    names = {
        "baseline": f"dense, {options['baseline_epochs']} epochs",
        "ssl": f"with zero groups, {options['ssl_epochs']} epochs of SSL",
        "finetune": f"compact, {options['finetune_epochs']} epochs of fine-tuning",
    }
    return [
        {
            "": name,
            "test accuracy": percent(record[stage]["test_accuracy"], 2),
            "MACs": f"{record[stage]['macs']:,}",
            "of dense": percent(record[stage]["macs"] / dense["macs"]),
            "weights": f"{record[stage]['weights']:,}",
        }
        for stage, name in names.items()
    ]


def convnet(record: Record) -> Rows:
    """Table 3 of the paper beside our run."""
    options, norms = record["options"], record["group_norms"]

    def zeros(kind: str) -> str:
        found = [np.equal(v, 0) for name, v in norms.items() if name.endswith(kind)]
        shares = (f"{100 * np.mean(zero):.1f}".removesuffix(".0") for zero in found)
        return "-".join(shares) + "%"

    error = lambda stage: percent(1 - record[stage]["test_accuracy"], 2)
    ours = (
        (
            f"here: dense, {options['baseline_epochs']} epochs",
            error("baseline"),
            "0-0-0%",
            "0-0-0%",
        ),
        (
            f"here: {options['ssl_epochs']} epochs of SSL at lambda"
            f" {options['strength']:g}, {options['finetune_epochs']} of fine-tuning",
            error("finetune"),
            zeros(":FILTER"),
            zeros(":SHAPE"),
        ),
    )
    head = ("", "test error", "zero rows, conv1-2-3", "zero columns, conv1-2-3")
    return [dict(zip(head, row, strict=True)) for row in (*CONVNET, *ours)]


def latency(record: Record) -> Rows:
    """Dense and compact by batch size, each ratio within its rounds."""
    rows = []
    for batch, found in record["benchmark"]["latency"].items():
        times = {row["name"]: row for row in found["rows"]}
        small, again = times["compact"], times["dense (again)"]
        row = {"batch": batch}
        for name in times:
            if not name.endswith("(again)"):
                row[name] = f"{1e3 * times[name]['median']:.3g} ms"
        row["speed-up (quartiles)"] = (
            f"{small['speedup']:.2f}x ({small['speedup_q1']:.2f} to"
            f" {small['speedup_q3']:.2f})"
        )
        rows.append({**row, "dense against itself": f"{again['speedup']:.2f}x"})
    return rows


def mnist(*records: Record) -> Rows:
    """The paper's rows, then ours of all records, dense once."""
    tables = [mnist_report.table(dict(record)) for record in records]
    rows = [*tables[0], *(row for rows in tables[1:] for row in rows[-1:])]
    speeds = {}
    for record in records:
        times = {row["name"]: row for row in record["compact"]["latency"]["rows"]}
        for name, result in record["finetune"]["networks"].items():
            x = times[name]
            speeds[f"lambda {result['strength']:g}"] = (
                f"{x['speedup']:.2f}x ({x['speedup_q1']:.2f} to {x['speedup_q3']:.2f})"
            )
        again = times["dense (again)"]["speedup"]
        speeds.setdefault("dense", f"{again:.2f}x against itself")
    table = []
    for row in rows:
        cells = {k: v for k, v in row.items() if k not in ("network", "from")}
        if row["from"] == "here":
            cells["speed-up"] = speeds[row["network"]]
        table.append({"": f"{row['from']}: {row['network']}", **cells})
    return table


def granularity(record: Record) -> Rows:
    """Accuracy, storage and references by grain and density, over the seeds."""
    names = {"fine": "single weights", "vector": "vectors", "kernel": "kernels"}
    rows = []

    def cells(row: Mapping[str, float], keys: Iterable[str]) -> list[str]:
        return [
            f"{100 * row[k]:.{2 if k == 'accuracy' else 1}f}%"
            f" ± {100 * row[f'{k}_sd']:.{2 if k == 'accuracy' else 1}f}"
            for k in keys
        ]

    keys = ("accuracy", "relative", "references")
    head = ("", "density", "test accuracy", "storage", "memory references")
    for number, grain in enumerate(record["options"]["grains"]):
        dense, *found = granularity_report.rows_of(dict(record), grain)
        if number == 0:
            line = ("dense", "1", cells(dense, keys)[0], "100%", "100%")
            rows.append(dict(zip(head, line, strict=True)))
        for row in found:
            line = (
                names.get(grain, "filters"),
                f"{row['target']:g}",
                *cells(row, keys),
            )
            rows.append(dict(zip(head, line, strict=True)))
    return rows


def grain_costs(record: Record) -> Rows:
    """Storage and references of partial sums by network and grain."""
    grains = ("fine", "vector", "kernel", "filter")
    kinds = {"storage": "relative", "partial sums": "partial_sums"}
    return [
        {
            "": f"{label}: {NAMES[name]}",
            **{
                grain: percent(
                    granularity_shapes.figures_of(dict(record), name, grain)[key]
                )
                for grain in grains
            },
        }
        for label, key in kinds.items()
        for name in record["models"]
    ]


def filter_speed(record: Record) -> Rows:
    """Whole filters cut out of ImageNet networks."""
    keys = {"compact": "MACs left", "speed-up": "speed-up", "quartiles": "quartiles"}
    keys |= {"control": "dense against itself"}
    return [
        {"": NAMES[row["network"]], **{name: row[key] for key, name in keys.items()}}
        for row in granularity_shapes.speed_rows(dict(record))
    ]


def psp(record: Record) -> Rows:
    """PSP by weight decay and l1-norm pruning at equal sparsity, per seed."""
    points = [(p["options"], p) for p in record["points"]]
    rows = []
    for options, point in points:
        if options["method"] != "decay":
            continue
        name = point["name"].replace("/decay-", "/prune-as-decay-")
        other = next(p for _, p in points if p["name"] == name)
        errors = [100 * (1 - p["test_accuracy"]) for p in (point, other)]
        rows.append(
            {
                "columns at zero": percent(point["group_sparsity"], 0),
                "seed": str(options["seed"]),
                "PSP, weight decay": f"{errors[0]:.2f}%",
                "l1-norm pruning": f"{errors[1]:.2f}%",
                "difference": f"{errors[0] - errors[1]:+.2f}",
            }
        )
    return rows


def psp_paper() -> Rows:
    """Figure 3 of the paper, at the sparsities of l1-norm pruning."""
    titles = {"prune": "l1-norm pruning", "fixed": "PSP, fixed sparsity"}
    titles |= {"l1": "PSP, l1 on factors", "decay": "PSP, weight decay"}
    places = [x for x, _ in curves.PAPER["prune"] if x >= 20]
    errors = {
        title: np.interp(places, *zip(*curves.PAPER[method], strict=True))
        for method, title in titles.items()
    }
    return [
        {
            "columns at zero": f"{place:g}%",
            **{title: f"{found[row]:.2f}%" for title, found in errors.items()},
        }
        for row, place in enumerate(places)
    ]


def depth_paper() -> Rows:
    """The paper's residual networks: convolutions left by image size, and error."""
    return [
        {
            "": name,
            **dict(zip(depth_report.PIXELS, map(str, counts), strict=True)),
            "test error": f"{error:.2f}%",
        }
        for name, (*counts, error) in depth_report.PAPER.items()
    ]


def alexnet_paper() -> Rows:
    """Table 4 of the paper, CPU: sparsities and speed-ups of the five layers."""
    rows = []
    for name, row in alexnet_cases.TABLE.items():
        if row.cpu[0] is not None:
            parts = {"columns": row.columns, "rows": row.rows, "entries": row.entries}
            zeros = {k: "-".join(f"{100 * x:.3g}" for x in v) for k, v in parts.items()}
            shown = {k: f"{v}%" if any(parts[k]) else "" for k, v in zeros.items()}
            speed = "-".join(f"{x:.2f}" for x in row.cpu if x is not None)
            rows.append({"": name, **shown, "CPU speed-up": speed})
    return rows
