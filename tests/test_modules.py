"""Modules that come back smaller: their sizes, what they compute, what is refused."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sslx
import sslx.adapters.equinox
import sslx.adapters.nnx
from sslx._groups import flatten, unflatten
from tests import modules
from tests.modules import Case
from tests.public.harness import distance


def widened(variables: Any, zero: Any) -> Any:
    """Random variables in float64, some slices zero."""
    rng = np.random.default_rng(0)
    leaves, treedef = flatten(variables)
    for path, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaves[path] = jax.random.key(0)
        elif not jnp.issubdtype(leaf.dtype, jnp.inexact):
            leaves[path] = jnp.zeros(leaf.shape, leaf.dtype)
        else:
            array = rng.uniform(0.3, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape)
            array = abs(array) if path.endswith("var") else array
            if path in zero:
                array[zero[path]] = 0
            leaves[path] = jnp.asarray(array)
    assert set(zero) <= set(leaves), sorted(leaves)
    return unflatten(treedef, leaves)


def nnx_module(case: Case) -> nnx.Module:
    module = nnx.eval_shape(case.make)
    state = nnx.state(module)
    values = widened(nnx.to_pure_dict(state), case.zero)
    nnx.replace_by_pure_dict(state, values)
    nnx.update(module, state)
    return module


def eqx_module(case: Case) -> eqx.Module:
    module = eqx.filter_eval_shape(case.make)
    arrays, static = eqx.partition(
        module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    return eqx.combine(widened(arrays, case.zero), static)


def attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


def examine(adapter: Any, module: Any, case: Case) -> Any:
    """Compact a module and compare it with the function, and its sizes."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=case.shape))
    new, small = adapter.compact(module, x, call=case.call)
    want = case.call(module, x)
    assert distance(case.call(new, x), want) < 1e-10
    assert distance(small.apply(small.variables, x), want) < 1e-10
    assert not small.held_back
    assert {path: attribute(new, path) for path in case.sizes} == case.sizes
    return small


@pytest.mark.parametrize("name", modules.NNX)
def test_nnx_module_has_the_sizes_of_its_arrays(name: str, x64) -> None:
    case = modules.NNX[name]
    examine(sslx.adapters.nnx, nnx_module(case), case)


@pytest.mark.parametrize("name", modules.EQUINOX)
def test_equinox_module_has_the_sizes_of_its_arrays(name: str, x64) -> None:
    case = modules.EQUINOX[name]
    examine(sslx.adapters.equinox, eqx_module(case), case)
