"""Groups: the structures' definitions, norms and scale as duals, errors."""

import itertools
import os
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from sslx import select
from sslx._groups import groups as sg
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
    Member,
    Structure,
    alive,
    coupled,
    groups,
    norms,
    scale,
)

# What indexes a group, given the position (spatial..., I, O) of an entry.
KEYS = {
    FILTER: lambda at: at[-1:],
    CHANNEL: lambda at: at[-2:-1],
    SHAPE: lambda at: at[:-1],
    KERNEL: lambda at: at[-2:],
    VECTOR: lambda at: at if len(at) < 3 else (*at[:-3], *at[-2:]),
    WEIGHT: lambda at: at,
    LAYER: lambda at: (),
}
NAMED = pytest.mark.parametrize("structure", KEYS, ids=str)
SHAPES = [(4, 6), (3, 4, 6), (3, 2, 4, 6), (2, 3, 2, 2, 4), (1, 1, 1, 4)]


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_hand(array, key):
    """Norms by a loop over the entries, one per key, in order of the keys."""
    sums: dict[tuple, float] = {}
    for at in itertools.product(*map(range, array.shape)):
        sums[key(at)] = sums.get(key(at), 0.0) + float(array[at]) ** 2
    return np.sqrt([sums[k] for k in sorted(sums)])


@NAMED
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_structures_group_what_the_table_says(structure, shape):
    tree = {"kernel": normal(shape)}
    made = groups(tree, {"kernel": structure})
    (got,) = norms(made, tree).values()
    np.testing.assert_allclose(
        got.ravel(), by_hand(tree["kernel"], KEYS[structure]), rtol=1e-5
    )
    assert got.shape == made.classes[0].shape
    assert made.classes[0].sizes.sum() == np.prod(shape)


def test_index_shapes_follow_the_axes():
    tree = {"k": normal((5, 3, 1, 6))}
    expected = {
        FILTER: (6,),
        CHANNEL: (1,),
        SHAPE: (5, 3, 1),
        KERNEL: (1, 6),
        VECTOR: (5, 1, 6),
        WEIGHT: (5, 3, 1, 6),
        LAYER: (),
        BLOCK(5, 1, 1, 2): (1, 3, 1, 3),
        BLOCK(1, 3, 1, None): (5, 1, 1),
        BLOCK(1, 1, 1, None).within(2): (5, 3, 1, 2),
        Structure("ROWS", keep=(0,)): (5,),
    }
    for structure, shape in expected.items():
        assert groups(tree, {"k": structure}).classes[0].shape == shape


@pytest.mark.parametrize("structure", [FILTER, WEIGHT, BLOCK(1), BLOCK(1, 1, 1, 1)])
def test_entries_of_a_vector_are_groups(structure):
    tree = {"bias": normal((5,))}
    (got,) = norms(groups(tree, {"bias": structure}), tree).values()
    np.testing.assert_allclose(got, np.abs(tree["bias"]), rtol=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)
)
def test_blocks_tile_the_leaf(axes):
    block = tuple(size for size, _ in axes)
    shape = tuple(size * count for size, count in axes)
    tree = {"k": normal(shape)}
    made = groups(tree, {"k": BLOCK(*block)})
    expected = by_hand(
        tree["k"], lambda at: tuple(a // b for a, b in zip(at, block, strict=True))
    )
    (got,) = norms(made, tree).values()
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5)
    assert got.shape == tuple(count for _, count in axes)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(
    "structure", [*KEYS, BLOCK(1, 1, 2, 2), BLOCK(1, 1, 2, None)], ids=str
)
def test_groups_within_parts_are_those_of_each_part(structure, parts):
    kernel = normal((3, 2, 4, 12))
    size = 12 // parts
    (got,) = norms(
        groups({"k": kernel}, {"k": structure.within(parts)}), {"k": kernel}
    ).values()
    of_parts = []
    for part in range(parts):
        tree = {"k": kernel[..., part * size : (part + 1) * size]}
        of_parts.append(*norms(groups(tree, {"k": structure}), tree).values())
    assert got.size == sum(part.size for part in of_parts)
    np.testing.assert_allclose(
        np.sort(got.ravel()),
        np.sort(np.concatenate([np.ravel(part) for part in of_parts])),
        rtol=1e-6,
    )
    if structure == SHAPE and parts > 1:
        np.testing.assert_allclose(got[..., 1], of_parts[1], rtol=1e-6)


