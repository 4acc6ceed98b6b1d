"""Pictures of training: curves, norms, sweeps, sensitivity, accuracy against cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

from sslx.report import style


@style.styled
def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy, loss and sparsity over all stages, end to end.

    Args:
        rows: Lines of metrics with `stage`, `epoch`, `loss`, `accuracy`, and, if known,
            `test_accuracy`, `removed_macs`, `zero_groups` and `groups`.
    """
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    sparse = any("zero_groups" in row for row in rows)
    figure = style.picture(_curves_title(rows, stages), 5.4 if sparse else 3.8)
    axes = np.atleast_1d(figure.subplots(3 if sparse else 2, 1, sharex=True))
    start = 0.0
    for stage in stages:
        part = [row for row in rows if row["stage"] == stage]
        end = start + max(row["epoch"] for row in part)
        _stage_curves(axes, part, start)
        for axis in axes:
            axis.axvline(end, color=style.FAINT, lw=0.8, ls=":")
        axes[0].text(
            (start + end) / 2,
            1.03,
            stage.split("/")[0],
            transform=axes[0].get_xaxis_transform(),
            ha="center",
            color=style.FAINT,
        )
        start = end
    axes[0].set_ylabel("accuracy")
    axes[1].set_ylabel("cross entropy, training")
    style.percent(axes[0])
    if sparse:
        axes[2].set_ylabel("share")
        axes[2].set_ylim(0, 1)
        style.percent(axes[2])
    for axis in axes[[0, *range(2, len(axes))]]:
        axis.legend(loc="best", handlelength=1.5)
    axes[-1].set_xlabel("epochs of all stages")
    axes[-1].set_xlim(0, start)
    return figure


def _curves_title(rows: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> str:
    last = {}
    for row in rows:
        if "test_accuracy" in row:
            last[row["stage"]] = f"{100 * row['test_accuracy']:.1f}%"
    if not last:
        return "Training, by stage"
    names = ", ".join(stage.split("/")[0] for stage in last)
    return f"Test accuracy {' → '.join(last.values())} ({names})"


def _stage_curves(
    axes: np.ndarray, rows: Sequence[Mapping[str, Any]], start: float
) -> None:
    def label(text: str) -> str:
        return text if start == 0 else f"_{text}"

    x = [start + row["epoch"] for row in rows]
    axes[0].plot(
        x,
        [row["accuracy"] for row in rows],
        color=style.FAINT,
        lw=0.8,
        label=label("training batches"),
    )
    tested = [row for row in rows if "test_accuracy" in row]
    axes[0].plot(
        [start + row["epoch"] for row in tested],
        [row["test_accuracy"] for row in tested],
        color=style.INK,
        marker="o",
        ms=3.5,
        label=label("test set"),
    )
    axes[1].plot(x, [row["loss"] for row in rows], color=style.FAINT, lw=0.8)
    if len(axes) > 2 and "zero_groups" in rows[0]:
        share = [row["zero_groups"] / row["groups"] for row in rows]
        removed = [row["removed_macs"] for row in rows if "removed_macs" in row]
        axes[2].plot(x, share, color=style.ZERO, label="groups at exactly zero")
        if removed:
            axes[2].plot(
                x, removed, color=style.INK, ls="--", label="MACs in zero groups"
            )


@style.styled
def group_norms(norms: Mapping[str, ArrayLike]) -> Figure:
    """The groups of every layer, by norm: the darker, the larger; red: exactly zero.

    Each row shows all of a layer's groups, however many they are, in the same length.

    Args:
        norms: Layer -> l2 norms, any shape.
    """
    rows = {name: np.sort(np.ravel(x))[::-1] for name, x in norms.items()}
    top = max(float(row.max(initial=0)) for row in rows.values()) or 1.0
    zero = sum(int(np.sum(row == 0)) for row in rows.values())
    count = sum(row.size for row in rows.values())
    figure = style.picture(
        f"{zero:,} of {count:,} groups are exactly zero", 1.3 + 0.26 * len(rows)
    )
    axis = figure.subplots()
    shades, notes = matplotlib.colormaps["Blues"], []
    for y, values in enumerate(rows.values()):
        color = shades(0.2 + 0.8 * values / top)
        color[values == 0] = colors.to_rgba(style.ZERO)
        extent = (0, 1, y + 0.4, y - 0.4)
        axis.imshow(color[None], extent=extent, aspect="auto", interpolation="nearest")
        none = int(np.sum(values == 0))
        note = f"{none} of {values.size} zero" if none else f"none of {values.size}"
        notes.append(note)
    axis.grid(False)
    axis.set_xlim(0, 1)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [style.short(name) for name in rows])
    axis.spines[["left", "bottom"]].set_visible(False)
    style.percent(axis, "x")
    axis.set_xlabel("share of the layer's groups, largest norm first")
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), notes, fontsize=8)
    right.spines["right"].set_visible(False)
    figure.colorbar(
        ScalarMappable(colors.Normalize(0, top), cmap=_upper(shades)),
        ax=axis,
        location="bottom",
        label="l2 norm; red: exactly zero",
        aspect=50,
    )
    return figure


