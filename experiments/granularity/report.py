"""The report of `experiments.granularity`: a record, pictures, tables, one page."""

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.reports.report import Report, origin
from experiments.training import progress, runs
from sslx import report
from sslx.report import style

GRAINS = dict(zip(("fine", "vector", "kernel", "filter"), style.ORDERED, strict=True))
"""The colour of a grain, from single weights to whole filters."""
_STAGES = ("baseline", "sensitivity", "retrain", "account")
_LOSSES = (0.0, 0.01)
_FORMATS = ("relative", "bitmask", "rows")
_KINDS = ("weights", "inputs", "partial_sums")


def write(folder: pathlib.Path, config: Any) -> dict[str, Any]:
    """Everything in RUN/report, from the results of all seeds; the record."""
    record = collect(folder, config)
    place = folder / "report"
    place.mkdir(parents=True, exist_ok=True)
    runs.write_json(place / "record.json", record)
    page = REPORT.write(place, record)[-1]
    for title, rows in list(tables(record).items())[:2]:
        progress.print_rows(title, rows)
    print(f"report: {page}")
    return record


def collect(folder: pathlib.Path, config: Any) -> dict[str, Any]:
    """Options and the results of all seeds.

    Raises:
        runs.RunError: a stage of a seed is not complete.
    """
    results = {}
    for seed in config.seeds:
        run = runs.Run(folder / f"seed-{seed}", _STAGES)
        results[str(seed)] = {stage: run.result(stage) for stage in _STAGES}
        missing = [s for s, result in results[str(seed)].items() if result is None]
        if missing:
            raise runs.RunError(
                f"report: {', '.join(missing)} of seed {seed} not complete"
            )
    options = dataclasses.asdict(config)
    for name in ("data_dir", "run", "stages", "redo"):
        options.pop(name)
    return {"options": options, "seeds": results, "provenance": runs.provenance()}


def rows_of(record: dict[str, Any], grain: str) -> list[dict[str, float]]:
    """Mean and deviation over seeds of every point of a grain, dense first."""
    seeds = list(record["seeds"].values())
    densities = sorted(record["options"]["densities"], reverse=True)
    rows = [_row(1.0, [_dense(seed) for seed in seeds])]
    for density in densities:
        rows.append(_row(density, [_point(seed, grain, density) for seed in seeds]))
    return rows


def _dense(seed: dict[str, Any]) -> dict[str, float]:
    counts = seed["account"]["dense"]
    return {
        "accuracy": seed["baseline"]["test_accuracy"],
        **shares(counts, counts),
        **dict.fromkeys(("density", *_FORMATS), 1.0),
    }


