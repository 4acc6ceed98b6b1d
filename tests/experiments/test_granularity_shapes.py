"""The study at ImageNet shapes, on a network small enough for a test."""

import functools
import json

import flax.linen as nn
import pytest

from experiments.granularity_shapes import __main__ as granularity_shapes
from experiments.granularity_shapes import report
from experiments.models import imagenet as imagenet_models
from experiments.training import runs


class Small(nn.Module):
    """Two convolutions, one with a stride."""

    @nn.compact
    def __call__(self, images, *, train=False):
        del train
        x = nn.relu(nn.Conv(8, (3, 3), 2, name="conv1")(images))
        x = nn.relu(nn.Conv(16, (3, 3), name="conv2")(x))
        return nn.Dense(4, name="dense")(x.mean(axis=(1, 2)))


def test_the_study_counts_times_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_models, "create", lambda name: Small())
    monkeypatch.setattr(imagenet_models, "image_shape", lambda name: (16, 16, 3))
    make = functools.partial(
        granularity_shapes.Config, models=("alexnet",), repeats=3, run=tmp_path
    )
    record = granularity_shapes.main(make(density=0.5))
    rows = report.storage_rows(record)
    assert [row["grain"] for row in rows] == ["fine", "vector", "kernel", "filter"]
    assert {row["density"] for row in rows} == {"50.0%"}
    overheads = [float(row["storage / density"]) for row in rows]
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[0] == pytest.approx(1.5, abs=0.01)
    assert overheads[1] == pytest.approx(1 + 0.5 / 3, abs=0.01)
    assert overheads[2] == pytest.approx(1 + 0.5 / 9, abs=0.01)
    speed = record["models"]["alexnet"]["speed"]
    pixels = 64 * 9 * (3 * 4 + 4 * 8)
    assert speed["macs_compact"] == pixels + 8 * 4
    stored = json.loads((tmp_path / "report" / "record.json").read_text())
    assert stored["models"] == record["models"]
    assert (tmp_path / "report" / "report.html").stat().st_size > 20_000
    again = granularity_shapes.main(make(density=0.5))
    assert again["models"] == record["models"]
    with pytest.raises(runs.RunError, match=r"density was 0.5, now 0.4"):
        granularity_shapes.main(make(density=0.4))
    with pytest.raises(ValueError, match="--density: got 1"):
        make(density=1.0)
