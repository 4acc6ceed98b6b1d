"""Shapes and masks of groups give the plan that zeros in the weights give."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx import select

STRUCTURES = [
    sslx.FILTER,
    sslx.CHANNEL,
    sslx.FILTER | sslx.CHANNEL,
    sslx.SHAPE,
    sslx.KERNEL,
    sslx.WEIGHT,
    sslx.LAYER,
    sslx.BLOCK(3, 3, 2, 4),
    sslx.CHANNEL.within(2),
]


def net(p: Any, x: Any) -> Any:
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(conv(x, p["first"]))
    x = jax.nn.relu(conv(x, p["second"]) + p["bias"].reshape(1, 1, 1, -1))
    return x.mean((1, 2)) @ p["out"]


def parameters() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {
        "first": (3, 3, 2, 8),
        "second": (3, 3, 8, 8),
        "bias": (8,),
        "out": (8, 4),
    }
    rows = zip(keys, shapes.items(), strict=True)
    return {name: 1 + jax.random.uniform(k, shape) for k, (name, shape) in rows}


X = jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)


def check(groups: sslx.Groups, masks: dict[str, Any]) -> sslx.Compact:
    params = parameters()
    want = sslx.compact(net)(sslx.scale(groups, params, masks), X)
    shapes = jax.eval_shape(lambda: params)
    got = sslx.compact(net, groups=groups, masks=masks)(shapes, X)
    assert got.plan == want.plan
    return got


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_a_plan_from_shapes_is_that_from_zeros(structure: Any) -> None:
    params = parameters()
    for seed, density in enumerate((0.7, 0.3, 0.0)):
        groups = sslx.groups(params, {"first|second": structure})
        draw = np.random.default_rng(seed)
        masks = {
            c.name: draw.random(c.shape) < density
            for c in groups.classes
            if "second" in c.name or density
        }
        check(groups, masks)


def test_masks_of_units_chosen_by_score() -> None:
    params = parameters()
    units = sslx.units(net)(params, X)
    masks = select.keep(units, select.sum_abs(units, params), 0.5)
    small = check(units, masks)
    assert small.plan.leaves["second"].small_shape == (3, 3, 4, 4)
