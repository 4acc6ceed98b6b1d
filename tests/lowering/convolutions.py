"""Random convolutions, and what they are worth in float64."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np

from sslx.lowering import Columns, Conv

DTYPES = (
    "float64",
    "float32",
    "bfloat16",
    "float16",
    "bfloat16 to float32",
    "float16 to float32",
    "int32",
    "int8 to int32",
)


@st.composite
def convolutions(
    draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES, largest: int = 6
) -> dict[str, Any]:
    """All that makes a convolution; results may be empty."""
    ndim = draw(st.integers(1, 2))
    few = functools.partial(st.integers, 1)
    several = lambda values: tuple(draw(values) for _ in range(ndim))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, filters = draw(few(4)), groups * draw(few(5))
    window = several(few(4))
    dtype, _, result = draw(st.sampled_from(dtypes)).partition(" to ")
    spec = dict(
        lhs=(
            draw(st.sampled_from([1, 2, 4])),
            *several(few(largest)),
            groups * channels,
        ),
        rhs=(*window, channels, filters),
        strides=several(st.sampled_from([1, 1, 2, 3])),
        padding=several(st.tuples(st.integers(-3, 4), st.integers(-3, 4))),
        lhs_dilation=several(st.sampled_from([1, 1, 1, 2, 3])),
        rhs_dilation=several(st.sampled_from([1, 1, 2])),
        groups=groups,
        batch_groups=1,
        dtype=dtype,
        result=result or dtype,
        precision=None,
    )
    density = draw(st.sampled_from([0.1, 0.5, 0.9, 1.0]))
    return spec | dict(density=density, seed=draw(st.integers(0, 99)))


def made(spec: dict[str, Any]) -> Conv:
    """The convolution, with the columns that are not zero."""
    fields = {k: v for k, v in spec.items() if k not in ("density", "seed")}
    conv = Conv(**fields)
    random = np.random.default_rng(spec["seed"]).random
    mask = random((*conv.rhs[:-1], conv.groups)) < spec["density"]
    return dataclasses.replace(conv, columns=Columns.of(mask))


def operands(conv: Conv, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of small numbers, which every dtype holds exactly; zero columns are zero."""
    rng = np.random.default_rng(seed)
    unit = 1 if "int" in conv.dtype else 4
    x = rng.integers(-8, 9, conv.lhs) / unit
    w = rng.integers(-8, 9, (*conv.rhs[:-1], conv.groups, conv.rhs[-1] // conv.groups))
    return x, (w / unit * conv.mask[..., None]).reshape(conv.rhs)


def in_float64(conv: Conv, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The definition: `y[n, p, o] = sum x[n, p * s + k * d - pad, c] w[k, c, o]`."""
    y = np.zeros(conv.shape)
    channels, filters = conv.rhs[-2], conv.rhs[-1] // conv.groups
    for p, k in itertools.product(
        itertools.product(*map(range, conv.out)),
        itertools.product(*map(range, conv.window)),
    ):
        place = [
            at * s + tap * d - low
            for at, s, tap, d, (low, _) in zip(
                p, conv.strides, k, conv.rhs_dilation, conv.padding, strict=True
            )
        ]
        entry = [i // hole for i, hole in zip(place, conv.lhs_dilation, strict=True)]
        held = all(
            i % hole == 0 and 0 <= e < n
            for i, hole, e, n in zip(
                place, conv.lhs_dilation, entry, conv.image, strict=True
            )
        )
        if held:
            for g in range(conv.groups):
                of = slice(g * filters, (g + 1) * filters)
                xs = x[(slice(None), *entry, slice(g * channels, (g + 1) * channels))]
                y[(slice(None), *p, of)] += xs @ w[(*k, slice(None), of)]
    return y


def tolerance(conv: Conv) -> float:
    """What rounding may cost, of numbers of size 1 and their sums."""
    terms = max(1, math.prod(conv.rhs[:-1]))
    last = {"float64": 1e-13, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
    return 4 * last.get(conv.result, 0) * terms**0.5


def close(found: Any, conv: Conv, expected: np.ndarray) -> bool:
    """Whether a result is the expected one, up to rounding."""
    found = np.asarray(found)
    same = found.dtype.name == conv.result and found.shape == conv.shape
    limit = tolerance(conv) * (1 + np.abs(expected))
    return same and bool((np.abs(found.astype(float) - expected) <= limit).all())
