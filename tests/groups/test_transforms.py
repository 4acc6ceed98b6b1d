"""One contract for every transformation, then what each is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sslx._groups.groups import CHANNEL, FILTER, alive, groups, norms
from sslx._groups.penalties import GroupL0, GroupLasso, GroupMCP, SparseGroupLasso
from sslx._groups.prox import prox
from sslx._groups.transforms import (
    ProximalState,
    keep_zeros,
    proximal,
    subgradient,
    zero_threshold,
)
from tests.arrays import normals

LASSO = GroupLasso(0.5)


def parameters(seed=0):
    normal = normals(seed)
    return {
        "conv": {"kernel": normal(3, 3, 4, 6), "bias": normal(6)},
        "dense": {"kernel": normal(6, 5)},
    }


GROUPS = groups(parameters(), {"kernel": FILTER})


def goal():
    """Filter 0 of the convolution and output 1 of the dense layer are zero."""
    point = parameters(1)
    point["conv"]["kernel"] = point["conv"]["kernel"].at[..., 0].set(0.0)
    point["dense"]["kernel"] = point["dense"]["kernel"].at[:, 1].set(0.0)
    return point


def parabola(params):
    gaps = jax.tree.map(lambda p, g: jnp.sum((p - g) ** 2) / 2, params, goal())
    return sum(jax.tree.leaves(gaps))


def last(transform):
    """After SGD, where transformations that shape the step go."""
    return optax.chain(optax.sgd(0.1, momentum=0.5), transform)


CONTRACT = {
    "proximal": lambda: last(proximal(LASSO, GROUPS, 0.1)),
    "proximal-schedule": lambda: last(
        proximal(LASSO, GROUPS, optax.constant_schedule(0.1))
    ),
    "proximal-strength": lambda: last(
        proximal(LASSO, GROUPS, 0.1, strength=optax.linear_schedule(0.0, 0.5, 20))
    ),
    "proximal-dykstra": lambda: last(
        proximal(
            LASSO,
            groups(parameters(), {"kernel": FILTER | CHANNEL}),
            0.1,
            overlap="dykstra",
        )
    ),
    "proximal-mcp": lambda: last(proximal(GroupMCP(0.5), GROUPS, 0.1)),
    "proximal-l1": lambda: last(proximal(SparseGroupLasso(0.5), GROUPS, 0.1)),
    "subgradient": lambda: optax.chain(subgradient(LASSO, GROUPS), optax.sgd(0.1)),
    "subgradient-cut": lambda: optax.chain(
        subgradient(LASSO, GROUPS), optax.sgd(0.1), zero_threshold(1e-4)
    ),
    "zero_threshold": lambda: last(zero_threshold(1e-4)),
    "keep_zeros": lambda: last(keep_zeros(GROUPS)),
    "keep_zeros-entries": lambda: last(keep_zeros()),
}
EVERY = pytest.mark.parametrize("name", CONTRACT)


def train(tx, params, steps=150, loss=parabola):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1, "the second step was compiled again"
    return params, state


@EVERY
def test_converges_without_compiling_twice(name):
    params, state = train(CONTRACT[name](), parameters())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    bias = goal()["conv"]["bias"]
    np.testing.assert_allclose(params["conv"]["bias"], bias, atol=1e-4)
    assert parabola(params) < 0.3 * parabola(parameters())


@EVERY
def test_keeps_types_and_takes_extra_arguments(name):
    tx, params = CONTRACT[name](), parameters()
    tx = optax.with_extra_args_support(tx)
    updates, _ = tx.update(params, tx.init(params), params, value=1.0, other=None)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(
        lambda x: x.dtype, params
    )


@EVERY
def test_says_that_it_needs_the_parameters(name):
    tx, params = CONTRACT[name](), parameters()
    with pytest.raises(ValueError, match=r"call tx.update\(grads, state, params\)"):
        tx.update(params, tx.init(params))


@EVERY
def test_works_on_a_part_of_the_parameters(name):
    """In `multi_transform` the other leaves are masked, and stay as they are."""
    params = parameters()
    labels = {"conv": "train", "dense": "freeze"}
    parts = {"train": CONTRACT[name](), "freeze": optax.set_to_zero()}
    trained, _ = train(optax.multi_transform(parts, labels), params, steps=5)
    np.testing.assert_array_equal(trained["dense"]["kernel"], params["dense"]["kernel"])
    assert np.abs(trained["conv"]["bias"] - params["conv"]["bias"]).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_proximal_reaches_the_optimum_with_exact_zeros(momentum):
    """The loss plus `(1 - momentum)` of the penalty is minimal at `prox(goal)`."""
    optimiser = optax.sgd(0.1, momentum=momentum)
    penalty = GroupLasso(0.5 / (1 - momentum))
    tx = optax.chain(optimiser, proximal(penalty, GROUPS, 0.1))
    params, state = train(tx, parameters(), 300)
    expected = prox(LASSO, GROUPS, goal(), 1.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected
    )
    got, wanted = alive(GROUPS, params), alive(GROUPS, expected)
    for name in GROUPS.names:
        np.testing.assert_array_equal(got[name], wanted[name])
    assert not got["conv/kernel:FILTER"][0] and not got["dense/kernel:FILTER"][1]
    assert isinstance(state[1], ProximalState) and state[1].count == 300


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("update_dtype", [jnp.float32, jnp.bfloat16])
def test_zeros_are_exact_in_any_precision(dtype, update_dtype):
    random = np.random.default_rng(0)
    params = {"k": jnp.asarray(random.normal(size=(64, 32)) * 3, dtype)}
    updates = {"k": jnp.asarray(random.normal(size=(64, 32)), update_dtype)}
    made = groups(params, {"k": FILTER})
    median = float(jnp.median(norms(made, params)["k:FILTER"]))
    for tx in (proximal(GroupLasso(1.0), made, median), zero_threshold(1.0)):
        state = tx.init(params)
        step = jax.jit(
            lambda p, u, s, tx=tx: optax.apply_updates(p, tx.update(u, s, p)[0])
        )
        new = step(params, updates, state)["k"]
        assert new.dtype == dtype
        zero = np.asarray(new) == 0
        assert 0.05 < zero.mean() < 0.95
        smallest = np.abs(np.asarray(new, np.float32)[~zero]).min()
        assert smallest > 1e-6


def test_proximal_follows_the_schedule():
    """Step t is scaled by the learning rate of step t, as the optimiser's is."""
    schedule = optax.piecewise_constant_schedule(1.0, {1: 0.5, 2: 0.0})
    params = {"k": jnp.full((4, 1), 5.0)}  # norm 10
    made = groups(params, {"k": FILTER})
    tx = optax.chain(optax.sgd(schedule), proximal(GroupLasso(2.0), made, schedule))
    state, sizes = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"k": jnp.zeros((4, 1))}, state, params)
        params = optax.apply_updates(params, updates)
        sizes.append(float(norms(made, params)["k:FILTER"][0]))
    np.testing.assert_allclose(sizes, [8.0, 7.0, 7.0, 7.0], rtol=1e-6)


