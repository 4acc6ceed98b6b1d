"""The report of `experiments.cifar_ssl`: a record, pictures, one page, a table."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sslx
from experiments import models
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl.stages import Context
from experiments.models import imagenet as imagenet_models
from experiments.reports.report import Report, layer_rows, origin
from experiments.training import loop, progress, runs
from sslx import report
from sslx.report import style

_TITLES = {"baseline": "dense", "finetune": "compact"}
_ROUNDED = 5e-6
BY_XLA = {
    "dense": ("dense, XLA", style.DENSE_XLA),
    "compact": ("compact, XLA", style.COMPACT_XLA),
}
_TUNED = {
    "dense": ("dense, tuned", style.DENSE_TUNED),
    "compact": ("compact, tuned", style.COMPACT_TUNED),
    "dense, XLA alone": BY_XLA["dense"],
    "compact, XLA alone": BY_XLA["compact"],
}


def write(context: Context, shown: Report | None = None) -> dict[str, Any]:
    """Everything in RUN/report; the paths and the main figures.

    Args:
        context: of a run all of whose stages are complete.
        shown: pictures and page of a study that adds to those here.
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
            name: [float(f"{norm:.5g}") for norm in norms.ravel()]
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
    place = (shown or REPORT).write(folder, record)[-1]
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
    model, rows = record["options"]["model"], _latency_rows(record)
    layers = layer_rows(record["compact"]["layers"])
    marks = _TUNED if "lowering" in record["benchmark"] else BY_XLA
    largest = [row for row in rows if row["name"] == "compact"][-1]
    return {
        "overview": _overview(record, layers, rows, marks),
        "curves": report.learning_curves(record["metrics"]),
        "widths": report.flow(layers, _units(model), model),
        "norms": report.group_norms(_norms(record)),
        **_norm_paths(record["metrics"]),
        "tradeoff": report.tradeoff(points),
        "latency": report.latency(
            rows,
            marks,
            f"{model}: {largest['speedup']:.2f}x faster at batch {largest['batch']}",
        ),
    }


def _overview(
    record: dict[str, Any],
    layers: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    marks: dict[str, tuple[str, str]],
) -> Any:
    """The network before and after, with its time at the middle batch size."""
    batches = sorted({row["batch"] for row in rows})
    batch = batches[len(batches) // 2]
    times = {
        marks[row["name"]][0]: (row, marks[row["name"]][1])
        for row in rows
        if row["batch"] == batch and row["name"] in marks
    }
    figure, options = main_figures(record), record["options"]
    return report.overview(
        layers,
        times,
        title=f"{options['model']} on {options['data']}: "
        f"{100 * figure['macs_removed']:.0f}% fewer MACs, accuracy "
        f"{100 * figure['accuracy_dense']:.1f}% → "
        f"{100 * figure['accuracy_compact']:.1f}%",
        batch=batch,
    )


def _norms(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every class's group norms, descending.

    Records of November 2026 have five decimals, so that small norms read 0; how many
    are exactly zero the stage has counted.
    """
    zeros = record[_trained(record)[1]]["zero_groups"].values()
    norms = {}
    for (name, values), zero in zip(record["group_norms"].items(), zeros, strict=True):
        row = np.sort(np.ravel(values))[::-1]
        row[: row.size - zero] = np.maximum(row[: row.size - zero], _ROUNDED)
        norms[name] = row
    return norms


@functools.cache
def _units(model_name: str) -> sslx.Groups:
    """What goes together in a network, from its shapes."""
    if model_name in models.MODELS:
        model, shape = models.create(model_name), (32, 32, 3)
    else:
        model = imagenet_models.create(model_name)
        shape = imagenet_models.image_shape(model_name)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return sslx.units(model.apply)(variables, x)


def _norm_paths(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Group norms while training, where the log has them."""
    rows = [row for row in metrics if "norms" in row]
    if not rows:
        return {}
    norms = {name: [row["norms"][name] for row in rows] for name in rows[0]["norms"]}
    epochs = [row["epoch"] for row in rows]
    return {"norms-by-epoch": report.norms_over_steps(epochs, norms, "epoch")}


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
            "What the run did to the network.",
            figures["overview"],
        ),
        report.Section(
            "Accuracy and cost",
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
        *(
            report.Section("Norms while training", "", figures[name])
            for name in figures
            if name == "norms-by-epoch"
        ),
        report.Section("Layers", "", figures["widths"], _layer_rows(record)),
        report.Section(
            "Speed",
            f"Timed side by side, end to end, {_lowered(record)}. The control is the "
            "dense network against itself.",
            figures["latency"],
            _speed_rows(rows),
        ),
    ]
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
        "origin": origin(record),
    }


def _lowered(record: dict[str, Any]) -> str:
    """How the networks that are timed were compiled."""
    if "lowering" not in record["benchmark"]:
        return "both by plain jax.jit"
    return "dense and compact tuned in the same way (sslx.tune); XLA is plain jax.jit"


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
    for name, norms in _norms(record).items():
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


REPORT = Report(pictures, page_content)
