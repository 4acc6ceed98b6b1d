"""The picture of `experiments.bench lowerings`."""

from typing import Any

from matplotlib.figure import Figure

from experiments.reports.report import Record, Report
from sslx.report import style


def pictures(record: Record) -> dict[str, Any]:
    """Both ratios of every convolution, sorted."""
    return {"lowerings": _sorted(record)}


@style.styled
def _sorted(record: Record) -> Figure:
    means, cases = record["geometric_means"], record["cases"]
    figure = style.picture(
        f"{len(cases)} convolutions: the rule takes {means['rule_over_fastest']:.2f}x, "
        f"XLA {means['xla_over_fastest']:.1f}x the time of the fastest form",
        3.0,
    )
    axis = figure.subplots()
    every, ends = [1.0], []
    for kind, label, color in (
        ("xla_over_fastest", "XLA as\nit comes", style.DENSE_XLA),
        ("rule_over_fastest", "the rule", style.DENSE_TUNED),
    ):
        rows = sorted((case[kind] for case in cases), key=lambda row: row["median"])
        middle = [row["median"] for row in rows]
        spread = [
            [row["median"] - row["q1"] for row in rows],
            [row["q3"] - row["median"] for row in rows],
        ]
        x = range(1, len(rows) + 1)
        axis.errorbar(x, middle, yerr=spread, fmt="o", ms=3.5, lw=1, color=color)
        every += [row[end] for row in rows for end in ("q1", "q3")]
        ends.append((middle[-1], label, color))
    style.ratio_axis(axis, min(every), max(every), "y")
    axis.set_xlim(0, len(cases) + 1)
    for y, label, color in ends:
        axis.annotate(
            label,
            (len(cases) + 1, y),
            xytext=(3, 0),
            textcoords="offset points",
            color=style.FAINT if color == style.DENSE_XLA else color,
            va="center",
        )
    axis.set_xlabel("convolutions, sorted; lines: quartiles")
    axis.set_ylabel("time / time of the fastest form")
    return figure


REPORT = Report(pictures)
