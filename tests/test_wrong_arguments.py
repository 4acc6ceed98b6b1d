"""Wrong calls of groups, penalties, selection and plans say what is wrong."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sslx
from sslx import measure, psp, select
from sslx._compact.plan import LeafPlan, Plan

PARAMS = {"a": {"kernel": np.ones((4, 6))}, "b": {"kernel": np.ones((6, 2))}}
GROUPS = sslx.groups(PARAMS, {"kernel": sslx.FILTER})
BOTH = sslx.groups(PARAMS, {"a/kernel": sslx.FILTER | sslx.CHANNEL})
A, B = GROUPS.names
SCORES = {A: np.arange(6.0), B: np.arange(2.0)}
LASSO = sslx.GroupLasso(0.1)
PLAN = Plan({"a/kernel": LeafPlan((4, 6), (None, (0, 1)), (None, None))})
STATE = psp.Parameters(PARAMS, {A: jnp.ones(6), B: jnp.ones(2)})
NAN = float("nan")
NO_GROUPS = "groups must be a Groups, got dict"


def of(function, *args, **kwargs):
    """A call without the checks of types that only tests make."""
    return functools.partial(inspect.unwrap(function), *args, **kwargs)


make = functools.partial(of, sslx.groups, PARAMS)
coupled = functools.partial(of, sslx.coupled, PARAMS)
keep = functools.partial(of, select.keep, GROUPS, SCORES)
n_of_m = functools.partial(of, select.n_of_m, BOTH, {BOTH.names[0]: np.ones(6)})
prox = functools.partial(of, sslx.prox)
proximal = functools.partial(of, sslx.proximal, LASSO, GROUPS)
prune = functools.partial(of, select.prune, GROUPS)
new = lambda kind, *args: functools.partial(kind, *args)

CASES = [
    # groups
    (make("kernel"), "rules must be a Mapping, got str"),
    (make({"kernel": "FILTER"}), "FILTER, without quotes"),
    (make({"bias": sslx.FILTER}), "decide about no leaf"),
    (make({"(": sslx.FILTER}), "'(' is no regular expression"),
    (make({1: sslx.FILTER}), "must be a regular expression, got 1"),
    (make({"k": sslx.FILTER}, layout="OI"), "'...IO' or 'OI...', got 'OI'"),
    (of(sslx.groups, {"v": np.ones(3)}, {"v": sslx.CHANNEL}), "needs at least 2 axes"),
    (of(sslx.groups, {"k": sslx.FILTER}, PARAMS), "the rule of 'a' must be a Struct"),
    (of(sslx.groups, {}, {"k": sslx.FILTER}), "There are: "),
    (coupled({}), "give at least one member"),
    (coupled({"c": sslx.FILTER}), "no leaf ['c']"),
    (coupled({"a/kernel": "FILTER"}), "must be a Structure, got str"),
    (coupled(["a/kernel"]), "members must be a Mapping, got list"),
    (coupled(dict.fromkeys(["a/kernel", "b/kernel"], sslx.FILTER)), "equally many"),
    (lambda: GROUPS["a"], "no class of groups 'a'"),
    (lambda: GROUPS + GROUPS, "have the same name"),
    (lambda: GROUPS.weighted({"c": 2.0}), "decide about no class"),
    (lambda: GROUPS.weighted({"a": -1.0}), "must be >= 0, got -1.0"),
    (lambda: GROUPS.weighted({"a": NAN}), "multiplier of 'a' must be >= 0, got nan"),
    (lambda: GROUPS.weighted({"a": np.inf}), "must be one finite number, as groups"),
    (of(sslx.Groups.weighted, GROUPS, {"a": np.ones(2)}), "must be one finite number"),
    (
        lambda: jax.jit(of(sslx.Groups.weighted, GROUPS))({"a": 2.0}),
        "the multiplier of 'a' must be one finite number",
    ),
    (of(sslx.Groups.weighted, GROUPS, {"a": "2"}), "must be a number, got '2'"),
    (lambda: sslx.BLOCK(0, 2), "block sizes must be >= 1"),
    (lambda: sslx.Structure("x"), "exactly one of keep, drop and block"),
    (lambda: sslx.SHAPE.within(0), "parts must be >= 1, got 0"),
    (of(sslx.norms, PARAMS, GROUPS), NO_GROUPS),
    (of(sslx.norms, GROUPS, {"a": 1}), "no leaf a/kernel"),
    (of(sslx.norms, GROUPS, PARAMS | {"b": {"kernel": np.ones(3)}}), "got (3,)"),
    (of(sslx.norms, GROUPS, PARAMS | {"b": {"kernel": jax.random.key(0)}}), "a random"),
    (of(sslx.alive, PARAMS, GROUPS), NO_GROUPS),
    (of(sslx.scale, PARAMS, GROUPS, {}), NO_GROUPS),
    (of(sslx.scale, GROUPS, PARAMS, 2.0), "factors must be a Mapping, got float"),
    (of(sslx.scale, GROUPS, PARAMS, {"a": np.ones(6)}), "unknown classes ['a']"),
    (of(sslx.scale, GROUPS, PARAMS, {A: np.ones(5)}), "shape (6,), got (5,)"),
    # penalties
    (new(sslx.GroupLasso, -0.1), "GroupLasso: strength must be >= 0, got -0.1"),
    (new(sslx.GroupLasso, NAN), "strength must be >= 0, got nan"),
    (new(sslx.GroupLasso, jnp.float32(-1)), "strength must be >= 0, got -1.0"),
    (new(sslx.GroupElastic, 0.1, 1.5), "ratio must be from 0 to 1.0, got 1.5"),
    (new(sslx.SparseGroupLasso, 0.1, -1), "ratio must be from 0 to 1.0, got -1"),
    (new(sslx.GroupMCP, 0.1, 0.0), "gamma must be > 0"),
    (new(sslx.GroupSCAD, 0.1, 2.0), "a must be > 2"),
    (prox(sslx.GroupLasso, GROUPS, PARAMS, 0.1), "got the class GroupLasso"),
    (prox("lasso", GROUPS, PARAMS, 0.1), "penalty must be a Penalty, got str"),
    (prox(LASSO, PARAMS, GROUPS, 0.1), NO_GROUPS),
    (prox(LASSO, GROUPS, PARAMS, -0.1), "step must be >= 0, got -0.1"),
    (prox(LASSO, GROUPS, PARAMS, NAN), "step must be >= 0, got nan"),
    (prox(LASSO, GROUPS, PARAMS, "1"), "step must be a number, got '1'"),
    (prox(LASSO, GROUPS, PARAMS, 0.1, overlap="no"), "'dykstra', got 'no'"),
    (prox(sslx.GroupL0(1), BOTH, PARAMS, 1, overlap="dykstra"), "is not convex"),
    (of(sslx.penalty_value, sslx.GroupLasso, GROUPS, PARAMS), "the class GroupLasso"),
    (of(sslx.penalty_value, LASSO, PARAMS, GROUPS), NO_GROUPS),
    # transformations
    (of(sslx.proximal, GROUPS, LASSO, 0.1), "penalty must be a Penalty, got Groups"),
    (of(sslx.proximal, LASSO, PARAMS, 0.1), NO_GROUPS),
    (proximal(-0.1), "proximal: learning_rate must be >= 0, got -0.1"),
    (proximal("0.1"), "proximal: learning_rate must be a number, got '0.1'"),
    (proximal(0.1, strength=-1.0), "proximal: strength must be >= 0, got -1.0"),
    (proximal(0.1, overlap="none"), "'dykstra', got 'none'"),
    (of(sslx.subgradient, sslx.GroupL0(0.1), GROUPS), "no useful subgradient"),
    (of(sslx.subgradient, LASSO, PARAMS), NO_GROUPS),
    (of(sslx.zero_threshold, -1e-4), "threshold must be >= 0, got -0.0001"),
    (of(sslx.zero_threshold, NAN), "threshold must be >= 0, got nan"),
    (of(sslx.keep_zeros, PARAMS), NO_GROUPS),
    (
        lambda: sslx.keep_zeros(GROUPS).update(PARAMS, optax.EmptyState()),
        "call tx.update(grads, state, params)",
    ),
    # selection
    (of(select.keep, SCORES, GROUPS, 0.5), NO_GROUPS),
    (of(select.keep, GROUPS, {"c": np.ones(6)}, 0.5), "scores: unknown class c"),
    (of(select.keep, GROUPS, np.ones(6), 0.5), "scores must be a Mapping"),
    (keep(), "exactly one of density and budget"),
    (keep(0.5, budget=3), "give exactly one"),
    (keep(1.5), "keep: density must be from 0 to 1, got 1.5"),
    (keep(-0.5), "keep: density must be from 0 to 1, got -0.5"),
    (keep(NAN), "keep: density must be from 0 to 1, got nan"),
    (keep("half"), "density must be a number, got 'half'"),
    (keep({A: 2.0}), f"density of {A} must be from 0 to 1, got 2.0"),
    (keep({"c": 0.5}), "densities for unknown classes ['c']"),
    (keep({A: 0.5}, scope="global"), "densities by class go with scope='class'"),
    (keep(0.5, scope="all"), "scope must be 'class' or 'global', got 'all'"),
    (keep(0.5, minimum=-1), "minimum must be whole and >= 0, got -1"),
    (keep(0.5, minimum=1.5), "minimum must be whole and >= 0, got 1.5"),
    (keep(0.5, minimum=np.inf), "minimum must be whole and >= 0, got inf"),
    (keep(0.5, round_to=0), "round_to must be whole and >= 1, got 0"),
    (keep(0.5, ignore="c"), "ignore 'c' matches nothing"),
    (keep(0.5, ignore="("), "keep: ignore: '(' is no regular expression"),
    (keep(0.5, within={A: np.ones(6, bool)}), "nothing for the classes"),
    (keep(0.5, within={A: np.ones(6), B: np.ones(2)}), "masks must be boolean"),
    (keep(0.5, within={A: np.ones(5, bool)}), "must have shape (6,), got (5,)"),
    (keep(0.5, costs={A: np.ones(6)}), "costs: nothing for the classes"),
    (keep(0.5, costs={A: -np.ones(6), B: np.ones(2)}), f"costs of {A} must be >= 0"),
    (keep(budget=-1), "budget must be >= 0, got -1"),
    (keep(budget=NAN), "budget must be >= 0, got nan"),
    (keep(budget=1, ignore="a/"), "the ignored classes cost 24, the budget is 1"),
    (
        of(select.keep, BOTH, {c.name: c.sizes for c in BOTH.classes}, budget=9),
        "only over groups that share no entry",
    ),
    (n_of_m(0.5, m=0, axis=0), "m must be whole and >= 1, got 0"),
    (n_of_m(0.5, m=4, axis=0), "must be a multiple of 4"),
    (n_of_m(0.5, m=2, axis=3), "axis 3 of (6,)"),
    (n_of_m(1.5, m=2, axis=0), "n_of_m: density must be from 0 to 1, got 1.5"),
    (prune(1.5), "prune: density must be from 0 to 1, got 1.5"),
    (prune(0.5, every=0), "prune: every must be whole and >= 1, got 0"),
    (prune(0.5, until=-1), "prune: until must be whole and >= 0, got -1"),
    (of(select.prune, PARAMS, 0.5), NO_GROUPS),
    (of(select.one_cycle, 1.5, 10), "final must be from 0 to 1, got 1.5"),
    (of(select.one_cycle, 0.5, 0), "steps must be whole and >= 1, got 0"),
    (of(select.one_cycle, 0.5, 10, begin=-1), "begin must be whole and >= 0, got -1"),
    (of(select.within_budget, dict, len, NAN), "budget must be >= 0, got nan"),
    (of(select.within_budget, dict, len, 1, tolerance=0), "tolerance must be from"),
    (of(select.only, GROUPS, "c"), "no leaf matches 'c'"),
    (of(select.only, GROUPS, "("), "only: pattern: '(' is no regular expression"),
    (of(select.taylor, GROUPS, PARAMS, sum, order=3), "order must be 1 or 2, got 3"),
    (of(select.taylor, GROUPS, PARAMS, sum, probes=0), "probes must be whole and >= 1"),
    (of(select.macs_of, GROUPS, 3), "cost must be a Cost, got int"),
    (of(select.bytes_of, GROUPS, {"a": PARAMS["a"]}), "no leaf b/kernel"),
    (of(measure.cost, sum), "got no arguments"),
    # learned structure
    (new(psp.Threshold, -1.0), "epsilon must be >= 0, got -1.0"),
    (new(psp.FixedSparsity, 1.5), "sparsity must be from 0 to 1.0, got 1.5"),
    (of(psp.init, PARAMS, GROUPS), NO_GROUPS),
    (of(psp.fold, GROUPS, STATE, 0.1), "gate must be a Gate, got float"),
    (
        of(psp.fold, GROUPS, PARAMS, psp.Threshold(0.1)),
        "must be a Parameters, got dict",
    ),
    (of(psp.materialize, GROUPS, STATE, psp.Threshold(0), gradient="x"), "got 'x'"),
    (of(psp.sgd, -0.1), "sgd: learning_rate must be >= 0, got -0.1"),
    (of(psp.sgd, 0.1, momentum=1.5), "momentum must be from 0 to 1.0, got 1.5"),
    (of(psp.sss, 0.1, strength=-1.0), "strength must be >= 0, got -1.0"),
    (of(psp.optimizer, 0.1, psp.sgd(0.1)), "optimizer: weights must be a Gradient"),
    # plans
    (of(sslx.apply_plan, PARAMS, PLAN), "plan must be a Plan, got dict"),
    (of(sslx.apply_plan, PLAN, {"a": {"kernel": np.ones((4, 5))}}), "shape (4, 5)"),
]


@pytest.mark.parametrize(("call", "text"), CASES, ids=[text for _, text in CASES])
def test_wrong_calls_say_what_is_wrong(call, text):
    with pytest.raises((TypeError, ValueError, KeyError), match=re.escape(text)):
        call()


@pytest.mark.parametrize("dtype", ["int8", "bool", "float8_e4m3fn", "bfloat16", "c8"])
def test_leaves_of_other_types_have_the_obvious_meaning(dtype):
    tree = {"k": jnp.asarray([[1, 0, 1], [1, 0, 0]]).astype(dtype)}
    groups = sslx.groups(tree, {"k": sslx.FILTER})
    (norms,) = sslx.norms(groups, tree).values()
    np.testing.assert_allclose(norms, [2**0.5, 0, 1], rtol=1e-6)
    kept = sslx.scale(groups, tree, {"k:FILTER": jnp.asarray([True, True, False])})
    assert kept["k"].dtype == tree["k"].dtype
    assert np.asarray(kept["k"] != 0).tolist() == [[True, False, False]] * 2


def test_multipliers_that_are_arrays_of_one_leave_groups_hashable():
    weighted = of(sslx.Groups.weighted, GROUPS, {"a": jnp.float32(2)})()
    assert weighted == GROUPS.weighted({"a": 2.0})
    assert hash(weighted) == hash(GROUPS.weighted({"a": 2.0}))
