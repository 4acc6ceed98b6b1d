"""Figures of how a sparse network was made, and one self-contained HTML page.

Every figure is drawn from plain records (dicts, arrays), so that it can be drawn again
from a run folder without the network. Needs the extra `sslx[report]`.
"""

import base64
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

__all__ = [
    "Fact",
    "Section",
    "group_norms",
    "latency_bars",
    "layer_widths",
    "learning_curves",
    "page",
    "save_png",
    "tradeoff",
]

_INK, _FAINT, _GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
_BLUE, _ORANGE, _GREEN, _RED = "#2563eb", "#d97706", "#059669", "#dc2626"
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class Fact:
    """One headline number of the page.

    Attributes:
        value: The number, as text.
        label: What it is.
        note: What it was before, or a remark.
    """

    value: str
    label: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a heading, text, and optionally a figure and a table.

    Attributes:
        title: The heading.
        text: What the figure and table show; plain text.
        figure: The figure.
        rows: The table, one dict per row, all with the same keys.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    rows: Sequence[Mapping[str, Any]] = ()


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy, loss and sparsity over all stages, end to end.

    Args:
        rows: Lines of metrics with `stage`, `epoch`, `loss`, `accuracy`, and where
            known `test_accuracy`, `removed_macs`, `zero_groups` and `groups`.

    Returns:
        The figure; x in epochs, accuracies and shares from 0 to 1.
    """
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    sparse = any("zero_groups" in row for row in rows)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 6.6 if sparse else 4.6), layout="constrained")
        axes = np.atleast_1d(figure.subplots(3 if sparse else 2, 1, sharex=True))
        start = 0.0
        for stage in stages:
            part = [row for row in rows if row["stage"] == stage]
            _stage_curves(axes, part, start, stage)
            start += max(row["epoch"] for row in part)
        axes[0].set_ylabel("accuracy")
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        axes[0].plot([], [], color=_FAINT, label="training batches")
        axes[0].plot([], [], color=_BLUE, marker="o", ms=4, label="test set")
        axes[0].legend(loc="lower right")
        axes[1].set_ylabel("cross entropy")
        if sparse:
            axes[2].set_ylabel("share")
            axes[2].set_ylim(0, 1)
            axes[2].yaxis.set_major_formatter(PercentFormatter(1.0))
            axes[2].plot([], [], color=_RED, label="groups at zero")
            axes[2].plot([], [], color=_ORANGE, label="MACs they hold")
            axes[2].legend(loc="upper left")
        axes[-1].set_xlabel("epochs, all stages")
        axes[-1].set_xlim(0, 1.01 * start)
    return figure


def _stage_curves(
    axes: np.ndarray, rows: Sequence[Mapping[str, Any]], start: float, stage: str
) -> None:
    x = [start + row["epoch"] for row in rows]
    axes[0].plot(x, [row["accuracy"] for row in rows], color=_FAINT, lw=1)
    tested = [row for row in rows if "test_accuracy" in row]
    axes[0].plot(
        [start + row["epoch"] for row in tested],
        [row["test_accuracy"] for row in tested],
        color=_BLUE,
        marker="o",
        ms=4,
    )
    axes[1].plot(x, [row["loss"] for row in rows], color=_GREEN, lw=1.2)
    if len(axes) > 2 and "zero_groups" in rows[0]:
        share = [row["zero_groups"] / row["groups"] for row in rows]
        axes[2].plot(x, share, color=_RED)
        axes[2].plot(x, [row["removed_macs"] for row in rows], color=_ORANGE)
    for axis in axes:
        if start:
            axis.axvline(start, color=_FAINT, lw=0.8, ls=":")
    label = {"x": start, "y": 1.02, "s": f" {stage}", "color": _INK, "weight": "bold"}
    axes[0].text(transform=axes[0].get_xaxis_transform(), **label)


def layer_widths(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Output width of every layer, dense and compact; inner widths shrink.

    Args:
        layers: Records with `name`, `kernel` and `kernel_after` (shapes, empty where
            the layer is gone), `macs` and `macs_after`.
    """
    names = [layer["name"] for layer in layers]
    before = [float(layer["kernel"][-1]) for layer in layers]
    after = [float((layer["kernel_after"] or [0])[-1]) for layer in layers]
    macs = [layer["macs"] / 1e6 for layer in layers]
    macs_after = [layer["macs_after"] / 1e6 for layer in layers]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.23 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _before_after(left, names, before, after)
        left.set_title("filters")
        _before_after(right, names, macs, macs_after)
        right.set_title("million MACs")
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        left.invert_yaxis()
    return figure


