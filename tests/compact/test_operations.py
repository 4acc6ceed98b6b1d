"""The laws of compaction, on programs of single operations made at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from tests.compact.operations import Program, program

SETTINGS = [(a, c) for a in ("auto", "align", "scatter") for c in ("fold", "keep")]
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def fault(made: Program, seed: int, settings: list[tuple[str, str]]) -> str | None:
    """What is wrong with the compaction of a program; None if nothing is.

    Compact is dense, at full size again too; compacting twice removes nothing more.
    """
    params = made.params
    if not params:
        return None
    x = jax.random.normal(jax.random.key(seed), made.shapes[0], jnp.float64)
    small = {}
    for alignment, constants in settings:
        options = {"alignment": alignment, "constants": constants}
        try:
            small[alignment, constants] = sslx.compact(made.apply, **options)(params, x)
        except Exception as error:
            return f"{alignment} {constants}: compact raises {error!r:.300}"

    run = jax.jit(made.apply, compiler_options=QUICK)
    dense = run(params, x)
    if not all(np.isfinite(y).all() for y in dense):
        return None
    for setting, s in small.items():
        try:
            outs = jax.jit(s.apply, compiler_options=QUICK)(s.variables, x)
            wide = run(s.expand(), x)
        except Exception as error:
            return f"{' '.join(setting)}: apply or expand raises {error!r:.300}"
        for name, found in (("apply", outs), ("expand", wide)):
            error = max(map(relative, found, dense))
            if not error < 1e-10:
                return f"{' '.join(setting)}: {name} is off by {error:.1e}"
    return next(filter(None, (again(s, x, *k) for k, s in small.items())), None)


def relative(got: jax.Array, want: jax.Array) -> float:
    if got.shape != want.shape:
        return np.inf
    return float(jnp.abs(got - want).max() / (jnp.abs(want).max() + 1e-3))


def again(small: sslx.Compact, x: jax.Array, alignment: str, constants: str) -> str:
    """What a second compaction still removes."""
    if alignment == "auto":
        return ""
    options = {"alignment": alignment, "constants": constants}
    try:
        twice = sslx.compact(small.apply, **options)(small.variables, x)
    except Exception as error:
        return f"{alignment} {constants}: compacting again raises {error!r:.300}"
    left = [p for p, n in twice.plan.leaves.items() if n.small_shape != n.shape]
    return f"{alignment} {constants}: again removes parts of {left}" if left else ""


def smallest(made: Program, seed: int, settings: list[tuple[str, str]]) -> Program:
    """A program with less in it that fails as well."""
    for less in made.reduced():
        if fault(less, seed, settings):
            return smallest(less, seed, settings)
    return made


@jax.numpy_rank_promotion("allow")
def check(seed: int, settings: list[tuple[str, str]]) -> None:
    made = program(seed)
    if fault(made, seed, settings):
        made = smallest(made, seed, settings)
        text = fault(made, seed, settings)
        pytest.fail(f"seed {seed}: {text}\n{made}", pytrace=False)


@pytest.mark.parametrize("start", [0, 9])
def test_compaction_of_operations_is_exact(start: int, x64) -> None:
    for seed in range(start, start + 9):
        check(seed, [SETTINGS[seed % 6]])


@pytest.mark.slow
@pytest.mark.parametrize("start", [18, *range(1000, 4000, 50)])
def test_compaction_of_operations_is_exact_on_many(start: int, x64) -> None:
    for seed in range(start, start + 50):
        check(seed, SETTINGS)


def test_leaves_of_which_nothing_is_left_come_back_at_full_size() -> None:
    fn = lambda p, x: x @ p["a"] @ p["b"] + 1
    params = {"a": jnp.zeros((5, 4)), "b": jnp.ones((4, 3))}
    small = sslx.compact(fn)(params, jnp.ones((2, 5)))
    assert jax.tree.map(jnp.shape, small.variables) == {"a": (0, 0), "b": (0, 0)}
    assert jax.tree.map(jnp.shape, small.expand()) == {"a": (5, 4), "b": (4, 3)}
