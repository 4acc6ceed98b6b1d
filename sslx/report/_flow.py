"""A network's widths, before and after, as a flow along its layers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from sslx._groups.classes import Groups
from sslx.report import style

_STREAM, _INNER = 0.0, 1.15
_HALF = 0.46


@dataclasses.dataclass(frozen=True)
class _Value:
    """What layers write and others read: one band of the flow.

    Attributes:
        writers: Rows of the layers that write it; several for a residual stream.
        readers: Rows of the layers that read it.
        before: Width, dense.
        after: Width, compact.
    """

    writers: tuple[int, ...]
    readers: tuple[int, ...]
    before: int
    after: int

    @property
    def rows(self) -> tuple[float, float]:
        """First and last row it lives at."""
        every = [*self.writers, *self.readers]
        first = min(self.writers)
        return float(first), float(max(*every, first + 1))


_Side = tuple[float, float, _Value]


@style.styled
def flow(
    layers: Sequence[Mapping[str, Any]], units: Groups | None = None, name: str = ""
) -> Figure:
    """Widths along the layers, grey before and blue after, and the layers' MACs.

    Args:
        layers: Rows of `Compact.rows()`, in order of execution: `layer`,
            `kernel_before`, `kernel_after` (None where it is gone), `macs_before`,
            `macs_after`.
        units: The network's `sslx.units`, which tell residual streams, widths that
            several layers write. Without them every layer reads the one before.
        name: Name of the network, for the title.
    """
    figure = style.picture(_title(layers, name), 0.75 + 0.235 * len(layers))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    draw_flow(left, layers, units)
    _macs(right, layers)
    return figure


def _title(layers: Sequence[Mapping[str, Any]], name: str) -> str:
    share = sum(r["macs_after"] for r in layers) / sum(r["macs_before"] for r in layers)
    what = f"{name} keeps" if name else "What is left:"
    return f"{what} {100 * share:.0f}% of its MACs (grey: dense, blue: compact)"


def draw_flow(
    axis: Axes, layers: Sequence[Mapping[str, Any]], units: Groups | None
) -> None:
    """The bands alone, into axes whose y counts the layers."""
    values = _values(layers, units)
    streams = any(len(value.writers) > 1 for value in values)
    widest = max(1, *(max(value.before, value.after) for value in values))
    scale = _HALF / widest
    ends: dict[float, float] = {}
    starts: dict[_Value, float] = {}
    for value in sorted(values, key=lambda v: v.rows):
        lane = _lane(value, streams)
        top, bottom = value.rows
        start = max(top, ends.get(lane, top))
        following = [
            other.rows[0]
            for other in values
            if _lane(other, streams) == lane and other.rows[0] > top
        ]
        if len(value.writers) == 1 and following:
            bottom = min(bottom, min(following))
        ends[lane], starts[value] = bottom, start
        _band(axis, lane, start, bottom, value, scale)

    def side(row: int, role: str) -> _Side | None:
        mine = (value for value in values if row in getattr(value, role))
        value = next(mine, None)
        return value and (_lane(value, streams), scale * value.before, value)

    for row, layer in enumerate(layers):
        read = side(row, "readers")
        write = side(row, "writers")
        _arrow(axis, row, read, write, starts, gone=layer["kernel_after"] is None)
    axis.set_yticks(
        range(len(layers)), [style.short(layer["layer"]) for layer in layers]
    )
    axis.set_ylim(len(layers) + 0.15, -0.6)
    axis.set_xlim(-0.55, (_INNER if streams else _STREAM) + 1.15)
    axis.set_xticks([_STREAM, _INNER] if streams else [])
    if streams:
        axis.set_xticklabels(["residual\nstream", "inside\nblocks"])
        axis.xaxis.tick_top()
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)


def _lane(value: _Value, streams: bool) -> float:
    return _INNER if streams and len(value.writers) == 1 else _STREAM


def _band(
    axis: Axes, lane: float, top: float, bottom: float, value: _Value, scale: float
) -> None:
    for width, color in (
        (value.before, style.DENSE_XLA),
        (value.after, style.COMPACT_TUNED),
    ):
        half = scale * width
        edges = [lane - half], [lane + half]
        axis.fill_betweenx(
            [top + 0.13, bottom - 0.13], *edges, color=color, lw=0, zorder=1
        )
    text = f"{value.before}"
    if value.after != value.before:
        text += f" → {value.after}"
    style.halo(
        axis,
        lane + scale * value.before + 0.07,
        (top + bottom) / 2,
        text,
        va="center",
        fontsize=7.5,
    )


def _arrow(
    axis: Axes,
    row: int,
    read: _Side | None,
    write: _Side | None,
    starts: Mapping[_Value, float],
    *,
    gone: bool,
) -> None:
    """What a layer reads and writes: (lane, half width, value) of both."""
    y = max(row, starts[write[2]] + 0.2) if write and not _first(write, row) else row
    if read is None or write is None or read[0] == write[0]:
        lane = (read or write or (_STREAM,))[0]
        tail, head = (lane, row - 0.16), (lane, row + 0.16)
    else:
        side = 1 if write[0] > read[0] else -1
        tail = read[0] + side * (read[1] + 0.02), row
        head = write[0] - side * (write[1] + 0.02), y
    axis.add_patch(
        FancyArrowPatch(
            tail,
            head,
            arrowstyle="-|>",
            mutation_scale=6,
            color=style.FAINT if gone else style.INK,
            lw=0.9,
            ls=":" if gone else "-",
            shrinkA=0,
            shrinkB=0,
            zorder=3,
        )
    )


def _first(side: _Side, row: int) -> bool:
    return len(side[2].writers) == 1 and row in side[2].writers


def _values(layers: Sequence[Mapping[str, Any]], units: Groups | None) -> list[_Value]:
    found = list(_shared(layers, units)) if units is not None else []
    written = {row for value in found for row in value.writers}
    for row, layer in enumerate(layers):
        if row not in written:
            readers = (row + 1,) if units is None and row + 1 < len(layers) else ()
            after = _width(layer["kernel_after"])
            found.append(_Value((row,), readers, _width(layer["kernel_before"]), after))
    return found


def _shared(layers: Sequence[Mapping[str, Any]], units: Groups) -> Iterator[_Value]:
    """One value per unit's class: who writes and reads it, and how wide it is."""
    rows = {style.short(layer["layer"]): row for row, layer in enumerate(layers)}
    for family in units.classes:
        writers, readers, after = [], [], []
        for member in family.members:
            name = style.short(member.path)
            if name not in rows or len(member.shape) < 2:
                continue
            row, last = rows[name], len(member.view) - 1
            if last in member.kept:
                writers.append(row)
                after.append(_width(layers[row]["kernel_after"]))
            else:
                readers.append(row)
        if writers:
            yield _Value(tuple(writers), tuple(readers), family.count, max(after))


def _width(kernel: Sequence[int] | None) -> int:
    """Outputs of a kernel; 0 where there is none."""
    return kernel[-1] if kernel else 0


def _macs(axis: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    top = max(layer["macs_before"] for layer in layers)
    scale, unit = (1e6, "million MACs") if top >= 1e6 else (1e3, "thousand MACs")
    for row, layer in enumerate(layers):
        before, after = layer["macs_before"] / scale, layer["macs_after"] / scale
        axis.barh(row, before, height=0.7, color=style.DENSE_XLA)
        axis.barh(row, after, height=0.7, color=style.COMPACT_TUNED)
        text = f"{before:.3g}"
        if before != after:
            text += (
                f" → {after:.3g}" if layer["kernel_after"] is not None else " → gone"
            )
        axis.annotate(
            text,
            (before, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    axis.set_xlim(0, 1.55 * top / scale)
    axis.set_xlabel(unit)
    axis.grid(axis="y", visible=False)
