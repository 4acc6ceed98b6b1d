"""Tables: the same cells in terminals and in notebooks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

import sslx
from sslx import measure, select
from sslx._table import Table


def net(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


PARAMS = {"a": jnp.ones((3, 4)).at[:, 1].set(0), "b": jnp.ones((4, 2))}
X = jnp.ones((5, 3))


def conv(params, x):
    return jax.lax.conv_general_dilated(
        x, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


SHOWN = {
    "cost": (lambda: measure.cost(net, PARAMS, X), "3x4"),
    "latencies": (
        lambda: measure.latency({"fast": lambda: X}, repeats=2, round_seconds=0.0),
        "fast",
    ),
    "choices": (
        lambda: sslx.tune(conv).choices(
            {"w": jnp.ones((3, 3, 2, 2))}, jnp.ones((1, 8, 8, 2))
        ),
        "3x3x2x2",
    ),
    "plan": (lambda: sslx.compact(net)(PARAMS, X).plan, "3x3"),
    "sensitivity": (
        lambda: select.Sensitivity((0.5,), {"layer": np.array([2.0])}, 1.0),
        "layer",
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_has_a_table_shows_it_in_terminals_and_notebooks(name):
    make, word = SHOWN[name]
    shown = make()
    html = DisplayFormatter().format(shown)[0]["text/html"]
    text = str(shown)
    assert "<table>" in html and word in html and word in text
    cells = re.findall(r"<t[dh] [^>]*>(.*?)</t[dh]>", html)
    for cell in cells:
        assert cell.replace("&gt;", ">").replace("&#x27;", "'") in text


def test_a_tuned_function_shows_what_was_chosen():
    tuned = sslx.tune(conv)
    assert "nothing chosen yet" in str(tuned)
    assert "nothing chosen yet" in tuned._repr_html_()
    tuned({"w": jnp.ones((3, 3, 2, 2))}, jnp.ones((1, 8, 8, 2)))
    for shown in (str(tuned), tuned._repr_html_()):
        assert "3x3x2x2" in shown and "Tuned(conv" in shown


def test_groups_describe_themselves_and_are_a_table_in_notebooks():
    groups = sslx.groups(PARAMS, {"a|b": sslx.FILTER})
    assert str(groups) == groups.describe()
    html = DisplayFormatter().format(groups)[0]["text/html"]
    cells = re.findall(r"<td [^>]*>(.*?)</td>", html)
    assert cells[:2] == ["a:FILTER", ""] and cells[2:5] == ["4", "3", "1"]
    assert len(cells) == 2 * len(groups.rows()[0])


def test_columns_are_aligned_and_notes_below():
    table = Table(["name", "n"], [["a", "10"], ["long one", "2"]], ["a note"])
    assert str(table).splitlines() == [
        "name       n",
        "a         10",
        "long one   2",
        "a note",
    ]


def test_cells_are_escaped():
    html = Table(["<b>"], [["a & b"]], ["x < y"])._repr_html_()
    assert "&lt;b&gt;" in html and "a &amp; b" in html and "x &lt; y" in html
    assert "<b>" not in html


def test_a_plan_names_what_shrinks_and_counts_the_rest():
    variables = {**PARAMS, "c": jnp.ones(2)}
    small = sslx.compact(lambda p, x: net(p, x) + p["c"][None])(variables, X)
    lines = str(small.plan).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["a", "3x4", "3x3"],
        ["b", "4x2", "3x2"],
    ]
    assert lines[3].split() == ["all", "entries", "22", "17"]
    assert lines[4] == "1 more leaves stay whole"
