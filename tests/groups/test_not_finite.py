"""NaN and infinities come through; nothing that is not finite becomes a zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sslx
from sslx import psp, select

PENALTIES = {
    "lasso": sslx.GroupLasso(0.1),
    "by size": sslx.GroupLasso(0.1, scale_by_size=True),
    "sparse": sslx.SparseGroupLasso(0.1),
    "elastic": sslx.GroupElastic(0.1),
    "l0": sslx.GroupL0(0.1),
    "half": sslx.GroupHalf(0.1),
    "mcp": sslx.GroupMCP(0.1),
    "scad": sslx.GroupSCAD(0.1),
}
RULES = {
    "filters": sslx.FILTER,
    "nested": sslx.LAYER | sslx.FILTER | sslx.WEIGHT,
    "crossing": sslx.FILTER | sslx.CHANNEL,
}


def tree(value):
    return {"k": jnp.linspace(0.5, 1.5, 12).reshape(4, 3).at[0, 1].set(value)}


def lost(before, after):
    """Entries that were not finite and are finite now."""
    return bool((~jnp.isfinite(before["k"]) & jnp.isfinite(after["k"])).any())


@pytest.mark.parametrize(
    "value",
    [np.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (np.inf, -np.inf))],
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PENALTIES)
def test_no_proximal_operator_hides_what_is_not_finite(name, rule, value):
    params, penalty = tree(value), PENALTIES[name]
    groups = sslx.groups(params, {"k": RULES[rule]})
    for step in (0.1, 1e3):
        assert not lost(params, sslx.prox(penalty, groups, params, step))
    if penalty.convex and rule == "crossing":
        new = sslx.prox(penalty, groups, params, 0.1, overlap="dykstra")
        assert not lost(params, new)
    if np.isnan(value):
        assert jnp.isnan(sslx.penalty_value(penalty, groups, params))


@pytest.mark.parametrize("name", PENALTIES)
def test_groups_beside_one_with_a_nan_are_as_without(name):
    params, penalty = tree(np.nan), PENALTIES[name]
    groups = sslx.groups(params, {"k": sslx.FILTER})
    new = sslx.prox(penalty, groups, params, 0.1)["k"]
    rest = sslx.prox(penalty, groups, tree(1.0), 0.1)["k"]
    np.testing.assert_array_equal(new[:, [0, 2]], rest[:, [0, 2]])


def test_norms_say_that_a_group_is_not_finite():
    params = tree(np.nan)
    groups = sslx.groups(params, {"k": sslx.FILTER})
    assert np.isnan(sslx.norms(groups, params)["k:FILTER"]).tolist() == [0, 1, 0]
    assert np.isinf(sslx.norms(groups, tree(np.inf))["k:FILTER"]).tolist() == [0, 1, 0]
    assert sslx.alive(groups, params)["k:FILTER"].all()


TRANSFORMS = {
    "proximal": lambda g: sslx.proximal(sslx.GroupLasso(0.1), g, 0.1),
    "subgradient": lambda g: sslx.subgradient(sslx.GroupLasso(0.1), g),
    "threshold": lambda g: sslx.zero_threshold(0.1),
    "keep entries": lambda g: sslx.keep_zeros(),
    "keep groups": sslx.keep_zeros,
    "prune": functools.partial(select.prune, density=0.5),
}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_transformation_hides_a_gradient_that_is_not_finite(name, value):
    params = {"k": jnp.ones((4, 3)).at[:, 1].set(0)}
    groups = sslx.groups(params, {"k": sslx.FILTER})
    tx = TRANSFORMS[name](groups)
    for column in (0, 1):  # alive, and zero
        slopes = {"k": jnp.zeros((4, 3)).at[2, column].set(value)}
        updates, _ = tx.update(slopes, tx.init(params), params)
        assert not lost(slopes, optax.apply_updates(params, updates))


@pytest.mark.slow
def test_groups_with_a_nan_score_stay():
    params = tree(np.nan)
    groups = sslx.groups(params, {"k": sslx.FILTER})
    scores = {"k:FILTER": jnp.asarray([3.0, np.nan, 2.0])}
    for scope in ("class", "global"):
        mask = select.keep(groups, scores, 0.67, scope=scope)["k:FILTER"]
        assert mask.tolist() == [True, True, False]
    uneven = {"k:FILTER": np.array([2.0, 1.0, 2.0])}
    mask = select.keep(groups, scores, 0.6, costs=uneven)["k:FILTER"]
    assert mask.tolist() == [True, True, False]
    few = {"k:FILTER": scores["k:FILTER"][:2]}
    two = sslx.groups({"k": jnp.ones((4, 2))}, {"k": sslx.FILTER})
    assert select.n_of_m(two, few, 0.5, m=2, axis=0)["k:FILTER"].tolist() == [0, 1]
    cut = sslx.scale(groups, params, {"k:FILTER": jnp.zeros(3, bool)})
    assert not lost(params, cut)


@pytest.mark.parametrize("gate", [psp.Threshold(0.5), psp.FixedSparsity(0.6)])
def test_gates_let_nan_through(gate):
    params = tree(1.0)
    groups = sslx.groups(params, {"k": sslx.FILTER})
    start = psp.init(groups, params)
    alphas = {"k:FILTER": jnp.asarray([1.0, np.nan, 0.1])}
    assert jnp.isnan(
        psp.fold(groups, start._replace(alphas=alphas), gate)["k"][:, 1]
    ).all()
    closed = {"k:FILTER": jnp.asarray([1.0, 0.1, 0.2])}
    bad = psp.Parameters(tree(np.nan), closed)
    assert not lost(bad.weights, psp.fold(groups, bad, gate))


@pytest.mark.slow
def test_gradients_at_zero_stay_finite():
    zero = {"k": jnp.zeros((4, 3))}
    groups = sslx.groups(zero, {"k": sslx.FILTER})
    for penalty in PENALTIES.values():
        value = functools.partial(sslx.penalty_value, penalty, groups)
        assert jnp.isfinite(jax.grad(value)(zero)["k"]).all()
        total = lambda p, penalty=penalty: sslx.prox(penalty, groups, p, 0.1)["k"].sum()
        assert jnp.isfinite(jax.grad(total)(zero)["k"]).all()
