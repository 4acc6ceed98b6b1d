"""The laws of compaction, on programs of single operations made at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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


def rows_scanned(p, x):
    """The sums of a recurrent layer's state, step by step."""

    def body(h, row):
        h = jnp.tanh(row @ p["w"] + h @ p["u"] + p["b"])
        return h, h.sum(-1)

    start = jnp.zeros((x.shape[0], p["b"].size), x.dtype)
    return lax.scan(body, start, x.swapaxes(0, 1))[1].T


def scanned(fn):
    """Dead channels, a function of them, and a recurrent layer that reads them."""
    return lambda p, x: rows_scanned(p, fn(x @ p["dead"]))


def whole_numbers(x):
    return (3 * x + 0.3719).astype(int).astype(x.dtype)


SHAPES = {"dead": (4, 5), "w": (5, 3), "u": (3, 3), "b": (3,)}
REDUCED = {
    # What literals and zeros make is zero by its number, not by any rule.
    "whole numbers": scanned(whole_numbers),
    "a number cut off": scanned(lambda x: jax.nn.relu6(jax.nn.log_softmax(x))),
    "numbers between zeros": scanned(
        lambda x: lax.pad(x, 2.0, [(0, 0, 0), (0, 0, 0), (-1, -1, 1)])[..., :5]
    ),
    "the highest of zeros": lambda p, x: lax.top_k(x[:, 0] @ p["dead"], 5)[0] @ p["w"],
    "a number in one channel": lambda p, x: (
        jnp.floor(jnp.cos(x @ p["half"]) / 2) @ p["w"]
    ),
}


@pytest.mark.parametrize("name", REDUCED)
@jax.numpy_rank_promotion("allow")
def test_reduced_programs(name: str, x64) -> None:
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in SHAPES.items()}
    params["half"] = params["dead"].at[:, ::2].set(0)
    params["dead"] = jnp.zeros_like(params["dead"])
    made = Program(params, [("", REDUCED[name], (0,))], (1,), [(2, 3, 4), ()])
    assert fault(made, 0, [("align", "fold")]) is None


POLES = {
    "a quotient": lambda u, y: u / y,
    "a root below a line": lambda u, y: u * lax.rsqrt(jnp.square(y)),
    "a logarithm": lambda u, y: u * jnp.log(jnp.abs(y)),
}


@pytest.mark.parametrize("name", POLES)
def test_poles_beside_constants(name: str, x64) -> None:
    """A channel is zero, another constant; where the data went there is no pole."""
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=(4, 3))) for k in ("u", "y")}
    params["w"] = jnp.asarray(rng.normal(size=(3, 2)))
    params["b"], params["c"] = jnp.array([[0, 1.0, 0]]), jnp.array([[0, 2.0, 0]])
    params["u"] = params["u"].at[:, :2].set(0)
    params["y"] = params["y"].at[:, 1].set(0)
    x = jnp.asarray(rng.normal(size=(5, 4)))

    def fn(p, x):
        return (POLES[name](x @ p["u"] + p["b"], x @ p["y"] + p["c"]) + 1) @ p["w"]

    small = sslx.compact(fn)(params, x)
    np.testing.assert_allclose(small.apply(small.variables, x), fn(params, x))
    got = jax.grad(lambda p: small.apply(p, x).sum())(small.variables)
    want = jax.grad(lambda p: fn(p, x).sum())(params)
    want = sslx.apply_plan(small.plan, want)
    jax.tree.map(np.testing.assert_allclose, got, want)


def test_a_scalar_that_is_zero_may_train(x64) -> None:
    """It stays among the variables, so calls of every shape compute with it."""

    def fn(p, x):
        return jnp.tanh(x @ p["dead"] + p["b"]) + p["gate"] * (x @ p["w"])

    params = {"b": jnp.zeros(()), "gate": jnp.zeros(()), "w": jnp.ones((4, 3))}
    params["dead"] = jnp.ones((4, 3)).at[:, :2].set(0)
    small = sslx.compact(fn)(params, jnp.ones((5, 4)))
    moved = {"b": jnp.ones(()), "gate": jnp.ones(())}
    for rows in (5, 2):
        x = jnp.arange(4.0 * rows).reshape(rows, 4)
        got = small.apply(small.variables | moved, x)
        np.testing.assert_allclose(got, fn(params | moved, x))


def test_leaves_of_which_nothing_is_left_come_back_at_full_size() -> None:
    fn = lambda p, x: x @ p["a"] @ p["b"] + 1
    params = {"a": jnp.zeros((5, 4)), "b": jnp.ones((4, 3))}
    small = sslx.compact(fn)(params, jnp.ones((2, 5)))
    assert jax.tree.map(jnp.shape, small.variables) == {"a": (0, 0), "b": (0, 0)}
    assert jax.tree.map(jnp.shape, small.expand()) == {"a": (5, 4), "b": (4, 3)}
