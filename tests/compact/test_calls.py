"""How a function is taken in and given back."""

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx._compact.analysis import fixed_point
from sslx._compact.rules import relation

X = jnp.ones((2, 4))


def parameters() -> dict[str, jax.Array]:
    return {"a": jnp.ones((4, 6)).at[:, 2].set(0), "c": jnp.ones((6, 3))}


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["a"]) @ p["c"]


# Numbers.


def step(p: Any, x: Any, rate: Any, counts: list[int]) -> Any:
    counts.append(1)
    return rate * (x @ p["a"]) @ p["c"]


@pytest.mark.parametrize("value", [0.5, 0.5 + 1j])
def test_numbers_are_traced_once_and_typed_weakly(value: Any) -> None:
    counts: list[int] = []
    fn = lambda p, x, rate: step(p, x, rate, counts)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), parameters())
    x = X.astype(jnp.bfloat16)
    small = sslx.compact(fn)(params, x, value)
    tuned = sslx.tune(fn)
    tuned(params, x, value)
    counts.clear()
    for k in (1, 2, 4):
        want = jax.eval_shape(lambda *a: step(*a, []), params, x, value / k)
        got = small.apply(small.variables, x, value / k)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, tuned(params, x, value / k), rtol=1e-2)
        np.testing.assert_allclose(got[0, 0], 20 * value / k, rtol=1e-2)
    assert not counts


@pytest.mark.parametrize("setting", [True, 3, "gelu", None])
def test_settings_are_not_traced(setting: Any) -> None:
    def fn(p: Any, x: Any, kind: Any) -> Any:
        assert kind is setting or kind == setting
        return net(p, x) if kind else net(p, 2 * x)

    small = sslx.compact(fn)(parameters(), X, setting)
    got = small.apply(small.variables, X, setting)
    np.testing.assert_allclose(got, fn(parameters(), X, setting), rtol=1e-6)


@pytest.mark.parametrize("take", [sslx.compact, sslx.tune, sslx.units])
def test_a_number_in_control_flow_is_refused_with_the_fix(take: Any) -> None:
    fn = lambda p, x, rate: net(p, x) if rate > 0 else x
    with pytest.raises(jax.errors.TracerBoolConversionError) as error:
        take(fn)(parameters(), X, 0.5)
    assert any("functools.partial(fn, rate=0.1)" in n for n in error.value.__notes__)


# Name scopes.


def scoped(p: Any, x: Any) -> Any:
    with jax.named_scope("first"):
        h = jax.jit(jax.named_call(lambda a, x: x @ a, name="deep"))(p["a"], x)
    with jax.named_scope("loop"):
        inner = jax.named_call(jnp.tanh, name="inner")
        h = jax.lax.scan(lambda c, _: (inner(c), None), h, length=2)[0]
    with jax.named_scope("kept"):
        h = jax.checkpoint(jax.named_call(jnp.sin, name="within"))(h)
    return h @ p["c"]


def test_name_scopes_survive() -> None:
    small = sslx.compact(scoped)(parameters(), X)
    tuned = sslx.tune(scoped)
    for fn, variables in (
        (small.apply, small.variables),
        (tuned.apply, parameters()),
    ):
        text = jax.jit(fn).lower(variables, X).as_text(debug_info=True)
        for name in ("first/deep/dot_general", "loop/while", "inner/tanh"):
            assert name in text
        assert re.search("kept/.*within/sin", text)


# What cannot be reduced.


def with_rule(monkeypatch: Any, name: str, emit: Callable[..., Any]) -> None:
    rule = relation._RULES[name]
    replaced = lambda eqn: dataclasses.replace(rule(eqn), emit=emit)
    monkeypatch.setitem(relation._RULES, name, replaced)


def refuse(eqn: Any, operands: Any, shapes: Any) -> Any:
    raise TypeError("no such shapes")


@pytest.mark.parametrize(
    ("emit", "reason"),
    [
        (refuse, "TypeError: no such shapes"),
        (lambda eqn, x, shapes: [x[0][:, :1]], "TypeError"),
    ],
)
def test_what_cannot_be_computed_is_kept_with_the_reason(
    emit: Any, reason: str, monkeypatch: Any, tmp_path: Any
) -> None:
    with_rule(monkeypatch, "tanh", emit)
    small = sslx.compact(net)(parameters(), X)
    assert any(reason in held.reason for held in small.held_back)
    assert small.variables["a"].shape == (4, 6)
    want = X @ parameters()["a"]
    np.testing.assert_allclose(
        small.apply(small.variables, X), jnp.tanh(want) @ parameters()["c"], rtol=1e-6
    )
    sslx.save(tmp_path / "small", small)
    again = sslx.load(tmp_path / "small", net)
    assert again.held_back == small.held_back
    assert again.apply(again.variables, jnp.ones((5, 4))).shape == (5, 3)
    with pytest.raises(ValueError, match="have no rule"):
        sslx.compact(net, strict=True)(parameters(), X)


