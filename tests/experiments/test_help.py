"""Every command answers `--help` soon: what only its work needs is imported later."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
COMMANDS = sorted(p.parent.name for p in ROOT.glob("experiments/*/__main__.py"))
LATER = {"grain", "matplotlib", "orbax", "scipy.sparse", "sklearn", "tensorstore"}
DRAWS = {"bench", "granularity_shapes", "reports"}  # pictures in the same modules


@pytest.mark.parametrize(
    "name",
    [
        name if name == "cifar_ssl" else pytest.param(name, marks=pytest.mark.slow)
        for name in COMMANDS
    ],
)
def test_help_shows_the_command_and_imports_little(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", f"experiments.{name}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    run = subprocess.run(
        [*command, "--help"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert re.match(rf"usage: python -m experiments\.{name} ", run.stdout)
    imported = set(re.findall(r"\| +([\w.]+)$", run.stderr, re.M))
    assert "sslx" in imported
    assert LATER & imported <= ({"matplotlib"} if name in DRAWS else set())
