"""Pictures of `experiments.bench runtimes` and `experiments.bench training`."""

from typing import Any

import numpy as np

from experiments.reports.report import Record, Report
from sslx import report
from sslx.report import style

_COMPACT = {
    "XLA": ("sslx, tuned", style.COMPACT_TUNED),
    "onnxruntime": ("sslx → ONNX Runtime", style.OTHER_RUNTIME),
    "openvino": ("sslx → OpenVINO", style.OTHER_RUNTIME),
    "torch eager": ("Torch-Pruning, eager", style.OTHER_LIBRARY),
    "torch channels-last": ("…, channels last", style.OTHER_LIBRARY),
    "torch compile": ("…, compiled", style.OTHER_LIBRARY),
}
_DENSE = {
    "sslx": ("JAX, tuned by sslx", style.DENSE_TUNED),
    "XLA alone": ("JAX, XLA as it comes", style.DENSE_XLA),
    "torch eager": ("PyTorch, eager", style.OTHER_LIBRARY),
    "torch channels-last": ("…, channels last", style.OTHER_LIBRARY),
}


def pictures(record: Record) -> dict[str, Any]:
    """Images per second of one compact network in every runtime."""
    title = "Networks at half of their widths in several runtimes"
    return {"runtimes": _rates(record, _COMPACT, title)}


def training_pictures(record: Record) -> dict[str, Any]:
    """Images per second in training the dense network."""
    return {"training": _rates(record, _DENSE, "Training the dense network")}


def _rates(record: Record, colors: Any, title: str) -> Any:
    panels = {
        f"{case['network']}, batch {case['batch']}": {
            name: _quartiles(case, name) for name in colors if name in _timed(case)
        }
        for case in record["cases"]
    }
    return report.rates(panels, colors, title=title, xlabel="images per second")


def _timed(case: dict[str, Any]) -> dict[str, list[float]]:
    return case["calls"]["rounds"]


def _quartiles(case: dict[str, Any], name: str) -> tuple[float, ...]:
    """Median, lower and upper quartile of the rate over the rounds."""
    per_second = case["batch"] / np.asarray(_timed(case)[name])
    middle, low, high = np.percentile(per_second, [50, 25, 75]).tolist()
    return middle, low, high


REPORT = Report(pictures)
TRAINING = Report(training_pictures)
