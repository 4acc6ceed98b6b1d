"""Pictures from plain records: what is drawn is what they hold, inside the edges."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

import sslx
from sslx import report
from sslx.report import style
from tests.pictures import check_inside


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

    units = sslx.units(net)(variables, shape((2, 3), "float32"))
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
    figure = report.sweep(points, parameter="lambda", reference=0.1)
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.5])
    assert "30.0% → 50.0%" in figure.get_suptitle().replace("\n", " ")
    check_inside(figure)
