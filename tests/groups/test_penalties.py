"""Penalties: each proximal operator is proved optimal, not compared to examples."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from sslx._groups.groups import (
    CHANNEL,
    FILTER,
    KERNEL,
    LAYER,
    SHAPE,
    VECTOR,
    WEIGHT,
    GroupClass,
    Groups,
    Member,
    alive,
    coupled,
    groups,
    norms,
)
from sslx._groups.penalties import (
    GroupElastic,
    GroupHalf,
    GroupL0,
    GroupLasso,
    GroupMCP,
    GroupSCAD,
    SparseGroupLasso,
)
from sslx._groups.prox import penalty_value, prox

PENALTIES = [
    GroupLasso,
    SparseGroupLasso,
    GroupElastic,
    GroupL0,
    GroupHalf,
    GroupMCP,
    GroupSCAD,
]
ALL = pytest.mark.parametrize("kind", PENALTIES)
CONVEX = pytest.mark.parametrize("kind", [k for k in PENALTIES if k.convex])
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def arrays(shape=(4, 5)):
    width = st.sampled_from([0.125, 3.0, 30.0])
    return width.flatmap(
        lambda w: hnp.arrays(np.float64, shape, elements=st.floats(-w, w, width=32))
    )


steps = st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.5, 3.5, 6.0])
strengths = st.sampled_from([0.1, 1.0, 2.0])


@ALL
@given(data=st.data())
def test_factor_minimises_over_a_grid(kind, data):
    penalty, step = kind(data.draw(strengths)), data.draw(steps)
    n = data.draw(st.floats(0, 12))
    with jax.enable_x64(True):
        grid = jnp.append(jnp.linspace(0, n + 1, 4001), n)
        objective = lambda z: (z - n) ** 2 / 2 + step * penalty.value(z)
        factor = penalty.factor(jnp.asarray(n), step)
        found = objective(factor * n)
        assert 0 <= factor <= 1
        assert found <= jnp.min(objective(grid)) + 1e-9 * (1 + n**2)


@ALL
@BOTH
@given(data=st.data())
def test_prox_satisfies_the_optimality_condition(kind, dtype, data):
    """`0 in z - x + t * dP(z)`, with the l1 term where there is one."""
    penalty, t = kind(data.draw(strengths)), data.draw(steps)
    with jax.enable_x64(True):
        x = data.draw(arrays()).astype(dtype)
        made = groups({"k": x}, {"k": FILTER})
        z = np.asarray(prox(penalty, made, {"k": x}, t)["k"])
        assert z.dtype == dtype
        l1 = t * float(penalty.entry_strength or 0)
        slope = jax.grad(lambda n: jnp.sum(penalty.value(n)))
        tolerance = 30 * np.finfo(dtype).eps * (1 + t + np.abs(x).max()) ** 2
        for x_g, z_g in zip(x.T, z.T, strict=True):
            n = np.linalg.norm(z_g)
            if n > 0:
                pull = t * np.asarray(slope(jnp.asarray([n])))[0] * z_g / n
                residual = x_g - z_g - pull - l1 * np.sign(z_g)
                allowed = np.where(z_g == 0, l1, 0)
                assert np.all(np.abs(residual) <= allowed + tolerance)
            elif penalty.convex:
                left = np.maximum(np.abs(x_g) - l1, 0)
                at_zero = np.asarray(slope(jnp.asarray([1e-30])))[0]
                assert np.linalg.norm(left) <= t * at_zero + tolerance


@CONVEX
@given(data=st.data())
def test_convex_prox_does_not_expand(kind, data):
    penalty, t = kind(data.draw(strengths)), data.draw(steps)
    x, y = data.draw(arrays()), data.draw(arrays())
    made = groups({"k": x}, {"k": SHAPE})
    with jax.enable_x64(True):
        near = [np.asarray(prox(penalty, made, {"k": v}, t)["k"]) for v in (x, y)]
    distance = np.linalg.norm(x - y)
    assert np.linalg.norm(near[0] - near[1]) <= distance * (1 + 1e-12) + 1e-12


@ALL
def test_factor_is_exact_at_the_ends(kind):
    penalty = kind(0.5)
    norm = jnp.array([0.0, 1e-6, 1e3])
    assert penalty.factor(norm, 1.0)[:2].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(kind(0.5).factor(norm[1:], 0.0), 1.0)
    np.testing.assert_array_equal(kind(0.0).factor(norm[1:], 1.0), 1.0)
    if not penalty.convex and kind is not GroupHalf:
        assert penalty.factor(norm, 1.0)[2] == 1.0
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(penalty.factor)(norm, 1.0))))
    assert bool(jnp.all(jnp.isfinite(jax.jacobian(penalty.value)(norm))))


@ALL
def test_single_and_half_precision_keep_their_type(kind):
    tree = {"k": jnp.ones((3, 4), jnp.bfloat16), "j": jnp.ones((3, 4))}
    made = groups(tree, {".": FILTER})
    small = prox(kind(0.1, scale_by_size=True), made, tree, 0.1)
    assert small["k"].dtype == jnp.bfloat16 and small["j"].dtype == jnp.float32


@ALL
def test_weights_multiply_the_whole_penalty(kind):
    """Weight 2 and sqrt(size) act like a longer step, on value and operator."""
    tree = {"k": np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)}
    made = groups(tree, {"k": KERNEL})
    penalty, sized = kind(0.2), kind(0.2, scale_by_size=True)
    if penalty.entry_strength is not None:
        penalty, sized = kind(0.2, 0.0), kind(0.2, 0.0, scale_by_size=True)
    once = penalty_value(penalty, made, tree)
    np.testing.assert_allclose(penalty_value(sized, made, tree), 3 * once, rtol=1e-5)
    double = made.weighted({".": 2.0})
    np.testing.assert_allclose(penalty_value(sized, double, tree), 6 * once, rtol=1e-5)
    np.testing.assert_allclose(
        prox(sized, double, tree, 0.5)["k"], prox(penalty, made, tree, 3.0)["k"], 1e-5
    )


def test_sizes_of_uneven_groups_weigh_each_group():
    tree = {"k": np.ones((2, 3), np.float32)}
    unit = GroupClass("u", (2,), (Member("k", (2, 3), (2, 3), (1,), (0, 0, 1)),))
    value = penalty_value(GroupLasso(1.0, scale_by_size=True), Groups((unit,)), tree)
    np.testing.assert_allclose(value, 2 * 2 + np.sqrt(2) * np.sqrt(2), rtol=1e-6)


def test_l1_counts_covered_entries_once():
    tree = {"k": np.full((2, 3), -2.0, np.float32), "rest": np.ones(3, np.float32)}
    penalty = SparseGroupLasso(1.0, ratio=1.0)
    both = groups(tree, {"k": FILTER | CHANNEL})
    assert penalty_value(penalty, both, tree) == 12.0
    unit = GroupClass("u", (1,), (Member("k", (2, 3), (2, 3), (1,), (0, -1, 0)),))
    part = Groups((unit,))
    assert penalty_value(penalty, part, tree) == 8.0
    small = prox(penalty, part, tree, 0.5)
    np.testing.assert_allclose(small["k"], [[-1.5, -2.0, -1.5]] * 2)
    assert small["rest"] is tree["rest"]


exactly = functools.partial(prox, overlap="dykstra")


def names(structures):
    return "+".join(map(str, structures)) if isinstance(structures, tuple) else None


def dual_reference(x, families, step, sweeps=4000):
    """prox of a sum of group lassos: accelerated projected gradient on its dual.

    `min |x - sum_k p_k|^2 / 2` over `|p_k,g| <= step` for every group g of family k,
    a family being a function that broadcasts group norms over the array.
    """
    duals = [np.zeros_like(x) for _ in families]
    ahead, momentum = list(duals), 1.0
    for _ in range(sweeps):
        gap = x - sum(ahead)
        moved = []
        for dual, norm in zip(ahead, families, strict=True):
            at = dual + gap / len(families)
            moved.append(at / np.maximum(1, norm(at) / step))
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        rate = (momentum - 1) / following
        ahead = [
            new + rate * (new - old) for new, old in zip(moved, duals, strict=True)
        ]
        duals, momentum = moved, following
    return x - sum(duals)


def over(*axes):
    return lambda z: np.sqrt(np.sum(z**2, axis=axes, keepdims=True))


FAMILIES = {
    FILTER: over(0, 1, 2),
    CHANNEL: over(0, 1, 3),
    SHAPE: over(3),
    KERNEL: over(0, 1),
    VECTOR: over(1),
    WEIGHT: over(),
    LAYER: over(0, 1, 2, 3),
}


def uneven(shape, seed):
    """Weights whose groups differ a lot in norm."""
    random = np.random.default_rng(seed)
    spread = [random.uniform(0.1, 1.5, n) for n in shape[-2:]]
    return random.normal(size=shape) * spread[0][:, None] * spread[1]


@pytest.mark.parametrize(
    ("structures", "step"),
    [
        ((FILTER, CHANNEL), 0.05),
        ((FILTER, CHANNEL), 0.6),
        ((FILTER, SHAPE), 0.4),
        ((FILTER, CHANNEL, LAYER), 0.4),
        ((SHAPE, KERNEL, VECTOR), 0.03),
    ],
    ids=names,
)
def test_dykstra_is_the_exact_operator(x64, structures, step):
    x = uneven((2, 2, 4, 5), 3)
    joined = structures[0]
    for structure in structures[1:]:
        joined = joined | structure
    made = groups({"k": x}, {"k": joined})
    exact = dual_reference(x, [FAMILIES[s] for s in structures], step)
    solved = prox(GroupLasso(1.0), made, {"k": x}, step, overlap="dykstra")
    np.testing.assert_allclose(solved["k"], exact, atol=1e-6)
    cheap = prox(GroupLasso(1.0), made, {"k": x}, step)
    assert np.abs(cheap["k"] - exact).max() > 1e-5
    for name, norm in zip(made.names, norms(made, solved).values(), strict=True):
        by_reference = norms(made, {"k": exact})[name]
        assert np.all(norm[by_reference < 1e-9] == 0)


CROSSING = groups({"k": np.zeros((3, 4))}, {"k": FILTER | CHANNEL})
CROSSING = CROSSING.weighted({"FILTER": 0.4})


@functools.partial(jax.jit, static_argnums=0)
def solve_and_look_around(penalty, x, step, aside, inward):
    """Objective at the operator's result, and at points near it."""
    z = exactly(penalty, CROSSING, {"k": x}, step)["k"]

    def objective(z):
        value = penalty_value(penalty, CROSSING, {"k": z})
        return jnp.sum((z - x) ** 2) / 2 + step * value

    return objective(z), jax.vmap(objective)(z[None] * (1 - inward) + aside)


