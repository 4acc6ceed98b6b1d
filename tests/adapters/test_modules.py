"""Modules that come back smaller: their sizes, what they compute, what is refused."""

import functools
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
from sslx._groups.groups import flatten, unflatten
from tests.adapters import modules
from tests.adapters.modules import Case
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


def example(case: Case) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=case.shape))


QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def quickly(case: Case) -> Any:
    """The call of a case, compiled as a whole."""

    def call(module: Any, x: jax.Array) -> jax.Array:
        if isinstance(x, jax.core.Tracer) or not case.compiled:
            return case.call(module, x)
        run = jax.jit(functools.partial(case.call, module), compiler_options=QUICK)
        return run(x)

    return call


def examine(adapter: Any, module: Any, case: Case, **options: Any) -> sslx.Compact:
    """Compact a module and compare it with the function, and its sizes."""
    x, call = example(case), quickly(case)
    new, small = adapter.compact(module, call=call, **options)(x)
    want = call(module, x)
    assert distance(call(new, x), want) < 1e-10
    apply = jax.jit(small.apply, compiler_options=QUICK)
    assert distance(apply(small.variables, x), want) < 1e-10
    assert {path: attribute(new, path) for path in case.sizes} == case.sizes
    return small


SLOW = (
    *("sequential", "convolution in groups", "group norm by size", "several axes"),
    *("transposed convolution", "attention, inner width apart", "own variable"),
    *("attention, as many heads as entries", "compiled", "attention"),
)


def names(cases: Any) -> list[Any]:
    """The cases; those of which others are the like are slow."""
    marks = lambda name: [pytest.mark.slow] if name in SLOW else []
    return [pytest.param(name, marks=marks(name)) for name in cases]


@pytest.mark.parametrize("name", names(modules.NNX))
def test_nnx_module_has_the_sizes_of_its_arrays(name: str, x64) -> None:
    case = modules.NNX[name]
    small = examine(sslx.adapters.nnx, nnx_module(case), case)
    assert not small.held_back


@pytest.mark.parametrize("name", names(modules.EQUINOX))
def test_equinox_module_has_the_sizes_of_its_arrays(name: str, x64) -> None:
    case = modules.EQUINOX[name]
    small = examine(sslx.adapters.equinox, eqx_module(case), case)
    assert not small.held_back


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        *(("nnx", name) for name in modules.MEANS),
        *(("equinox", name) for name in modules.EQUINOX_MEANS),
    ],
)
def test_mean_keeps_the_zeros_that_it_counts(adapter: str, name: str, x64) -> None:
    if adapter == "nnx":
        case = modules.MEANS[name]
        small = examine(sslx.adapters.nnx, nnx_module(case), case)
    else:
        case = modules.EQUINOX_MEANS[name]
        small = examine(sslx.adapters.equinox, eqx_module(case), case)
    assert small.held_back
    for held in small.held_back:
        assert "a mean counts the slices that are there" in str(held)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("linear", "its code runs all the same"),
        pytest.param("attention", "cannot run", marks=pytest.mark.slow),
    ],
)
def test_branch_that_is_gone_stays_where_the_code_needs_it(
    name: str, text: str, x64
) -> None:
    case = modules.GONE[name]
    small = examine(sslx.adapters.nnx, nnx_module(case), case)
    assert all(str(h).startswith("the module at inner") for h in small.held_back)
    assert text in str(small.held_back[0])


# Sizes that nothing says.


class Wide(nnx.Module):
    """Its width may be that before or after the layer; nothing reads it."""

    def __init__(self) -> None:
        self.width, self.bounds, self.rate = 10, (1, 10), 0.5
        self.first = nnx.Linear(8, 10, rngs=modules.rngs())
        self.mix = nnx.Linear(10, 10, rngs=modules.rngs())
        self.last = nnx.Linear(10, 3, rngs=modules.rngs())

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.mix(nnx.relu(self.first(x)))))


WIDE = Case(
    Wide,
    {"first/kernel": np.s_[:, modules.DEAD], "first/bias": modules.DEAD}
    | {"mix/kernel": np.s_[:, 5:], "mix/bias": np.s_[5:]},
    (2, 8),
    {"mix.in_features": 7, "mix.out_features": 5},
)


def test_size_that_may_be_two_is_asked_for_and_can_be_named(x64) -> None:
    module = nnx_module(WIDE)
    with pytest.raises(ValueError, match="width was 10, and may now be 5 or 7"):
        sslx.adapters.nnx.compact(module, sizes={"bounds": (1, 7)})(example(WIDE))
    case = WIDE._replace(sizes=WIDE.sizes | {"width": 7, "bounds": (1, 5)})
    given = {"width": 7, "bounds": (1, 5)}
    examine(sslx.adapters.nnx, module, case, sizes=given)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"widht": 7}, r"sizes: the module has no size 'widht'; it has width"),
        ({"mix.kernel": 7}, r"sizes: the module has no size 'mix.kernel'"),
        ({"rate": 7}, r"sizes: the module has no size 'rate'"),
        ({"width": 7.0}, r"sizes: width got 7.0, expected the like of 10"),
        ({"width": True}, r"sizes: width got True, expected the like of 10"),
        ({"width": -7}, r"sizes: width got -7, expected the like of 10"),
        ({"width": (7,)}, r"sizes: width got \(7,\), expected the like of 10"),
        ({"bounds": 7}, r"sizes: bounds got 7, expected the like of \(1, 10\)"),
        ({"bounds": (7,)}, r"sizes: bounds got \(7,\), expected the like of"),
    ],
)
def test_wrong_names_and_values_of_sizes_are_refused(sizes: Any, text: str) -> None:
    module, small = nnx_module(WIDE), wide()
    with pytest.raises(ValueError, match=text):
        sslx.adapters.nnx.resize(module, small, sizes=sizes)(example(WIDE))


@functools.cache
def wide() -> sslx.Compact:
    fn, variables = sslx.adapters.nnx.function(nnx_module(WIDE))
    options = {"alignment": "align", "constants": "keep"}
    return sslx.compact(fn, **options)(variables, example(WIDE))


def test_given_size_with_which_the_module_cannot_run_is_named(x64) -> None:
    case = modules.NNX["attention, inner width apart"]
    with pytest.raises(ValueError, match=r"(?s)cannot run.*heads = 4 \(or 3\)"):
        sslx.adapters.nnx.compact(nnx_module(case), sizes={"heads": 2}, strict=True)(
            example(case)
        )


def test_smaller_module_goes_on_as_any_other() -> None:
    layers = modules.linears()
    layers.layers.insert(1, nnx.Dropout(0.5, rngs=modules.rngs()))
    case = Case(lambda: layers, modules.dead_hidden(last=3), (2, 8), {})
    layers.eval()
    state = nnx.state(layers)
    nnx.replace_by_pure_dict(state, widened(nnx.to_pure_dict(state), case.zero))
    nnx.update(layers, state)
    new, _ = sslx.adapters.nnx.compact(layers)(example(case))
    want = new(example(case))
    merged = nnx.merge(*nnx.split(new))
    assert merged.layers[0].out_features == 7
    assert distance(nnx.jit(lambda m, x: m(x))(merged, example(case)), want) < 1e-5
    merged.train()
    assert distance(nnx.jit(lambda m, x: m(x))(merged, example(case)), want) > 1e-3
