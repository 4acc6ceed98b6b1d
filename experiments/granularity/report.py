"""The report of `experiments.granularity`: a record, pictures, tables, one page."""

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import rich.console
import rich.table
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.reports import style
from experiments.training import runs
from sslx import report

_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626")
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
    figures = pictures(record)
    for name, figure in figures.items():
        report.save_png(figure, place / f"{name}.png")
    page = report.page(place / "report.html", **page_content(record, figures))
    for title, rows in list(tables(record).items())[:2]:
        print_table(title, rows)
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
    """Accuracy against density, storage and memory references."""
    axes = {
        "density": ("density", "weights kept, of the convolutions'"),
        "storage": ("relative", "bits, indices included, of dense 8-bit weights"),
        "references": ("references", "memory references, of the dense network's"),
    }
    return {name: _curves(record, *what) for name, what in axes.items()}


def _curves(record: dict[str, Any], key: str, label: str) -> Figure:
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(6.4, 3.9), layout="constrained")
        axis = figure.subplots()
        for grain, colour in zip(record["options"]["grains"], _COLOURS, strict=False):
            rows = rows_of(record, grain)
            column: Callable[[str], list[float]] = lambda k, r=rows: [x[k] for x in r]
            axis.errorbar(
                column(key)[1:],
                column("accuracy")[1:],
                yerr=column("accuracy_sd")[1:],
                xerr=column(f"{key}_sd")[1:],
                color=colour,
                marker="o",
                markersize=4,
                capsize=3,
                label=grain,
            )
            dense = rows[0]
        axis.axhline(dense["accuracy"], color="#9aa5b1", ls="--", lw=1, label="dense")
        low = dense["accuracy"] - dense["accuracy_sd"]
        high = dense["accuracy"] + dense["accuracy_sd"]
        axis.axhspan(low, high, color="#9aa5b1", alpha=0.15)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axis.set_xlabel(label)
        axis.set_ylabel("test accuracy")
        axis.legend(loc="lower right")
    return figure


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
    smallest = min(options["densities"])
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
        ],
        "origin": origin_of(record),
    }


def origin_of(record: dict[str, Any]) -> dict[str, str]:
    """What it takes to make a record again, as text."""
    origin = dict(record["provenance"])
    versions = origin.pop("versions")
    origin["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
    options = record["options"].items()
    origin["options"] = ", ".join(f"{k} {_plain(v)}" for k, v in options)
    return origin


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def print_table(title: str, rows: Sequence[dict[str, str]]) -> None:
    """One table on the terminal."""
    table = rich.table.Table(title=title)
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row.values())
    rich.console.Console().print(table)
