"""One picture of what sslx does: a network before and after, and its time."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sslx.report import style


@style.styled
def overview(
    layers: Sequence[Mapping[str, Any]],
    times: Mapping[str, tuple[Mapping[str, Any], str]],
    *,
    title: str,
    batch: int,
) -> Figure:
    """Filters per layer with the zero ones marked, without them, and the time per call.

    Args:
        layers: Rows of `Compact.rows()`, in order of execution.
        times: Candidate -> its `median`, `q1` and `q3` in seconds, and its colour.
        title: The outcome.
        batch: Images per call.
    """
    before = [(layer["kernel_before"] or (0,))[-1] for layer in layers]
    after = [(layer["kernel_after"] or (0,))[-1] for layer in layers]
    figure = style.picture(title, 3.9 + 0.24 * len(times))
    above, middle, below = figure.subplots(
        3, 1, height_ratios=(1.35, 1.35, 0.35 + 0.24 * len(times))
    )
    place = range(len(layers))
    above.bar(place, after, width=0.8, color=style.DENSE_XLA)
    zero = [max(0, old - new) for old, new in zip(before, after, strict=True)]
    above.bar(place, zero, bottom=after, width=0.8, color=style.ZERO)
    above.set_title("1. Train with a group penalty: whole filters reach zero (red)")
    middle.bar(place, after, width=0.8, color=style.COMPACT_TUNED)
    middle.set_title("2. Compact: the same function, computed without them")
    for axis in (above, middle):
        axis.set_ylim(0, 1.05 * max(before))
        axis.set_xlim(-0.6, len(layers) - 0.4)
        axis.set_xticks([])
        axis.set_ylabel("filters")
        axis.grid(axis="x", visible=False)
    middle.set_xlabel("layers, from input to output")
    _times(below, times)
    below.set_title(f"3. Time for {batch} images")
    return figure


def _times(axis: Axes, times: Mapping[str, tuple[Mapping[str, Any], str]]) -> None:
    longest = max(row["q3"] for row, _ in times.values())
    for y, (row, color) in enumerate(times.values()):
        axis.barh(y, row["median"], height=0.7, color=color)
        axis.plot([row["q1"], row["q3"]], [y, y], color=style.INK, lw=1.2)
        axis.annotate(
            f"{1e3 * row['median']:.3g} ms",
            (row["q3"], y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_yticks(range(len(times)), list(times))
    axis.set_ylim(len(times) - 0.45, -0.55)
    axis.set_xlim(0, 1.2 * longest)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.grid(False)
