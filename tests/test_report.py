import pathlib
import re
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg

import sslx
from experiments.cifar_ssl import report as ssl_report
from experiments.reports import __main__ as reports
from experiments.training import records, runs
from sslx import report
from sslx.report import style

ROOT = pathlib.Path(__file__).parent.parent


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


def test_text_is_escaped(tmp_path):
    place = report.page(
        tmp_path / "p.html",
        title="<script>",
        lead="a < b",
        facts=(),
        sections=[report.Section("s", rows=[{"x": "<b>"}])],
        origin={"command": "x > y"},
    )
    text = place.read_text()
    assert "<script>" not in text and "<b>" not in text
    assert "&lt;script&gt;" in text and "a &lt; b" in text


def drawn(figure):
    """Boxes of all that is drawn, in shares of the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box = figure.get_tightbbox(renderer)
    return box.transformed(figure.dpi_scale_trans + figure.transFigure.inverted())


def check_inside(figure):
    box = drawn(figure)
    assert -0.001 <= box.x0 and box.x1 <= 1.001, box
    assert -0.001 <= box.y0 and box.y1 <= 1.001, box


def test_pictures_are_small_pngs_with_nothing_over_the_edge(record, tmp_path):
    for name, figure in ssl_report.pictures(record).items():
        place = report.save_png(figure, tmp_path / f"{name}.png")
        assert place.read_bytes().startswith(b"\x89PNG")
        assert place.stat().st_size < 150_000
        check_inside(figure)


def test_notebooks_show_a_picture_without_pyplot():
    figure = report.group_norms({"a": np.array([0.0, 2.0, 1.0])})
    data, about = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
    assert about["image/png"]["width"] == 700


def test_zero_groups_are_red_and_only_they():
    figure = report.group_norms({"a": np.array([0.0, 2.0, 1.0]), "b": np.zeros(2)})
    images = [np.asarray(image.get_array()) for image in figure.axes[0].get_images()]
    red = [np.all(np.isclose(x[..., :3], images[1][0, 0, :3]), axis=-1) for x in images]
    np.testing.assert_array_equal(red[0], [[False, False, True]])
    np.testing.assert_array_equal(red[1], [[True, True]])


def test_every_row_of_norms_is_as_long_and_high_as_the_others():
    sizes = (1, 2, 800)
    figure = report.group_norms({str(n): np.arange(float(n)) for n in sizes})
    extents = [image.get_extent() for image in figure.axes[0].get_images()]
    for y, (left, right, bottom, top) in enumerate(extents):
        assert (left, right) == (0, 1)
        assert (bottom, top) == pytest.approx((y + 0.4, y - 0.4))


def test_small_norms_that_a_record_rounds_to_zero_are_not_red(record):
    rounded = {"a": [0.0, 0.0, 0.0, 1.0]}
    given = {**record, "group_norms": rounded, "ssl": {"zero_groups": {"a": 1}}}
    (row,) = ssl_report._norms(given).values()
    assert (row == 0).tolist() == [False, False, False, True]
    assert (np.diff(row) <= 0).all()


@hypothesis.given(
    low=st.floats(0.011, 0.999), high=st.floats(1.001, 900), which=st.sampled_from("xy")
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_an_axis_of_ratios_has_its_ends_and_one_on_it(low, high, which):
    axis = style.picture("t", 2.0).subplots()
    style.ratio_axis(axis, low, high, which)
    left, right = getattr(axis, f"get_{which}lim")()
    assert 0 < left <= low and high <= right
    ticks = getattr(axis, f"get_{which}ticks")()
    assert any(np.isclose(ticks, 1)) and len(ticks) <= 16
    assert left <= min(ticks) and max(ticks) <= right


def test_ratios_are_dots_with_their_spread():
    panels = {"p": {"row": {"a": (2.0, 1.5, 3.0), "b": (0.5,)}}}
    marks = {name: report.Mark(name, "#123456") for name in "abc"}
    figure = report.ratios(panels, marks, title="t", xlabel="x")
    lines = [line.get_xdata() for line in figure.axes[0].get_lines()]
    for wanted in ([2.0], [1.5, 3.0], [0.5]):
        assert any(np.array_equal(line, wanted) for line in lines)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["a", "b"]
    check_inside(figure)


def layer(name, before, after, macs=(4, 2)):
    return {
        "layer": f"params/{name}/kernel",
        "kernel_before": before,
        "kernel_after": after,
        "macs_before": 1_000_000 * macs[0],
        "macs_after": 1_000_000 * macs[1],
    }


def test_the_flow_draws_a_residual_stream_once():
    shape = jax.ShapeDtypeStruct
    sizes = {"a": (3, 8), "b": (8, 16), "c": (16, 8), "d": (8, 4)}
    variables = {
        "params": {
            name: {"kernel": shape(size, "float32")} for name, size in sizes.items()
        }
    }

    def net(variables, x):
        w = {name: leaf["kernel"] for name, leaf in variables["params"].items()}
        x = jax.nn.relu(x @ w["a"])
        return (x + jax.nn.relu(x @ w["b"]) @ w["c"]) @ w["d"]

    units = sslx.units(net, variables, shape((2, 3), "float32"))
    after = {"a": (3, 6), "b": (6, 5), "c": (5, 6), "d": (6, 4)}
    rows = [layer(name, sizes[name], after[name]) for name in sizes]
    figure = report.flow(rows, units, "net")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts) == ["16 → 5", "4", "8 → 6"]
    assert len(figure.axes[0].patches) == len(rows)
    check_inside(figure)


def test_a_flow_without_units_is_a_chain_and_a_layer_may_be_gone():
    rows = [
        layer("a", (3, 8), (3, 8)),
        layer("b", (8, 8), None, (4, 0)),
        layer("c", (8, 2), (8, 2)),
    ]
    figure = report.flow(rows)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["8", "8 → 0", "2"]
    assert any("gone" in text.get_text() for text in figure.axes[1].texts)
    check_inside(figure)


def test_norms_over_steps_turn_red_at_zero():
    norms = {"a": [[1.0, 2.0], [0.0, 1.5], [0.0, 1.0]]}
    figure = report.norms_over_steps([0, 10, 20], norms)
    red = [
        line
        for line in figure.axes[0].get_lines()
        if line.get_color() == style.ZERO and np.isfinite(line.get_ydata()).any()
    ]
    (dead,) = red
    np.testing.assert_array_equal(dead.get_ydata(), [np.nan, 0, 0])
    check_inside(figure)


def test_sensitivity_plots_every_class_down_to_the_baseline():
    losses = {"a": np.array([3.0, 1.0]), "b": np.array([0.6, 0.5])}
    found = sslx.select.Sensitivity((0.2, 0.5), losses, 0.5)
    figure = found.plot("error")
    for axis, values in zip(figure.axes, losses.values(), strict=True):
        _, line = axis.get_lines()
        np.testing.assert_allclose(line.get_xdata(), [0.2, 0.5, 1])
        np.testing.assert_allclose(line.get_ydata(), [*values, 0.5])
    assert "a costs most" in figure.get_suptitle()
    check_inside(figure)


def test_a_sweep_runs_through_the_means_over_seeds():
    points = [
        {"series": "s", "value": value, "error": error, "zero": 0.5}
        for value, error in ((0.1, 0.2), (0.1, 0.4), (1.0, 0.5))
    ]
    figure = report.sweep(points, title="t", parameter="lambda", reference=0.1)
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.5])
    check_inside(figure)


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
