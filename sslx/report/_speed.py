"""Pictures of speed: times side by side, and ratios as dots on a logarithmic axis."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sslx.report import style

_AGAIN = "(again)"


@dataclasses.dataclass(frozen=True)
class Mark:
    """How one kind of value is drawn in all panels.

    Attributes:
        label: Its name in the legend.
        color: A colour of `sslx.report.style`.
        shape: A marker of Matplotlib.
        hollow: Whether only the outline is drawn.
    """

    label: str
    color: str
    shape: str = "o"
    hollow: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `Axes.plot`."""
        face = "white" if self.hollow else self.color
        size = 9 if self.shape == "|" else 4.5
        return {
            "color": self.color,
            "marker": self.shape,
            "markersize": size,
            "markerfacecolor": face,
            "markeredgewidth": 1.2,
        }


Panels = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


@style.styled
def ratios(
    panels: Panels, marks: Mapping[str, Mark], *, title: str, xlabel: str
) -> Figure:
    """Ratios as dots with their spread, one row per case, around a line at 1.

    Args:
        panels: Panel -> row -> kind -> (median,) or (median, low, high).
        marks: Kind -> how it is drawn; kinds that are in no panel are left out.
        title: The outcome.
        xlabel: Which ratio it is.
    """
    shown = {
        kind: mark
        for kind, mark in marks.items()
        if any(kind in row for rows in panels.values() for row in rows.values())
    }
    counts = [len(rows) for rows in panels.values()]
    height = 0.5 + sum(0.36 * bool(name) + 0.25 * len(panels[name]) for name in panels)
    figure = style.picture(title, height)
    axes = figure.subplots(
        len(counts),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[n + 1 for n in counts],
    )[:, 0]
    every = [
        value
        for rows in panels.values()
        for row in rows.values()
        for kind in shown
        for value in row.get(kind, ())
    ]
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        for y, row in enumerate(rows.values()):
            for kind, mark in shown.items():
                if kind in row:
                    _dot(axis, y, row[kind], mark)
        axis.set_title(name)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        style.ratio_axis(axis, min(every), max(every))
    axes[-1].set_xlabel(xlabel)
    handles = [Line2D([], [], ls="", **mark.options) for mark in shown.values()]
    style.legend(figure, handles, [mark.label for mark in shown.values()])
    return figure


def _dot(axis: Axes, y: int, value: Sequence[float], mark: Mark) -> None:
    middle, *spread = value
    if spread:
        axis.plot(spread, [y, y], color=mark.color, lw=1.2, zorder=2)
    axis.plot([middle], [y], ls="", zorder=3, **mark.options)


@style.styled
def latency(
    rows: Sequence[Mapping[str, Any]], marks: Mapping[str, tuple[str, str]], title: str
) -> Figure:
    """Time of every candidate, as a share of the first one's of its batch size.

    Args:
        rows: Records with `batch`, `name`, `median`, `q1`, `q3` (seconds per call) and
            `speedup`.
        marks: Name -> label and colour.
        title: The outcome.
    """
    rows = [row for row in rows if _AGAIN not in row["name"]]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    figure = style.picture(title, 0.55 + 0.25 * len(rows) + 0.22 * len(batches))
    axis = figure.subplots()
    place, longest, ticks = 0.0, 1.0, {}
    for batch in batches:
        part = [row for row in rows if row["batch"] == batch]
        axis.text(
            0, place - 0.62, f"batch {batch}", fontsize=8.5, weight="bold", va="center"
        )
        for row in part:
            label, color = marks[row["name"]]
            scale = 1 / part[0]["median"]
            axis.barh(place, scale * row["median"], height=0.72, color=color)
            ends = [scale * row["q1"], scale * row["q3"]]
            axis.plot(ends, [place, place], color=style.INK, lw=1.2)
            text = f"{_seconds(row['median'])}"
            if row is not part[0]:
                text += f", {row['speedup']:.2f}x"
            axis.annotate(
                text,
                (max(scale * row["median"], ends[1]), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            longest = max(longest, ends[1])
            ticks[place] = label
            place += 1
        place += 0.85
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.set_ylim(place - 1.3, -1.1)
    axis.set_xlim(0, 1.32 * longest)
    axis.set_xticks([0, 0.5, 1], ["0", "", "1"])
    axis.grid(axis="y", visible=False)
    axis.spines["bottom"].set_visible(False)
    first = marks[rows[0]["name"]][0]
    axis.set_xlabel(f"time per call, of “{first}”; lines: quartiles")
    return figure


def _seconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


@style.styled
def rates(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    colors: Mapping[str, tuple[str, str]],
    *,
    title: str,
    xlabel: str,
) -> Figure:
    """Rates as bars from 0 with their spread, one panel per case.

    Args:
        panels: Panel -> candidate -> (median, low, high).
        colors: Candidate -> label and colour.
        title: The outcome.
        xlabel: The unit of the rate.
    """
    counts = [len(rows) for rows in panels.values()]
    figure = style.picture(title, 0.3 + sum(0.4 + 0.22 * n for n in counts))
    axes = figure.subplots(
        len(counts), 1, squeeze=False, height_ratios=[n + 1 for n in counts]
    )[:, 0]
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        longest = max(max(value) for value in rows.values())
        for y, (candidate, (middle, low, high)) in enumerate(rows.items()):
            axis.barh(y, middle, height=0.72, color=colors[candidate][1])
            axis.plot([low, high], [y, y], color=style.INK, lw=1.2)
            axis.annotate(
                f"{middle:,.0f}",
                (max(middle, high), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_yticks(range(len(rows)), [colors[name][0] for name in rows])
        axis.set_ylim(len(rows) - 0.45, -0.55)
        axis.set_xlim(0, 1.15 * longest)
        axis.set_title(name)
        axis.grid(axis="y", visible=False)
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[-1].set_xlabel(xlabel)
    return figure
