"""The report of `experiments.cifar_ssl`: a record, pictures, one page, a table."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl.stages import Context
from experiments.training import loop, progress, runs
from sslx import report

_TITLES = {"baseline": "dense", "finetune": "compact"}


def write(
    context: Context,
    more: Callable[[dict[str, Any]], list[report.Section]] = lambda _: [],
) -> dict[str, Any]:
    """Everything in RUN/report; the paths and the main figures.

    Args:
        context: of a run all of whose stages are complete.
        more: record -> sections that a study adds to the page.
    """
    folder = context.run.path("report")
    folder.mkdir(parents=True, exist_ok=True)
    results = {stage: context.run.result(stage) for stage in context.run.stages[:-1]}
    missing = [stage for stage, result in results.items() if result is None]
    if missing:
        raise runs.RunError(f"report: {', '.join(missing)} not complete; do them first")
    record: dict[str, Any] = {
        "options": dataclasses.asdict(context.config),
        **results,
        "group_norms": {
            name: np.round(norms.astype(float), 5).tolist()
            for name, norms in sparsity.norm_arrays(
                context.groups, context.sparse["params"]
            ).items()
        },
        "metrics": [
            row
            for stage in _trained(results)
            for row in loop.read_metrics(
                context.run.path(stage) / "metrics.jsonl",
                results[stage]["metrics_check"],
            )
        ],
        "provenance": runs.provenance(),
    }
    record["options"].pop("data_dir")
    record["options"].pop("run")
    record["method"] = context.method
    runs.write_json(folder / "record.json", record)
    figures = pictures(record)
    for name, figure in figures.items():
        report.save_png(figure, folder / f"{name}.png")
    content = page_content(record, figures)
    content["sections"] += more(record)
    place = report.page(folder / "report.html", **content)
    print_table(record)
    print(f"report: {place}")
    return {"page": place.name, **main_figures(record)}


def _trained(record: dict[str, Any]) -> tuple[str, str, str]:
    """The stages that train: the baseline, the one that makes zeros, fine-tuning."""
    return "baseline", "ssl" if "ssl" in record else "sparse", "finetune"


def _method(record: dict[str, Any]) -> str:
    return record.get("method", "SSL")


def main_figures(record: dict[str, Any]) -> dict[str, float]:
    """What the run showed, in numbers."""
    dense, compact = record["baseline"], record["finetune"]
    return {
        "accuracy_dense": dense["test_accuracy"],
        "accuracy_compact": compact["test_accuracy"],
        "macs_dense": dense["macs"],
        "macs_compact": compact["macs"],
        "macs_removed": 1 - compact["macs"] / dense["macs"],
        "weights_removed": 1 - compact["weights"] / dense["weights"],
    }


def _latency_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"batch": int(batch), **row}
        for batch, found in record["benchmark"]["latency"].items()
        for row in found["rows"]
    ]


def pictures(record: dict[str, Any]) -> dict[str, Any]:
    """The report's figures by file name."""
    points = [
        {
            "name": _TITLES.get(stage, _method(record)),
            "macs": record[stage if stage in _TITLES else "compact"]["macs"],
            "accuracy": record[stage]["test_accuracy"],
        }
        for stage in _trained(record)
    ]
    timed = [row for row in _latency_rows(record) if "again" not in row["name"]]
    norms = {name: np.asarray(x) for name, x in record["group_norms"].items()}
    return {
        "curves": report.learning_curves(record["metrics"]),
        "widths": report.layer_widths(record["compact"]["layers"]),
        "norms": report.group_norms(norms),
        "tradeoff": report.tradeoff(points),
        "latency": report.latency_bars(timed),
    }


