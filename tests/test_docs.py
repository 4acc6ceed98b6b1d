"""What every guide keeps to. `make docs` runs their code."""

import ast
import importlib.util
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def cells(page: pathlib.Path) -> list[str]:
    """The Python that a page shows, run when it is built or not."""
    text = page.read_text(encoding="utf-8")
    pattern = r"^```(?:\{code-cell\} )?python\n(.*?)^```$"
    return re.findall(pattern, text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_starts_with_a_short_example_and_says_when_not_to_use_it(guide):
    first = cells(guide)[0]
    assert len([line for line in first.splitlines() if line.strip()]) <= 15
    assert "**Not for you**" in guide.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_code_is_python_and_fits(page):
    for cell in cells(page):
        code = re.sub(r"^:tags:.*\n", "", cell)
        ast.parse(code)
        assert max(map(len, code.splitlines())) <= 88


def test_commands_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    modules = set(re.findall(r"python -m ([\w.]*\w)", text)) - {"experiments"}
    assert modules
    assert [m for m in modules if importlib.util.find_spec(m) is None] == []
    makefile = (DOCS.parent / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`make ([\w-]+)", text)
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []


def test_every_page_is_in_the_menu():
    listed = set()
    for page in PAGES:
        for body in re.findall(r"```\{toctree\}(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in body.split() if not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert [page for page in PAGES if page.resolve() not in listed] == [
        DOCS / "index.md"
    ]
