"""The report of `experiments.mnist_ssl`: the paper's table beside ours."""

import dataclasses
from typing import Any

from experiments.cifar_ssl.report import BY_XLA
from experiments.mnist_ssl import stages as mnist_stages
from experiments.mnist_ssl.stages import Context
from experiments.reports.report import Report, layer_rows, origin
from experiments.training import loop, progress, runs
from sslx import report
from sslx.report import style


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: error in %, counts and FLOP per layer, MACs after compaction."""

    name: str
    error: float
    filters: str
    channels: str
    flops: str
    speedup: str = ""
    macs: str = ""


PAPER = {
    "table1": (
        Row("LeNet 1", 0.9, "20-50", "1-20", "100-100%", "1.00x-1.00x"),
        Row("LeNet 2", 0.8, "5-19", "1-4", "25-7.6%", "1.64x-5.23x"),
        Row("LeNet 3", 1.0, "3-12", "1-3", "15-3.6%", "1.99x-7.44x"),
    ),
    "table2": (
        Row("LeNet 1", 0.9, "25-500", "1-20", "100-100%", "1.00x-1.00x"),
        Row("LeNet 4", 0.8, "21-41", "1-2", "8.4-8.2%", "2.33x-6.93x"),
        Row("LeNet 5", 1.0, "7-14", "1-1", "1.4-2.8%", "5.19x-10.82x"),
    ),
    "mlp": (
        Row("MLP 1", 1.43, "784-500-300", "", "100-100-100%"),
        Row("MLP 2", 1.34, "469-294-166", "", "35.2-32.5-55.3%"),
        Row("MLP 3", 1.53, "434-174-78", "", "19.3-9.0-26.0%"),
    ),
}
"""Tables 1, 2 and that of the MLP in Wen et al. 2016; speed-ups are of the layers'
matrix products alone, on their machine."""
COUNTED = {"table1": "filters", "table2": "filter size", "mlp": "neurons"}
_TITLES = {
    "table1": "LeNet, filters and channels",
    "table2": "LeNet, filter shapes",
    "mlp": "MLP, neurons",
}


def write(context: Context) -> dict[str, Any]:
    """Everything in RUN/report; the path and the main figures."""
    folder = context.run.path("report")
    folder.mkdir(parents=True, exist_ok=True)
    record = make_record(context)
    runs.write_json(folder / "record.json", record)
    place = REPORT.write(folder, record)[-1]
    progress.print_rows(_title(record), table(record))
    print(f"report: {place}")
    return {"page": place.name, "table": table(record)}


def make_record(context: Context) -> dict[str, Any]:
    """Everything the page shows, as plain data.

    Raises:
        runs.RunError: a stage is not complete.
    """
    results = {stage: context.run.result(stage) for stage in context.run.stages[:-1]}
    missing = [stage for stage, result in results.items() if result is None]
    if missing:
        raise runs.RunError(f"report: {', '.join(missing)} not complete; do them first")
    trained = {"baseline": results["baseline"]}
    for name in context.names:
        for stage in ("ssl", "finetune"):
            trained[f"{stage}/{name}"] = results[stage]["networks"][name]
    options = dataclasses.asdict(context.config)
    return {
        "options": {k: v for k, v in options.items() if k not in ("data_dir", "run")},
        **results,
        "metrics": [
            row
            for stage, result in trained.items()
            for row in loop.read_metrics(
                context.run.path(stage) / "metrics.jsonl", result["metrics_check"]
            )
        ],
        "provenance": runs.provenance(),
    }


def table(record: dict[str, Any]) -> list[dict[str, str]]:
    """The paper's rows and ours, in one shape."""
    preset = record["options"]["preset"]
    paper, first = PAPER[preset], PAPER[preset][0]
    baseline = record["baseline"]
    error = 100 * (1 - baseline["test_accuracy"])
    whole = dataclasses.asdict(mnist_stages.dense_counts(preset))
    dense = Row("dense", error, *_left(whole), "1.00x", "100%")
    ours = [dense] + [_ours(record, name) for name in record["compact"]["networks"]]
    rows = [("paper", row) for row in paper] + [("here", row) for row in ours]
    return [
        {
            "network": row.name,
            "from": origin,
            "error": f"{row.error:{'g' if origin == 'paper' else '.2f'}}%",
            COUNTED[preset]: row.filters,
            **({"channels": row.channels} if first.channels else {}),
            "FLOP": row.flops,
            "MACs left": row.macs,
            "speed-up": row.speedup,
        }
        for origin, row in rows
    ]


