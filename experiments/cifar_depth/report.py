"""The report of `experiments.cifar_depth`: that of `cifar_ssl`, and layers counted."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.cifar_ssl import report as ssl_report
from experiments.cifar_ssl.stages import Context
from experiments.reports.report import Report
from experiments.training import progress
from sslx import report as pages
from sslx.report import style

PAPER = {
    "ResNet-20": (7, 6, 6, 8.82),
    "SSL-ResNet-12": (5, 0, 6, 9.85),
    "SSL-ResNet-14": (5, 2, 6, 8.54),
    "SSL-ResNet-16": (5, 4, 6, 8.24),
    "SSL-ResNet-18": (5, 6, 6, 7.40),
    "SSL-ResNet-20": (7, 6, 6, 7.63),
}
"""Wen et al. 2016, ResNet on CIFAR-10: convolutions at 32x32, 16x16 and 8x8 as read off
their chart, and error in %; the errors of 12, 16 and 20 layers are read off a figure
(+-0.03), the others are printed."""
PIXELS = ("32x32", "16x16", "8x8")


def write(context: Context) -> dict[str, Any]:
    """The page, the pictures and the count of layers."""
    found = ssl_report.write(context, REPORT)
    record = {stage: context.run.result(stage) for stage in context.run.stages[:-1]}
    table = rows(record, context.config.model)
    progress.print_rows("convolutions by image size", table)
    return {**found, "convolutions": surviving(record["compact"]["layers"])}


def surviving(layers: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """3x3 convolutions left at 32x32, 16x16 and 8x8; shortcuts do not count."""
    counts = [0, 0, 0]
    for layer in layers:
        if tuple(layer["kernel"][:2]) == (3, 3) and layer["kernel_after"]:
            inside = re.match(r"stage(\d)", layer["name"])
            counts[int(inside.group(1)) - 1 if inside else 0] += 1
    return counts[0], counts[1], counts[2]


def rows(record: Mapping[str, Any], model: str) -> list[dict[str, str]]:
    """The paper's networks and ours: layers (with the dense one), counts, error."""
    networks = {f"paper: {name}": row for name, row in PAPER.items()}
    layers = record["compact"]["layers"]
    before = [{**layer, "kernel_after": layer["kernel"]} for layer in layers]
    for name, found, stage in (
        (f"here: {model}", before, "baseline"),
        (f"here: {model}, SSL", layers, "finetune"),
    ):
        error = 100 * (1 - record[stage]["test_accuracy"])
        networks[name] = (*surviving(found), error)
    return [
        {
            "network": name,
            "layers": str(sum(counts) + 1),
            **dict(zip(PIXELS, map(str, counts), strict=True)),
            "error": f"{error:.2f}%",
        }
        for name, (*counts, error) in networks.items()
    ]


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Those of `ssl_report`, and convolutions by image size beside the paper's."""
    table = rows(record, record["options"]["model"])
    return {**ssl_report.pictures(record), "depth": chart(table)}


def page_content(record: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """That of `ssl_report`, and what is left of the depth."""
    content = ssl_report.page_content(record, figures)
    penalties = [row["penalty"] for row in record["metrics"] if "penalty" in row]
    depth = pages.Section(
        "Depth",
        "Convolutions that are left at each image size; a network's layers are these "
        f"and the dense one. The penalty went from {penalties[0]:.3g} to "
        f"{penalties[-1]:.3g}.",
        figures["depth"],
        rows(record, record["options"]["model"]),
    )
    return {**content, "sections": [*content["sections"], depth]}


@style.styled
def chart(table: Sequence[Mapping[str, str]]) -> Figure:
    """Stacked counts by image size, one bar per network."""
    figure = style.picture("3x3 convolutions that are left", 0.9 + 0.27 * len(table))
    axis = figure.subplots()
    names = [row["network"] for row in table]
    start = [0] * len(table)
    shades = (style.COMPACT_TUNED, style.COMPACT_XLA, style.DENSE_XLA)
    for size, colour in zip(PIXELS, shades, strict=True):
        counts = [int(row[size]) for row in table]
        bars = axis.barh(names, counts, left=start, label=size, color=colour)
        axis.bar_label(bars, [n or "" for n in counts], label_type="center", fontsize=8)
        start = [a + b for a, b in zip(start, counts, strict=True)]
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("convolutions, by the size of the image")
    style.legend(figure, *axis.get_legend_handles_labels())
    return figure


REPORT = Report(pictures, page_content)
