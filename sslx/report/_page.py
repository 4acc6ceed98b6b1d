"""One HTML file that tells a run: facts, pictures, tables, and how it was made."""

import base64
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from matplotlib.figure import Figure

from sslx.report import style


@dataclasses.dataclass(frozen=True)
class Fact:
    """One headline number of the page.

    Attributes:
        value: The number, as text.
        label: What it is.
        note: What it was before, or a remark.
    """

    value: str
    label: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a heading, text, and optionally a figure and a table.

    Attributes:
        title: The heading.
        text: What the figure and table show; plain text.
        figure: The figure.
        rows: The table, one dict per row, all with the same keys.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    rows: Sequence[Mapping[str, Any]] = ()


def page(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
    origin: Mapping[str, Any],
) -> pathlib.Path:
    """Write one self-contained HTML file, with the figures embedded.

    Args:
        path: The file to write; replaced if it exists.
        title: Heading of the page.
        lead: One or two sentences on the outcome.
        facts: Headline numbers below it.
        sections: The body.
        origin: What it takes to make the page again: command, commit, versions.

    Returns:
        The path.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.PackageLoader("sslx.report", "."),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"png": _data_url, "said": _said}
    text = environment.get_template("page.html.jinja").render(
        title=title, lead=lead, facts=facts, sections=sections, origin=origin
    )
    return style.write(path, text.encode())


def _data_url(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(style.png(figure)).decode()


def _said(figure: Figure) -> str:
    """The picture's title, for those who do not see it."""
    return figure.get_suptitle().replace("\n", " ")
