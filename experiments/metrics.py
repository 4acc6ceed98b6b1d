"""The log of a training stage, as JSON lines, and its clock."""

import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any


class MetricsLog:
    """JSON lines; lines after step `keep_until` (of a run that was cut) are dropped."""

    def __init__(self, path: pathlib.Path, keep_until: int = 0) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= keep_until]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as out:
            out.write(json.dumps(row) + "\n")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Every complete line of a metrics file; a last line cut short is left out."""
    return list(_lines(path)) if path.exists() else []


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Clock:
    """Steps per second since the last reading, and the time of the next checkpoint."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.saved = self.read = time.monotonic()
        self.read_at: int | None = None

    def rings(self) -> bool:
        """Whether a checkpoint is due; then the next one is a period from now."""
        if time.monotonic() - self.saved < self.period:
            return False
        self.saved = time.monotonic()
        return True

    def rate(self, at: int) -> float:
        """Steps per second since the last reading; 0 at the first."""
        now = time.monotonic()
        steps = at - self.read_at if self.read_at is not None else 0
        rate = steps / (now - self.read)
        self.read, self.read_at = now, at
        return rate

    def restart(self, at: int) -> None:
        """Leave out the time since the last reading."""
        self.read, self.read_at = time.monotonic(), at
