"""Pictures of `experiments.bench alexnet_speed`."""

from typing import Any

from experiments.reports.report import Record, Report
from sslx import report
from sslx.report import style

_MARKS = {
    "paper": report.Mark("the paper, its machine", style.PAPER, "D", hollow=True),
    "gemm, compact": report.Mark("GEMM alone, compact", style.COMPACT_XLA, "s"),
    "compact over dense": report.Mark("layer, over dense tuned", style.COMPACT_TUNED),
    "compact over XLA": report.Mark(
        "layer, over dense by XLA", style.COMPACT_TUNED, hollow=True
    ),
    "BCOO": report.Mark("GEMM, JAX BCOO", style.OTHER_RUNTIME, "v"),
    "BCSR": report.Mark("GEMM, JAX BCSR", style.OTHER_RUNTIME, "^"),
    "scipy CSR": report.Mark("GEMM, SciPy CSR", style.OTHER_RUNTIME, "P"),
    "torch CSR": report.Mark("GEMM, PyTorch CSR", style.OTHER_RUNTIME, "X"),
}
_ROWS = {
    "ssl, 2% loss": "SSL, 2% loss",
    "ssl, no loss": "SSL, no loss",
    "l1, 2% loss": "l1, 2% loss: unstructured",
    "l1, no loss": "l1, no loss: unstructured",
    "half the filters": "half the filters",
}


def pictures(record: Record) -> dict[str, Any]:
    """Speed-ups per layer, one panel per row of the paper's Table 4 and batch size."""
    figures = record["figures"]
    panels: dict[str, Any] = {}
    for row, name in _ROWS.items():
        for figure in figures:
            if figure["row"] == row:
                panel = panels.setdefault(f"{name}, batch {figure['batch']}", {})
                panel[figure["layer"]] = _values(figure)
    title = "AlexNet's convolutions at the sparsities of SSL's Table 4: speed-up"
    if record["pattern"] != "random":
        title += f", zeros in {record['pattern']}"
    return {
        "speedup": report.ratios(
            panels, _MARKS, title=title, xlabel="time of dense / time"
        )
    }


def _values(figure: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    values = {
        kind: (ratio["median"], ratio["low"], ratio["high"])
        for kind, ratio in figure["speedups"].items()
    }
    if figure["paper"] is not None:
        values["paper"] = (figure["paper"],)
    return values


REPORT = Report(pictures)