def page_content(record: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `sslx.report.page`."""
    options, figure = record["options"], main_figures(record)
    change = 100 * (figure["accuracy_compact"] - figure["accuracy_dense"])
    rows = _latency_rows(record)
    largest = [row for row in rows if row["name"] == "compact"][-1]
    sparse = record[_trained(record)[1]]
    zero, groups = sum(sparse["zero_groups"].values()), sparse["groups"]
    removed = f"{100 * figure['macs_removed']:.1f}%"
    facts = [
        report.Fact(f"-{removed}", "multiply-accumulates", _from_to(record, "macs")),
        report.Fact(
            f"{change:+.2f} pts",
            "test accuracy",
            f"{100 * figure['accuracy_dense']:.2f}% → "
            f"{100 * figure['accuracy_compact']:.2f}%",
        ),
        report.Fact(
            f"{largest['speedup']:.2f}x",
            f"faster, batch {largest['batch']}",
            f"quartiles {largest['speedup_q1']:.2f} to {largest['speedup_q3']:.2f}",
        ),
        report.Fact(
            f"-{100 * figure['weights_removed']:.1f}%",
            "weights",
            _from_to(record, "weights"),
        ),
        report.Fact(
            f"{100 * zero / groups:.1f}%", "groups zero", f"{zero} of {groups}"
        ),
    ]
    sections = [
        report.Section(
            "Before and after",
            "Accuracy is that of the last epoch, not of the best one.",
            figures["tradeoff"],
            _table(record),
        ),
        report.Section(
            "Learning curves",
            f"The baseline, {_method(record)} from it, fine-tuning of the compact "
            "network.",
            figures["curves"],
        ),
        report.Section(
            "Groups",
            f"{zero} of {groups} groups are exactly zero. A group here is "
            f"{_group_text(options)}.",
            figures["norms"],
            _group_rows(record),
        ),
        report.Section("Layers", "", figures["widths"], _layer_rows(record)),
        report.Section(
            "Speed",
            "Timed side by side, end to end. Dense and compact are lowered and "
            "compiled in the same way (sslx.tune); XLA alone is plain jax.jit. The "
            "control is the dense network against itself.",
            figures["latency"],
            _speed_rows(rows),
        ),
    ]
    origin = dict(record["provenance"])
    versions = origin.pop("versions")
    origin["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
    origin["options"] = ", ".join(f"{k} {_plain(v)}" for k, v in options.items())
    return {
        "title": f"{options['model']} on {options['data']}: {_method(record)}, "
        "compacted",
        "lead": (
            f"{removed} of the multiply-accumulates removed for {change:+.2f} points "
            f"of accuracy; the compact network computes what the zeroed one did, to "
            f"{record['compact']['relative_error']:.0e} on "
            f"{record['compact']['images']} test images."
        ),
        "facts": facts,
        "sections": sections,
        "origin": origin,
    }


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _from_to(record: dict[str, Any], key: str) -> str:
    old, new = record["baseline"][key], record["finetune"][key]
    return f"{old:,} → {new:,}"


def _group_text(options: dict[str, Any]) -> str:
    block = options["block"]
    many = f"{block} neighbours in the order of their norms" if block > 1 else "one"
    return {
        "coupled": f"a filter with the input channel that reads it, {many}",
        "filter": f"a filter, {many}",
        "channel": f"an input channel, {many}",
        "filter+channel": f"a filter, or an input channel, {many}",
        "shape": "one (height, width, input) column of a kernel",
        "filter+shape": "a filter (row), or one (height, width, input) column",
        "depth": "a residual block",
        "layer": "a whole kernel",
        "units": f"a channel with all that write and read it, {many}",
    }[options["structure"]]


def _table(record: dict[str, Any]) -> list[dict[str, str]]:
    dense = record["baseline"]
    rows = []
    for stage in _trained(record):
        result = record[stage]
        rows.append(
            {
                "network": _TITLES.get(stage, "dense with zeros"),
                "test accuracy": f"{100 * result['test_accuracy']:.2f}%",
                "MACs": f"{result['macs']:,}",
                "of dense": f"{100 * result['macs'] / dense['macs']:.1f}%",
                "weights": f"{result['weights']:,}",
                "training": f"{result['training_seconds'] / 60:.1f} min",
            }
        )
    return rows


def _group_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, norms in record["group_norms"].items():
        zero, total = int(np.sum(np.equal(norms, 0))), np.size(norms)
        share = f"{100 * zero / total:.1f}%"
        rows.append(
            {"layer": name, "groups": str(total), "zero": str(zero), "share": share}
        )
    return rows


def _layer_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "layer": layer["name"],
            "kernel": _shape(layer["kernel"]),
            "compact": _shape(layer["kernel_after"]),
            "MACs": f"{layer['macs']:,}",
            "MACs, compact": f"{layer['macs_after']:,}",
        }
        for layer in record["compact"]["layers"]
    ]


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape)) or "removed"


def _speed_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "network": "control" if "again" in row["name"] else row["name"],
            "batch": str(row["batch"]),
            "median": f"{1e3 * row['median']:.3f} ms",
            "quartiles": f"{1e3 * row['q1']:.3f} to {1e3 * row['q3']:.3f}",
            "speed-up": f"{row['speedup']:.2f}x",
            "its quartiles": f"{row['speedup_q1']:.2f} to {row['speedup_q3']:.2f}",
        }
        for row in rows
    ]


def print_table(record: dict[str, Any]) -> None:
    """Before and after, on the terminal."""
    progress.print_rows("before and after", _table(record))
    progress.print_rows("speed", _speed_rows(_latency_rows(record)))