def test_other_layout_is_a_transposition():
    kernel = normal((3, 2, 4, 6))
    turned = {"k": np.transpose(kernel, (3, 2, 0, 1))}
    for structure in [*KEYS, BLOCK(3, 1, 2, 3), SHAPE.within(2)]:
        (a,) = norms(groups({"k": kernel}, {"k": structure}), {"k": kernel}).values()
        made = groups(turned, {"k": structure}, layout="OI...")
        (b,) = norms(made, turned).values()
        np.testing.assert_allclose(np.sort(a.ravel()), np.sort(b.ravel()), rtol=1e-6)


@NAMED
def test_scale_multiplies_norms(structure):
    tree = {"a": {"kernel": normal((3, 2, 4, 6))}, "b": {"bias": normal((3,))}}
    made = groups(tree, {"kernel": structure})
    (name,) = made.names
    factors = {name: np.abs(normal(made[name].shape, 1))}
    scaled = scale(made, tree, factors)
    np.testing.assert_allclose(
        norms(made, scaled)[name], factors[name] * norms(made, tree)[name], rtol=1e-5
    )
    assert scaled["b"]["bias"] is tree["b"]["bias"]
    assert scaled["a"]["kernel"].dtype == np.float32


def test_scale_multiplies_overlapping_factors():
    tree = {"k": normal((3, 3, 4, 6))}
    made = groups(tree, {"k": FILTER | CHANNEL | LAYER})
    f, c = normal((6,), 1), normal((4,), 2)
    factors = {"k:FILTER": f, "k:CHANNEL": c, "k:LAYER": np.float32(2)}
    np.testing.assert_allclose(
        scale(made, tree, factors)["k"], 2 * tree["k"] * f * c[:, None], rtol=1e-5
    )
    np.testing.assert_allclose(scale(made, tree, {"k:FILTER": f})["k"], tree["k"] * f)


@given(st.data())
def test_groups_over_several_leaves_with_ids(data):
    count = data.draw(st.integers(1, 4))
    ids = st.lists(st.integers(-1, count - 1), min_size=6, max_size=6)
    ids_a, ids_b = tuple(data.draw(ids)), tuple(data.draw(ids))
    tree = {"a": normal((3, 6)), "b": normal((6, 2), 1)}
    unit = GroupClass(
        "unit",
        (count,),
        (
            Member("a", (3, 6), (3, 6), (1,), ids_a),
            Member("b", (6, 2), (6, 2), (0,), ids_b),
        ),
    )
    made = Groups((unit,))
    square = np.zeros(count)
    size = np.zeros(count)
    for k in range(6):
        for ids, part in ((ids_a, tree["a"][:, k]), (ids_b, tree["b"][k])):
            if ids[k] >= 0:
                square[ids[k]] += np.sum(part**2)
                size[ids[k]] += part.size
    np.testing.assert_allclose(norms(made, tree)["unit"], np.sqrt(square), rtol=1e-5)
    np.testing.assert_array_equal(made.sizes["unit"], size)

    f = np.arange(count) % 2 * 1.0
    scaled = scale(made, tree, {"unit": f})
    padded = np.append(f, 1.0)
    np.testing.assert_allclose(scaled["a"], tree["a"] * padded[list(ids_a)])
    np.testing.assert_allclose(scaled["b"], tree["b"] * padded[list(ids_b)][:, None])
    np.testing.assert_array_equal(alive(made, scaled)["unit"], (f > 0) & (size > 0))


