"""What a user installs and imports, and what the repository promises about itself."""

import ast
import importlib.metadata
import importlib.resources
import os
import pathlib
import re
import shutil
import subprocess
import sys
from types import FunctionType

import pytest

import sslx

ROOT = pathlib.Path(__file__).parent.parent


def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / "sslx" / path).read_text(encoding="utf-8"))


def _listed(module: str) -> set[str]:
    """The names in a module's `__all__`."""
    for node in _tree(f"{module}.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"sslx/{module}.py has no __all__")


def _imported(path: str, package: str) -> set[str]:
    """The names that a file takes from a package or its modules."""
    froms = [n for n in _tree(path).body if isinstance(n, ast.ImportFrom)]
    return {
        a.name for n in froms if f"{n.module}.".startswith(package) for a in n.names
    }


def test_version_is_the_installed_one():
    assert importlib.metadata.version("sslx") == sslx.__version__


def test_types_travel_with_the_package():
    assert (importlib.resources.files("sslx") / "py.typed").is_file()


@pytest.mark.parametrize("module", ["_groups", "_penalties", "_prox", "_transforms"])
def test_init_exports_what_the_modules_offer(module):
    assert _imported("__init__.py", f"sslx.{module}.") == _listed(module)


def test_init_exports_what_compact_offers():
    offered = _imported("_compact/__init__.py", "sslx._compact.")
    assert _imported("__init__.py", "sslx._compact.") == offered


def test_public_functions_and_classes_are_documented():
    objects = {name: getattr(sslx, name) for name in dir(sslx) if name[0] != "_"}
    code = {n: o for n, o in objects.items() if isinstance(o, (type, FunctionType))}
    bare = [name for name, item in code.items() if not item.__doc__]
    assert not bare


def test_import_needs_the_core_dependencies_only():
    """`import sslx` must not pull in what only `experiments` needs, nor start JAX."""
    code = (
        "import sys, sslx, jax._src.xla_bridge as bridge\n"
        "extra = {'flax', 'matplotlib', 'sklearn', 'tensorflow_datasets', 'jinja2'}\n"
        "print(sorted(extra & set(sys.modules)), bridge.backends_are_initialized())"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"


def test_make_without_python_says_what_is_missing(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    env = os.environ | {"PATH": str(tmp_path), "MAKEFLAGS": ""}
    command = [make, "test"]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode != 0
    assert "needs Python 3.11 or newer and found none" in run.stderr


def _tracked_texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts = {}
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix not in {".png", ".npz"} and path.is_file():
            texts[name] = path.read_text(encoding="utf-8")
    return texts


def test_no_file_names_a_path_of_one_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    homes = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w")
    found = [name for name, text in _tracked_texts().items() if homes.search(text)]
    assert not found
