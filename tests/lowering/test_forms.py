"""Forms in every dtype they are used in, and the programs that `tune` met wrongly."""

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx import lowering
from sslx.lowering import Conv, Form
from tests.lowering.convolutions import close, convolutions, in_float64, made, operands

KINDS = (
    *("xla", "direct", "crop", "dot", "im2col", "gather_columns", "unrolled"),
    "depthwise",
)
FORMS = [Form(kind, chunk) for kind in KINDS for chunk in (0, 2)]
FORMS += [Form(kind, 0, inner) for kind in ("split", "phases") for inner in KINDS]


def is_safe(form: Form, conv: Conv) -> bool:
    """Whether jaxlib 0.10.2 computes it: grouped, dilated images can abort it."""
    alone = conv.groups == 1 or max(conv.lhs_dilation) == 1
    return alone or "xla" not in (form.kind, form.inner)


def check(conv: Conv, forms: list[Form], seed: int) -> None:
    x, w = operands(conv, seed)
    expected = in_float64(conv, x, w)
    given = jnp.asarray(x, conv.dtype), jnp.asarray(w, conv.dtype)
    for form in forms:
        run = jax.jit(lambda x, w, form=form: lowering.run(form, conv, x, w))
        assert close(run(*given), conv, expected), (form, conv)


@hypothesis.given(convolutions(), st.integers(0, 99))
def test_every_form_is_exact_in_every_dtype(spec: dict[str, Any], start: int) -> None:
    conv = made(spec)
    with jax.enable_x64(True):
        forms = [f for f in FORMS if lowering.applies(f, conv) is None]
        forms = [f for f in forms[start % len(forms) :] if is_safe(f, conv)][:2]
        check(conv, forms, start)
        assert conv.macs >= conv.macs_inside


@pytest.mark.slow
@hypothesis.settings(max_examples=3000)
@hypothesis.given(convolutions(largest=12), st.integers(0, 99))
def test_many_convolutions_by_rule(spec: dict[str, Any], seed: int) -> None:
    conv = made(spec)
    with jax.enable_x64(True):
        form = lowering.rule(conv)
        hypothesis.assume(is_safe(form, conv))
        check(conv, [form], seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=500)
@hypothesis.given(
    convolutions(("float64", "float32", "bfloat16", "float16"), 9), st.integers(0, 99)
)
def test_many_gradients_by_rule(spec: dict[str, Any], seed: int) -> None:
    """Of a loss with a given slope at the result."""
    conv = dataclasses.replace(made(spec), columns=None)
    with jax.enable_x64(True):
        hypothesis.assume(not conv.is_empty and conv.groups == 1)
        hypothesis.assume(max(conv.lhs_dilation) == 1)
        x, w = operands(conv, seed)
        slope = np.random.default_rng(seed).integers(-8, 9, conv.shape) / 4

        def loss(x: Any, w: Any, slope: Any) -> Any:
            return jnp.sum((conv.run(x, w) * slope).astype("float64"))

        given = [jnp.asarray(a, conv.dtype) for a in (x, w, slope)]
        tuned = sslx.tune(jax.grad(loss, (0, 1)))
        found = jax.jit(tuned.apply)(*given)
        for k, one in enumerate(found):
            expected = gradient(conv, x, w, slope, k)
            size = 1 + np.abs(expected)
            rounding = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2}
            limit = rounding.get(conv.dtype, 2e-1) * size
            assert (np.abs(np.asarray(one, float) - expected) <= limit).all()


def gradient(
    conv: Conv, x: np.ndarray, w: np.ndarray, slope: np.ndarray, which: int
) -> np.ndarray:
    """In float64, of one product of patches, which other tests hold right."""
    wide = dataclasses.replace(conv, dtype="float64", result="float64")
    loss = lambda *a: jnp.sum(lowering.run(Form("im2col"), wide, *a) * slope)
    return np.asarray(jax.grad(loss, which)(jnp.asarray(x), jnp.asarray(w)))


