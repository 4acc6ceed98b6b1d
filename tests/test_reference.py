"""The API reference has every public name, once; generated tables are up to date."""

import importlib
import inspect
import pathlib
import re
from collections import Counter
from types import ModuleType

import pytest

import sslx
from experiments.reports import pages

REFERENCE = pathlib.Path(__file__).parents[1] / "docs" / "reference"
MODULES = (
    "sslx",
    "sslx.lowering",
    "sslx.measure",
    "sslx.psp",
    "sslx.select",
    "sslx.report",
    "sslx.adapters.nnx",
    "sslx.adapters.equinox",
    "sslx.adapters.onnx",
)


def public_names(module: ModuleType) -> set[str]:
    """What a module says it exports; what it defines where it does not say."""
    names = set(vars(module))
    if hasattr(module, "__all__"):
        names = set(module.__all__)
    elif not hasattr(module, "__path__"):
        home = module.__name__
        names = {n for n in names if inspect.getmodule(getattr(module, n)) is module}
        assert names, f"{home} defines nothing"
    return {
        name
        for name in names
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }


def documented() -> Counter[str]:
    directive = re.compile(r"\.\. (?:auto(?:function|class)|py:data):: ([\w.]+)")
    text = "\n".join(p.read_text(encoding="utf-8") for p in REFERENCE.glob("*.md"))
    return Counter(directive.findall(text))


def test_no_name_is_documented_twice() -> None:
    assert [name for name, count in documented().items() if count > 1] == []


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_in_the_reference(name: str) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("jax2onnx")
    module = importlib.import_module(name)
    at_the_top = public_names(sslx) if module is not sslx else set()
    expected = {
        f"{name}.{n}"
        for n in public_names(module)
        if n not in at_the_top or getattr(sslx, n) is not getattr(module, n)
    }
    found = {n for n in documented() if n.rpartition(".")[0] == name}
    assert found == expected


@pytest.mark.parametrize("path", pages.pages(), ids=lambda path: path.stem)
def test_generated_tables_are_up_to_date(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert pages.filled(text) == text, "fix: python -m experiments.reports.pages"


def test_every_record_is_on_a_page() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in pages.pages())
    records = [p.parent.name for p in (pages.ROOT / "results").glob("*/record.json")]
    assert [name for name in records if f"[{name}](" not in text] == []
