"""Units: zero any of them, and compaction removes just these slices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx import select
from tests.arrays import sparse_variables
from tests.networks import network
from tests.small_models import MODELS, Maker, conv, model


def kept(plan: sslx.Plan) -> dict[str, list[np.ndarray]]:
    """Per leaf and axis, whether a slice stays."""
    return {
        path: [
            np.isin(np.arange(n), np.arange(n) if k is None else k)
            for n, k in zip(leaf.shape, leaf.kept, strict=True)
        ]
        for path, leaf in plan.leaves.items()
    }


def some_units(units: sslx.Groups, seed: int) -> dict[str, np.ndarray]:
    """Factors 0 and 1 at random, one unit of every class left at least."""
    rng = np.random.default_rng(seed)
    factors = {}
    for c in units.classes:
        alive = rng.random(c.count) < 0.5
        alive[rng.integers(c.count)] = True
        factors[c.name] = alive.astype(float)
    return factors


@jax.numpy_rank_promotion("allow")
def check_law(
    fn: Any, params: Any, x: Any, seed: int, settings: Any = (("align", "fold"),)
) -> sslx.Groups:
    """Compaction removes just the zeroed units, or says what it keeps of them."""
    units = sslx.units(fn)(params, x)
    factors = some_units(units, seed)
    zeroed = sslx.scale(units, params, factors)
    dense = jax.jit(fn)(zeroed, x)
    scale = float(jnp.abs(dense).max()) + 1e-30
    for alignment, constants in settings:
        options = {"alignment": alignment, "constants": constants}
        small = sslx.compact(fn, **options)(zeroed, x)
        want = kept(sslx.compact(fn, **options)(params, x).plan)
        for c in units.classes:
            for m in c.members:
                ids = np.arange(c.count) if m.ids is None else np.asarray(m.ids)
                want[m.path][m.kept[0]] &= (ids < 0) | (factors[c.name][ids] > 0)
        check_plan(small, want)
        got = jax.jit(small.apply)(small.variables, x)
        assert float(jnp.abs(dense - got).max()) < 1e-10 * scale
    return units


def check_plan(small: sslx.Compact, want: dict[str, list[np.ndarray]]) -> None:
    """What is kept is what is wanted, and what `kept_zeros` says."""
    reported = {(k.path, k.axis): k.count for k in small.kept_zeros}
    for path, axes in kept(small.plan).items():
        for axis, stays in enumerate(axes):
            where = f"{path}[{axis}]"
            assert not (want[path][axis] & ~stays).any(), f"{where}: more is removed"
            more = int((stays & ~want[path][axis]).sum())
            assert more == reported.get((path, axis), 0), f"{where}: {more} kept"


def check_network(seed: int) -> None:
    net = network(seed, zeros=False)
    x = jax.random.normal(jax.random.key(seed), net.image, jnp.float64)
    check_law(net.apply, net.params, x, seed)


@pytest.mark.parametrize("seed", range(3))
def test_zeroed_units_are_what_compaction_removes(seed: int, x64) -> None:
    check_network(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2000, 2300))
def test_zeroed_units_are_what_compaction_removes_in_many(seed: int, x64) -> None:
    check_network(seed)


PUBLISHED = ("vision_transformer", "mobilenet_v2", "split_of_nothing")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in PUBLISHED else pytest.mark.slow) for n in MODELS],
)
def test_units_of_networks_as_people_publish_them(name: str, x64) -> None:
    counts = {
        "mixer": [6, 7, 8],
        "vision_transformer": [2, 3, 3, 6, 8],
        "mobilenet_v2": [4, 6, 8],
        "efficientnet": [3, 5, 8],
        "convnext": [4, 8],
        "split_of_nothing": [8],
        "gated_recurrent_unit": [4],
        "u_net": [2, 2, 2, 2, 2, 3, 3, 6],
        "grouped_queries": [2, 2, 3, 3, 5, 6],
    }
    net = model(name)
    settings = [("align", "fold"), ("auto", "keep")]
    units = check_law(net.fn, net.params, net.x, 0, settings)
    assert sorted(c.count for c in units.classes) == counts[name]


SLOW = pytest.mark.slow
ACTIVATIONS = {
    "relu6": jax.nn.relu6,
    "clip": lambda x: jnp.minimum(jnp.maximum(x, 0), 6.0),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "sigmoid": jax.nn.sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "squareplus": jax.nn.squareplus,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("relu6", "softplus") else SLOW)
        for name in ACTIVATIONS
    ],
)
def test_units_go_through_depthwise_convolutions_after(name: str, x64) -> None:
    make, act = Maker(0), ACTIVATIONS[name]
    make.weights(a=(1, 1, 2, 6), b=(3, 3, 1, 6), c=(6, 2))
    make.vectors(6, "bias")

    def fn(p, x):
        y = act(conv(act(conv(x, p["a"]) + p["bias"]), p["b"]))
        return y.mean((1, 2)) @ p["c"]

    units = check_law(fn, make.params, make.array(1, 4, 4, 2), 0)
    assert {c.name: len(c.members) for c in units.classes} == {"a[3]": 4}


def test_axes_of_size_zero_hold_nothing_back(x64) -> None:
    make = Maker(0)
    make.weights(a=(3, 6), b=(6, 2))
    make.params["t"] = make.array(1, 4, 4, 6)

    def fn(p, x):
        h = jnp.roll(x @ p["a"] + p["t"], (0, 4), (1, 2))
        left, right = jnp.split(h, [6], -1)
        none = jnp.zeros((*h.shape[:-1], 0), h.dtype) + right.sum()
        return jax.nn.relu(jnp.concatenate([none, left], -1)) @ p["b"]

    units = check_law(fn, make.params, make.array(2, 4, 4, 3), 0)
    assert [(c.name, c.count, len(c.members)) for c in units.classes] == [
        ("a[1]", 6, 3)
    ]


def test_rolled_channels_are_the_same_units_at_other_places(x64) -> None:
    make = Maker(0)
    make.weights(a=(3, 6), b=(6, 2))
    fn = lambda p, x: jnp.tanh(jnp.roll(x @ p["a"], 1, -1)) @ p["b"]
    units = check_law(fn, make.params, make.array(4, 3), 0)
    assert [(c.name, c.count, len(c.members)) for c in units.classes] == [
        ("a[1]", 6, 2)
    ]


def test_what_removes_nothing_or_takes_others_along_is_no_unit(x64) -> None:
    make = Maker(0)
    make.weights(a=(3, 6), b=(6, 6), c=(6, 2), only=(6, 1), qkv=(3, 3, 4), out=(4, 2))
    make.params |= {"bias": make.array(2, 6), "wide": make.array(7, 2)}

    def fn(p, x):
        h = jnp.tanh(x @ p["a"] + p["bias"][0])
        h = jnp.tanh(h @ p["b"] + p["bias"][1])
        h = jnp.concatenate([h, jnp.tanh(h @ p["only"])], -1)
        q, k, v = (x[None] @ p["qkv"][:, i] for i in range(3))
        y = jax.nn.softmax(q @ k.swapaxes(1, 2), -1) @ v @ p["out"]
        return h @ p["wide"] + y[0]

    units = check_law(fn, make.params, make.array(4, 3), 0)
    assert {c.name: c.count for c in units.classes} == {
        "a[1]": 6,
        "qkv[2]": 4,
    }
    notes = "\n".join(units.notes)
    assert "kept whole by having nothing else: only[1], wide[0]" in notes
    assert "bias[0]" in notes and "qkv[1]" in notes


@pytest.mark.parametrize("seed", range(4))
def test_a_part_of_a_unit_leaves_no_consistent_program(seed: int) -> None:
    def fn(p, x):
        h = jax.nn.relu(x @ p["a"] + p["b"])
        h = h + jnp.tanh(h @ p["c"]) @ p["d"]
        return (h * p["scale"]) @ p["e"]

    sizes = {"a": (3, 6), "b": (1, 6), "c": (6, 5), "d": (5, 6), "scale": (1, 6)}
    sizes["e"] = (6, 2)
    rng = np.random.default_rng(seed)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in sizes.items()}
    x = jnp.ones((4, 3))
    units = sslx.units(fn)(params, x)
    assert {c.count for c in units.classes} == {6, 5}
    for c in units.classes:
        without = {(m.path, m.kept[0]) for m in c.members}
        for left_out in [None, *without]:
            tree = dict(params)
            for path, axis in without - {left_out}:
                tree[path] = jnp.delete(tree[path], np.array([1]), axis)
            if left_out is None:
                assert jax.eval_shape(fn, tree, x).shape == (4, 2)
            else:
                with pytest.raises(TypeError):
                    jax.eval_shape(fn, tree, x)


class Net(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        return getattr(self, self.kind)(x)

    def residual(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        y = nn.GroupNorm(4, name="norm")(x)
        return nn.Dense(2, name="head")(x + nn.Conv(8, (1, 1), name="last")(y))

    def concatenated(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = jnp.concatenate([x, nn.relu(nn.Conv(3, (3, 3), name="one")(x))], -1)
        x = jnp.concatenate([x, nn.relu(nn.Conv(5, (3, 3), name="two")(x))], -1)
        return nn.Dense(2, name="head")(x)

    def flattened(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        return nn.Dense(2, name="head")(x.reshape(x.shape[0], -1))

    def grouped(self, x):
        x = nn.Conv(8, (1, 1), name="one")(x)
        x = nn.Conv(12, (3, 3), feature_group_count=4, name="two")(x)
        return nn.Dense(2, name="head")(x)

    def depthwise(self, x):
        x = nn.Conv(8, (1, 1), name="one")(x)
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8, name="two")(x))
        return nn.Dense(2, name="head")(x)

    def shuffled(self, x):
        x = nn.Conv(8, (1, 1), name="one")(x)
        x = jnp.swapaxes(x.reshape(*x.shape[:-1], 2, 4), -1, -2).reshape(x.shape)
        return nn.Dense(2, name="head")(x)

    def attention(self, x):
        x = nn.Dense(6, name="stem")(x.reshape(x.shape[0], -1, x.shape[-1]))
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadAttention(num_heads=4, qkv_features=12, name="mha")(y)
        return nn.Dense(2, name="head")(x)


KINDS = {
    "residual": {"a place in all groups": 2, "group": 4},
    "concatenated": {"stem": 4, "one": 3, "two": 5},
    "flattened": {"conv": 4},
    "grouped": {"group": 4, "a place in all groups": 2, "the same behind": 3},
    "depthwise": {"one": 8},
    "shuffled": {"one": 4, "by position": 2},
    "attention": {"stem": 6, "heads": 4, "queries, keys": 3, "values": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_units(kind: str, x64) -> None:
    model, image = Net(kind), (2, 5, 5, 3)
    variables, x = sparse_variables(model, image, 0, np.float64, lambda *_: False)
    units = check_law(model.apply, variables, x, 0)
    assert sorted(c.count for c in units.classes) == sorted(KINDS[kind].values())


def test_tied_embeddings_and_stacked_layers(x64) -> None:
    def fn(p, tokens):
        h = p["embedding"][tokens]

        def layer(h, w):
            return h + jax.nn.gelu(h @ w["up"]) @ w["down"], None

        h, _ = jax.lax.scan(jax.checkpoint(layer), h, p["layers"])
        return h @ p["embedding"].T

    rng = np.random.default_rng(0)
    layers = {"up": rng.normal(size=(3, 6, 9)), "down": rng.normal(size=(3, 9, 6))}
    params = {"embedding": rng.normal(size=(11, 6)), "layers": layers}
    params = jax.tree.map(jnp.asarray, params)
    units = check_law(fn, params, jnp.array([[1, 4, 2]]), 0)
    assert {c.name: c.count for c in units.classes} == {
        "embedding[1]": 6,
        "layers/up[2]": 9,
    }
    assert "kept whole by" in units.describe()


NAMED = {
    "mixer": {"embed": "residual stream", "a": "unit", "c": "FFN unit"},
    "vision_transformer": {
        "embed": "residual stream",
        "qkv": "head",
        "up": "FFN unit",
    },
    "mobilenet_v2": {"stem": "residual stream", "up": "filter", "last": "filter"},
    "gated_recurrent_unit": {"kernel": "recurrent unit"},
    "grouped_queries": {
        "embed": "residual stream",
        "k": "KV group",
        "o": "head",
        "q": "head width",
        "v": "head width",
        "gate": "FFN unit",
    },
    "efficientnet": {"up": "filter", "squeeze": "unit", "down": "filter"},
    "convnext": {"stem": "residual stream", "up": "FFN unit"},
}


@pytest.mark.parametrize("name", NAMED)
def test_units_say_what_they_are(name: str) -> None:
    made = model(name)
    with jax.numpy_rank_promotion("allow"):
        units = sslx.units(made.fn)(made.params, made.x)
    found: dict[str, str] = {}
    for c in units.classes:
        found.setdefault(c.name.partition("[")[0], c.kind)
    assert found == NAMED[name]
    assert all(len(line) <= 80 for line in units.describe().splitlines())
    for kind in set(found.values()):
        assert {c.kind for c in units.of_kind(kind).classes} == {kind}


def test_units_name_layers_in_their_order() -> None:
    fn = lambda p, x: (
        jax.nn.relu(x @ p["p"]["up"]["w"] + p["p"]["up"]["b"])
        @ (p["p"]["down"]["w"] * p["s"]["down"]["scale"][:, None])
    )
    sizes = {
        "p": {"up": {"w": (2, 5), "b": (1, 5)}, "down": {"w": (5, 3)}},
        "s": {"down": {"scale": (5,)}},
    }
    is_shape = lambda x: isinstance(x, tuple)
    params = jax.tree.map(jnp.ones, sizes, is_leaf=is_shape)
    units = sslx.units(fn)(params, jnp.ones((7, 2)))
    (row,) = units.rows()
    assert row["members"] == "up out -> down in"
    below = units.below("p")
    assert [m.path for m in below.classes[0].members] == ["up/w", "up/b", "down/w"]
    (norms,) = sslx.norms(below, params["p"]).values()
    np.testing.assert_allclose(norms, np.sqrt(2 + 1 + 3))
    with pytest.raises(ValueError, match="no leaf lies below 'q'; there are"):
        units.below("q")
    with pytest.raises(ValueError, match=r"no groups of kind \['head'\]; there are"):
        units.of_kind("head")
    masks = select.keep(units, sslx.norms(units, params), {"unit": 0.4})
    assert int(masks["p/up/w[1]"].sum()) == 2


def test_pins_stay_whole() -> None:
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    sizes = {"a": (2, 5), "b": (5, 4), "c": (4, 3)}
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in sizes.items()}
    x = jax.ShapeDtypeStruct((7, 2), jnp.float32)
    assert sslx.units(fn)(params, x).names == ("a[1]", "b[1]")
    pinned = sslx.units(fn, pin=["^a$"])(params, x)
    assert pinned.names == ("b[1]",)
    assert "kept whole by a pin: a[0], a[1], b[0]" in pinned.describe()
    with pytest.raises(ValueError, match="found in no leaf"):
        sslx.units(fn, pin=["conv"])(params, x)


def test_group_operations_take_units() -> None:
    fn = lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]
    sizes = {"a": (2, 5), "b": (1, 5), "c": (5, 3)}
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in sizes.items()}
    units = sslx.units(fn)(params, jnp.ones((7, 2)))
    (norms,) = sslx.norms(units, params).values()
    parts = [params["a"] ** 2, params["b"] ** 2, params["c"].T ** 2]
    np.testing.assert_allclose(norms, jnp.sqrt(sum(p.sum(0) for p in parts)), rtol=1e-6)
    value = sslx.penalty_value(sslx.GroupLasso(0.5), units, params)
    np.testing.assert_allclose(value, 0.5 * norms.sum(), rtol=1e-6)
