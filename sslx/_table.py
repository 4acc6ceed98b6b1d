"""Plain-text tables."""

from collections.abc import Sequence


def shape_text(shape: Sequence[int]) -> str:
    """`3x3x16x32`."""
    return "x".join(map(str, shape)) if shape else "-"


def text_table(head: list[str], lines: list[list[str]]) -> str:
    """Left-aligned first column, right-aligned others."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    cells = [
        [text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(row)]
        for row in (list(zip(line, widths, strict=True)) for line in [head, *lines])
    ]
    return "\n".join("  ".join(row).rstrip() for row in cells)
