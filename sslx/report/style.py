"""One look for all pictures: sizes, fonts, and one colour per meaning.

Pictures are `WIDTH` inches wide, so that their text is 16 pixels high where a page
shows them 700 pixels wide, and 9 on a phone. The hue says which network (grey: dense,
blue: compact), the darkness whether it was tuned (`sslx.tune`) or is XLA's as it comes.
The colours differ for the colour-blind and in print (Okabe and Ito; Tol's muted).
"""

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import PIL.Image
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

WIDTH = 5.6
INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
DENSE_XLA, DENSE_TUNED = "#b6bec8", "#52606d"
COMPACT_XLA, COMPACT_TUNED = "#56b4e9", "#0072b2"
OTHER_RUNTIME, OTHER_LIBRARY = "#e69f00", "#882255"
ZERO = "#d55e00"
PAPER = INK
"""What papers report: always hollow marks or dashed lines, without a colour."""
SERIES = ("#44aa99", "#882255", "#999933", "#332288", "#cc6677")
"""For what has no colour of its own."""
ORDERED = ("#fdae61", "#35b779", "#31688e", "#440154")
"""For what comes in an order, such as grains from fine to coarse."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "errorbar.capsize": 0,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.borderpad": 0.1,
    "legend.columnspacing": 1.2,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}

styled = matplotlib.rc_context(STYLE)
"""A decorator: what the function draws is in this style."""

_LINE = 0.19
_PIXELS_PER_INCH = 220
_SHOWN_PER_INCH = 125


class Picture(Figure):
    """A figure that notebooks show, without pyplot and its state.

    Attributes:
        above: Inches above the panels, for the title and the legend.
    """

    above = 0.0

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width = self.get_size_inches()[0]
        return png(self), {"width": round(_SHOWN_PER_INCH * width)}


def picture(title: str, height: float) -> Picture:
    """An empty picture.

    Args:
        title: What it shows or what came out; long ones are wrapped.
        height: Of all but the title, in inches.
    """
    figure = Picture((WIDTH, height))
    lines = _wrapped(title, 72 * (WIDTH - 0.15))
    text = figure.suptitle("\n".join(lines), x=0.012, y=1, ha="left", va="top")
    inset = ScaledTranslation(0, -0.04, figure.dpi_scale_trans)
    text.set_transform(figure.transFigure + inset)
    text.set_in_layout(False)
    _add_above(figure, _LINE * len(lines) + 0.06)
    return figure


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of at most so many points, in the font of titles."""
    font = FontProperties(weight=STYLE["figure.titleweight"])
    size = STYLE["figure.titlesize"]
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        fits = TextPath((0, 0), longer, size=size, prop=font).get_extents().width
        if lines and fits <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def legend(figure: Picture, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all panels, between the title and what was drawn so far."""
    columns = 4 if max(map(len, labels)) < 9 else 2
    title = figure.above
    _add_above(figure, 1.02 * _LINE * -(-len(labels) // columns))
    top = 1 - title / figure.get_size_inches()[1]
    shown = figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0, top),
        ncols=columns,
        borderaxespad=0,
    )
    shown.set_in_layout(False)


def _add_above(figure: Picture, height: float) -> None:
    """Make the figure higher, and keep that free of panels."""
    figure.above += height
    whole = figure.get_size_inches()[1] + height
    figure.set_size_inches(WIDTH, whole)
    panels = (0, 0, 1, 1 - figure.above / whole)
    figure.set_layout_engine("constrained", rect=panels)


def percent(axis: Axes, which: str = "y", whole: float | int = 1) -> None:
    """Shares of `whole` as percentages, with the decimals that they have."""
    side = getattr(axis, f"{which}axis")
    side.set_major_formatter(lambda value, _: f"{round(100 * value / whole, 6):g}%")


def short(path: str) -> str:
    """The name of a layer or a class of groups, from its path."""
    return path.removeprefix("params/").replace("/kernel", "")


def halo(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Text that can be read on top of lines and areas."""
    white = patheffects.withStroke(linewidth=2.5, foreground="white")
    axis.text(x, y, text, path_effects=[white], **options)


def ratio_axis(axis: Axes, low: float, high: float, which: str = "x") -> None:
    """A logarithmic axis of ratios: ticks at 1, 2, 5, 10 and so on, a line at 1.

    Args:
        axis: Which.
        low: Smallest ratio shown.
        high: Largest.
        which: `x` or `y`.
    """
    low, high = min(low, 1), max(high, 1)
    room = (high / low) ** 0.06
    low, high = low / room, high * room
    if high / low > 4:
        ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    else:
        step = next(
            s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s < 9
        )
        ticks = [step * k for k in range(1, round(high / step) + 1)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    getattr(axis, f"set_{which}scale")("log")
    getattr(axis, f"set_{which}lim")(low, high)
    line = axis.axvline if which == "x" else axis.axhline
    line(1, color=INK, lw=0.9, zorder=1)
    side = getattr(axis, f"{which}axis")
    side.set_major_locator(FixedLocator(ticks))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(lambda value, _: f"{value:g}x")


def spread_labels(
    axis: Axes, labels: Sequence[tuple[float, str, str]], x: float, gap: float
) -> None:
    """Names beside the ends of lines, moved apart where they would touch.

    Args:
        axis: Where the lines are.
        labels: (y of the line's end, text, colour).
        x: Where names start, in data coordinates.
        gap: Least distance of two names, in y's units.
    """
    placed = -float("inf")
    for y, text, color in sorted(labels):
        placed = max(y, placed + gap)
        axis.annotate(
            text,
            (x, placed),
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


def png(figure: Figure) -> bytes:
    """The picture at twice the resolution of a screen, in at most 128 colours."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_PIXELS_PER_INCH, facecolor="white")
    with PIL.Image.open(drawn) as image:
        image.convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return small.getvalue()


def save_png(figure: Figure, path: str | os.PathLike) -> pathlib.Path:
    """Write a picture and return its path."""
    return write(path, png(figure))


def write(path: str | os.PathLike, content: bytes) -> pathlib.Path:
    """Write at once: a reader sees the old file or the new one."""
    place = pathlib.Path(path)
    part = place.with_name(place.name + ".part")
    part.write_bytes(content)
    part.replace(place)
    return place
