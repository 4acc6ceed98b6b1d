"""Plans as data: composition, and what does not compose."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx


def leaf_plan(rng: np.random.Generator, shape: tuple[int, ...]) -> sslx.LeafPlan:
    kept: list[Any] = []
    zero: list[Any] = []
    for n in shape:
        keep, dead = rng.random(n) < rng.choice([0.2, 0.6, 1.0]), rng.random(n) < 0.5
        kept.append(None if keep.all() else tuple(np.flatnonzero(keep).tolist()))
        zero.append(tuple(np.flatnonzero(dead & ~keep).tolist()) or None)
    return sslx.LeafPlan(shape, tuple(kept), tuple(zero))


@pytest.mark.parametrize("seed", range(40))
def test_two_plans_are_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = leaf_plan(rng, (5, 4))
    second = leaf_plan(rng, first.small_shape)
    both = first.then(second)
    array = rng.normal(size=(5, 4))
    small = both.shrink(array)
    np.testing.assert_array_equal(small, second.shrink(first.shrink(array)))
    wide = first.expand(second.expand(small))
    np.testing.assert_array_equal(both.expand(small), wide)
    for axis in range(2):
        assert set(both.zero[axis] or ()).isdisjoint(both.indices(axis).tolist())
    plans = [sslx.Plan({"a": p}) for p in (first, second, both)]
    assert plans[0].then(plans[1]) == plans[2]
    assert sslx.Plan.from_json(plans[2].to_json()) == plans[2]


def net(p: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]


def test_a_compact_network_compacted_again_has_a_plan_of_the_first() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 6), "b": (6, 5), "c": (5, 2)}
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    x = jnp.ones((2, 3))
    first = sslx.compact(net)({**params, "a": params["a"].at[:, 2:4].set(0)}, x)
    less = {**first.variables, "b": first.variables["b"].at[:, 1].set(0)}
    second = sslx.compact(first.apply)(less, x)
    plan = first.plan.then(second.plan)
    small = sslx.apply_plan(plan, {**params, "b": params["b"].at[:, 1].set(0)})
    jax.tree.map(np.testing.assert_array_equal, small, second.variables)
    with pytest.raises(ValueError, match=r"no plan of what is left:\n  a: \(3, 4\) h"):
        first.plan.then(first.plan)
    with pytest.raises(ValueError, match=r"a: .* here, absent later"):
        first.plan.then(sslx.Plan({}))


def test_trained_variables_are_saved_with_their_network(tmp_path: Any) -> None:
    params = {
        "a": jnp.ones((3, 4)).at[:, 1].set(0),
        "b": jnp.ones((4, 4)),
        "c": jnp.ones((4, 2)),
    }
    small = sslx.compact(net)(params, jnp.ones((2, 3)))
    trained = jax.tree.map(lambda v: v + 1, small.variables)
    sslx.save(tmp_path / "net", small.with_variables(trained))
    loaded = sslx.load(tmp_path / "net", net)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, trained)
    with pytest.raises(ValueError, match=r"a: got shape \(3, 4\), expected \(3, 3\)"):
        small.with_variables(params)