def layer(x: Any, w: Any, padding: Any = "SAME") -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    strides = (1,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_causal_strided_convolutions_in_half_precision(dtype: str) -> None:
    """Their phases have negative low and positive high padding."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 32, 8)), dtype)
    for taps, stride in ((2, 2), (3, 2), (5, 3)):
        w = jnp.asarray(rng.normal(size=(taps, 8, 8)), dtype)

        def loss(x: Any, w: Any, taps: int = taps, stride: int = stride) -> Any:
            numbers = ("NHC", "HIO", "NHC")
            padding = ((taps - 1, 0),)
            y = jax.lax.conv_general_dilated(
                x, w, (stride,), padding, dimension_numbers=numbers
            )
            return jnp.sin(y.astype("float32")).sum()

        tuned = sslx.tune(jax.grad(loss))
        kinds = {choice.form.kind for choice in tuned.choices(x, w)}
        assert "phases" in kinds
        expected = jax.jit(jax.grad(loss))(x, w).astype("float32")
        found = tuned(x, w).astype("float32")
        np.testing.assert_allclose(found, expected, 0.05, 0.05)


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((1, 3, 3, 2), (5, 5, 2, 4)),
        ((1, 3, 8, 2), (5, 5, 2, 4)),
        ((0, 8, 8, 2), (3, 3, 2, 4)),
        ((2, 8, 8, 2), (3, 3, 2, 0)),
        ((2, 8, 8, 0), (3, 3, 0, 4)),
        ((2, 0, 8, 2), (3, 3, 2, 4)),
    ],
)
def test_empty_results_are_those_of_xla(image: tuple, kernel: tuple) -> None:
    x, w = jnp.ones(image), jnp.ones(kernel)
    for padding in ("VALID", ((2, 2), (2, 2))):
        fn = lambda x, w, padding=padding: jax.nn.relu(layer(x, w, padding) + 1)
        tuned = sslx.tune(fn)
        np.testing.assert_array_equal(tuned(x, w), fn(x, w))


# Chains after a convolution: values that are used once, twice, or returned too.

BINARY: list[Callable[[Any, Any], Any]] = [
    jnp.add,
    jnp.subtract,
    jnp.multiply,
    jnp.maximum,
    jnp.minimum,
]
WHOLE: list[Callable[[Any], Any]] = [
    jax.nn.hard_swish,
    jax.nn.relu,
    jax.nn.relu6,
    jax.nn.silu,
    lambda y: (y + 1) * y,
    lambda y: y - jnp.maximum(y, 1),
    lambda y: jnp.clip(y, -1, y + 1),
]


@st.composite
def chains(draw: st.DrawFn) -> Callable[..., Any]:
    """A function of a result, an array like it and one number per filter."""
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        wrap = draw(st.sampled_from([lambda f: f, jax.jit, jax.checkpoint]))
        if draw(st.booleans()):
            steps.append((wrap(draw(st.sampled_from(WHOLE))), None, False))
        else:
            binary = wrap(draw(st.sampled_from(BINARY)))
            which = draw(st.sampled_from(["value", "first", "entry", "filter", 0.5]))
            steps.append((binary, which, draw(st.booleans())))
    returned = draw(st.booleans())

    def run(y: Any, entry: Any, filters: Any) -> Any:
        values = {"first": y, "entry": entry, "filter": filters}
        seen = [y]
        for fn, which, swapped in steps:
            if which is None:
                y = fn(y)
            else:
                other = y if which == "value" else values.get(which, which)
                y = fn(other, y) if swapped else fn(y, other)
            seen.append(y)
        return tuple(seen) if returned else y

    return run


@hypothesis.given(chains())
def test_chains_after_a_convolution_are_exact(chain: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 5, 5, 3)), rng.normal(size=(3, 3, 3, 4))
    more = rng.normal(size=(1, 5, 5, 4)), rng.normal(size=(1, 1, 1, 4))
    args = [jnp.asarray(a, "float32") for a in (x, w, *more)]
    fn = lambda x, w, *more: chain(layer(x, w), *more)
    tuned = sslx.tune(fn)
    found = (jax.tree.leaves(jax.jit(f)(*args)) for f in (tuned.apply, fn))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, 2e-4, 2e-4)


@pytest.mark.parametrize(
    "follow",
    [
        lambda y: jnp.maximum(y, jnp.nan),
        lambda y: jnp.minimum(y, -jnp.inf),
        lambda y: y * jnp.inf,
        lambda y: y / 0.0,
        lambda y: y * np.float32(3e38),
        lambda y: jnp.minimum(jnp.maximum(y.at[0, 0, 0, 0].set(jnp.nan), 0), 6),
    ],
)
def test_numbers_that_are_not_finite_in_chains(follow: Callable[..., Any]) -> None:
    x = jnp.linspace(-1, 1, 75).reshape(1, 5, 5, 3).at[0, 4, 4].set(jnp.nan)
    w = jnp.linspace(-1, 2, 108).reshape(3, 3, 3, 4)
    fn = lambda x, w: follow(layer(x, w))
    np.testing.assert_allclose(sslx.tune(fn)(x, w), fn(x, w), 1e-5)


def test_bodies_in_named_tuples_stay_named() -> None:
    """Those of `custom_linear_solve`, of which some are None."""
    x, w = jnp.linspace(0, 1, 200).reshape(2, 5, 5, 4), jnp.ones((3, 3, 4, 4)) / 9
    matrix = jnp.eye(4) * 3 + 0.1

    def solved(x: Any, w: Any) -> Any:
        b = layer(x, w).mean((0, 1, 2))
        direct = jnp.linalg.solve(matrix, b)
        steps, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, b)
        return direct, steps, jnp.linalg.inv(matrix) @ b

    tuned = sslx.tune(solved)
    for found, expected in zip(tuned(x, w), solved(x, w), strict=True):
        np.testing.assert_allclose(found, expected, 1e-4)


def test_pools_larger_than_the_image_are_empty() -> None:
    x = jnp.ones((2, 8, 8, 4))
    window = (1, 12, 3, 1)
    pool = lambda x: jax.lax.reduce_window(
        x, 0.0, jax.lax.add, window, (1, 2, 2, 1), "VALID"
    )
    assert sslx.tune(pool)(x).shape == pool(x).shape == (2, 0, 3, 4)
