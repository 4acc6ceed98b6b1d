import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from experiments.cifar_ssl import sparsity
from experiments.imagenet_ssl import groups as groups_of
from experiments.models import imagenet as imagenet_models
from sslx import measure


def small_network():
    model = imagenet_models.ResNet(3, depths=(1, 1), width=16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(image.shape))
    return model, variables, image


def test_a_dead_unit_is_gone_from_every_layer_that_has_it():
    model, variables, image = small_network()
    groups = groups_of.make_groups("units", model, variables, image, 4)
    cost = measure.cost(model.apply, variables, image)
    macs = sparsity.group_macs(groups, cost)
    assert sum(macs.values()) == pytest.approx(1)
    half = {c.name: np.arange(c.count) % 2 for c in groups.classes}
    sparse = sslx.scale(groups, variables["params"], half)
    small = sslx.compact(model.apply)({**variables, "params": sparse}, image)
    params = small.variables["params"]
    assert params["conv1"]["kernel"].shape == (7, 7, 3, 8)
    assert params["stage1_1"]["conv2"]["kernel"].shape == (3, 3, 8, 8)
    assert params["stage2_1"]["conv3"]["kernel"].shape == (1, 1, 16, 64)
    removed = 1 - measure.cost(small.apply, small.variables, image).macs / cost.macs
    share = sparsity.removed_share(groups, sslx.alive(groups, sparse), macs)
    assert removed == pytest.approx(float(share), rel=1e-5) and 0.5 < removed < 0.8


def test_balanced_classes_shrink_by_the_same_part_of_their_norms():
    params = {"a": jnp.full((4, 3), 2.0), "b": jnp.full((4, 5), 0.5)}
    groups = sslx.groups(params, {"a|b": sslx.FILTER})
    found = groups_of.balanced(groups, params)
    shrunk = sslx.prox(sslx.GroupLasso(1.0), found, params, 1.0)
    parts = {name: shrunk[name] / params[name] for name in params}
    np.testing.assert_allclose(parts["a"], parts["a"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(parts["b"], parts["a"][0, 0], rtol=1e-6)
    assert sum(c.weight for c in found.classes) == pytest.approx(2)


def test_merged_groups_are_neighbours_in_norm_and_leave_slices_out():
    member = sslx.coupled({"k": jnp.zeros((5, 6))}, {"k": sslx.FILTER}).classes[0]
    part = dataclasses.replace(
        member.members[0], shape=(5, 8), view=(5, 8), ids=(-1, 0, 1, 2, 3, 4, 5, -1)
    )
    both = dataclasses.replace(member, members=(*member.members, part))
    found = groups_of.merged(both, np.array([3.0, 1, 2, 6, 5, 4]), 2)
    assert found.shape == (3,)
    assert found.members[0].ids == (1, 0, 0, 2, 2, 1)
    assert found.members[1].ids == (-1, 1, 0, 0, 2, 2, 1, -1)


def test_alexnets_rows_and_columns_have_the_authors_factors():
    model = imagenet_models.create("alexnet")
    image = jax.ShapeDtypeStruct((1, 227, 227, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    groups = groups_of.make_groups("filter+shape", model, variables, image, 8)
    found = groups_of.authors_groups(groups)
    assert {
        c.name.replace("/kernel", ""): (c.shape, c.weight) for c in found.classes
    } == {
        "conv1:FILTER": ((96,), 1.0),
        "conv2:FILTER": ((256,), 1.0),
        "conv2:SHAPE.within(2)": ((5, 5, 48, 2), 1.0),
        "conv3:FILTER": ((384,), 1.0),
        "conv3:SHAPE": ((3, 3, 256), 1.7321),
        "conv4:FILTER": ((384,), 1.0),
        "conv4:SHAPE.within(2)": ((3, 3, 192, 2), 1.2247),
        "conv5:SHAPE.within(2)": ((3, 3, 192, 2), 1.0),
    }
    # sqrt(filters of a part / 128), as the authors' factors are made
    for name, filters in {
        "conv2": 128,
        "conv3": 384,
        "conv4": 192,
        "conv5": 128,
    }.items():
        expected = (filters / 128) ** 0.5
        assert groups_of.ALEXNET_COLUMNS[name] == pytest.approx(expected, rel=1e-4)
