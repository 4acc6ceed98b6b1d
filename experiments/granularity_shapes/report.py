"""The report of `experiments.granularity_shapes`: pictures, tables, one page."""

from typing import Any

from matplotlib.figure import Figure

from experiments.granularity import report as granularity
from experiments.granularity.stages import GRAINS
from experiments.reports.report import Report, origin
from sslx import report
from sslx.report import style


def figures_of(record: dict[str, Any], name: str, grain: str) -> dict[str, float]:
    """Shares of the dense network's bits and references."""
    counts = record["models"][name]["counts"]
    return granularity.shares(counts[grain], counts["dense"])


def storage_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """A row per network and grain."""
    percent = lambda x: f"{100 * x:.1f}%"
    rows = []
    for name in record["models"]:
        for grain in GRAINS:
            found = figures_of(record, name, grain)
            rows.append(
                {
                    "network": name,
                    "grain": grain,
                    "density": percent(found["density"]),
                    "storage": percent(found["relative"]),
                    "storage / density": f"{found['relative'] / found['density']:.3f}",
                    "bitmask": percent(found["bitmask"]),
                    "weight refs": percent(found["weights"]),
                    "input refs": percent(found["inputs"]),
                    "sum refs": percent(found["partial_sums"]),
                    "sum refs / product": f"{found['sums_per_product']:.3f}",
                }
            )
    return rows


def speed_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """A row per network."""
    rows = []
    for name, result in record["models"].items():
        speed = result["speed"]
        times = {row["name"]: row for row in speed["latency"]["rows"]}
        compact = times["compact"]
        control = next(row for key, row in times.items() if "again" in key)
        rows.append(
            {
                "network": name,
                "MACs, dense": f"{speed['macs_dense']:,}",
                "compact": f"{100 * speed['macs_compact'] / speed['macs_dense']:.1f}%",
                "dense, batch 1": f"{1e3 * times['dense']['median']:.1f} ms",
                "compact, batch 1": f"{1e3 * compact['median']:.1f} ms",
                "speed-up": f"{compact['speedup']:.2f}x",
                "quartiles": f"{compact['speedup_q1']:.2f} to "
                f"{compact['speedup_q3']:.2f}",
                "control": f"{control['speedup']:.2f}x",
            }
        )
    return rows


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Storage and partial sums by network and grain, and the speed of whole filters."""
    density = record["options"]["density"]
    return {
        "storage": _grains(
            record,
            "relative",
            f"Storage at density {density:g}: coarser grains need fewer indices",
            "bits / bits of dense 8-bit weights",
        ),
        "references": _grains(
            record,
            "partial_sums",
            f"References of partial sums at density {density:g}",
            "references / those of the dense network",
        ),
        "speed": _speed(record),
    }


def _grains(record: dict[str, Any], key: str, title: str, label: str) -> Figure:
    rows = {
        name: {
            grain: (figures_of(record, name, grain)[key],)
            for grain in granularity.GRAINS
        }
        for name in record["models"]
    }
    marks = {
        grain: report.Mark(grain, color) for grain, color in granularity.GRAINS.items()
    }
    return report.ratios({"": rows}, marks, title=title, xlabel=label)


def _speed(record: dict[str, Any]) -> Figure:
    rows = {}
    for name, result in record["models"].items():
        timed = {row["name"]: row for row in result["speed"]["latency"]["rows"]}
        compact = timed["compact"]
        quartiles = (compact["speedup_q1"], compact["speedup_q3"])
        macs = result["speed"]["macs_dense"] / result["speed"]["macs_compact"]
        rows[name] = {"compact": (compact["speedup"], *quartiles), "macs": (macs,)}
    marks = {
        "compact": report.Mark("both by XLA", style.COMPACT_XLA),
        "macs": report.Mark("MACs, dense / compact", style.INK, "|"),
    }
    return report.ratios(
        {"": rows},
        marks,
        title="Whole filters cut out: speed-up at batch 1",
        xlabel="time of dense / time of compact",
    )


def page_content(record: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """Arguments of `sslx.report.page`."""
    density = record["options"]["density"]
    rows = storage_rows(record)
    vgg = [row for row in rows if row["network"] == next(iter(record["models"]))]
    return {
        "title": "The grain of sparsity at ImageNet shapes",
        "lead": (
            f"Every convolution pruned to density {density:g}; weights and image are "
            "random, nothing is trained, so this says nothing about accuracy."
        ),
        "facts": [
            report.Fact(row["storage"], f"storage, {row['grain']}", row["network"])
            for row in vgg
        ],
        "sections": [
            report.Section(
                "Storage",
                "8-bit weights and a 4-bit relative index per stored grain, fillers "
                "counted; the line is the density.",
                figures["storage"],
                rows,
            ),
            report.Section(
                "Memory references",
                "Partial sums in an outer-product dataflow of 4x4 multipliers; the "
                "line is the density.",
                figures["references"],
            ),
            report.Section(
                "Speed",
                "Zero filters cut out by compaction, end to end at batch 1; the "
                "control is the dense network against itself.",
                figures["speed"],
                speed_rows(record),
            ),
        ],
        "origin": origin(record),
    }


REPORT = Report(pictures, page_content)
