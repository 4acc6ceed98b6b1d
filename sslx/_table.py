"""Tables: text in terminals, HTML in notebooks, from the same cells."""

import abc
import dataclasses
import html
from collections.abc import Sequence


def shape_text(shape: Sequence[int]) -> str:
    """`3x3x16x32`."""
    return "x".join(map(str, shape)) if shape else "-"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells below a head, the first column to the left, the others to the right.

    Attributes:
        head: Names of the columns.
        rows: Cells, as many per row as there are columns.
        notes: Lines below the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*texts, *self.notes])

    def _repr_html_(self) -> str:
        head = _html_row("th", self.head)
        body = "".join(_html_row("td", row) for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    sides = ["left", *["right"] * (len(cells) - 1)]
    return "".join(
        [
            "<tr>",
            *(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            ),
            "</tr>",
        ]
    )


class Tabular(abc.ABC):
    """What is shown as a table."""

    @abc.abstractmethod
    def _table(self) -> Table:
        """The table."""

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()