def chain(p: Any, x: Any) -> Any:
    for w in p:
        x = jnp.tanh(x @ w)
    return x.sum(-1)


@pytest.mark.parametrize(("passes", "widths"), [(0, {3}), (-60, {3, 4})])
def test_chained_layers_die_one_after_the_other(
    passes: int, widths: set[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(fixed_point, "_PASSES", passes)
    params = [jnp.eye(4) for _ in range(16)]
    params[0] = params[0].at[1, 1].set(0)
    small = sslx.compact(chain, check=True)(params, X)
    assert {w.shape[0] for w in small.variables[1:]} == widths


@pytest.mark.slow
def test_a_hundred_and_thirty_layers_take_seconds() -> None:
    params = [jnp.eye(4) for _ in range(130)]
    params[0] = params[0].at[1, 1].set(0)
    small = sslx.compact(chain)(params, X)
    assert {w.shape for w in small.variables[1:]} == {(3, 3)}


# Checks.


def mixed(p: Any, x: Any, index: Any, key: Any, rate: Any) -> Any:
    h = net(p, x)[index] * rate
    return {"h": h + jax.random.normal(key), "index": index, "flag": h > 0}


def test_check_draws_inputs_of_every_kind() -> None:
    call = (X, jnp.array([0, 1, 1]), jax.random.key(1), 0.5)
    sslx.compact(mixed, check=True)(parameters(), *call)
    structs = jax.eval_shape(lambda: call)
    sslx.compact(mixed, check=True, lowering="rule")(parameters(), *structs)


def test_check_names_output_bounds_and_the_first_equation(monkeypatch: Any) -> None:
    with_rule(monkeypatch, "tanh", lambda eqn, x, shapes: [1.1 * jnp.tanh(x[0])])
    call = (X, jnp.array([0, 1, 1]), jax.random.key(1), 0.5)
    with pytest.raises(RuntimeError, match=r"output h .* off by .* expected at most"):
        sslx.compact(mixed, check=True)(parameters(), *call)
    with pytest.raises(RuntimeError, match=r"starts in tanh at .*test_calls.py"):
        sslx.compact(mixed, check=True)(parameters(), *call)


def test_check_takes_masks_for_zeros() -> None:
    groups = sslx.groups(parameters(), {"a": sslx.FILTER})
    (name,) = groups.names
    masks = {name: np.arange(6) % 2 == 1}
    compact = sslx.compact(net, groups=groups, masks=masks, check=True)
    small = compact(parameters(), X)
    assert small.variables["a"].shape == (4, 3)


# Objects.


def test_a_compact_network_is_no_pickle_and_is_copied() -> None:
    small = sslx.compact(net)(parameters(), X)
    with pytest.raises(TypeError, match=r"sslx.save\(path, small\)"):
        pickle.dumps(small)
    shallow, deep = copy.copy(small), copy.deepcopy(small)
    assert shallow.variables is small.variables
    assert deep.variables["a"] is not small.variables["a"]
    assert small == small and small != shallow and len({small, shallow, deep}) == 3
    np.testing.assert_array_equal(
        deep.apply(deep.variables, X), small.apply(small.variables, X)
    )


def test_a_tuned_function_is_pickled_with_its_function() -> None:
    tuned = sslx.tune(net)
    tuned(parameters(), X)
    again = pickle.loads(pickle.dumps(tuned))
    np.testing.assert_array_equal(again(parameters(), X), tuned(parameters(), X))
    assert copy.deepcopy(tuned).fn is tuned.fn
    assert tuned == tuned and tuned != again and len({tuned, again}) == 2


def test_compact_variables_may_be_donated() -> None:
    def biased(p: Any, x: Any) -> Any:
        return net(p, x) + p["b"][None]

    params = {**parameters(), "b": jnp.ones(3), "c": jnp.ones((6, 3))}
    small = sslx.compact(biased)(params, X)
    train = jax.jit(
        lambda v, x: (jax.tree.map(lambda a: a * 0.5, v), small.apply(v, x)),
        donate_argnums=0,
    )
    new, _ = train(small.variables, X)
    assert small.variables["b"].is_deleted() and not params["b"].is_deleted()
    assert biased(params, X).shape == small.apply(new, X).shape


DTYPES = ["int4", "uint4", "int8", "float8_e4m3fn", "bool", "complex64", "float16"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_variables_of_every_type(dtype: str) -> None:
    wide = jnp.complex64 if dtype == "complex64" else jnp.float32
    fn = lambda v, x: x @ v["a"].astype(wide) @ v["c"]
    params = {**parameters(), "a": parameters()["a"].astype(dtype)}
    small = sslx.compact(fn)(params, X)
    assert small.variables["a"].shape == (4, 5)
    assert small.variables["a"].dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(small.apply(small.variables, X), fn(params, X))


def test_a_batch_of_none() -> None:
    small = sslx.compact(net)(parameters(), jnp.ones((0, 4)))
    assert small.apply(small.variables, jnp.ones((0, 4))).shape == (0, 3)
