"""What a study shows of its record: pictures, and perhaps one page."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from sslx import report

Record = dict[str, Any]
Pictures = dict[str, Figure]


@dataclasses.dataclass(frozen=True)
class Report:
    """How a record becomes files.

    Attributes:
        pictures: record -> pictures by file name.
        page: record, pictures -> arguments of `sslx.report.page`.
    """

    pictures: Callable[[Record], Pictures]
    page: Callable[[Record, Pictures], dict[str, Any]] | None = None

    def write(self, folder: pathlib.Path, record: Record) -> list[pathlib.Path]:
        """Write all pictures and the page into a folder; their paths, the page last."""
        pictures = self.pictures(record)
        paths = [
            report.save_png(figure, folder / f"{name}.png")
            for name, figure in pictures.items()
        ]
        if self.page is not None:
            content = self.page(record, pictures)
            paths.append(report.page(folder / "report.html", **content))
        return paths


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers of a record as rows of `sslx.Compact`."""
    return [
        {
            "layer": layer["name"],
            "kernel_before": layer["kernel"],
            "kernel_after": layer["kernel_after"] or None,
            "macs_before": layer["macs"],
            "macs_after": layer["macs_after"],
        }
        for layer in layers
    ]


def origin(record: Record) -> dict[str, str]:
    """What it takes to make a record again, as text."""
    rows = dict(record["provenance"])
    versions = rows.pop("versions")
    rows["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
    options = record["options"].items()
    rows["options"] = ", ".join(f"{k} {_plain(v)}" for k, v in options)
    return rows


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
