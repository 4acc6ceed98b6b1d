"""What `make release-check` does: build, look inside, install bare, compare extras.

Run from a clone, by an interpreter whose environment has `uv` and `twine`.
"""

import itertools
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
NOT_SHIPPED = "results/"  # records and pictures of long runs, which stay in the clone
SMOKE = ROOT / "examples" / "prune_to_budget.py"  # needs nothing but sslx
FORBIDDEN = ("equinox", "flax", "haiku", "jinja2", "llvmlite", "matplotlib")

Versions = dict[str, str]  # by the name of a package


def main() -> None:
    """Run every check; the first that fails says why and ends the program."""
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(pathlib.Path(folder))
        check_contents(sdist, wheel)
        for archive in (wheel, sdist):
            check_bare_install(archive, pathlib.Path(folder) / archive.suffix)
    for python in PYTHONS:
        check_extras(python)
    print("release-check passed")


def build(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The sdist, and the wheel made from it."""
    run("uv", "build", "--quiet", "--out-dir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    run("twine", "check", "--strict", sdist, wheel)
    return sdist, wheel


def check_contents(sdist: pathlib.Path, wheel: pathlib.Path) -> None:
    """Every tracked file is in the sdist, and every one of `sslx` in the wheel."""
    tracked = set(run("git", "-C", ROOT, "ls-files").splitlines())
    shipped = {name for name in tracked if not name.startswith(NOT_SHIPPED)}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    expect_same(sdist, shipped, packed - {"PKG-INFO"})

    with zipfile.ZipFile(wheel) as archive:
        packed = {n for n in archive.namelist() if ".dist-info/" not in n}
    expect_same(wheel, {n for n in tracked if n.startswith("sslx/")}, packed)


def expect_same(archive: pathlib.Path, want: set[str], got: set[str]) -> None:
    """End the program where an archive has other files than it should have."""
    if want != got:
        lines = [f"  misses {name}" for name in sorted(want - got)]
        lines += [f"  should not hold {name}" for name in sorted(got - want)]
        fix = "Commit the files, or change [tool.hatch.build.targets] in pyproject.toml"
        sys.exit("\n".join([f"{archive.name}:", *lines, f"{fix}."]))
    print(f"{archive.name}: {len(got)} files, as tracked")


def check_bare_install(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Install in an environment of its own, without extras, and compact a network."""
    python = folder / "bin" / "python"
    run("uv", "venv", "--quiet", "--python", sys.executable, folder)
    run("uv", "pip", "install", "--quiet", "--python", python, archive)
    absent = f"import sys; sys.modules.update(dict.fromkeys({FORBIDDEN}))"
    code = f"{absent}; import runpy; runpy.run_path({str(SMOKE)!r})"
    run(python, "-I", "-c", code, cwd=folder)
    print(f"{archive.name}: installs bare and runs {SMOKE.relative_to(ROOT)}")


def check_extras(python: str) -> None:
    """Extras resolve alone and together, to the same version of every package."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = list(config["project"]["optional-dependencies"])
    sets = {"no extra": resolve(python, [])}
    sets |= {f"[{extra}]": resolve(python, [extra]) for extra in extras}
    sets |= {"all extras": resolve(python, extras)}
    moved = [
        f"  {package}: "
        + "; ".join(f"{v} with {', '.join(w)}" for v, w in sorted(found.items()))
        for package, found in by_version(sets).items()
        if len(found) > 1
    ]
    if moved:
        fix = "Bound what pins it in pyproject.toml (`uv pip compile` names it)"
        title = f"Python {python}: extras move each other's packages:"
        sys.exit("\n".join([title, *moved, f"{fix}."]))
    print(f"Python {python}: {len(extras)} extras resolve, alone and together")


def resolve(python: str, extras: Iterable[str]) -> Versions:
    """What an installer takes for some extras, the newest that all of them allow."""
    options = itertools.chain.from_iterable(("--extra", extra) for extra in extras)
    out = run(
        *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        *("--python-version", python, *options, ROOT / "pyproject.toml"),
    )
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", out, re.MULTILINE))


def by_version(sets: dict[str, Versions]) -> dict[str, dict[str, list[str]]]:
    """Package -> version -> the sets of extras that take it."""
    packages = sorted(set().union(*sets.values()))
    found: dict[str, dict[str, list[str]]] = {name: {} for name in packages}
    for title, versions in sets.items():
        for package, version in versions.items():
            found[package].setdefault(version, []).append(title)
    return found


def run(*command: str | pathlib.Path, cwd: pathlib.Path = ROOT) -> str:
    """What a command prints; a failing one ends the program with all it said."""
    words = [str(word) for word in command]
    if words[0] in ("twine", "uv"):
        words = [sys.executable, "-m", *words]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{said}")
    return done.stdout


if __name__ == "__main__":
    main()
