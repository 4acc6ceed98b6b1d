"""Wrong calls of compact, units, tune and apply, and what they say."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import sslx

P = {"a": jnp.ones((4, 6)).at[:, 2].set(0), "b": jnp.ones((6, 3))}
X = jnp.ones((2, 4))
SHAPES = jax.eval_shape(lambda: P)


def net(p: Any, x: Any, scale: Any = 1) -> Any:
    return x @ p["a"] @ p["b"] * scale


FILTERS = sslx.groups(P, {"a": sslx.FILTER})
(A,) = FILTERS.names
KEPT = {A: np.arange(6) < 2}


def masks(rows: Any) -> Callable[[], Any]:
    return lambda: sslx.compact(net, groups=FILTERS, masks=rows)(P, X)


def option(**options: Any) -> Callable[[], Any]:
    return lambda: sslx.compact(net, **options)(P, X)


def apply(variables: Any, *args: Any) -> Callable[[], Any]:
    return lambda: sslx.compact(net)(P, X).apply(variables, *args)


def traced(take: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: jax.jit(take)(jax.tree.map(jnp.asarray, P))


def captured(k: Any) -> Any:
    return sslx.compact(lambda p, x: net(p, x) * k)(P, X).summary()


SMALL = {"a": jnp.ones((4, 5)), "b": jnp.ones((5, 3))}
V, T = ValueError, TypeError
Case = tuple[str, Callable[[], Any], type[Exception], str]
DENSE = nn.Dense(3)
COMPACT: list[Case] = [
    ("swapped", lambda: sslx.compact(P)(net, X), T, "fn: got dict, expected a functi"),
    ("swapped at once", lambda: sslx.compact(P, net, X), T, "the function comes first"),
    (
        "one step",
        lambda: sslx.compact(net, P, X),
        T,
        r"2 arguments after the first; fix: .*sslx.compact\(fn, \*\*options\)\(var",
    ),
    ("twice fn", lambda: sslx.compact(net)(net, X), T, "the function comes first"),
    ("none", lambda: sslx.compact(None)(P, X), T, "fn: got NoneType"),
    ("text", lambda: sslx.compact("net")(P, X), T, "fn: got str, expected a function"),
    ("module", lambda: sslx.compact(DENSE)(P, X), T, "give its method, fn.apply"),
    (
        "compact of compact",
        lambda: sslx.compact(sslx.compact(net)(P, X))(P, X),
        T,
        "fn: got Compact.*fn.apply",
    ),
    ("no leaves", lambda: sslx.compact(net)({}, X), T, "there are no leaves"),
    ("text leaf", lambda: sslx.compact(net)({**P, "k": "gelu"}, X), T, "k: got str"),
    ("object", lambda: sslx.compact(net)({**P, "k": object()}, X), T, "k: got object"),
    (
        "text array",
        lambda: sslx.compact(net)({**P, "k": np.array(["x"])}, X),
        T,
        "k: got ndarray",
    ),
    (
        "dates",
        lambda: sslx.compact(net)({**P, "k": np.zeros(2, "M8[s]")}, X),
        T,
        "k: got ndarray",
    ),
    ("shapes", lambda: sslx.compact(net)(SHAPES, X), V, "a: got a shape.*masks="),
    ("in jit", traced(lambda p: sslx.compact(net)(p, X).plan), V, "outside of jit"),
    (
        "in grad",
        lambda: jax.grad(lambda p: sslx.compact(net)(p, X).apply(p, X).sum())(P),
        V,
        "a: got a traced array",
    ),
    ("captured", lambda: jax.jit(captured)(2.0), V, r"captures .*shape \(\); fix"),
    (
        "check shapes",
        lambda: sslx.compact(net, masks={}, check=True)(SHAPES, X),
        V,
        "check: got shapes",
    ),
]
OPTIONS: list[Case] = [
    (
        "alignment",
        option(alignment="best"),
        V,
        "alignment: got 'best', expected one of",
    ),
    ("alignment none", option(alignment=None), V, "expected one of auto, align"),
    ("alignment list", option(alignment=["align"]), V, "alignment: got "),
    ("constants", option(constants="drop"), V, "constants: got 'drop'.*fold, keep"),
    ("constants bool", option(constants=True), V, "constants: got True"),
    (
        "lowering",
        option(lowering="fast"),
        V,
        "lowering: got 'fast'.*xla, rule, measure",
    ),
    ("lowering none", option(lowering=None), V, "lowering: got None"),
    ("round 0", option(round_to=0), V, "round_to: got 0, expected at least 1"),
    ("round -8", option(round_to=-8), V, "round_to: got -8"),
    ("round 8.0", option(round_to=8.0), T, "round_to: got 8.0, expected an integer"),
    ("round True", option(round_to=True), T, "round_to: got True"),
    ("round text", option(round_to="8"), T, "round_to: got '8'"),
    ("state nowhere", option(state="mean"), V, r"state \['mean'\] is found in no leaf"),
    ("state number", option(state=3), T, "state: got int, expected regular"),
    ("state tree", option(state={"m": X}), T, "lambda v, x: fn"),
    ("state in list", option(state=["a", 3]), T, "state: got int"),
    ("state regex", option(state="("), V, "is not a regular expression"),
    ("lower later", lambda: small().lowered(X, lowering="best"), V, "lowering: got"),
]
MASKS: list[Case] = [
    ("list", masks([]), T, "masks: got list, expected {class of groups"),
    ("array", masks(np.ones(6, bool)), T, "masks: got ndarray"),
    (
        "no groups",
        lambda: sslx.compact(net, masks={A: np.ones(6, bool)})(P, X),
        T,
        "groups: got none, expected with masks",
    ),
    ("class", masks({"c": np.ones(6, bool)}), V, "c: there is no such class; .*FILTER"),
    ("float", masks({A: np.ones(6)}), V, "has dtype float64, expected bool"),
    ("int", masks({A: [1, 0, 0, 0, 0, 1]}), V, "has dtype int64, expected bool"),
    ("length", masks({A: np.ones(4, bool)}), V, r"shape \(4,\), the class \(6,\)"),
    ("rank", masks({A: np.ones((6, 1), bool)}), V, r"has shape \(6, 1\)"),
    ("shape", masks({A: jax.ShapeDtypeStruct((6,), bool)}), V, "is a shape"),
    (
        "leaf",
        lambda: sslx.compact(lambda p, x: x, groups=FILTERS, masks=KEPT)({"c": X}, X),
        V,
        "there is no leaf a; there are c",
    ),
    (
        "other shape",
        lambda: sslx.compact(net, groups=FILTERS, masks=KEPT)(SMALL, X),
        V,
        r"a is \(4, 5\), groups were made for \(4, 6\)",
    ),
]
UNITS: list[Case] = [
    ("swapped", lambda: sslx.units(P)(net, X), T, "fn: got dict, expected a functi"),
    ("one step", lambda: sslx.units(net, P, X), T, r"fix: .*sslx.units\(fn, \*\*opt"),
    ("module", lambda: sslx.units(DENSE)(P, X), T, "give its method, fn.apply"),
    ("text leaf", lambda: sslx.units(net)({"a": "x"}, X), T, "a: got str 'x'"),
    ("no leaves", lambda: sslx.units(net)([], X), T, "there are no leaves"),
    ("pin nowhere", lambda: sslx.units(net, pin="c")(P, X), V, r"pin \['c'\] is found"),
    ("pin number", lambda: sslx.units(net, pin=[1])(P, X), T, "pin: got int"),
    ("pin tree", lambda: sslx.units(net, pin=P)(P, X), T, "pin: got dict"),
    ("pin regex", lambda: sslx.units(net, pin="[")(P, X), V, "not a regular"),
    (
        "state",
        lambda: sslx.units(net, state="mean")(P, X),
        V,
        "state .'mean'. is found",
    ),
    (
        "captured",
        lambda: jax.jit(lambda k: sslx.units(lambda p, x: net(p, x) * k)(P, X).names)(
            2.0
        ),
        V,
        "captures a traced array",
    ),
]
APPLY: list[Case] = [
    ("dense", apply(P, X), V, r"a: got shape \(4, 6\), expected \(4, 5\)"),
    ("dense: the fix", apply(P, X), V, r"apply_plan\(plan, full variables\)"),
    ("missing", apply({"a": SMALL["a"]}, X), V, "b: missing"),
    ("extra", apply({**SMALL, "c": X}, X), V, "c: not in the plan"),
    ("nothing", apply(None, X), V, "a: missing\n  b: missing"),
    ("data first", apply(X, SMALL), V, "a: missing"),
    ("transposed", apply({**SMALL, "b": SMALL["b"].T}, X), V, r"b: got shape \(3, 5\)"),
    ("text", apply({**SMALL, "b": "x"}, X), V, r"b: got shape \(\)"),
    ("no data", apply(SMALL), T, "missing 1 required positional argument: 'x'"),
    ("too much", apply(SMALL, X, 1, 2), T, "takes from 2 to 3 positional"),
    ("wrong width", apply(SMALL, jnp.ones((2, 5))), T, "dot_general requires"),
]
TUNE: list[Case] = [
    ("no function", lambda: sslx.tune(P, X), T, "fn: got dict, expected a function"),
    ("lowering", lambda: sslx.tune(net, lowering="fast"), V, "lowering: got 'fa"),
    ("none", lambda: sslx.tune(net, lowering=None), V, "lowering: got None"),
    ("module", lambda: sslx.tune(DENSE), T, "give its method, fn.apply"),
    ("nothing", lambda: sslx.tune(None), T, "fn: got NoneType, expected a function"),
    ("example", lambda: sslx.tune(net, P, X), T, r"fix: .*sslx.tune\(fn\)\(\*args\)"),
    ("setting", lambda: sslx.tune(net, train=False), T, "argument 'train'"),
    ("no data", lambda: sslx.tune(net)(P), T, "missing 1 required positional"),
    ("no data asked", lambda: sslx.tune(net).choices(P), T, "missing 1 required"),
    ("too much", lambda: sslx.tune(net)(P, X, X, X, X, X), T, "positional arguments"),
]
TABLES = {
    "compact": COMPACT,
    "options": OPTIONS,
    "masks": MASKS,
    "units": UNITS,
    "apply": APPLY,
    "tune": TUNE,
}


def small() -> sslx.Compact:
    return sslx.compact(net)(P, X)


class Row(NamedTuple):
    call: Callable[[], Any]
    error: type[Exception]
    text: str


ROWS = {
    f"{table}: {name}": Row(call, error, text)
    for table, cases in TABLES.items()
    for name, call, error, text in cases
}


def test_there_is_a_row_for_every_case() -> None:
    assert len(ROWS) == sum(map(len, TABLES.values())) >= 60


@pytest.fixture
def untyped() -> Iterator[None]:
    """As outside of these tests, where nothing checks the types of arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_call_is_named_with_its_fix(name: str) -> None:
    row = ROWS[name]
    with pytest.raises(row.error, match=re.compile(row.text, re.DOTALL)):
        row.call()


RIGHT: dict[str, Callable[[], Any]] = {
    "one expression": lambda: sslx.units(net, pin="b")(P, X),
    "expressions": lambda: sslx.units(net, pin=("a", "b"))(P, X),
    "mask of jax": masks({A: jnp.arange(6) < 2}),
    "shapes and no masks": lambda: sslx.compact(net, masks={})(SHAPES, X),
    "shapes of data": lambda: sslx.compact(net)(P, jax.eval_shape(lambda: X)),
    "a setting without a hash": lambda: sslx.compact(lambda p, x, s: net(p, x, len(s)))(
        P, X, {1, 2}
    ),
    "numbers among variables": lambda: sslx.compact(lambda p, x: net(p, x) * p["k"])(
        {**P, "k": 2.0}, X
    ),
    "data traced": lambda: jax.jit(lambda x: sslx.compact(net)(P, x).apply(SMALL, x))(
        X
    ),
    "round of numpy": option(round_to=np.int64(2)),
    "a tuned function": lambda: sslx.compact(sslx.tune(net))(P, X),
    "a jitted function": lambda: sslx.compact(jax.jit(net))(P, X),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", RIGHT)
def test_what_has_an_obvious_meaning_is_taken(name: str) -> None:
    RIGHT[name]()