def test_hyperparameters_can_be_injected():
    params = parameters()

    @optax.inject_hyperparams
    def optimiser(learning_rate, strength):
        return optax.chain(
            optax.sgd(learning_rate),
            proximal(GroupLasso(1.0), GROUPS, learning_rate, strength=strength),
        )

    plain = optax.chain(optax.sgd(0.1), proximal(GroupLasso(0.5), GROUPS, 0.1))
    injected, state = train(optimiser(0.1, 0.5), params, 20)
    expected, _ = train(plain, params, 20)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), injected, expected
    )
    state.hyperparams["strength"] = jnp.asarray(1e3)
    updates, _ = optimiser(0.1, 0.5).update(jax.grad(parabola)(params), state, params)
    assert not optax.apply_updates(params, updates)["conv"]["kernel"].any()

    lr = optax.constant_schedule(0.1)
    inject = optax.inject_hyperparams(proximal)
    direct = inject(GroupLasso(1.0), GROUPS, learning_rate=lr, strength=0.5)
    updates, _ = direct.update(params, direct.init(params), params)
    fixed = proximal(GroupLasso(0.5), GROUPS, 0.1)
    wanted, _ = fixed.update(params, fixed.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, wanted
    )


@pytest.mark.parametrize("optimiser", [optax.adam, optax.adamw, optax.rmsprop])
def test_after_adaptive_optimisers_the_metric_is_euclidean(optimiser):
    params = parameters()
    grads = jax.grad(parabola)(params)
    adaptive = optimiser(0.1)
    updates, _ = adaptive.update(grads, adaptive.init(params), params)
    moved = optax.apply_updates(params, updates)
    tx = optax.chain(optimiser(0.1), proximal(GroupLasso(3.0), GROUPS, 0.1))
    both, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        optax.apply_updates(params, both),
        prox(GroupLasso(3.0), GROUPS, moved, 0.1),
    )