def _before_after(
    axis: Axes, names: Sequence[str], before: Sequence[float], after: Sequence[float]
) -> None:
    place = np.arange(len(names))
    axis.barh(place, before, height=0.78, color=_GRID, label="dense")
    axis.barh(place, after, height=0.5, color=_BLUE, label="compact")
    axis.set_yticks(place, names)
    axis.grid(axis="y", visible=False)
    for y, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            text = f" {_short(old)} → {_short(new)}"
            axis.text(old, y, text, va="center", fontsize=7.5)
    axis.set_xlim(0, 1.25 * max(before))


def _short(value: float) -> str:
    return f"{value:.3g}"


def group_norms(norms: Mapping[str, np.ndarray]) -> Figure:
    """Every group of every layer as one cell: the darker, the larger its norm.

    Groups at exactly zero are red. Cells are ordered by norm; a two-dimensional class
    is laid out in one row too.

    Args:
        norms: Layer -> l2 norms, any shape.
    """
    rows = {name: np.sort(np.ravel(x))[::-1] for name, x in norms.items()}
    longest = max(len(row) for row in rows.values())
    top = max(float(row.max(initial=0)) for row in rows.values()) or 1.0
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9, 1.0 + 0.3 * len(rows)), layout="constrained")
        axis = figure.subplots()
        colours = matplotlib.colormaps["Blues"]
        for y, values in enumerate(rows.values()):
            shade = colours(0.15 + 0.85 * values / top)
            shade[values == 0] = colors.to_rgba(_RED)
            extent = (0, len(values), y + 0.42, y - 0.42)
            axis.imshow(
                shade[None], extent=extent, aspect="auto", interpolation="nearest"
            )
            if len(values) <= 64:
                edges = np.arange(len(values) + 1)
                axis.vlines(edges, y - 0.42, y + 0.42, color="white", lw=0.8)
            zero = int(np.sum(values == 0))
            note = f" {zero} of {len(values)} zero" if zero else f" {len(values)}"
            axis.text(len(values), y, note, va="center", fontsize=7.5)
        axis.set_xlim(0, 1.18 * longest)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("groups, largest norm first; red: exactly zero")
        scale = ScalarMappable(colors.Normalize(0, top), cmap=colours)
        figure.colorbar(scale, ax=axis, label="l2 norm", fraction=0.03, pad=0.01)
    return figure


