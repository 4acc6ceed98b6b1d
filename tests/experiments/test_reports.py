"""Pictures and pages of runs, and of the committed records."""

import pathlib
import re
import shutil

import numpy as np
import pytest

from experiments.cifar_ssl import report as ssl_report
from experiments.reports import __main__ as reports
from experiments.training import records, runs
from sslx import report
from tests.pictures import check_inside

ROOT = pathlib.Path(__file__).parent.parent.parent


def make_record() -> dict:
    """A record as `experiments.cifar_ssl` leaves it, with invented figures."""
    rng = np.random.default_rng(0)
    layers = [
        {
            "name": f"stage{s}_{b}/conv{c}",
            "kernel": [3, 3, 16 * s, 16 * s],
            "kernel_after": [] if (s, b) == (2, 1) else [3, 3, 16 * s, 8 * (s + c - 1)],
            "macs": 2_359_296,
            "macs_after": 0 if (s, b) == (2, 1) else 2_359_296 // (c + 1),
        }
        for s in (1, 2, 3)
        for b in (1, 2, 3)
        for c in (1, 2)
    ]
    metrics = []
    for stage, epochs in (("baseline", 9), ("ssl", 4), ("finetune", 2)):
        for step in range(1, 8 * epochs + 1):
            row = {
                "stage": stage,
                "step": step,
                "epoch": step / 8,
                "loss": 2 / (1 + step) + 0.3,
                "accuracy": 0.9 - 0.6 / (1 + step),
                "images_per_second": 250.0,
            }
            if step % 8 == 0:
                row["test_accuracy"] = 0.88 - 0.4 / (1 + step)
            if stage == "ssl":
                zero = min(20, step)
                row |= {"zero_groups": zero, "groups": 42, "removed_macs": zero / 48}
            metrics.append(row)
    trained = {"parameters": 272_474, "training_seconds": 1800.0}
    rows = [
        {
            "name": name,
            "median": t,
            "q1": 0.97 * t,
            "q3": 1.05 * t,
            "minimum": 0.9 * t,
            "maximum": 1.2 * t,
            "speedup": 0.02 / t,
            "speedup_q1": 0.019 / t,
            "speedup_q3": 0.021 / t,
            "calls": 1,
        }
        for name, t in (("dense", 0.02), ("compact", 0.014), ("dense (again)", 0.0201))
    ]
    sparse = {"test_accuracy": 0.861, "macs": 40_813_184, "weights": 270_896}
    norms = {
        f"stage{s}_{b}/conv1": np.where(
            rng.random(2**s) < 0.4, 0, rng.random(2**s) * 5
        ).tolist()
        for s in (1, 2, 3)
        for b in (1, 2, 3)
    }
    return {
        "options": {
            "model": "resnet20",
            "data": "cifar10",
            "structure": "coupled",
            "block": 8,
            "stages": ("baseline", "ssl"),
        },
        "baseline": {**trained, **sparse, "test_accuracy": 0.868},
        "ssl": {
            **trained,
            **sparse,
            "zero_groups": {name: row.count(0) for name, row in norms.items()},
            "groups": 42,
        },
        "compact": {
            "relative_error": 3e-7,
            "images": 1000,
            "macs": 24_000_000,
            "layers": layers,
        },
        "finetune": {
            **trained,
            "test_accuracy": 0.865,
            "macs": 24_000_000,
            "weights": 150_000,
        },
        "benchmark": {
            "latency": {str(n): {"rows": rows} for n in (1, 32, 256)},
        },
        "group_norms": norms,
        "metrics": metrics,
        "provenance": {
            "command": "python -m experiments.cifar_ssl",
            "commit": "0123abc",
            "versions": {"jax": "0.10"},
            "hardware": "a machine",
            "date": "2026-01-01",
        },
    }


@pytest.fixture(scope="module")
def record():
    return make_record()


def test_the_page_stands_alone_and_says_what_came_out(record, tmp_path):
    figures = ssl_report.pictures(record)
    content = ssl_report.page_content(record, figures)
    text = report.page(tmp_path / "report.html", **content).read_text()
    assert text.count("data:image/png;base64,") == len(figures)
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "-41.2%" in text and "-0.30 pts" in text and "1.43x" in text
    for word in ("python -m experiments.cifar_ssl", "0123abc", "jax 0.10", "a machine"):
        assert word in text
    assert "removed" in text


def test_pictures_are_small_pngs_with_nothing_over_the_edge(record, tmp_path):
    for name, figure in ssl_report.pictures(record).items():
        place = report.save_png(figure, tmp_path / f"{name}.png")
        assert place.read_bytes().startswith(b"\x89PNG")
        assert place.stat().st_size < 150_000
        check_inside(figure)


def test_small_norms_that_a_record_rounds_to_zero_are_not_red(record):
    rounded = {"a": [0.0, 0.0, 0.0, 1.0]}
    given = {**record, "group_norms": rounded, "ssl": {"zero_groups": {"a": 1}}}
    (row,) = ssl_report._norms(given).values()
    assert (row == 0).tolist() == [False, False, False, True]
    assert (np.diff(row) <= 0).all()


FOLDERS = sorted(p.parent for p in (ROOT / "results").glob("*/record.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_pictures_of_a_record_are_those_committed(folder):
    found = records.read_json(folder / "record.json")
    figures = reports.report_of(found, folder).pictures(found)
    assert sorted(p.stem for p in folder.glob("*.png")) == sorted(figures)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_nothing_in_a_committed_picture_is_over_the_edge(folder):
    found = records.read_json(folder / "record.json")
    for figure in reports.report_of(found, folder).pictures(found).values():
        check_inside(figure)


def test_reports_draws_a_folder_again(tmp_path):
    folder = ROOT / "results" / "networks-measure"
    shutil.copy(folder / "record.json", tmp_path)
    reports.main(reports.Config((tmp_path,)))
    assert (tmp_path / "networks.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_known_record_is_named(tmp_path):
    with pytest.raises(runs.RunError, match=f"{tmp_path}: no record"):
        reports.main(reports.Config((tmp_path,)))
    other = {"provenance": {"command": "python -m experiments.other"}}
    with pytest.raises(runs.RunError, match=r"experiments\.other.*alexnet_speed"):
        reports.report_of(other, tmp_path)


def test_main_figures_are_ratios_of_the_record(record):
    figures = ssl_report.main_figures(record)
    assert figures["macs_removed"] == pytest.approx(1 - 24_000_000 / 40_813_184)
    assert figures["weights_removed"] == pytest.approx(1 - 150_000 / 270_896)


def test_a_stage_that_is_not_complete_is_named(tmp_path):
    from experiments.cifar_ssl import __main__ as cifar_ssl
    from experiments.cifar_ssl import stages as ssl_stages

    context = ssl_stages.Context(
        cifar_ssl.Config(), runs.Run(tmp_path, cifar_ssl.STAGES), None
    )
    with pytest.raises(runs.RunError, match="baseline, ssl"):
        ssl_report.write(context)