def test_leaves_outside_the_groups_get_the_optimisers_update():
    params = parameters()
    tx = proximal(GroupLasso(1.0), GROUPS, 0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["conv"]["bias"] is params["conv"]["bias"]


def test_subgradient_is_the_papers():
    """`strength * w / norm` is added, nothing where the norm is 0."""
    params = goal()
    tx = subgradient(GroupLasso(0.5), GROUPS.weighted({"dense": 2.0}))
    zeros = jax.tree.map(jnp.zeros_like, params)
    added, _ = tx.update(zeros, tx.init(params), params)
    kernel = np.asarray(params["conv"]["kernel"])
    dense = np.asarray(params["dense"]["kernel"])
    norm = np.linalg.norm(np.reshape(kernel, (-1, 6)), axis=0)
    norm[0] = 1
    np.testing.assert_allclose(added["conv"]["kernel"], 0.5 * kernel / norm, rtol=1e-5)
    norm = np.linalg.norm(dense, axis=0)
    norm[1] = 1
    np.testing.assert_allclose(added["dense"]["kernel"], dense / norm, rtol=1e-5)
    assert not added["conv"]["bias"].any()
    with pytest.raises(ValueError, match="GroupL0 has no useful subgradient"):
        subgradient(GroupL0(1.0), GROUPS)


def test_threshold_cuts_what_the_step_would_leave_small():
    params = {"w": jnp.array([1.0, 2e-4, 5e-5, 0.0, -3e-5])}
    updates = {"w": jnp.array([-0.99995, 0.0, 1.0, 2e-4, -3e-5])}
    tx = zero_threshold()
    new = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    np.testing.assert_allclose(new["w"], [0.0, 2e-4, 1.00005, 2e-4, 0.0], rtol=1e-6)
    assert new["w"][0] == 0 and new["w"][4] == 0


def test_zero_groups_stay_zero_whatever_the_optimiser_remembers():
    """Momentum from before, noise in the gradient: dead groups do not come back."""
    params, _ = train(last(proximal(GroupLasso(4.0), GROUPS, 0.1)), parameters(), 60)
    before = alive(GROUPS, params)
    assert any(not live.all() for live in before.values())

    def noisy(p):
        return parabola(p) + jnp.sum(p["conv"]["kernel"] * 3.0)

    tuned, _ = train(last(keep_zeros(GROUPS)), params, 30, noisy)
    regrown, _ = train(optax.sgd(0.1, momentum=0.5), params, 30, noisy)
    after = alive(GROUPS, tuned)
    for name in GROUPS.names:
        np.testing.assert_array_equal(before[name], after[name])
        dead = ~np.asarray(before[name])
        assert not np.asarray(norms(GROUPS, tuned)[name])[dead].any()
    assert alive(GROUPS, regrown)["conv/kernel:FILTER"].all()


def test_keep_zeros_freezes_groups_or_entries():
    kernel = jnp.ones((3, 4)).at[:, 0].set(0.0).at[1, 2].set(0.0)
    params, updates = {"k": kernel}, {"k": jnp.full((3, 4), 0.5)}
    grouped = keep_zeros(groups(params, {"k": FILTER | CHANNEL}))
    got, _ = grouped.update(updates, grouped.init(params), params)
    np.testing.assert_array_equal(got["k"], updates["k"].at[:, 0].set(0.0))
    single = keep_zeros()
    got, _ = single.update(updates, single.init(params), params)
    np.testing.assert_array_equal(got["k"], jnp.where(kernel == 0, 0.0, 0.5))


def test_mismatched_trees_are_named():
    params = parameters()
    tx = proximal(LASSO, GROUPS, 0.1)
    with pytest.raises(ValueError, match="dense/kernel:FILTER: no leaf dense/kernel"):
        tx.init({"conv": params["conv"]})
    with pytest.raises(ValueError, match=r"differ in the leaves \['dense/kernel'\]"):
        tx.update({"conv": params["conv"]}, tx.init(params), params)


def test_proximal_step_is_small_in_operations():
    """Per class: one square, one sum, a few scalars per group, one product."""
    params = parameters()
    tx = proximal(LASSO, GROUPS, 0.1)
    state = tx.init(params)
    program = jax.make_jaxpr(tx.update)(params, state, params)
    large = [
        eqn.primitive.name
        for eqn in program.eqns
        if any(v.aval.shape == (3, 3, 4, 6) for v in eqn.invars if hasattr(v, "aval"))
    ]
    assert len(large) <= 8, large