def _ours(record: dict[str, Any], name: str) -> Row:
    dense, tuned = record["baseline"], record["finetune"]["networks"][name]
    timed = {row["name"]: row for row in record["compact"]["latency"]["rows"]}
    return Row(
        f"lambda {tuned['strength']:g}",
        100 * (1 - tuned["test_accuracy"]),
        *_left(tuned["left"]),
        f"{timed[name]['speedup']:.2f}x",
        f"{100 * record['compact']['networks'][name]['macs'] / dense['macs']:.1f}%",
    )


def _left(counts: dict[str, Any]) -> tuple[str, str, str]:
    """`Counts` as the tables write them."""
    flops = "-".join(f"{100 * share:.3g}" for share in counts["flops"])
    filters, channels = (
        "-".join(map(str, counts[name])) for name in ("filters", "channels")
    )
    return filters, channels, f"{flops}%"


def pictures(record: dict[str, Any]) -> dict[str, Any]:
    """The report's figures by file name."""
    batch = record["options"]["benchmark_batch"]
    rows = [{"batch": batch, **row} for row in record["compact"]["latency"]["rows"]]
    compact = list(record["compact"]["networks"])
    marks = {name: (f"{name}, XLA", style.COMPACT_XLA) for name in compact}
    best = max(row["speedup"] for row in rows if row["name"] in compact)
    figures = {
        "latency": report.latency(
            rows, {**BY_XLA, **marks}, f"Compact networks are up to {best:.2f}x faster"
        ),
    }
    if len(compact) > 1:
        figures["sweep"] = _sweep(record)
    for name, result in record["compact"]["networks"].items():
        figures[f"widths-{name}"] = report.flow(layer_rows(result["layers"]), name=name)
        stages = ("baseline", f"ssl/{name}", f"finetune/{name}")
        metrics = [row for row in record["metrics"] if row["stage"] in stages]
        figures[f"curves-{name}"] = report.learning_curves(metrics)
    return figures


def _sweep(record: dict[str, Any]) -> Any:
    """Error and zero groups by lambda."""
    points = []
    for name, tuned in record["finetune"]["networks"].items():
        rows = [row for row in record["metrics"] if row["stage"] == f"ssl/{name}"]
        points.append(
            {
                "series": "SSL",
                "value": tuned["strength"],
                "error": 1 - tuned["test_accuracy"],
                "zero": rows[-1]["zero_groups"] / rows[-1]["groups"],
            }
        )
    return report.sweep(
        points,
        parameter="lambda",
        reference=1 - record["baseline"]["test_accuracy"],
    )


def page_content(record: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `sslx.report.page`."""
    dense = record["baseline"]
    facts, sections = [], []
    for name, result in record["compact"]["networks"].items():
        tuned = record["finetune"]["networks"][name]
        change = 100 * (tuned["test_accuracy"] - dense["test_accuracy"])
        removed = 1 - result["macs"] / dense["macs"]
        note = f"{change:+.2f} points of accuracy"
        facts.append(report.Fact(f"-{100 * removed:.1f}%", f"{name}, MACs", note))
        sections += [
            report.Section(
                name,
                f"SSL with lambda {tuned['strength']:g} from the baseline, then "
                "fine-tuning with the zeros kept.",
                figures[f"curves-{name}"],
            ),
            report.Section(f"{name}, compact", "", figures[f"widths-{name}"]),
        ]
    return {
        "title": _title(record),
        "lead": "The paper's rows are on MNIST and its speed-ups are of single layers' "
        "matrix products; ours are of whole networks, end to end, dense against "
        "compact. FLOP is counted from live groups as the paper does; MACs "
        "left are those of the whole compact network.",
        "facts": facts,
        "sections": [
            report.Section("Paper and ours", "", rows=table(record)),
            *sections,
            *(
                report.Section("Strength of the penalty", "", figures[name])
                for name in figures
                if name == "sweep"
            ),
            report.Section("Speed", "", figures["latency"]),
        ],
        "origin": origin(record),
    }


def _title(record: dict[str, Any]) -> str:
    options = record["options"]
    return f"{_TITLES[options['preset']]}: SSL on {options['data']} (paper: mnist)"


REPORT = Report(pictures, page_content)