@pytest.mark.parametrize(
    "penalty", [SparseGroupLasso(1.0, 0.3), GroupElastic(1.0, 0.7), GroupLasso(1.0)]
)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.3, 1.0, 2.0]))
def test_dykstra_leaves_no_better_point_nearby(penalty, seed, step):
    x = uneven((3, 4), seed)
    random = np.random.default_rng(seed)
    aside = random.normal(size=(200, 3, 4))
    aside *= random.choice([1e-3, 1e-2, 0.1], (200, 1, 1))
    aside *= random.choice([0.0, 1.0], aside.shape)
    inward = random.choice([0.0, 0.0, 0.1, 1.0], (200, 1, 4))
    with jax.enable_x64(True):
        at, near = solve_and_look_around(penalty, x, step, aside, inward)
        assert at <= np.min(near) + 1e-8


@pytest.mark.parametrize(
    "structures",
    [(LAYER, FILTER, KERNEL, WEIGHT), (WEIGHT, LAYER, CHANNEL), (VECTOR, FILTER)],
    ids=names,
)
@pytest.mark.parametrize("overlap", ["sequential", "dykstra"])
def test_nested_groups_are_exact_in_any_order(x64, structures, overlap):
    x = uneven((2, 2, 4, 5), 5)
    joined = structures[0]
    for structure in structures[1:]:
        joined = joined | structure
    made = groups({"k": x}, {"k": joined})
    exact = dual_reference(x, [FAMILIES[s] for s in structures], 0.15)
    solved = prox(GroupLasso(1.0), made, {"k": x}, 0.15, overlap=overlap)["k"]
    np.testing.assert_allclose(solved, exact, atol=1e-6)
    assert np.all(np.asarray(solved)[np.abs(exact) < 1e-9] == 0)


