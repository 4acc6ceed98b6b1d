"""A study that is killed again and again ends as one that was not."""

import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import sslx
from experiments.training import records
from tests.experiments import killed_study

ROOT = pathlib.Path(__file__).parents[2]
TIMES = {
    "images_per_second",
    "training_seconds",
    "latency",
    "metrics_check",  # of lines that hold images per second
    "provenance",
}


def untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: untimed(x) for k, x in content.items() if k not in TIMES}
    return [untimed(x) for x in content] if isinstance(content, list) else content


@pytest.mark.slow
def test_fifty_kills_change_no_bit_of_a_study(tmp_path):
    """At the boundaries of every stage, and at random moments."""
    words = [sys.executable, "-m", "tests.experiments.killed_study", str(tmp_path), "8"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    boundaries, _, number, _ = done.stdout.split()[-4:]
    assert int(number) >= int(boundaries) >= 45 and int(number) >= 50
    found = []
    for name in ("whole", "boundaries", "random"):
        record = records.read_json(tmp_path / name / "report" / "record.json")
        apply = killed_study.Tiny().apply
        networks = [
            sslx.load(tmp_path / name / stage / "model", apply)
            for stage in ("compact", "finetune")
        ]
        arrays = [
            np.asarray(x).tobytes() for x in jax.tree.leaves(networks[0].variables)
        ]
        arrays += [
            np.asarray(x).tobytes() for x in jax.tree.leaves(networks[1].variables)
        ]
        found.append((untimed(record), [x.plan for x in networks], arrays))
        left = [p.name for p in (tmp_path / name).rglob("*") if "saving" in p.name]
        assert not left
    assert found[0] == found[1] == found[2]
    assert found[0][0]["compact"]["macs"] < 0.5 * found[0][0]["baseline"]["macs"]
