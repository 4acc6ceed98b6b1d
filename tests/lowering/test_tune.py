"""`tune` is used like `jax.jit`: when it chooses, for what, and with which options."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx.lowering import XLA, Choices, Form, Tuned, rule


def layer(x: jax.Array, w: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def scaled(x: jax.Array, w: jax.Array, rate: float, kind: str = "plain") -> jax.Array:
    y = rate * layer(x, w)
    return y if kind == "plain" else jnp.tanh(y)


def images(batch: int, size: int = 6) -> jax.Array:
    x = np.random.default_rng(batch).standard_normal((batch, size, size, 4))
    return jnp.asarray(x, jnp.float32)


W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 4, 8)), jnp.float32)


class Measured:
    """Stands in for timing: counts what it is asked for, and what wins depends on the
    batch size: XLA's form for one image, the rule's for more."""

    def __init__(self) -> None:
        self.convolutions, self.programs = 0, 0

    def timings(self, cache: Any, conv: Any, options: Any) -> dict[Form, float]:
        del cache, options
        self.convolutions += 1
        return {XLA: 1.0, Form("im2col"): 2.0 if conv.lhs[0] == 1 else 0.5}

    def program_seconds(self, calls: Any) -> dict[str, float]:
        self.programs += 1
        for run, args, kwargs in calls.values():
            run.lower(*args, **kwargs)
        return {name: float(not name.startswith("measured")) for name in calls}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    found = Measured()
    monkeypatch.setattr(
        sslx.lowering.Cache, "timings", lambda *args: found.timings(*args)
    )
    programs = "sslx.lowering._programs"
    monkeypatch.setattr(f"{programs}.option_sets", lambda: [{}])
    monkeypatch.setattr(f"{programs}.program_seconds", found.program_seconds)
    return found


def kinds(choices: Choices) -> list[str]:
    return [choice.form.kind for choice in choices]


def test_the_first_call_of_each_shape_measures(measured: Measured) -> None:
    fast = sslx.tune(layer, lowering="measure")
    assert measured.programs == 0
    for batch, programs, form in ((1, 1, "xla"), (2, 2, "im2col"), (1, 2, "xla")):
        x = images(batch)
        np.testing.assert_allclose(fast(x, W), layer(x, W), 1e-4, 1e-4)
        assert measured.programs == measured.convolutions == programs
        assert kinds(fast.choices(x, W)) == [form]
        as_numpy = np.asarray(x, np.float64)
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        for same in (x, as_numpy, shape):
            assert kinds(fast.choices(same, W)) == [form]
        code = fast.lower(shape, W).as_text()
        assert ("stablehlo.convolution" in code) == (form == "xla")
    assert measured.programs == 2


def test_settings_and_numbers_of_a_measured_call(measured: Measured) -> None:
    fast = sslx.tune(scaled, lowering="measure")
    x = images(2)
    for rate, kind, programs in ((0.5, "plain", 1), (2.0, "plain", 1), (2.0, "t", 2)):
        found = fast(x, W, rate, kind=kind)
        np.testing.assert_allclose(found, scaled(x, W, rate, kind), 1e-4, 1e-4)
        assert measured.programs == programs


@pytest.mark.parametrize("inside", [jax.jit, jax.vmap, jax.checkpoint])
def test_nothing_is_measured_inside_another_function(
    inside: Callable[..., Any], measured: Measured
) -> None:
    fast = sslx.tune(layer, lowering="measure")
    x = images(2)
    given = (x[None], jnp.stack([W])) if inside is jax.vmap else (x, W)

    def forms() -> str:
        return str(jax.make_jaxpr(inside(lambda *args: fast(*args)))(*given))

    want = layer(x, W)
    found = inside(fast)(*given).reshape(want.shape)
    np.testing.assert_allclose(found, want, 1e-4, 1e-4)
    assert "direct_conv" in forms()
    jax.eval_shape(fast, x, W)
    assert measured.programs == 0 and "nothing chosen yet" in str(fast)
    fast(x, W)
    assert measured.programs == 1
    assert "direct_conv" not in forms() and "dot_general" in forms()
    assert measured.programs == 1


def test_what_is_known_of_a_convolution_serves_another_program(
    measured: Measured,
) -> None:
    fast = sslx.tune(scaled, lowering="measure")
    x = images(2)
    fast.choices(x, W, 1.0)
    other = str(jax.make_jaxpr(lambda: fast(x, W, 1.0, kind="tanh"))())
    assert "dot_general" in other and "direct_conv" not in other
    assert measured.programs == 1


def test_what_was_measured_is_taken_along(measured: Measured) -> None:
    fast = sslx.tune(scaled, lowering="measure", static_argnums=2)
    x = images(2)
    want, choices = fast(x, W, 0.5), fast.choices(x, W, 0.5)
    data = json.loads(json.dumps(fast.to_json()))
    copies = (
        pickle.loads(pickle.dumps(fast)),
        copy.deepcopy(fast),
        Tuned.from_json(scaled, data),
    )
    for again in copies:
        assert again.choices(x, W, 0.5) == choices
        assert again.choices(x, W, 0.5, "tanh").programs == choices.programs
        assert again.compiler_options == fast.compiler_options
        np.testing.assert_array_equal(again(x, W, 0.5), want)
        assert measured.programs == 1
    *_, last = copies
    assert kinds(last.choices(images(3), W, 0.5)) == ["im2col"]
    assert measured.programs == 2


def test_choices_that_cannot_be_computed_here_are_left_out(
    measured: Measured,
) -> None:
    """Such as `direct` without LLVM."""
    fast = sslx.tune(scaled, lowering="measure", static_argnums=2)
    x = images(2)
    want = fast(x, W, 0.5)
    data = json.loads(json.dumps(fast.to_json()))
    data["known"]["convolutions"][0]["form"] = ["split", 0, "xla"]
    again = Tuned.from_json(scaled, data)
    assert again.known is not None and not again.known.convolutions
    np.testing.assert_array_equal(again(x, W, 0.5), want)
    assert measured.programs == 2


def test_the_rule_chooses_when_it_traces() -> None:
    traced: list[int] = []

    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        traced.append(len(x))
        return layer(x, w)

    fast = sslx.tune(fn)
    for batch in (1, 2, 1, 2):
        fast(images(batch), W)
    assert traced == [1, 2]
    (choice,) = fast.choices(images(2), W)
    assert choice.form == rule(choice.conv) and choice.conv.lhs[0] == 2


def test_print_shows_what_was_chosen() -> None:
    fast = sslx.tune(lambda x, w: layer(layer(x, w), w.swapaxes(2, 3)))
    assert "nothing chosen yet" in str(fast)
    fast(images(1), W)
    jax.jit(fast.apply)(images(2), W)
    text = str(fast)
    for batch in (1, 2):
        assert f"{batch}x6x6x8" in text and f"{batch}x6x6x4" in text
        assert str(fast.choices(images(batch), W)) in text
    assert text == str(fast) and "direct" in text and text.count("options") == 2
    assert "left to XLA" in str(sslx.tune(layer, lowering="xla"))


# Options of jax.jit.


@pytest.fixture(params=["rule", "measure"])
def mode(request: pytest.FixtureRequest, measured: Measured) -> Iterator[Any]:
    del measured
    yield request.param


def donated(how: dict[str, Any], mode: Any) -> list[bool]:
    def fn(state: dict[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
        return {k: v + layer(x, W).sum() for k, v in state.items()}

    fast = sslx.tune(fn, lowering=mode, **how)
    state, x = {"a": jnp.ones(3)}, images(2)
    for _ in range(2):
        last, state = state, fast(state, x)
    want = fn(fn({"a": jnp.ones(3)}, x), x)
    np.testing.assert_allclose(state["a"], want["a"], 1e-4)
    return [last["a"].is_deleted(), x.is_deleted()]


def test_arguments_are_donated(mode: Any) -> None:
    assert donated({"donate_argnums": 0}, mode) == [True, False]
    assert donated({"donate_argnames": "state"}, mode) == [True, False]
    assert donated({}, mode) == [False, False]


@pytest.mark.parametrize(
    "how",
    [
        {"static_argnums": 2},
        {"static_argnums": (2,)},
        {"static_argnums": -1},
        {"static_argnames": "rates"},
        {"static_argnames": ["rates"], "static_argnums": []},
    ],
)
def test_static_arguments_are_not_traced(how: dict[str, Any], mode: Any) -> None:
    def fn(x: jax.Array, w: jax.Array, rates: tuple[float, ...]) -> jax.Array:
        if rates[0] > 1:
            return rates[0] * layer(x, w)
        return layer(x[:1], w)

    fast = sslx.tune(fn, lowering=mode, **how)
    x = images(2)
    for rates in ((2.0,), (0.5,)):
        want = fn(x, W, rates)
        for run in (fast, fast.apply):
            np.testing.assert_allclose(run(x, W, rates), want, 1e-4, 1e-4)
        (choice,) = fast.choices(x, W, rates)
        assert choice.conv.lhs[0] == len(want)
        if "static_argnames" in how or how["static_argnums"] != -1:
            np.testing.assert_allclose(fast(x, W, rates=rates), want, 1e-4, 1e-4)


def test_settings_of_other_types_are_other_settings(mode: Any) -> None:
    def fn(x: jax.Array, setting: Any) -> Any:
        return layer(x, W) * (2 if setting is True else 3)

    fast, x = sslx.tune(fn, lowering=mode), images(1)
    for setting in (1, True, None, "text", len):
        np.testing.assert_allclose(fast(x, setting), fn(x, setting), 1e-4, 1e-4)


def test_compiler_options_of_the_caller_come_on_top() -> None:
    own = {"xla_llvm_disable_expensive_passes": True}
    fast = sslx.tune(layer, compiler_options=own)
    assert fast.compiler_options == {**sslx.tune(layer).compiler_options, **own}
    np.testing.assert_allclose(fast(images(1), W), layer(images(1), W), 1e-4, 1e-4)
    with pytest.raises(Exception, match="no_such_option"):
        sslx.tune(layer, compiler_options={"no_such_option": "1"})(images(1), W)


def test_shardings_are_passed_on() -> None:
    mesh = jax.make_mesh((1,), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    fast = sslx.tune(layer, in_shardings=(rows, whole), out_shardings=rows)
    found = fast(images(2), W)
    assert found.sharding.is_equivalent_to(rows, found.ndim)


def test_it_is_named_like_the_function() -> None:
    assert "jit_layer" in sslx.tune(layer).lower(images(1), W).as_text()