def test_coupled_leaves_form_one_group_per_channel():
    tree = {"c1": normal((3, 3, 2, 5)), "b": normal((5,), 1), "c2": normal((5, 4), 2)}
    made = coupled(tree, {"c1": FILTER, "b": FILTER, "c2": CHANNEL}, name="hidden")
    total = np.sum(tree["c1"] ** 2, (0, 1, 2)) + tree["b"] ** 2
    total += np.sum(tree["c2"] ** 2, 1)
    np.testing.assert_allclose(norms(made, tree)["hidden"], np.sqrt(total), rtol=1e-5)
    np.testing.assert_array_equal(made.sizes["hidden"], [18 + 1 + 4] * 5)
    both = made + groups(tree, {"c1": CHANNEL})
    assert both.names == ("hidden", "c1:CHANNEL")
    with pytest.raises(ValueError, match=r"equally many slices.*'c2:FILTER': \(4"):
        coupled(tree, {"c1": FILTER, "c2": FILTER})
    with pytest.raises(ValueError, match=r"no leaf \['c3'\]; there are \['b', 'c1'"):
        coupled(tree, {"c1": FILTER, "c3": FILTER})


def test_rules_search_paths_and_the_first_match_wins():
    tree = {
        "params": {
            "conv1": {"kernel": normal((3, 3, 2, 4)), "bias": normal((4,))},
            "conv2": {"kernel": normal((3, 3, 4, 4))},
        },
        "list": [normal((2, 2)), None],
    }
    rules = {"conv1/kernel": None, r"conv\d/kernel": FILTER | SHAPE, "list/0": LAYER}
    assert groups(tree, rules).names == (
        "list/0:LAYER",
        "params/conv2/kernel:FILTER",
        "params/conv2/kernel:SHAPE",
    )


def test_weights_multiply_and_leave_the_rest():
    tree = {"a": normal((2, 3)), "b": normal((2, 3))}
    made = groups(tree, {".": FILTER | CHANNEL})
    weighted = made.weighted({"b:FILTER": 0.5, "FILTER": 2.0}).weighted({"^b": 3})
    assert [c.weight for c in weighted.classes] == [2, 1, 1.5, 3]
    assert all(c.weight == 1 for c in made.classes)
    with pytest.raises(ValueError, match=r"\['KERNEL'\] decide about no class"):
        made.weighted({"KERNEL": 2.0})
    with pytest.raises(ValueError, match="multiplier of 'FILTER' must be >= 0, got -1"):
        made.weighted({"FILTER": -1.0})


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"dense": FILTER}, r"rules \['dense'\] decide about no leaf.*conv/kernel"),
        ({".": LAYER, "conv": FILTER}, r"rules \['conv'\] decide about no leaf"),
        ({"bias": CHANNEL}, r"conv/bias with shape \(4,\): CHANNEL needs at least 2"),
        ({"bias": SHAPE}, r"conv/bias .*: SHAPE needs at least 2 axes, got 1"),
        ({"kernel": BLOCK(2, 3, 1, 1)}, r"must divide the axes: 2 of 3"),
        ({"kernel": BLOCK(2, 2)}, "give one size for each of 4 axes"),
        ({"bias": BLOCK(2, 1, 1, 1)}, "give one size for each of 1 axes"),
        ({"kernel": SHAPE.within(3)}, r"SHAPE.within\(3\): parts must divide .* got 4"),
        ({"kernel": BLOCK(1, 1, 1, 4).within(2)}, "blocks of 4 outputs do not divide"),
        ({"kernel": FILTER | FILTER}, r"same name: \['conv/kernel:FILTER'\]"),
    ],
)
def test_rules_that_do_not_fit_say_why(rules, message):
    tree = {"conv": {"kernel": normal((3, 3, 2, 4)), "bias": normal((4,))}}
    with pytest.raises(ValueError, match=message):
        groups(tree, rules)


def test_malformed_structures_and_classes_say_why():
    with pytest.raises(ValueError, match="exactly one of keep, drop and block"):
        Structure("BOTH", keep=(1,), drop=(0,))
    with pytest.raises(ValueError, match="block sizes must be >= 1"):
        BLOCK(0, 1)
    with pytest.raises(ValueError, match="parts must be >= 1, got 0"):
        FILTER.within(0)
    with pytest.raises(ValueError, match=r"u, leaf a: 2 ids for 3 slices"):
        GroupClass("u", (2,), (Member("a", (3,), (3,), (0,), (0, 1)),))
    with pytest.raises(ValueError, match="ids must be from -1 to 1"):
        GroupClass("u", (2,), (Member("a", (3,), (3,), (0,), (0, 1, 2)),))
    with pytest.raises(ValueError, match="not the class's"):
        GroupClass("u", (2,), (Member("a", (3,), (3,), (0,)),))
    with pytest.raises(ValueError, match="has not the entries"):
        GroupClass("u", (2,), (Member("a", (3,), (2,), (0,)),))


