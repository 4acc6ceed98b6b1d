"""Primitives on NumPy arrays agree with JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import sslx
from sslx._compact.jaxpr import numpy_primitives
from sslx._compact.jaxpr.program import trace

X = np.linspace(-1.5, 2.0, 24, dtype=np.float32).reshape(2, 3, 4)
Y = np.linspace(2.5, 0.5, 24, dtype=np.float32).reshape(2, 3, 4)
ONE = [*"neg abs sign sqrt rsqrt square exp expm1 log1p tanh sin cos logistic".split()]
TWO = [*"add sub mul div max min pow gt ge lt le eq ne".split()]
CALLS = {
    **{name: (getattr(lax, name), (Y,)) for name in [*ONE, "log"]},
    **{name: (getattr(lax, name), (Y, X)) for name in TWO},
    "integer_pow": (lambda x: lax.integer_pow(x, 3), (X,)),
    "dot_general": (lambda x, y: jnp.tensordot(x, y, ((0, 2), (0, 2))), (X, Y)),
    "reduce_sum": (lambda x: lax.reduce_sum_p.bind(x, axes=(0, 2)), (X,)),
    "reduce_max": (lambda x: x.max((0, 2)), (X,)),
    "reduce_min": (lambda x: x.min(1), (X,)),
    "copy": (jnp.copy, (X,)),
    "stop_gradient": (lax.stop_gradient, (X,)),
    "convert_element_type": (lambda x: x.astype(jnp.float16), (X,)),
    "select_n": (lambda x, y: lax.select(x > y, x, y), (X, Y)),
    "transpose": (lambda x: x.transpose(2, 0, 1), (X,)),
    "squeeze": (lambda x: lax.squeeze(x, (1,)), (X[:, :1],)),
    "rev": (lambda x: lax.rev(x, (0, 2)), (X,)),
    "concatenate": (lambda x, y: lax.concatenate([x, y], 1), (X, Y)),
}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", CALLS)
def test_result_is_that_of_jax(name: str, dtype) -> None:
    fn, arrays = CALLS[name]
    arrays = [x.astype(dtype) for x in arrays]
    program, _, _ = trace(fn, *arrays)
    known = dict(zip(program.inputs, arrays, strict=True))
    done = []
    for eqn in program.equations:
        operands = [v.array if v.literal is not None else known[v] for v in eqn.inputs]
        made = numpy_primitives.bind(eqn, operands)
        assert made is not None, eqn.name
        (want,) = eqn.bind(operands)
        assert made.shape == want.shape and made.dtype == want.dtype
        as_float = [np.asarray(x, np.float32) for x in (made, want)]
        np.testing.assert_allclose(
            *as_float, rtol=1e-5 if dtype == np.float32 else 0.02, atol=1e-6
        )
        known[eqn.outputs[0]] = made
        done.append(eqn.name)
    assert name in done or name in ("copy", "stop_gradient")


def test_nothing_is_made_up_for_other_primitives_and_dtypes() -> None:
    for fn, arrays in [(lax.erf, (X,)), (lax.div, (np.arange(4), np.arange(1, 5)))]:
        (eqn,) = trace(fn, *arrays)[0].equations
        assert numpy_primitives.bind(eqn, list(arrays)) is None


@given(st.data())
def test_uniform_images_are_convolved_exactly(data) -> None:
    rank, parts = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2]))
    several = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    taps, strides, spread, dilation = (data.draw(several) for _ in range(4))
    edges = st.tuples(st.integers(-1, 2), st.integers(0, 2))
    padding = data.draw(st.lists(edges, min_size=rank, max_size=rank))
    size = data.draw(st.integers(7, 8))
    letters = "HW"[:rank]
    numbers = data.draw(st.sampled_from([("N?C", "?IO", "N?C"), ("NC?", "OI?", "N?C")]))
    numbers = tuple(s.replace("?", letters) for s in numbers)
    image = {"N": 2, "C": 4, **dict.fromkeys(letters, 1)}
    kernel = {"I": 4 // parts, "O": 6, **dict(zip(letters, taps, strict=True))}
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=[sizes[a] for a in order]).astype(np.float32)
        for sizes, order in zip((image, kernel), numbers[:2], strict=True)
    )
    wide = np.broadcast_to(x, [image[a] if a in "NC" else size for a in numbers[0]])

    def convolve(x, w):
        return lax.conv_general_dilated(
            x, w, strides, padding, spread, dilation, numbers, parts
        )

    (eqn,) = trace(convolve, wide, w)[0].equations
    made = numpy_primitives.convolve_uniform(eqn, x, w)
    want = convolve(wide, w)
    made = np.broadcast_to(made, want.shape)
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-5)


def test_folding_constants_compiles_nothing(caplog) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (3, 3, 3, 8)).at[..., ::2].set(0),
        "bias": jax.random.normal(keys[1], (1, 1, 1, 8)),
        "second": jax.random.normal(keys[2], (3, 3, 8, 5)),
    }

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, p["first"], (1, 1), "SAME", dimension_numbers=numbers
        )
        y = jnp.tanh(y + p["bias"])
        return lax.conv_general_dilated(
            y, p["second"], (2, 2), "SAME", dimension_numbers=numbers
        )

    x = jax.random.normal(jax.random.key(1), (2, 9, 7, 3))
    small = sslx.compact(fn)(params, x)
    assert small.variables["first"].shape == (3, 3, 3, 4)
    assert small.folded == {"bias": 4, "second": 3 * 3 * 4 * 5}
    jax.clear_caches()
    with jax.log_compiles():
        jaxpr = jax.make_jaxpr(lambda x: small.apply(small.variables, x))(x)
    assert "XLA compilation" not in caplog.text
    assert len([e for e in jaxpr.eqns if "conv" in e.primitive.name]) == 2
    want = fn(params, x)
    np.testing.assert_allclose(small.apply(small.variables, x), want, atol=1e-4)
