"""PSP: the value is the folded weights', the derivatives are the formulas'."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from jaxtyping import TypeCheckError

import sslx
from sslx import psp
from tests.arrays import normals

RULES = {
    "filter": sslx.FILTER,
    "channel": sslx.CHANNEL,
    "shape": sslx.SHAPE,
    "kernel": sslx.KERNEL,
    "weight": sslx.WEIGHT,
    "layer": sslx.LAYER,
    "block": sslx.BLOCK(1, 1, 2, 3),
    "crossing": sslx.FILTER | sslx.CHANNEL,
    "nested": sslx.LAYER | sslx.FILTER | sslx.SHAPE,
}
EVERY = pytest.mark.parametrize("name", [*RULES, "coupled", "blocks"])
GRADIENTS = pytest.mark.parametrize("gradient", ["sum", "chain"])


def weights(seed=0):
    normal = normals(seed)
    return {
        "a": {"kernel": normal(3, 3, 4, 6), "bias": normal(6)},
        "b": {"kernel": normal(1, 1, 6, 6)},
        "scale": normal(6),
    }


def make(name):
    tree = weights()
    if name in RULES:
        return sslx.groups(tree, {"kernel": RULES[name]})
    slices = {
        "a/kernel": sslx.FILTER,
        "a/bias": sslx.FILTER,
        "b/kernel": sslx.CHANNEL,
    }
    groups = sslx.coupled(tree, slices, name="hidden")
    if name == "coupled":
        return groups
    ids = (0, 2, 1, -1, 0, 2)  # three groups of any size, one channel in none
    members = [
        m.__class__(**{**vars(m), "ids": ids}) for m in groups.classes[0].members
    ]
    return sslx.Groups((sslx.GroupClass("hidden", (3,), tuple(members)),))


def random_parameters(groups, seed=0, spread=1.0):
    random = np.random.default_rng(seed)
    alphas = {
        name: jnp.asarray(random.normal(size=a.shape) * spread, jnp.float32)
        for name, a in psp.init(groups, weights(seed)).alphas.items()
    }
    return psp.Parameters(weights(seed), alphas)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def flat(tree):
    return {k: np.asarray(v) for k, v in sslx._groups.groups.flatten(tree)[0].items()}


def entries(groups, name, path):
    """Group number of every entry of a leaf, -1 for none."""
    tree = jax.tree.map(jnp.ones_like, weights())
    c = groups[name]
    numbers = jnp.arange(2.0, 2 + c.count).reshape(c.shape)
    marked = flat(sslx.scale(groups, tree, {name: numbers}))[path]
    return np.where(marked == 1, -1, marked - 2).astype(int)


@EVERY
def test_factors_of_one_change_nothing(name):
    groups = make(name)
    start = psp.init(groups, weights())
    assert set(start.alphas) == set(groups.names)
    for gate in (psp.Threshold(0.5), psp.FixedSparsity(0.0)):
        assert bits(psp.materialize(groups, start, gate)) == bits(weights())
        assert bits(psp.fold(groups, start, gate)) == bits(weights())


@EVERY
@pytest.mark.parametrize(
    "gate",
    [psp.Threshold(0.6), psp.FixedSparsity(0.5), psp.FixedSparsity(0.4, "global")],
    ids=str,
)
def test_folding_gives_the_same_bits_and_is_idempotent(name, gate):
    groups, parameters = make(name), random_parameters(make(name))

    @jax.jit
    def variants(parameters):
        used = [
            psp.materialize(groups, parameters, gate, gradient=gradient)
            for gradient in ("sum", "chain")
        ]
        folded = psp.fold(groups, parameters, gate)
        again = psp.fold(groups, psp.init(groups, folded), psp.Threshold(0.5))
        return [folded, again, *used]

    folded, *others = variants(parameters)
    assert all(bits(other) == bits(folded) for other in others)


@EVERY
def test_closed_groups_are_exactly_zero_and_no_others(name):
    groups, gate = make(name), psp.Threshold(0.6)
    parameters = random_parameters(groups)
    marks = gate.open(parameters.alphas)
    folded, _ = sslx._groups.groups.flatten(psp.fold(groups, parameters, gate))
    for path, leaf in folded.items():
        closed = np.zeros(leaf.shape, bool)
        for c in groups.classes:
            if path in {m.path for m in c.members}:
                numbers = entries(groups, c.name, path)
                shut = np.append(~np.asarray(marks[c.name]).reshape(-1), False)
                closed |= shut[numbers]
        np.testing.assert_array_equal(np.asarray(leaf) == 0, closed)
        assert not np.signbit(np.asarray(leaf)[closed]).any()


@EVERY
@GRADIENTS
def test_derivatives_are_the_formulas(name, gradient):
    """G = dL/dq by hand; sums over the entries of each group by a loop."""
    groups, gate = make(name), psp.Threshold(0.6)
    parameters = random_parameters(groups, 1)
    slope = weights(7)

    def loss(parameters):
        q = psp.materialize(groups, parameters, gate, gradient=gradient)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), q, slope)))

    got = jax.jit(jax.grad(loss))(parameters)
    w, G, got_w = flat(parameters.weights), flat(slope), flat(got.weights)
    nu = {
        k: np.append(np.where(np.abs(a) < 0.6, 0, a).reshape(-1), 1.0)
        for k, a in parameters.alphas.items()
    }
    classes = {
        path: [c for c in groups.classes if path in {m.path for m in c.members}]
        for path in w
    }
    numbers = {(c.name, p): entries(groups, c.name, p) for p in w for c in classes[p]}

    def factor(path, skip=None):
        product = np.ones(w[path].shape)
        for c in classes[path]:
            if c.name != skip:
                product = product * nu[c.name][numbers[c.name, path]]
        return product

    for path in w:
        np.testing.assert_allclose(got_w[path], G[path] * factor(path), rtol=1e-5)
    for c in groups.classes:
        expected = np.zeros(c.count)
        for path in {m.path for m in c.members}:
            term = G[path].astype(float)
            if gradient == "chain":
                term = term * w[path] * factor(path, skip=c.name)
            for k in range(c.count):
                expected[k] += term[numbers[c.name, path] == k].sum()
        found = np.asarray(got.alphas[c.name]).reshape(-1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_chain_is_the_derivative_where_every_gate_is_open():
    groups, gate = make("crossing"), psp.Threshold(0.0)
    parameters = random_parameters(groups)

    def loss(materialize, parameters):
        q = materialize(groups, parameters)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(q))

    chain = functools.partial(psp.materialize, gate=gate, gradient="chain")
    plain = lambda groups, p: sslx.scale(groups, p.weights, p.alphas)
    got = jax.grad(functools.partial(loss, chain))(parameters)
    wanted = jax.grad(functools.partial(loss, plain))(parameters)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        got,
        wanted,
    )


@given(
    st.lists(
        st.floats(-2, 2, width=32, allow_subnormal=False), min_size=12, max_size=12
    ),
    st.floats(0, 1),
    st.sampled_from(["class", "global"]),
)
def test_fixed_sparsity_keeps_the_largest(values, sparsity, scope):
    a = jnp.asarray(values, jnp.float32)
    alphas = {"x": a, "y": jnp.full((2, 3), 0.7, jnp.float32)}
    marks = psp.FixedSparsity(sparsity, scope).open(alphas)
    parts = [[a], [alphas["y"]]] if scope == "class" else [[a, alphas["y"]]]
    names = [["x"], ["y"]] if scope == "class" else [["x", "y"]]
    for part, keys in zip(parts, names, strict=True):
        sizes = np.abs(np.concatenate([np.ravel(x) for x in part]))
        kept = np.concatenate([np.ravel(marks[k]) for k in keys])
        closed = round(float(np.round(np.float32(sparsity) * np.float32(sizes.size))))
        nonzero = np.sum(sizes > 0)
        assert kept.sum() == min(sizes.size - closed, nonzero)
        if kept.any() and not kept.all():
            assert sizes[kept].min() >= sizes[~kept].max()
    again = {k: jnp.where(marks[k], alphas[k], 0) for k in alphas}
    for key, mark in psp.FixedSparsity(sparsity, scope).open(again).items():
        np.testing.assert_array_equal(mark, marks[key])


def test_gates_say_what_counts():
    alphas = {"x": jnp.asarray([0.1, -0.1, 0.05, 0.0, jnp.nan, -3.0])}
    marks = psp.Threshold(0.1).open(alphas)["x"]
    assert marks.tolist() == [True, True, False, False, True, True]
    assert not psp.Threshold(0.0).open(alphas)["x"][3]
    ties = {"x": jnp.ones(4)}
    assert psp.FixedSparsity(0.5).open(ties)["x"].tolist() == [True, True, False, False]
    traced = jax.jit(lambda s: psp.FixedSparsity(s).open(ties)["x"])(0.25)
    assert traced.tolist() == [True, True, True, False]


def test_the_optimiser_is_equation_6():
    rate = lambda step: 0.1 / (1 + step)
    tx = psp.sgd(rate, momentum=0.8, decay=0.05, l1=0.02)
    alphas = {"x": jnp.asarray([1.0, -0.5, 0.2])}
    a, delta, state = np.asarray(alphas["x"], float), np.zeros(3), tx.init(alphas)
    for step in range(4):
        gradient = np.sin(np.arange(3) + step)
        updates, state = tx.update({"x": jnp.asarray(gradient)}, state, alphas)
        alphas = optax.apply_updates(alphas, updates)
        pull = gradient + 0.05 * a + 0.02 * np.sign(a)
        delta = 0.8 * delta - rate(step) * pull
        a = a + delta
    np.testing.assert_allclose(alphas["x"], a, rtol=1e-5)


def test_sss_is_its_formula_and_reaches_zero():
    tx = psp.sss(0.1, strength=0.5, momentum=0.9)
    alphas = {"x": jnp.asarray([1.0, 0.3, 0.05])}
    a, m, state = np.asarray(alphas["x"], float), np.zeros(3), tx.init(alphas)
    gradient = np.array([-0.4, 0.1, -0.7])
    for _ in range(12):
        updates, state = tx.update({"x": jnp.asarray(gradient)}, state, alphas)
        alphas = optax.apply_updates(alphas, updates)
        z = a - 0.1 * gradient
        z = np.sign(z) * np.maximum(np.abs(z) - 0.05, 0)
        m = z - a + 0.9 * m
        a = np.maximum(z + 0.9 * m, 0)
        np.testing.assert_allclose(alphas["x"], a, rtol=1e-4, atol=1e-6)
    assert alphas["x"][1] == 0 and alphas["x"][2] > 0.05


def target_and_loss():
    """A parabola in q whose best filter 0 is zero; the others are the start's."""
    groups = sslx.groups(weights(), {"a/kernel": sslx.FILTER})
    goal = weights()
    goal["a"]["kernel"] = goal["a"]["kernel"].at[..., 0].set(0.0)

    def loss(parameters, gate):
        q = psp.materialize(groups, parameters, gate, gradient="chain")
        gaps = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2) / 2, q, goal)
        return sum(jax.tree.leaves(gaps))

    return groups, loss


