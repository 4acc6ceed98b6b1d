"""Scores against their definitions, choices against their promises."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis.extra import numpy as hnp

import sslx
from sslx import measure, select
from sslx._groups.groups import (
    BLOCK,
    CHANNEL,
    FILTER,
    KERNEL,
    LAYER,
    SHAPE,
    VECTOR,
    WEIGHT,
    GroupClass,
    Groups,
    coupled,
    groups,
    norms,
    scale,
)
from tests.arrays import normals

GRAINS = [WEIGHT, VECTOR, KERNEL, FILTER, CHANNEL, SHAPE, LAYER, BLOCK(1, 1, 2, 3)]


def parameters(seed=0):
    draw = normals(seed)
    return {
        "conv1": {"kernel": draw(3, 3, 4, 6), "bias": draw(6)},
        "bn1": {"scale": draw(6), "bias": draw(6)},
        "conv2": {"kernel": draw(3, 3, 6, 3)},
    }


PARAMS = parameters()


def hidden():
    """The six hidden channels, everywhere they are."""
    leaves = {
        "conv1/kernel": FILTER,
        "conv1/bias": FILTER,
        "bn1/scale": FILTER,
        "bn1/bias": FILTER,
        "conv2/kernel": CHANNEL,
    }
    return coupled(PARAMS, leaves, name="hidden")


def pairs_of_filters():
    """Filters 0 and 3, 1 and 4 of conv1; 2 and 5 in no group."""
    (only,) = groups(PARAMS, {"conv1/kernel": FILTER}).classes[0].members
    member = sslx.Member(only.path, only.shape, only.view, only.kept, (0, 1, -1) * 2)
    return Groups((GroupClass("pairs", (2,), (member,)),))


def images():
    return normals(7)(5, 6, 6, 4)


def network(params, x):
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    row = lambda v: v[None, None, None]
    y = conv(x, params["conv1"]["kernel"]) + row(params["conv1"]["bias"])
    y = jax.nn.relu(y * row(params["bn1"]["scale"]) + row(params["bn1"]["bias"]))
    return conv(y, params["conv2"]["kernel"]).mean(axis=(1, 2))


def loss(params, x):
    return jnp.mean(jnp.square(network(params, x) - 0.3))


def without(group_set, params, name, index):
    mask = jnp.ones(group_set[name].shape, bool).reshape(-1).at[index].set(False)
    return scale(group_set, params, {name: mask.reshape(group_set[name].shape)})


# Scores


@pytest.mark.parametrize("structure", GRAINS, ids=str)
def test_sum_abs_is_the_sum_of_what_removal_takes(structure):
    every = groups(PARAMS, {"conv1/kernel": structure})
    (name,) = every.names
    score = np.ravel(select.sum_abs(every, PARAMS)[name])
    assert score.shape == (every[name].count,)
    total = jnp.abs(PARAMS["conv1"]["kernel"]).sum()
    for index in {0, score.size // 2, score.size - 1}:
        left = without(every, PARAMS, name, index)["conv1"]["kernel"]
        np.testing.assert_allclose(
            score[index], total - jnp.abs(left).sum(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("make", [hidden, pairs_of_filters])
def test_sum_abs_adds_over_all_slices_of_a_group(make):
    every = make()
    (name,) = every.names
    whole = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(PARAMS))
    for index, score in enumerate(np.ravel(select.sum_abs(every, PARAMS)[name])):
        left = jax.tree.leaves(without(every, PARAMS, name, index))
        rest = sum(float(jnp.abs(leaf).sum()) for leaf in left)
        np.testing.assert_allclose(score, whole - rest, rtol=1e-4)


def test_sum_abs_of_half_precision_sums_in_single():
    tree = {"w": jnp.full((4096, 1), 0.001, jnp.bfloat16)}
    score = select.sum_abs(groups(tree, {"w": FILTER}), tree)["w:FILTER"]
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, 4096 * float(jnp.bfloat16(0.001)), rtol=1e-5)


def test_batch_norm_scores_look_at_the_norm_alone_and_remove_the_channel():
    score = norms(select.only(hidden(), "bn1/scale"), PARAMS)
    np.testing.assert_allclose(score["hidden"], jnp.abs(PARAMS["bn1"]["scale"]))
    pruned = scale(hidden(), PARAMS, select.keep(hidden(), score, 0.5))
    gone = np.argsort(np.abs(PARAMS["bn1"]["scale"]))[:3]
    assert not pruned["conv1"]["kernel"][..., gone].any()
    assert not pruned["conv2"]["kernel"][:, :, gone].any()
    with pytest.raises(ValueError, match="no leaf matches 'bn9': hidden has conv1/k"):
        select.only(hidden(), "bn9")


@pytest.mark.parametrize("make", [hidden, pairs_of_filters])
def test_first_order_is_the_squared_slope_of_removal(make, x64):
    params = jax.tree.map(lambda p: p.astype(float), PARAMS)
    x, every = images().astype(float), make()
    (name,) = every.names
    score = select.taylor(every, params, lambda p: loss(p, x))[name]
    value = jax.jit(lambda factors: loss(scale(every, params, {name: factors}), x))
    ones = np.ones(every[name].shape)
    for index in range(ones.size):
        step = np.zeros(ones.shape)
        step.flat[index] = 1e-5
        up, down = value(ones + step), value(ones - step)
        np.testing.assert_allclose(score[index], ((up - down) / 2e-5) ** 2, rtol=1e-4)


def parabola(params):
    """|A w - b|^2: a second-order expansion foresees removal exactly."""
    random = np.random.default_rng(0)
    matrix, goal = random.normal(size=(7, 12)), random.normal(size=7)
    return jnp.sum(jnp.square(matrix @ params["w"].reshape(-1) - goal))


@pytest.mark.parametrize("structure", [FILTER, WEIGHT], ids=str)
def test_second_order_is_exact_for_a_parabola(structure, x64):
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))}
    every = groups(params, {"w": structure})
    (name,) = every.names
    score = select.taylor(every, params, parabola, order=2)[name]
    for index in range(every[name].count):
        change = parabola(without(every, params, name, index)) - parabola(params)
        np.testing.assert_allclose(np.ravel(score)[index], change**2, rtol=1e-9)


def test_probes_estimate_the_second_order(x64):
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))}
    every = groups(params, {"w": WEIGHT})
    estimate = functools.partial(select.taylor, every, params, parabola, order=2)
    (exact,) = estimate().values()
    probes = {"key": jax.random.key(0), "batch_size": 1000}
    (guess,) = estimate(probes=4000, **probes).values()
    error = np.abs(np.sqrt(guess) - np.sqrt(exact)).max() / np.sqrt(exact).max()
    assert error < 0.1
    with pytest.raises(ValueError, match="probes need a key"):
        estimate(probes=2)


def test_fisher_is_the_mean_of_squared_slopes_of_examples():
    x, every = images(), hidden()
    score = select.fisher(every, PARAMS, loss, x, batch_size=2)["hidden"]
    each = [
        select.taylor(every, PARAMS, lambda p, one=one: loss(p, one[None]))["hidden"]
        for one in x
    ]
    np.testing.assert_allclose(score, np.mean(each, axis=0), rtol=1e-4)


@hypothesis.given(
    hnp.arrays(np.float32, 9, elements=st.floats(0, 9, width=32, allow_subnormal=False))
)
@hypothesis.example(np.full(9, 1.2e-38, np.float32))
def test_lamp_is_its_formula_and_keeps_the_order(magnitudes):
    score = np.asarray(select.lamp({"w": jnp.asarray(magnitudes)})["w"])
    squares = magnitudes.astype(np.float64) ** 2
    order = np.argsort(-squares, kind="stable")
    for place, index in enumerate(order):
        above = squares[order[: place + 1]].sum()
        expected = squares[index] / above if above else 0.0
        np.testing.assert_allclose(score[index], expected, rtol=1e-4, atol=1e-30)
    assert (np.diff(score[order]) <= 1e-6).all()


@pytest.mark.parametrize("make", [hidden, pairs_of_filters])
def test_geometric_median_is_the_sum_of_distances(make):
    every = make()
    (name,) = every.names
    count = every[name].count
    rows = []
    for index in range(count):
        alone = jnp.zeros(count).at[index].set(1)
        if name == "pairs":
            filters = jnp.moveaxis(PARAMS["conv1"]["kernel"], -1, 0)
            rows.append(jnp.ravel(filters[index::3]))
        else:
            kept = scale(every, PARAMS, {name: alone})
            pick = [jnp.moveaxis(kept["conv2"]["kernel"], 2, 0)[index]]
            pick += [kept["conv1"]["kernel"][..., index], kept["conv1"]["bias"][index]]
            pick += [kept["bn1"]["scale"][index], kept["bn1"]["bias"][index]]
            rows.append(jnp.concatenate([jnp.ravel(x) for x in pick]))
    expected = [sum(float(jnp.linalg.norm(a - b)) for b in rows) for a in rows]
    score = select.geometric_median(every, PARAMS)[name]
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_geometric_median_prefers_the_filter_that_nothing_replaces():
    kernel = jnp.zeros((1, 1, 2, 4)).at[..., :3].set(5.0).at[0, 0, :, 3].set(-0.1)
    every = groups({"kernel": kernel}, {"kernel": FILTER})
    (score,) = select.geometric_median(every, {"kernel": kernel}).values()
    assert int(jnp.argmax(score)) == 3
    (member,) = groups(PARAMS, {"conv1/kernel": FILTER}).classes[0].members
    uneven = sslx.Member(
        member.path, member.shape, member.view, (3,), (0, 0, 0, 1, 1, 1)
    )
    lame = sslx.Member(member.path, member.shape, member.view, (3,), (0, 0, 0, 0, 1, 1))
    select.geometric_median(Groups((GroupClass("a", (2,), (uneven,)),)), PARAMS)
    with pytest.raises(ValueError, match="groups have 2 to 4 slices of conv1/kernel"):
        select.geometric_median(Groups((GroupClass("a", (2,), (lame,)),)), PARAMS)


def test_random_scores_differ_between_classes_and_keys():
    every = groups(PARAMS, {"kernel": WEIGHT})
    a, b = (select.random(every, jax.random.key(k)) for k in (0, 1))
    first, second = (np.ravel(a[name])[:20] for name in every.names)
    assert (first != second).all() and (first != np.ravel(b[every.names[0]])[:20]).all()
    assert {name: s.shape for name, s in a.items()} == {
        c.name: c.shape for c in every.classes
    }


# Choices


@st.composite
def choices(draw):
    """Random scores and costs of classes of a few sizes."""
    counts = draw(st.sampled_from([(7, 4), (1, 12)]))
    numbers = lambda n: draw(hnp.arrays(np.int64, n, elements=st.integers(0, 9)))
    return [(numbers(n).astype(np.float32), numbers(n) + 1) for n in counts]


def build(case):
    params = {f"w{i}": np.zeros((2, len(cost))) for i, (_, cost) in enumerate(case)}
    every = groups(params, {"w": FILTER})
    scores = {name: s for name, (s, _) in zip(every.names, case, strict=True)}
    costs = {name: c for name, (_, c) in zip(every.names, case, strict=True)}
    return every, scores, costs


OPTIONS = st.fixed_dictionaries(
    {
        "scope": st.sampled_from(["class", "global"]),
        "minimum": st.integers(0, 4),
        "round_to": st.integers(1, 4),
    }
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_keep_orders_every_kind_of_number(dtype):
    values = [0.0, -np.inf, -0.0, 2.0, np.nan, -2.0, np.inf, -1.0, 2.0, np.nan, 0.0]
    if dtype == jnp.int32:
        values = [3, -7, 0, 2**24, 3, -7]
    score = jnp.asarray(values, dtype)
    every = groups({"w": np.zeros((2, len(values)))}, {"w": FILTER})
    (name,) = every.names
    places = jnp.where(jnp.isnan(score), jnp.inf, score.astype(jnp.float32))
    order = jnp.argsort(-places, stable=True)
    for count in range(len(values) + 1):
        masks = select.keep(every, {name: score}, count / len(values), minimum=0)
        assert set(np.flatnonzero(masks[name])) == set(order[:count].tolist())


@hypothesis.given(choices(), st.booleans(), st.integers(0, 20), OPTIONS)
def test_keep_keeps_its_promises(case, even, twentieths, options):
    every, scores, costs = build(case)
    if even:
        costs = {name: np.full_like(cost, cost[0]) for name, cost in costs.items()}
    density = twentieths / 20
    masks = select.keep(every, scores, density, costs=costs, **options)
    low = options["minimum"]
    forced = 0.0
    for c in every.classes:
        kept, n = int(masks[c.name].sum()), c.count
        assert kept == n or kept % options["round_to"] == 0
        assert kept >= min(low, n)
        order = np.lexsort((np.arange(n), -np.asarray(scores[c.name])))
        assert masks[c.name][order[:kept]].all(), "not the best ones"
        least = min(n, math.ceil(low / options["round_to"]) * options["round_to"])
        best = costs[c.name][order[:least]].sum()
        spent = costs[c.name][np.asarray(masks[c.name])].sum()
        if options["scope"] == "class":
            assert spent <= max(density * costs[c.name].sum() * (1 + 1e-5), best)
        forced += best
    total = sum(costs[c.name].sum() for c in every.classes)
    spent = sum(costs[n][np.asarray(masks[n])].sum() for n in masks)
    assert spent <= max(density * total * (1 + 1e-5), 0) + forced


@hypothesis.given(choices(), st.integers(0, 20), st.sampled_from(["class", "global"]))
def test_keep_fills_the_density_to_the_last_group_that_fits(case, twentieths, scope):
    every, scores, costs = build(case)
    masks = select.keep(
        every, scores, twentieths / 20, costs=costs, scope=scope, minimum=0
    )
    parts = [[c.name] for c in every.classes] if scope == "class" else [every.names]
    for names in parts:
        score = np.concatenate([scores[n] for n in names])
        cost = np.concatenate([costs[n] for n in names])
        order = np.argsort(-score, kind="stable")
        fits = np.cumsum(cost[order]) <= twentieths * cost.sum() / 20 + 1e-3
        expected = np.zeros(cost.size, bool)
        expected[order[fits]] = True
        assert (np.concatenate([masks[n] for n in names]) == expected).all()


@hypothesis.given(choices(), st.integers(0, 20), st.integers(0, 20), OPTIONS)
def test_masks_of_falling_densities_are_nested(case, a, b, options):
    every, scores, costs = build(case)
    choose = functools.partial(select.keep, every, scores, costs=costs, **options)
    small, large = choose(min(a, b) / 20), choose(max(a, b) / 20)
    assert all((small[n] <= large[n]).all() for n in every.names)


def test_one_compiled_choice_serves_all_densities():
    every = groups(PARAMS, {"kernel": KERNEL})
    scores = select.sum_abs(every, PARAMS)
    traced = jax.jit(lambda d: select.keep(every, scores, d, scope="global"))
    for density in (0.0, 0.3, 1.0):
        plain = select.keep(every, scores, density, scope="global")
        for name, mask in traced(density).items():
            np.testing.assert_array_equal(mask, plain[name])
    assert traced._cache_size() == 1


@pytest.mark.parametrize("structure", GRAINS, ids=str)
def test_density_is_the_share_of_weights_at_every_grain(structure):
    every = groups(PARAMS, {"conv1/kernel": structure})
    masks = select.keep(every, select.sum_abs(every, PARAMS), 0.5, minimum=0)
    pruned = scale(every, PARAMS, masks)["conv1"]["kernel"]
    count = every.classes[0].count
    assert jnp.count_nonzero(pruned) == count // 2 * (pruned.size // count)


def test_budget_counts_macs_bytes_and_parameters():
    every = groups(PARAMS, {"kernel": WEIGHT})
    scores = select.sum_abs(every, PARAMS)
    cost = measure.cost(network, PARAMS, images()[:1])
    macs = select.macs_of(every, cost)
    assert {n: v.sum() for n, v in macs.items()} == {
        "conv1/kernel:WEIGHT": cost.layers[0].macs,
        "conv2/kernel:WEIGHT": cost.layers[1].macs,
    }
    for scope in ("class", "global"):
        masks = select.keep(every, scores, budget=5000, costs=macs, scope=scope)
        spent = sum((macs[n] * masks[n]).sum() for n in masks)
        assert 5000 - 72 < spent <= 5000
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    sizes = select.bytes_of(every, half)
    masks = select.keep(every, scores, budget=100, costs=sizes, scope="global")
    assert sum(int(m.sum()) for m in masks.values()) == 50
    masks = select.keep(every, scores, budget=100, scope="global")
    assert sum(int(m.sum()) for m in masks.values()) == 100


def test_macs_of_a_coupled_group_are_those_of_all_its_kernels():
    cost = measure.cost(network, PARAMS, images()[:1])
    (macs,) = select.macs_of(hidden(), cost).values()
    np.testing.assert_allclose(macs, 36 * 9 * (4 + 3))


def test_ignored_classes_stay_whole_and_count_in_a_budget_only():
    every = groups(PARAMS, {"kernel": WEIGHT})
    scores = select.sum_abs(every, PARAMS)
    choose = functools.partial(select.keep, every, scores, ignore=["conv2"])
    for masks in (
        choose(0.5),
        choose(0.5, ignore="conv2"),
        choose(budget=162 + 108),
        choose(0.5, scope="global"),
    ):
        assert masks["conv2/kernel:WEIGHT"].all()
        assert masks["conv1/kernel:WEIGHT"].sum() == 108
    with pytest.raises(ValueError, match="ignored classes cost 162, the budget is 9"):
        choose(budget=9)


def test_within_is_never_left():
    every = groups(PARAMS, {"kernel": WEIGHT})
    before = select.keep(every, select.random(every, jax.random.key(0)), 0.5)
    other = select.random(every, jax.random.key(1))
    for choose in (
        functools.partial(select.keep, every, other, 0.4),
        functools.partial(select.keep, every, other, 0.4, scope="global"),
        functools.partial(select.keep, every, other, 0.9),
    ):
        masks = choose(within=before)
        assert all((masks[n] <= before[n]).all() for n in every.names)
    masks = select.keep(every, other, 0.4, within=before)
    assert masks["conv1/kernel:WEIGHT"].sum() == int(0.4 * 216)
    masks = select.keep(every, other, 0.9, within=before)
    assert all((masks[n] == before[n]).all() for n in every.names)


def test_densities_by_class_leave_others_whole():
    every = groups(PARAMS, {"kernel": FILTER})
    scores = norms(every, PARAMS)
    masks = select.keep(every, scores, {"conv1/kernel:FILTER": 0.5})
    assert [int(m.sum()) for m in masks.values()] == [3, 3]
    with pytest.raises(ValueError, match="unknown classes"):
        select.keep(every, scores, {"conv1": 0.5})


def test_wrong_requests_are_told_what_is_right():
    every = groups(PARAMS, {"kernel": FILTER})
    scores = norms(every, PARAMS)
    with pytest.raises(ValueError, match="exactly one of density and budget"):
        select.keep(every, scores)
    with pytest.raises(ValueError, match="scores: unknown class w; there are"):
        select.keep(every, {"w": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match=r"must have shape \(6,\), got \(3,\)"):
        select.keep(every, {"conv1/kernel:FILTER": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="go with scope='class'"):
        select.keep(every, scores, {"conv1/kernel:FILTER": 0.5}, scope="global")


@pytest.mark.parametrize(("axis", "runs"), [(-2, 1), (-1, 2)])
def test_n_of_m_keeps_n_best_of_every_m(axis, runs):
    m = {-2: 4, -1: 3}[axis]
    every = groups(PARAMS, {"conv1/kernel": WEIGHT})
    scores = select.sum_abs(every, PARAMS)
    (mask,) = select.n_of_m(every, scores, 2 / m, m=m, axis=axis).values()
    moved = lambda x: np.moveaxis(np.asarray(x), axis, -1).reshape(-1, m)
    kept, score = moved(mask), moved(next(iter(scores.values())))
    assert (kept.sum(axis=1) == 2).all() and len(kept) == 216 / m
    best = np.sort(score, axis=1)[:, -2:].sum(axis=1)
    np.testing.assert_allclose((kept * score).sum(axis=1), best, rtol=1e-6)
    with pytest.raises(ValueError, match="must be a multiple of 5"):
        select.n_of_m(every, scores, 0.4, m=5)


def test_exact_costs_are_met_by_bisection():
    every = hidden()
    x = images()[:1]
    calls = []

    def macs(masks):
        calls.append(1)
        small = sslx.compact(network)(scale(every, PARAMS, masks), x)
        return measure.cost(small.apply, small.variables, x).macs

    choose = lambda d: select.keep(every, norms(every, PARAMS), d)
    each = 36 * 9 * 7
    for width in (1, 4, 6):
        masks = select.within_budget(choose, macs, width * each + 10)
        assert int(masks["hidden"].sum()) == width
    assert len(calls) < 25, "repeated masks must not be costed again"
    with pytest.raises(ValueError, match="density 0 costs 2268, the budget is 10"):
        select.within_budget(choose, macs, 10)


# Pruning while training


def train(tx, params, steps, grads=lambda p: jax.tree.map(lambda x: 0.1 * x, p)):
    state, update = tx.init(params), jax.jit(tx.update)
    history = []
    for _ in range(steps):
        updates, state = update(grads(params), state, params)
        params = optax.apply_updates(params, updates)
        history.append((params, state))
    assert update._cache_size() == 1
    return history


def share(params, path="conv1"):
    kernel = params[path]["kernel"]
    return float(jnp.count_nonzero(kernel)) / kernel.size


SCHEDULES = {
    "number": (lambda: 0.25, lambda t: 0.25),
    "cubic": (
        lambda: optax.polynomial_schedule(1.0, 0.25, 3, 8),
        lambda t: 0.25 + 0.75 * (1 - min(t / 8, 1)) ** 3,
    ),
    "constant": (
        lambda: optax.piecewise_constant_schedule(1.0, {4: 0.25}),
        lambda t: 1.0 if t < 4 else 0.25,
    ),
    "one-cycle": (
        lambda: select.one_cycle(0.25, 8),
        lambda t: (
            1
            - 0.75
            * (1 + math.exp(5 - 14))
            / (1 + math.exp(5 - 14 * min(t / 8, 1)))
            * (t >= 0)
        ),
    ),
    "callable": (lambda: lambda t: 1.0 - 0.05 * t, lambda t: 1.0 - 0.05 * t),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_densities_follow_the_schedule(name):
    make, expected = SCHEDULES[name]
    every = groups(PARAMS, {"kernel": WEIGHT})
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), select.prune(every, make()))
    for step, (params, _) in enumerate(train(tx, PARAMS, 11)):
        assert share(params) == math.floor(216 * expected(step) + 1e-3) / 216


def test_one_cycle_starts_when_told():
    density = select.one_cycle(0.2, 10, begin=5, initial=0.9)
    assert float(density(4)) == pytest.approx(0.9)
    assert float(density(15)) == pytest.approx(0.2)
    assert float(density(40)) == pytest.approx(0.2)
    values = [float(density(t)) for t in range(5, 16)]
    assert values == sorted(values, reverse=True)
    with pytest.raises(ValueError, match="steps must be whole and >= 1"):
        select.one_cycle(0.2, 0)


def test_removed_groups_stay_at_exact_zero_and_others_take_their_plain_step():
    every = groups(PARAMS, {"kernel": FILTER})
    noise = parameters(3)
    plain = optax.sgd(0.1, momentum=0.9)
    tx = optax.chain(plain, select.prune(every, 0.5))
    history = train(tx, PARAMS, 5, grads=lambda p: noise)
    dense = train(plain, PARAMS, 5, grads=lambda p: noise)
    masks = history[0][1][1].masks
    for (params, state), (free, _) in zip(history, dense, strict=True):
        assert all((state[1].masks[n] == masks[n]).all() for n in masks)
        jax.tree.map(np.testing.assert_array_equal, params, scale(every, free, masks))


def test_masks_change_only_when_due():
    every = groups(PARAMS, {"kernel": WEIGHT})
    pruning = select.prune(every, lambda t: 1.0 - 0.1 * t, every=3, until=6)
    shares = [share(params) for params, _ in train(pruning, PARAMS, 11)]
    expected = [1.0] * 3 + [math.floor(216 * 0.7) / 216] * 3
    expected += [math.floor(216 * 0.4 + 1e-3) / 216] * 5
    assert shares == pytest.approx(expected)
    with pytest.raises(ValueError, match="every must be whole and >= 1, got 0"):
        select.prune(every, 0.5, every=0)


def test_pruning_takes_any_score_choice_and_group():
    x = images()
    score = lambda every, params: select.taylor(every, params, lambda p: loss(p, x))
    two = functools.partial(select.keep, minimum=2)
    ((params, state),) = train(
        select.prune(hidden(), 0.1, score=score, choose=two), PARAMS, 1
    )
    assert int(state.masks["hidden"].sum()) == 2
    assert jnp.count_nonzero(params["bn1"]["scale"]) == 2
    four = groups(PARAMS, {"conv1/kernel": WEIGHT})
    density = optax.linear_schedule(1.0, 0.5, 4)
    history = train(select.prune(four, density, choose=select.n_of_m), PARAMS, 6)
    kept = [int((p["conv1"]["kernel"] != 0).sum(axis=2).max()) for p, _ in history]
    assert kept == [4, 3, 3, 2, 2, 2]


def test_masked_leaves_are_left_alone():
    every = groups(PARAMS, {"kernel": WEIGHT})
    tx = optax.masked(
        select.prune(every, 0.5), {"conv1": True, "bn1": True, "conv2": False}
    )
    ((params, _),) = train(tx, PARAMS, 1)
    assert share(params) == 0.5 and share(params, "conv2") == 1.0
    with pytest.raises(ValueError, match="looks at the parameters"):
        select.prune(every, 0.5).update(PARAMS, tx.init(PARAMS))


def test_what_pruning_leaves_can_be_compacted():
    ((params, _),) = train(select.prune(hidden(), 0.5), PARAMS, 1)
    small = sslx.compact(network)(params, images())
    assert small.variables["conv1"]["kernel"].shape == (3, 3, 4, 3)
    np.testing.assert_allclose(
        small.apply(small.variables, images()), network(params, images()), atol=1e-5
    )


# Sensitivity


@pytest.mark.parametrize("batch_size", [1, 4])
def test_sensitivity_is_the_loss_with_one_class_cut(batch_size):
    every = groups(PARAMS, {"kernel": KERNEL})
    scores = select.sum_abs(every, PARAMS)
    x = images()
    found = select.sensitivity(
        lambda p: loss(p, x),
        every,
        PARAMS,
        scores,
        [0.75, 0.25, 0.5],
        batch_size=batch_size,
    )
    assert found.densities == (0.25, 0.5, 0.75)
    np.testing.assert_allclose(found.baseline, loss(PARAMS, x), rtol=1e-5)
    for name in every.names:
        for density, value in zip(found.densities, found.losses[name], strict=True):
            masks = select.keep(every, scores, {name: density}, minimum=0)
            expected = loss(scale(every, PARAMS, masks), x)
            np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_sensitivity_refuses_densities_it_cannot_use():
    every = groups(PARAMS, {"kernel": KERNEL})
    scores = select.sum_abs(every, PARAMS)
    for wrong in ([], [0.5, 0.5], [1.0], [-0.1, 0.5]):
        with pytest.raises(ValueError, match="must differ and be from 0 to below 1"):
            select.sensitivity(lambda p: 0.0, every, PARAMS, scores, wrong)


LOSSES = hnp.arrays(np.float64, 3, elements=st.floats(0, 5))


@hypothesis.given(st.lists(LOSSES, min_size=1, max_size=4), st.floats(0.2, 1.2))
def test_allocation_meets_the_budget_and_evens_out_the_loss(curves, share):
    names = [f"w{i}" for i in range(len(curves))]
    found = select.Sensitivity(
        (0.2, 0.5, 0.8), dict(zip(names, curves, strict=True)), 1.0
    )
    costs = {name: np.full(10, i + 1.0) for i, name in enumerate(names)}
    total = sum(c.sum() for c in costs.values())
    shares = found.allocate(costs, share * total)
    spent = sum(shares[n] * costs[n].sum() for n in names)
    assert all(0.2 <= d <= 1 for d in shares.values())
    assert spent == pytest.approx(min(share, 1.0) * total, rel=1e-3)
    if len(names) > 1 and share < 1:
        worst = [
            np.interp(shares[n], [0.2, 0.5, 0.8, 1], found._rise(found.losses[n]))
            for n in names
        ]
        bound = [w for w, n in zip(worst, names, strict=True) if shares[n] > 0.2 + 1e-6]
        assert max(bound, default=0) - min(bound, default=0) < 1e-3
    with pytest.raises(ValueError, match="smallest densities measured cost"):
        found.allocate(costs, 0.1 * total)


def test_what_costs_more_loss_keeps_more():
    fragile, robust = np.array([3.0, 2.0, 1.5]), np.array([1.02, 1.01, 1.0])
    found = select.Sensitivity((0.2, 0.5, 0.8), {"a": fragile, "b": robust}, 1.0)
    costs = {"a": np.ones(100), "b": np.ones(100)}
    shares = found.allocate(costs, 100)
    assert shares["a"] > 0.75 and shares["b"] == pytest.approx(0.2, abs=0.01)