def test_trees_that_do_not_fit_list_every_mismatch():
    made = groups({"a": normal((2, 3)), "b": normal((2, 3))}, {".": FILTER})
    wrong = {"a": normal((2, 4))}
    with pytest.raises(
        ValueError, match=r"a must have shape \(2, 3\), got \(2, 4\)"
    ) as e:
        norms(made, wrong)
    assert "b:FILTER: no leaf b" in str(e.value)
    with pytest.raises(ValueError, match=r"unknown classes \['a'\]; there are"):
        scale(made, wrong, {"a": 1.0})
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got \(\)"):
        scale(made, {"a": normal((2, 3))}, {"a:FILTER": 1.0})
    with pytest.raises(ValueError, match="same path 'a/b'"):
        groups({"a": {"b": normal((2, 3))}, "a/b": normal((2,))}, {".": LAYER})
    with pytest.raises(KeyError, match="no class of groups 'c'"):
        made["c"]


def test_norms_have_finite_gradients_at_zero():
    tree = {"k": jnp.zeros((2, 3)).at[:, 0].set(1.0)}
    made = groups(tree, {"k": FILTER | WEIGHT})
    total = lambda t: sum(jnp.sum(n) for n in norms(made, t).values())
    slope = jax.grad(total)(tree)["k"]
    np.testing.assert_allclose(slope[:, 1:], 0)
    np.testing.assert_allclose(slope[:, 0], 1 + 2**-0.5, rtol=1e-6)


def test_alive_is_not_fooled_by_underflow():
    tree = {"k": np.array([[1e-30, 0.0, 1.0, np.nan]], np.float32)}
    made = groups(tree, {"k": FILTER})
    assert norms(made, tree)["k:FILTER"][0] == 0
    assert alive(made, tree)["k:FILTER"].tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "measure",
    [
        norms,
        alive,
        select.sum_abs,
        lambda made, tree: select.taylor(made, tree, lambda t: jnp.sum(t["b"])),
        lambda made, tree: select.taylor(made, tree, lambda t: t["b"][0, 0], order=2),
        lambda made, tree: select.fisher(
            made, tree, lambda t, x: jnp.sum(t["b"] * x[0]), jnp.ones((1, 2, 3))
        ),
    ],
    ids=["norms", "alive", "sum_abs", "taylor", "taylor2", "fisher"],
)
def test_values_come_in_the_order_of_the_classes(measure):
    tree = {"b": normal((2, 3)), "a": normal((3, 1))}
    made = groups(tree, {"b": SHAPE | CHANNEL}) + groups(tree, {"a": LAYER | FILTER})
    assert list(made.names) != sorted(made.names)
    assert list(measure(made, tree)) == list(made.names)


def test_precision_follows_the_leaves(x64):
    tree = {
        "a": normal((2, 3)).astype(np.float64),
        "b": jnp.ones((600, 2), jnp.bfloat16),
    }
    tree["c"] = np.array([[3 + 4j]])
    made = groups(tree, {".": FILTER})
    got = norms(made, tree)
    assert got["a:FILTER"].dtype == np.float64
    np.testing.assert_allclose(
        got["a:FILTER"], np.linalg.norm(tree["a"], axis=0), 1e-15
    )
    assert got["b:FILTER"].dtype == np.float32
    np.testing.assert_allclose(got["b:FILTER"], np.sqrt(600), rtol=1e-6)
    np.testing.assert_allclose(got["c:FILTER"], 5.0)
    assert (
        scale(made, tree, {"b:FILTER": np.array([0.5, 0])})["b"].dtype == jnp.bfloat16
    )


