"""What the pictures of benchmarks and sweeps have in common."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
}


def scale_of_ratios(ax: Axes) -> None:
    """A logarithmic scale at 1, 2, 5, 10 and so on, with a line at 1."""
    ax.axhline(1, color="#1f2933", linewidth=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
