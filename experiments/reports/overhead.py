"""Pictures of `experiments.bench overhead` and `experiments.bench analysis`."""

from typing import Any

from matplotlib.figure import Figure

from experiments.reports.report import Record, Report
from sslx import report
from sslx.report import style

_PARTS = {
    "trace": ("tracing (JAX)", style.DENSE_XLA),
    "analysis": ("analysis", style.COMPACT_TUNED),
    "rewrite": ("rewriting", style.COMPACT_XLA),
}


def pictures(record: Record) -> dict[str, Any]:
    """Time of a training step with each part over that of the plain step."""
    rows = {
        row["name"]: {
            "step": (1 / row["speedup"], 1 / row["speedup_q3"], 1 / row["speedup_q1"])
        }
        for row in record["steps"]["latency"]["rows"][1:]
    }
    most = max(abs(row["step"][0] - 1) for row in rows.values())
    mark = report.Mark("median and quartiles over the rounds", style.DENSE_TUNED)
    return {
        "overhead": report.ratios(
            {"training step of ResNet-20": rows},
            {"step": mark},
            title="Penalties, masks and factors change the time of a step by at most "
            f"{100 * most:.1f}%",
            xlabel="time / time of the plain step",
        )
    }


def analysis_pictures(record: Record) -> dict[str, Any]:
    """Seconds of every part of a compaction, XLA's compilation left out."""
    return {"analysis": _parts(record["cases"])}


@style.styled
def _parts(cases: list[dict[str, Any]]) -> Figure:
    most = max(sum(case["seconds"].values()) for case in cases)
    figure = style.picture(
        f"Compacting takes at most {most:.2g} s, before XLA compiles",
        0.8 + 0.25 * len(cases),
    )
    axis = figure.subplots()
    start = [0.0] * len(cases)
    for part, (label, color) in _PARTS.items():
        seconds = [case["seconds"][part] for case in cases]
        axis.barh(range(len(cases)), seconds, left=start, color=color, label=label)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for y, (case, total) in enumerate(zip(cases, start, strict=True)):
        axis.annotate(
            f"{total:.2g} s, {case['equations']:,} equations",
            (total, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.6 * max(start))
    axis.set_xlabel("seconds")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="upper right")
    return figure


REPORT = Report(pictures)
ANALYSIS = Report(analysis_pictures)