def test_groups_come_from_shapes_alone_and_are_static():
    tree = {"k": normal((3, 4))}
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    made = groups(shapes, {"k": FILTER | SHAPE})
    assert made == groups(tree, {"k": FILTER | SHAPE}) and hash(made) == hash(
        groups(tree, {"k": FILTER | SHAPE})
    )
    assert jax.eval_shape(lambda t: norms(made, t), shapes)["k:FILTER"].shape == (4,)
    jitted = jax.jit(norms, static_argnums=0)
    np.testing.assert_allclose(
        jitted(made, tree)["k:SHAPE"], norms(made, tree)["k:SHAPE"]
    )


def test_norms_and_scale_map_over_batches():
    batch = {"k": normal((5, 3, 4))}
    made = groups({"k": batch["k"][0]}, {"k": FILTER})
    got = jax.vmap(lambda t: norms(made, t))(batch)["k:FILTER"]
    np.testing.assert_allclose(got, np.linalg.norm(batch["k"], axis=1), rtol=1e-6)
    half = jax.vmap(lambda t: scale(made, t, {"k:FILTER": jnp.full(4, 0.5)}))(batch)
    np.testing.assert_allclose(half["k"], batch["k"] / 2)


def test_masked_leaves_are_passed_over():
    tree = {"a": {"k": normal((2, 3))}, "b": {"k": normal((2, 3))}}
    made = groups(tree, {"k": FILTER})
    for hidden in ({"k": optax.MaskedNode()}, optax.MaskedNode()):
        masked = {"a": tree["a"], "b": hidden}
        assert list(norms(made, masked)) == ["a/k:FILTER"]
        scaled = scale(made, masked, {n: np.zeros(3) for n in made.names})
        assert scaled["b"] == hidden and not scaled["a"]["k"].any()
    unit = coupled(tree, {"a/k": FILTER, "b/k": FILTER})
    with pytest.raises(ValueError, match="leaf b/k is masked, others of its groups"):
        norms(unit, {"a": tree["a"], "b": optax.MaskedNode()})


def test_paths_of_nnx_states():
    from flax import nnx

    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    made = groups(nnx.state(model), {"kernel": FILTER})
    (got,) = norms(made, nnx.state(model)).values()
    np.testing.assert_allclose(
        got, jnp.linalg.norm(model.kernel[...], axis=0), rtol=1e-6
    )


def test_rows_and_describe_say_what_there_is():
    tree = {"conv": {"kernel": normal((3, 3, 2, 4))}, "bias": normal((3,))}
    made = groups(tree, {"kernel": FILTER | SHAPE.within(2), "bias": LAYER})
    made = made.weighted({"FILTER": 0.5})
    assert made.describe().splitlines() == [
        "bias:LAYER: 1 group of 3",
        "conv/kernel:FILTER: 4 groups of 18, weight 0.5",
        "conv/kernel:SHAPE.within(2): 36 groups of 2",
    ]
    assert made.rows()[1] == {
        "class": "conv/kernel:FILTER",
        "kind": "",
        "groups": 4,
        "entries": (18, 18),
        "weight": 0.5,
        "members": "conv",
    }
    assert made.count == 41
    assert set(sg.__all__) >= {"groups", "norms", "scale"}


SHARDED = """
import jax, numpy as np, optax, sslx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

w = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
w *= np.linspace(0, 1, 8, dtype=np.float32)
groups = sslx.groups({"k": w}, {"k": sslx.FILTER | sslx.CHANNEL | sslx.SHAPE})
tx = sslx.proximal(sslx.GroupLasso(1.0), groups, 2.0)

@jax.jit
def step(w):
    tree = {"k": w}
    updates, _ = tx.update(tree, tx.init(tree), tree)
    return optax.apply_updates(tree, updates)["k"], sslx.norms(groups, tree)["k:FILTER"]

local, _ = step(w)
assert 0 < np.mean(np.asarray(local) == 0) < 1
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind, kind))
    spec = P(None, None, "a", "b")
    sharded, norms = step(jax.device_put(w, NamedSharding(mesh, spec)))
    assert sharded.sharding.spec == spec, sharded.sharding
    assert norms.sharding.spec == P("b"), norms.sharding
    np.testing.assert_allclose(sharded, local, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(sharded) == 0, np.asarray(local) == 0)
"""


def test_sharded_parameters_stay_sharded():
    """Four devices: norms and the proximal step gather nothing."""
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="4")
    ran = subprocess.run(
        [sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
