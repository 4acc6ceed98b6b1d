"""How a training stage is doing, in one line, and tables: on a terminal or in a log."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import rich.console
import rich.progress
import rich.table


def sentence(row: Mapping[str, Any]) -> str:
    """The figures of a metrics row that a person watches."""
    parts = [f"epoch {row['epoch']:.2f}", f"loss {row['loss']:.3f}"]
    parts.append(f"train {100 * row['accuracy']:.1f}%")
    if "test_accuracy" in row:
        parts.append(f"test {100 * row['test_accuracy']:.2f}%")
    if "penalty" in row:
        parts.append(f"penalty {row['penalty']:.3g}")
    if "zero_groups" in row:
        parts.append(f"zero groups {row['zero_groups']:.0f}/{row['groups']:.0f}")
    parts.append(f"{row['images_per_second']:.0f} images/s")
    return "  ".join(parts)


class Progress:
    """A bar on a terminal and in a notebook; plain lines anywhere else."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total = name, total
        self.live = sys.stdout.isatty()
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("[bold]{task.description}"),
            rich.progress.BarColumn(20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            disable=not self.live,
        )
        self.cell = rich.console.Console().is_jupyter and _Cell()
        self.task = self.bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def update(self, done: int, row: Mapping[str, Any]) -> None:
        """Show `row`, the newest metrics, at step `done`."""
        self.bar.update(self.task, completed=done, note=sentence(row))
        if self.cell:
            self.cell.show(f"{self.name} {done}/{self.total}", done / self.total, row)
        elif not self.live:
            print(f"{self.name} {done}/{self.total}  {sentence(row)}", flush=True)


class _Cell:
    """A bar below a notebook's cell, redrawn in place."""

    def __init__(self) -> None:
        from IPython import display

        self.html = display.HTML
        self.handle = display.display(self.html(""), display_id=True)

    def show(self, name: str, share: float, row: Mapping[str, Any]) -> None:
        """Draw anew."""
        bar = f'<progress value="{share}"></progress>'
        self.handle.update(self.html(f"{bar} {name} &nbsp; {sentence(row)}"))


def print_rows(title: str, rows: list[dict[str, str]]) -> None:
    """A table on the terminal."""
    shown = rich.table.Table(title=title)
    for place, name in enumerate(rows[0]):
        shown.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        shown.add_row(*row.values())
    console = rich.console.Console()
    console.width = max(console.width, 100)  # Log files say 80, and would cut.
    console.print(shown)