def test_dykstra_solves_coupled_groups_that_cross(x64):
    """Leaves tied by a coupled class are solved together."""
    a, b = uneven((4, 5), 1), uneven((5, 3), 2)
    tree = {"a": a, "b": b}
    made = coupled(tree, {"a": FILTER, "b": CHANNEL}) + groups(tree, {"^a": CHANNEL})
    joint = np.concatenate([a, b.T])

    def hidden(z):
        return np.sqrt(np.sum(z**2, axis=0, keepdims=True))

    def inputs(z):
        rows = np.sqrt(np.sum(z**2, axis=1, keepdims=True))
        return np.where(np.arange(7)[:, None] < 4, rows, np.inf)

    exact = dual_reference(joint, [hidden, inputs], 0.5)
    solved = prox(GroupLasso(1.0), made, tree, 0.5, overlap="dykstra")
    np.testing.assert_allclose(solved["a"], exact[:4], atol=1e-6)
    np.testing.assert_allclose(solved["b"], exact[4:].T, atol=1e-6)


@pytest.mark.parametrize("overlap", ["sequential", "dykstra"])
def test_dead_groups_are_exactly_zero(overlap):
    x = {"k": uneven((3, 3, 16, 16), 0).astype(np.float32)}
    made = groups(x, {"k": FILTER | CHANNEL})
    small = jax.jit(lambda x: prox(GroupLasso(1.0), made, x, 4.0, overlap=overlap))(x)
    dead = {name: ~np.asarray(live) for name, live in alive(made, small).items()}
    assert all(0 < marks.sum() < 16 for marks in dead.values())
    removed = np.asarray(small["k"])[..., dead["k:FILTER"]]
    assert not removed.view(np.int32).any(), "+0.0 to the bit"