def tradeoff(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against multiply-accumulates.

    Args:
        points: Records with `name`, `macs` and `accuracy` (0..1), in order of making.
    """
    x = [point["macs"] / 1e6 for point in points]
    y = [point["accuracy"] for point in points]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axis = figure.subplots()
        axis.plot(x, y, color=_FAINT, lw=1, ls="--", zorder=1)
        axis.scatter(x, y, color=_BLUE, s=40, zorder=2)
        for place, point in enumerate(points):
            axis.annotate(
                f"{point['name']}  {100 * point['accuracy']:.2f}%",
                (x[place], y[place]),
                xytext=(0, 9 if place % 2 == 0 else -16),
                textcoords="offset points",
                ha="center",
            )
        spread = max(max(y) - min(y), 0.01)
        axis.set_ylim(min(y) - 0.6 * spread, max(y) + 0.6 * spread)
        axis.set_xlim(0, 1.25 * max(x))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axis.set_xlabel("million multiply-accumulates per image")
        axis.set_ylabel("test accuracy")
    return figure


def latency_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time of every candidate relative to the first of its batch size, with quartiles.

    Args:
        rows: Records with `batch`, `name`, `median`, `q1`, `q3` (seconds per call) and
            `speedup`.
    """
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 0.9 + 0.62 * len(rows) / 1.6), layout="constrained")
        axis = figure.subplots()
        names, longest = [], 1.0
        for batch in batches:
            part = [row for row in rows if row["batch"] == batch]
            reference = part[0]["median"]
            for place, row in enumerate(part):
                centre = row["median"] / reference
                low, high = row["q1"] / reference, row["q3"] / reference
                y, longest = len(names), max(longest, high)
                color = _FAINT if place == 0 else _BLUE
                axis.barh(y, centre, height=0.66, color=color)
                axis.plot([low, high], [y, y], color=_INK, lw=1.4)
                label = f"  {1e3 * row['median']:.3g} ms"
                if place:
                    label += f"  ({row['speedup']:.2f}x)"
                axis.text(max(centre, high), y, label, va="center", fontsize=8.5)
                names.append(f"batch {batch}  {row['name']}")
        axis.set_yticks(range(len(names)), names)
        axis.grid(axis="y", visible=False)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.45 * longest)
        axis.set_xlabel("time relative to dense; line: quartiles")
    return figure


def save_png(figure: Figure, path: str | os.PathLike) -> pathlib.Path:
    """Write a figure as PNG at screen resolution and return its path."""
    return _write(path, _png(figure))


def page(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
    origin: Mapping[str, Any],
) -> pathlib.Path:
    """Write one self-contained HTML file, with the figures embedded.

    Args:
        path: The file to write; replaced if it exists.
        title: Heading of the page.
        lead: One or two sentences on the outcome.
        facts: Headline numbers below it.
        sections: The body.
        origin: What it takes to make the page again: command, commit, versions.

    Returns:
        The path.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["png"] = _data_url
    text = environment.from_string(_PAGE).render(
        title=title, lead=lead, facts=facts, sections=sections, origin=origin
    )
    return _write(path, text.encode())


def _write(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Write at once: a reader sees the old file or the new one."""
    place = pathlib.Path(path)
    part = place.with_name(place.name + ".part")
    part.write_bytes(content)
    part.replace(place)
    return place


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white")
    return buffer.getvalue()


def _data_url(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(figure)).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2933; margin: 0;
       background: #f5f7fa; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
.lead { font-size: 1.1rem; color: #52606d; margin: 0 0 1.5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
         gap: .75rem; margin-bottom: 1.5rem; }
.fact, section { background: #fff; border: 1px solid #e4e7eb; border-radius: .6rem;
                 padding: 1rem 1.2rem; }
section { margin-bottom: 1rem; }
.fact b { display: block; font-size: 1.8rem; line-height: 1.25; color: #2563eb; }
.fact span { color: #7b8794; font-size: .85rem; display: block; }
section p { margin: 0 0 .75rem; color: #52606d; }
img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { text-align: right; padding: .28rem .6rem; border-bottom: 1px solid #e4e7eb;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: #52606d; font-weight: 600; line-height: 1.25; white-space: normal;
     vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem;
     margin: 0; font-size: .9rem; }
dt { color: #7b8794; } dd { margin: 0; overflow-wrap: anywhere; }
</style></head><body><main>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
<div class="facts">{% for fact in facts %}
<div class="fact"><b>{{ fact.value }}</b>{{ fact.label }}<span>{{ fact.note }}</span>
</div>{% endfor %}</div>
{% for part in sections %}<section><h2>{{ part.title }}</h2>
{% if part.text %}<p>{{ part.text }}</p>{% endif %}
{% if part.figure %}
<img alt="{{ part.title }}" src="{{ part.figure | png }}">{% endif %}
{% if part.rows %}<div class="scroll"><table><thead><tr>
{% for name in part.rows[0] %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part.rows %}<tr>{% for cell in row.values() %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}</section>{% endfor %}
<section><h2>How this was made</h2><dl>
{% for name, value in origin.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl></section>
</main></body></html>
"""