def _upper(shades: colors.Colormap) -> colors.Colormap:
    return colors.ListedColormap(shades(np.linspace(0.2, 1, 128)))


@style.styled
def norms_over_steps(
    steps: Sequence[float | int],
    norms: Mapping[str, Sequence[Sequence[float]]] | Mapping[str, np.ndarray],
    xlabel: str = "step",
) -> Figure:
    """Norms of each layer's groups over training steps.

    Args:
        steps: Steps at which the norms were taken.
        norms: Layer -> one row per step: the norms of its groups, or a few quantiles of
            them, in ascending order. Lines turn red where they reach exactly zero.
        xlabel: What `steps` counts.
    """
    columns = min(3, len(norms))
    lines = -(-len(norms) // columns)
    figure = style.picture(
        "Norms of groups while training: red is exactly zero", 0.5 + 1.35 * lines
    )
    axes = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for axis in axes.flat[len(norms) :]:
        axis.set_visible(False)
    for axis, (name, table) in zip(axes.flat, norms.items(), strict=False):
        for path in np.asarray(table, float).T:
            axis.plot(steps, path, color=style.COMPACT_TUNED, lw=0.9, alpha=0.7)
            dead = np.where(path == 0, path, np.nan)
            axis.plot(steps, dead, color=style.ZERO, lw=2, solid_capstyle="butt")
        axis.set_title(style.short(name), fontsize=8.5, weight="normal")
        axis.set_ylim(bottom=-0.02 * max(axis.get_ylim()[1], 1e-9))
    for axis in axes[:, 0]:
        axis.set_ylabel("l2 norm")
    figure.supxlabel(xlabel, fontsize=9)
    return figure


@style.styled
def sweep(
    points: Sequence[Mapping[str, Any]], *, parameter: str, reference: float
) -> Figure:
    """Test error and share of zero groups against the value of a parameter.

    Args:
        points: Records with `series` (name), `value` of the parameter (above 0),
            `error` and `zero` (0..1); a line runs through the means over seeds.
        parameter: Its name, with unit.
        reference: Error of the dense network.
    """
    names = list(dict.fromkeys(point["series"] for point in points))
    figure = style.picture(_sweep_title(points, parameter), 4.0)
    above, below = figure.subplots(2, 1, sharex=True)
    for name, color in zip(names, style.SERIES, strict=False):
        mine = [p for p in points if p["series"] == name]
        values = sorted({p["value"] for p in mine})
        for axis, key in ((above, "error"), (below, "zero")):
            means = [
                np.mean([p[key] for p in mine if p["value"] == value])
                for value in values
            ]
            axis.plot(values, means, color=color, label=name)
            axis.plot(
                [p["value"] for p in mine], [p[key] for p in mine], "o", color=color
            )
    above.axhline(reference, color=style.DENSE_TUNED, ls="--", lw=1)
    style.halo(
        above,
        0.01,
        reference,
        "dense",
        transform=above.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color=style.DENSE_TUNED,
    )
    style.percent(above)
    above.set_ylabel("test error")
    below.set_ylabel("groups at zero")
    below.set_ylim(0, 1)
    below.set_xlabel(parameter)
    style.percent(below)
    values = sorted({point["value"] for point in points})
    if values[-1] > 3 * values[0]:
        below.set_xscale("log")
    _number_ticks(below, values)
    if len(names) > 1:
        above.legend(loc="best")
    return figure


def _sweep_title(points: Sequence[Mapping[str, Any]], parameter: str) -> str:
    """What the ends of the first series' range give."""
    name = points[0]["series"]
    mine = [point for point in points if point["series"] == name]
    ends = [pick(point["value"] for point in mine) for pick in (min, max)]

    def at_ends(key: str) -> list[float]:
        return [
            float(np.mean([point[key] for point in mine if point["value"] == value]))
            for value in ends
        ]

    zero, error = at_ends("zero"), at_ends("error")
    return (
        f"{name}, {parameter} {ends[0]:g} → {ends[1]:g}: "
        f"{100 * zero[0]:.0f}% → {100 * zero[1]:.0f}% of groups at zero, "
        f"test error {100 * error[0]:.1f}% → {100 * error[1]:.1f}%"
    )


def _number_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Ticks at the values themselves, those left out that would touch."""
    logs = np.log(values)
    kept = [0]
    for place in range(1, len(values)):
        if logs[place] - logs[kept[-1]] > 0.09 * (logs[-1] - logs[0]):
            kept.append(place)
    axis.set_xticks([values[k] for k in kept], [f"{values[k]:g}" for k in kept])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", which="minor", length=0)


@style.styled
def sensitivity(
    densities: Sequence[float],
    losses: Mapping[str, Sequence[float]] | Mapping[str, np.ndarray],
    baseline: float,
    label: str = "loss",
) -> Figure:
    """Loss with one class of groups pruned at a time, a panel per class.

    Args:
        densities: Shares kept, ascending, below 1.
        losses: Class -> loss at each density, all other classes whole.
        baseline: Loss with all classes whole.
        label: What the loss is, with unit.
    """
    x = [*densities, 1.0]
    columns = min(3, len(losses))
    lines = -(-len(losses) // columns)
    rise = {name: float(np.max(y)) - baseline for name, y in losses.items()}
    most = max(rise, key=rise.__getitem__)
    figure = style.picture(
        f"Thinned alone, {style.short(most)} costs most", 0.5 + 1.25 * lines
    )
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(losses) :]:
        axis.set_visible(False)
    for axis, (name, values) in zip(axes.flat, losses.items(), strict=False):
        axis.axhline(baseline, color=style.FAINT, ls="--", lw=1)
        axis.plot(x, [*values, baseline], "o-", color=style.COMPACT_TUNED, ms=3)
        axis.set_title(style.short(name), fontsize=8, weight="normal")
        axis.set_xlim(0, 1.03)
        style.percent(axis, "x")
    for axis in axes[:, 0]:
        axis.set_ylabel(label)
    figure.supxlabel("groups kept; dashed: nothing removed", fontsize=9)
    return figure


@style.styled
def tradeoff(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against multiply-accumulates.

    Args:
        points: Records with `name`, `macs` and `accuracy` (0..1), in order of making.
    """
    x = [point["macs"] / 1e6 for point in points]
    y = [point["accuracy"] for point in points]
    removed = 1 - x[-1] / x[0]
    figure = style.picture(
        f"{100 * removed:.0f}% of the MACs removed for "
        f"{100 * (y[-1] - y[0]):+.2f} points of accuracy",
        2.9,
    )
    axis = figure.subplots()
    axis.plot(x, y, color=style.FAINT, lw=1, ls="--", zorder=1)
    shades = [style.DENSE_TUNED, *[style.ZERO] * (len(points) - 2), style.COMPACT_TUNED]
    axis.scatter(x, y, color=shades, s=45, zorder=2)
    low, high = min(y), max(y)
    room = max(high - low, 0.01)
    for place, point in enumerate(points):
        right = x[place] > 0.5 * max(x)
        axis.annotate(
            f"{point['name']}, {100 * point['accuracy']:.2f}%",
            (x[place], y[place]),
            xytext=(0, 8 if y[place] >= (low + high) / 2 else -15),
            textcoords="offset points",
            ha="right" if right else "left",
        )
    axis.set_xlim(0, 1.06 * max(x))
    axis.set_ylim(max(0, low - 0.35 * room), min(1, high + 0.35 * room))
    style.percent(axis)
    axis.set_xlabel("million multiply-accumulates per image")
    axis.set_ylabel("test accuracy")
    return figure
