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


@pytest.mark.parametrize("module", ["groups", "penalties", "prox", "transforms"])
def test_init_exports_what_the_modules_offer(module):
    offered = _imported("__init__.py", f"sslx._groups.{module}.")
    assert offered == _listed(f"_groups/{module}")


def test_public_functions_and_classes_are_documented():
    objects = {name: getattr(sslx, name) for name in dir(sslx) if name[0] != "_"}
    code = {n: o for n, o in objects.items() if isinstance(o, (type, FunctionType))}
    bare = [name for name, item in code.items() if not item.__doc__]
    assert not bare


def test_import_needs_the_core_dependencies_only():
    """`import sslx` loads what it always uses, and does not start JAX."""
    later = {
        *("equinox", "flax", "jinja2", "llvmlite", "matplotlib", "orbax"),
        *("scipy.optimize", "sklearn", "tensorflow_datasets", "tensorstore"),
    }
    code = (
        "import sys, sslx, jax._src.xla_bridge as bridge\n"
        f"print(sorted({later} & set(sys.modules)), bridge.backends_are_initialized())"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] False"


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_where_only_sslx_is_on_the_path(path, tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", shutil.copy(path, tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "->" in run.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_imports_what_it_names(path):
    distributions = {"haiku": "dm-haiku"}
    free = {"sslx", "jax", "optax", *sys.stdlib_module_names}  # come with sslx
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    modules = {
        name.split(".")[0]
        for n in nodes
        for name in (
            [n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
        )
    }
    needs = re.search(r"^Needs: pip install (.*)$", ast.get_docstring(tree), re.M)[1]
    imported = {distributions.get(module, module) for module in modules - free}
    assert set(needs.split()) == {"sslx", *imported}


def test_contributing_names_paths_and_targets_that_exist():
    named = re.findall(r"`([\w./-]+)`", CONTRIBUTING)
    paths = [n for n in named if "/" in n and "NAME" not in n]
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", CONTRIBUTING)) - {"test"}
    assert targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []


def test_release_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", changelog, re.M)
    version = re.search(r"^version: (\S+)$", citation, re.M)[1]
    date = re.search(r'^date-released: "(\S+)"$', citation, re.M)[1]
    assert (version, date) == released.groups()
    assert version == sslx.__version__


def test_make_without_python_says_what_is_missing(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make on this machine")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    env = os.environ | {"PATH": str(tmp_path), "MAKEFLAGS": ""}
    env.pop("PYTHON", None)
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