def test_values_are_the_formulas():
    tree = {"k": np.array([[3.0, 0.0], [4.0, 1.0]], np.float32)}
    made = groups(tree, {"k": FILTER})  # norms 5, 1
    expected = {
        GroupLasso(2.0): 12.0,
        SparseGroupLasso(2.0, ratio=0.25): 1.5 * 6 + 0.5 * 8,
        GroupElastic(2.0, ratio=0.5): 6.0 + 13.0,
        GroupL0(2.0): 4.0,
        GroupHalf(2.0): 2 * (np.sqrt(5) + 1),
        GroupMCP(2.0, gamma=2.0): 4.0 + (2 - 1 / 4),
        GroupSCAD(2.0, a=3.0): (4 * 3 * 5 - 25 - 4) / 4 + 2.0,
    }
    for penalty, value in expected.items():
        np.testing.assert_allclose(penalty_value(penalty, made, tree), value, rtol=1e-6)


def test_gradient_of_the_value_is_the_paper_subgradient():
    w = uneven((3, 4), 0).astype(np.float32)
    w[:, 1] = 0
    made = groups({"k": w}, {"k": FILTER | CHANNEL})
    got = jax.grad(lambda t: penalty_value(GroupLasso(0.5), made, t))(
        {"k": jnp.array(w)}
    )
    columns = np.linalg.norm(w, axis=0, keepdims=True)
    columns[columns == 0] = 1
    rows = np.linalg.norm(w, axis=1, keepdims=True)
    np.testing.assert_allclose(got["k"], 0.5 * (w / columns + w / rows), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GroupLasso(-1.0),
            "GroupLasso: strength must be >= 0, got -1",
        ),
        (lambda: GroupL0(float("nan")), "GroupL0: strength must be"),
        (lambda: SparseGroupLasso(1.0, 1.5), "ratio must be from 0 to 1.0, got 1.5"),
        (lambda: GroupElastic(1.0, -0.5), "GroupElastic: ratio must be"),
        (lambda: GroupMCP(1.0, gamma=0.0), "gamma must be > 0, got 0.0"),
        (lambda: GroupSCAD(1.0, a=2.0), "a must be > 2, got 2.0"),
    ],
)
def test_bad_constants_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dykstra_refuses_penalties_that_are_not_convex():
    tree = {"k": np.ones((2, 2), np.float32)}
    made = groups(tree, {"k": FILTER | CHANNEL})
    with pytest.raises(ValueError, match=r"GroupMCP is not convex, .*'sequential'"):
        prox(GroupMCP(1.0), made, tree, 0.1, overlap="dykstra")