def _point(seed: dict[str, Any], grain: str, density: float) -> dict[str, float]:
    def same(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        keys = (grain, density)
        return next(row for row in rows if (row["grain"], row["density"]) == keys)

    accuracy = same(seed["retrain"]["points"])["test_accuracy"]
    counts = same(seed["account"]["points"])
    return {"accuracy": accuracy, **shares(counts, seed["account"]["dense"])}


def shares(counts: dict[str, Any], dense: dict[str, Any]) -> dict[str, float]:
    """Shares of the dense network: 8-bit storage, and references by kind."""
    bits, traffic = counts["storage"], counts["references"]
    base = dense["references"]
    return {
        "density": bits["kept"] / bits["entries"],
        **{name: bits[name] / bits["dense"] for name in _FORMATS},
        **{kind: traffic[kind] / base[kind] for kind in _KINDS},
        "references": sum(traffic[k] for k in _KINDS) / sum(base[k] for k in _KINDS),
        "sums_per_product": traffic["partial_sums"] / traffic["products"],
    }


def _row(density: float, found: list[dict[str, float]]) -> dict[str, float]:
    row = {"target": density}
    for name in found[0]:
        values = [figures[name] for figures in found]
        row[name] = statistics.fmean(values)
        row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row


def at_loss(rows: Sequence[dict[str, float]], key: str, loss: float) -> float | None:
    """Smallest `key` at which accuracy is the dense network's less `loss` (0..1).

    Accuracy is taken as linear between densities; None where the first cut already
    costs more.
    """
    wanted, best = rows[0]["accuracy"] - loss, None
    for before, after in itertools.pairwise(rows):
        if after["accuracy"] >= wanted:
            best = after[key]
            continue
        if best is not None:
            fall = before["accuracy"] - after["accuracy"]
            share = (before["accuracy"] - wanted) / fall
            best = before[key] + share * (after[key] - before[key])
        break
    return best


def tables(record: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Title -> rows, in the order of the paper."""
    grains = record["options"]["grains"]
    found = {grain: rows_of(record, grain) for grain in grains}
    dense = found[grains[0]][0]
    equal = [{"density": "1 (dense)", **dict.fromkeys(grains, _accuracy(dense))}]
    for place, density in enumerate(
        sorted(record["options"]["densities"], reverse=True), 1
    ):
        cells = {grain: _accuracy(found[grain][place]) for grain in grains}
        equal.append({"density": f"{density:g}", **cells})
    kept = [
        {
            "loss": f"{100 * loss:g} points",
            "grain": grain,
            "density": _share(at_loss(found[grain], "density", loss)),
            "storage": _share(at_loss(found[grain], "relative", loss)),
            "references": _share(at_loss(found[grain], "references", loss)),
        }
        for loss in _LOSSES
        for grain in grains
    ]
    points = [_details(grain, row) for grain in grains for row in found[grain][1:]]
    return {
        "Accuracy at equal density": equal,
        "Density and storage at equal accuracy": kept,
        "All networks, shares of the dense one": points,
    }


def _details(grain: str, row: dict[str, float]) -> dict[str, str]:
    return {
        "grain": grain,
        "density": _share(row["density"]),
        "accuracy": _accuracy(row),
        "storage": _share(row["relative"]),
        "bitmask": _share(row["bitmask"]),
        "CSR/BSR": _share(row["rows"]),
        "weight refs": _share(row["weights"]),
        "input refs": _share(row["inputs"]),
        "sum refs": _share(row["partial_sums"]),
        "sum refs / product": f"{row['sums_per_product']:.3f}",
    }


def _accuracy(row: dict[str, float]) -> str:
    return f"{100 * row['accuracy']:.2f}% ± {100 * row['accuracy_sd']:.2f}"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}%"


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy against density, storage and memory references; layers' sensitivity."""
    axes = {
        "density": ("density", "weights kept, of the convolutions'"),
        "storage": ("relative", "bits, indices included, of dense 8-bit weights"),
        "references": ("references", "memory references, of the dense network's"),
    }
    curves = {name: _curves(record, *what) for name, what in axes.items()}
    return {**curves, "sensitivity": _sensitivity(record)}


@style.styled
def _curves(record: dict[str, Any], key: str, label: str) -> Figure:
    grains = record["options"]["grains"]
    found = {grain: rows_of(record, grain) for grain in grains}
    last = {
        grain: f"{100 * rows[-1]['accuracy']:.1f}%" for grain, rows in found.items()
    }
    figure = style.picture(
        f"At density {min(record['options']['densities']):g}: accuracy from "
        f"{last[grains[0]]} ({grains[0]}) to {last[grains[-1]]} ({grains[-1]})",
        3.4,
    )
    axis = figure.subplots()
    ends = []
    for grain, rows in found.items():
        column: Callable[[str], list[float]] = lambda k, r=rows: [x[k] for x in r[1:]]
        axis.errorbar(
            column(key),
            column("accuracy"),
            yerr=column("accuracy_sd"),
            xerr=column(f"{key}_sd"),
            color=GRAINS[grain],
            marker="o",
        )
        ends.append((rows[1]["accuracy"], grain, GRAINS[grain]))
    dense = found[grains[0]][0]
    low = dense["accuracy"] - dense["accuracy_sd"]
    high = dense["accuracy"] + dense["accuracy_sd"]
    axis.axhline(dense["accuracy"], color=style.DENSE_TUNED, ls="--", lw=1)
    axis.axhspan(low, high, color=style.DENSE_XLA, alpha=0.4, lw=0)
    axis.set_xlim(left=0)
    bottom, top = axis.get_ylim()
    right = max(rows[1][key] for rows in found.values())
    style.spread_labels(axis, ends, right, 0.055 * (top - bottom))
    style.halo(
        axis,
        0.01,
        dense["accuracy"],
        "dense",
        color=style.DENSE_TUNED,
        transform=axis.get_yaxis_transform(),
        va="center",
    )
    style.percent(axis, "x")
    style.percent(axis)
    axis.set_xlabel(label)
    axis.set_ylabel("test accuracy")
    return figure


def _sensitivity(record: dict[str, Any]) -> Figure:
    """Of the first seed's layers, at the coarsest grain."""
    seed = next(iter(record["seeds"].values()))
    found = seed["sensitivity"][record["options"]["grains"][-1]]
    losses = {name.split("/kernel")[0]: rows for name, rows in found["losses"].items()}
    return report.sensitivity(found["densities"], losses, found["baseline"])


def page_content(record: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """Arguments of `sslx.report.page`."""
    options, found = record["options"], tables(record)
    equal, kept, points = found.values()
    names = ", ".join(options["grains"])
    seeds = len(options["seeds"])
    spread = (
        f"Mean and standard deviation over {seeds} seeds."
        if seeds > 1
        else "One seed: no error bars."
    )
    smallest, coarsest = min(options["densities"]), options["grains"][-1]
    facts = [
        report.Fact(equal[-1][grain].split(" ")[0], f"{grain}, density {smallest:g}")
        for grain in options["grains"]
    ]
    return {
        "title": f"{options['model']} on {options['data']}: the grain of sparsity",
        "lead": (
            f"The convolutions of one network pruned at the grains {names}, and "
            f"retrained. Accuracy is that of the last epoch. {spread}"
        ),
        "facts": facts,
        "sections": [
            report.Section(
                "Accuracy at equal density", spread, figures["density"], equal
            ),
            report.Section(
                "Storage",
                "8-bit weights and a 4-bit relative index per stored grain, fillers "
                "counted. At a loss of so many points: where a curve crosses the dense "
                "network's accuracy less that, linear between densities; none if the "
                "first cut already costs more.",
                figures["storage"],
                kept,
            ),
            report.Section(
                "Memory references",
                "Weights, inputs and partial sums in an outer-product dataflow of 4x4 "
                "multipliers, counted over the real zeros of weights and activations "
                f"of {options['account_images']} test images.",
                figures["references"],
                points,
            ),
            report.Section(
                "Sensitivity",
                f"Loss with one layer alone thinned out, at the grain {coarsest}; "
                "first seed.",
                figures["sensitivity"],
            ),
        ],
        "origin": origin(record),
    }


REPORT = Report(pictures, page_content)
