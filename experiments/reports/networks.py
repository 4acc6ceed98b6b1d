"""Pictures of `experiments.bench networks`."""

from typing import Any

from experiments.reports.report import Record, Report
from sslx import report
from sslx.report import style

_MARKS = {
    "compact over dense": report.Mark("both tuned", style.COMPACT_TUNED),
    "compact, XLA over dense, XLA": report.Mark("both by XLA", style.COMPACT_XLA),
    "macs": report.Mark("MACs, dense / compact", style.INK, "|"),
}


def pictures(record: Record) -> dict[str, Any]:
    """Speed-ups of compact over dense networks, one panel per network and widths."""
    panels: dict[str, Any] = {}
    for case in record["cases"]:
        panel = panels.setdefault(f"{case['network']}, {case['width']} widths", {})
        panel[f"batch {case['batch']}"] = {
            **{
                kind: (ratio["median"], ratio["q1"], ratio["q3"])
                for kind, ratio in case["speedups"].items()
            },
            "macs": (case["mac_ratio"],),
        }
    title = f"Speed-up of networks that keep {record['keep']:.0%} of their widths"
    return {
        "networks": report.ratios(
            panels, _MARKS, title=title, xlabel="time of dense / time of compact"
        )
    }


REPORT = Report(pictures)
