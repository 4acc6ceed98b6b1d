"""The log of a training stage, as JSON lines, and its clock.

The last entry of a line, `check`, follows from the line and from all before it.
"""

import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.training import records

_START = "start"


class MetricsLog:
    """JSON lines, appended.

    Attributes:
        check: of the last line; with it a reader knows that none is missing.
    """

    def __init__(self, path: pathlib.Path, check: str = _START) -> None:
        """Go on after the line with this check, or start a log.

        Lines after it, of a run that was cut, are dropped.

        Raises:
            records.DamageError: the lines up to there are not those written.
        """
        self.path, self.check = path, check
        kept = _rows(path, check)
        records.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line, to the disk."""
        self.check = records.digest([self.check, row])
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({**row, "check": self.check}) + "\n")
            out.flush()
            os.fsync(out.fileno())


class Events:
    """The figures of a stage as TensorBoard events beside its metrics."""

    def __init__(self, folder: pathlib.Path, at: int) -> None:
        """Go on at a step; TensorBoard hides what an earlier run wrote from there."""
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=at)

    def write(self, row: Mapping[str, Any]) -> None:
        """Every number of a metrics row, at its step."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def read_metrics(path: pathlib.Path, check: str | None = None) -> list[dict[str, Any]]:
    """Every complete line of a metrics file; a last line cut short is left out.

    Args:
        path: the file.
        check: of the last line, where it is known.

    Raises:
        records.DamageError: a line was changed or is missing.
    """
    return [
        {k: x for k, x in row.items() if k != "check"} for row in _rows(path, check)
    ]


def last_check(path: pathlib.Path) -> str:
    """The check of the last line."""
    rows = _rows(path, None)
    return rows[-1]["check"] if rows else _START


def _rows(path: pathlib.Path, last: str | None) -> list[dict[str, Any]]:
    """Lines up to the one with the check `last`, or all."""
    rows: list[dict[str, Any]] = []
    if last == _START or (last is None and not path.exists()):
        return rows
    for row in _lines(path):
        rows.append(row)
        if row["check"] == last:
            return rows
    if last is not None:
        raise _damaged(path, len(rows) + 1, "missing")
    return rows


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    check = _START
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found = row.pop("check")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, number, f"damaged: {error!r}") from error
        check = records.digest([check, row])
        if found != check:
            raise _damaged(path, number, "damaged, or a line before it is missing")
        yield {**row, "check": check}


def _damaged(path: pathlib.Path, number: int, what: str) -> records.DamageError:
    return records.DamageError(
        f"{path}, line {number} is {what}: restore the file from a copy, or delete "
        f"{path.parent} and run the same command again"
    )


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