@pytest.mark.parametrize("kind", ["decay", "l1", "sss"])
def test_unneeded_groups_go_and_the_others_stay(kind):
    groups, loss = target_and_loss()
    factors = {
        "decay": psp.sgd(0.005, decay=1.0),
        "l1": psp.sgd(0.005, l1=1.0),
        "sss": psp.sss(0.005, strength=1.0),
    }[kind]
    gate = psp.Threshold(0.0 if kind == "sss" else 0.05)
    frozen = optax.set_to_zero()
    tx = psp.optimizer(frozen, factors)

    @jax.jit
    def step(parameters, state):
        grads = jax.grad(loss)(parameters, gate)
        updates, state = tx.update(grads, state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters = psp.init(groups, weights())
    state = tx.init(parameters)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    for _ in range(300):
        parameters, state = step(parameters, state)
    assert step._cache_size() == 1
    assert isinstance(parameters, psp.Parameters)
    (marks,) = gate.open(parameters.alphas).values()
    assert marks.tolist() == [False] + [True] * 5
    folded = psp.fold(groups, parameters, gate)
    assert not folded["a"]["kernel"][..., 0].any()
    assert bits(parameters.weights) == bits(weights())


def test_closed_groups_learn_on_and_return():
    groups, loss = target_and_loss()
    gate, tx = psp.Threshold(0.3), psp.sgd(0.005)
    parameters = psp.init(groups, weights())
    (name,) = groups.names
    alphas = {name: jnp.asarray([0.1] * 6)}
    assert not gate.open(alphas)[name].any()
    state = tx.init(alphas)
    for _ in range(100):
        grads = jax.grad(loss)(psp.Parameters(parameters.weights, alphas), gate)
        updates, state = tx.update(grads.alphas, state, alphas)
        alphas = optax.apply_updates(alphas, updates)
    assert gate.open(alphas)[name].tolist() == [False] + [True] * 5
    np.testing.assert_allclose(alphas[name][1:], 1, atol=0.05)


def test_weights_may_be_masked_and_classes_left_out():
    groups = make("filter")
    params = weights()
    params["b"] = optax.MaskedNode()
    start = psp.init(groups, params)
    assert set(start.alphas) == {"a/kernel:FILTER"}
    used = psp.materialize(groups, start, psp.Threshold(0.1))
    assert used["b"] == optax.MaskedNode()
    grads = jax.grad(
        lambda p: psp.materialize(groups, p, psp.Threshold(0.1))["a"]["kernel"].sum()
    )(start)
    assert grads.alphas["a/kernel:FILTER"].shape == (6,)
    with pytest.raises(ValueError, match="factors for unknown classes"):
        bad = start._replace(alphas={"none": jnp.ones(6)})
        psp.fold(groups, bad, psp.Threshold(0.1))
    with pytest.raises(ValueError, match=r"must have shape \(6,\), got \(5,\)"):
        bad = start._replace(alphas={"a/kernel:FILTER": jnp.ones(5)})
        psp.materialize(groups, bad, psp.Threshold(0.1))


def test_half_precision_weights_have_single_precision_factors():
    groups = make("shape")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights())
    start = psp.init(groups, params)
    assert {a.dtype for a in start.alphas.values()} == {jnp.dtype("float32")}
    for gradient in ("sum", "chain"):
        total = lambda p, g=gradient: psp.materialize(
            groups, p, psp.Threshold(0.1), gradient=g
        )["a"]["kernel"].sum()
        grads = jax.grad(total)(start)
        types = [x.dtype for x in jax.tree.leaves(grads)]
        assert types == [x.dtype for x in jax.tree.leaves(start)]
    assert (
        psp.fold(groups, start, psp.Threshold(0.1))["b"]["kernel"].dtype == "bfloat16"
    )


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: psp.Threshold(-1.0), "Threshold: epsilon must be >= 0"),
        (lambda: psp.FixedSparsity(1.5), "sparsity must be from 0 to 1.0, got 1.5"),
        (lambda: psp.sgd(0.1, momentum=-0.1), "sgd: momentum must be from 0 to 1.0"),
        (lambda: psp.sss(0.1, strength=-1.0), "sss: strength must be >= 0"),
    ],
)
def test_values_out_of_range_are_refused(make_it, text):
    with pytest.raises(ValueError, match=text):
        make_it()


def test_unknown_words_are_refused():
    """By jaxtyping where it checks, as in these tests; else by the functions."""
    groups = make("filter")
    start = psp.init(groups, weights())
    with pytest.raises((ValueError, TypeCheckError), match="exact"):
        psp.materialize(groups, start, psp.Threshold(0.1), gradient="exact")
    with pytest.raises((ValueError, TypeCheckError), match="all"):
        psp.FixedSparsity(0.5, "all")


def test_sss_says_that_it_needs_the_factors():
    alphas = psp.init(make("filter"), weights()).alphas
    tx = psp.sss(0.1, strength=1.0)
    with pytest.raises(ValueError, match=r"tx.update\(grads, state, params\)"):
        tx.update(alphas, tx.init(alphas))
