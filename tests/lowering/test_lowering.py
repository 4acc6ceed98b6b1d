"""All forms of a convolution agree, and functions keep their values and gradients."""

import concurrent.futures
import dataclasses
import functools
import math
import subprocess
import sys
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import sslx
from sslx import lowering
from sslx.lowering import Columns, Conv, Form
from sslx.lowering._native.direct import direct_on
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.schedule import PostOp
from sslx.lowering._native.scheduler import schedule

KINDS = (
    "xla",
    "crop",
    "dot",
    "im2col",
    "gather_columns",
    "unrolled",
    "depthwise",
    "direct",
)
FORMS = [Form(kind, chunk) for kind in KINDS for chunk in (0, 2)]
FORMS += [Form(kind, 0, inner) for kind in ("split", "phases") for inner in KINDS]


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(1, 2))
    few = functools.partial(st.integers, 1)
    image = tuple(draw(few(6)) for _ in range(ndim))
    window = tuple(draw(few(4)) for _ in range(ndim))
    dilations = draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, filters = draw(few(3)), groups * draw(few(3))
    spec: dict[str, Any] = dict(
        lhs=(draw(st.sampled_from([1, 2, 4])), *image, channels * groups),
        rhs=(*window, channels, filters),
        strides=tuple(draw(few(2 if dilations[0] == 1 else 1)) for _ in range(ndim)),
        padding=tuple((draw(few(3)) - 1, draw(few(3)) - 1) for _ in range(ndim)),
        lhs_dilation=(dilations[0],) * ndim,
        rhs_dilation=(dilations[1],) * ndim,
        groups=groups,
        batch_groups=1,
        dtype="float64",
        result="float64",
        precision=None,
    )
    density, seed = (
        draw(st.sampled_from([0.1, 0.5, 0.9, 1.0])),
        draw(st.integers(0, 99)),
    )
    return spec | dict(density=density, seed=seed)


def convolution(density: float, seed: int, **fields: Any) -> Conv:
    conv = Conv(**fields)
    hypothesis.assume(all(n > 0 for n in conv.out))
    # jaxlib 0.10.2 aborts on dilated images of one pixel with groups.
    one_pixel = min(conv.image) == 1 and max(conv.lhs_dilation) > 1
    hypothesis.assume(conv.groups == 1 or not one_pixel)
    shape = (*conv.rhs[:-1], conv.groups)
    mask = np.random.default_rng(seed).random(shape) < density
    return dataclasses.replace(conv, columns=Columns.of(mask))


def operands(conv: Conv, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((*conv.rhs[:-1], conv.groups, conv.rhs[-1] // conv.groups))
    w = (w * conv.mask[..., None]).reshape(conv.rhs)
    return jnp.asarray(rng.standard_normal(conv.lhs)), jnp.asarray(w)


@hypothesis.given(specifications(), st.integers(0, len(FORMS) - 1))
def test_every_form_is_exact(spec: dict[str, Any], start: int) -> None:
    conv = convolution(**spec)
    with jax.enable_x64(True):
        x, w = operands(conv)
        expected = conv.run(x, w)
        forms = FORMS[start:] + FORMS[:start]
        for form in [f for f in forms if lowering.applies(f, conv) is None][:3]:
            found = lowering.run(form, conv, x, w)
            np.testing.assert_allclose(found, expected, 1e-10, 1e-10, err_msg=str(form))


def layer(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, **options
    )


def in_calls(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Convolutions inside of every kind of call, two of them in other layouts."""
    x = jax.jit(layer)(x, variables["dense"])
    x = jax.checkpoint(lambda x: jnp.tanh(layer(x, variables["dense"])))(x)
    depthwise = functools.partial(layer, feature_group_count=4)
    x, _ = jax.lax.scan(lambda x, w: (depthwise(x, w), None), x, variables["stack"])
    x = jax.lax.cond(x.sum() > 0, lambda x: layer(x, variables["one"]), jnp.tanh, x)
    x = jax.lax.fori_loop(0, 2, lambda _, x: layer(x, variables["dense"]) / 2, x)
    numbers = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2),
        variables["one"].transpose(3, 2, 0, 1),
        (2, 2),
        "VALID",
        dimension_numbers=numbers,
    )


def weights(key: jax.Array) -> dict[str, jax.Array]:
    shapes = {"dense": (3, 3, 4, 4), "stack": (2, 3, 3, 1, 4), "one": (1, 1, 4, 4)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / 3
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def test_the_rule_changes_every_kind_of_call_exactly() -> None:
    with jax.enable_x64(True):
        variables, x = weights(jax.random.key(0)), jnp.ones((2, 2, 2, 4)) / 3
        tuned = sslx.tune(in_calls)
        kinds = {str(choice.form) for choice in tuned.choices(variables, x)}
        assert kinds == {"direct"}
        np.testing.assert_allclose(tuned(variables, x), in_calls(variables, x), 1e-12)
        assert "conv_general_dilated" not in str(
            jax.make_jaxpr(tuned.apply)(variables, x)
        )


@pytest.mark.parametrize(
    ("image", "window", "filters", "form"),
    [
        (32, 3, 16, "xla"),
        (2, 3, 64, "unrolled"),
        (3, 5, 16, "im2col"),
        (8, 1, 8, "dot"),
    ],
)
def test_the_rule_for_dense_layers(
    image: int, window: int, filters: int, form: str
) -> None:
    shapes = (4, image, image, 8), (window, window, 8, filters)
    for dtype, kind in ((jnp.float32, "direct"), (jnp.bfloat16, form)):
        x, w = (jnp.ones(shape, dtype) for shape in shapes)
        (choice,) = sslx.tune(layer).choices(x, w)
        assert choice.form.kind == kind


@pytest.mark.parametrize("strides", [1, 2])
def test_weight_gradients_are_read_as_they_lie(strides: int) -> None:
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (64, 16, 16, 8))
        w = jax.random.normal(jax.random.key(1), (3, 3, 8, 16))

        def loss(w: jax.Array) -> jax.Array:
            numbers = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(
                x, w, (strides, strides), "SAME", dimension_numbers=numbers
            )
            return jnp.sum(jnp.tanh(y))

        tuned = sslx.tune(jax.grad(loss))
        np.testing.assert_allclose(tuned(w), jax.grad(loss)(w), 1e-9)
        code = jax.jit(tuned.apply).lower(w).compile().as_text() or ""
        assert code.count('custom_call_target="sslx_') == 2
        whole = "f64[64,16,16,8]"
        assert not [
            line
            for line in code.splitlines()
            if f"= {whole}{{" in line and " copy(" in line
        ]


MACHINES = (Machine(64, 32, 2), Machine(32, 16, 1), Machine(16, 32, 3))


def with_large_kernel(spec: dict[str, Any]) -> dict[str, Any]:
    """The same images with so many channels and filters that the kernel is large."""
    groups, filters = spec["groups"], 40
    entries = math.prod(spec["rhs"][:-2]) * filters * groups * spec["density"]
    channels = math.ceil(20_000 / entries)
    return spec | dict(
        lhs=(*spec["lhs"][:-1], channels * groups),
        rhs=(*spec["rhs"][:-2], channels, filters * groups),
    )


def on_padded(conv: Conv, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution of dilated and padded images; of others jaxlib 0.10.2 aborts."""
    dilated = [d - 1 for d in conv.lhs_dilation]
    sides = [(*p, d) for p, d in zip(conv.padding, dilated, strict=True)]
    whole = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
    none = (0,) * len(sides)
    plain = dict(
        lhs=whole.shape,
        padding=tuple(zip(none, none, strict=True)),
        lhs_dilation=(1,) * len(sides),
    )
    return dataclasses.replace(conv, **plain).run(whole, w)


@hypothesis.given(
    specifications(),
    st.sampled_from(MACHINES),
    st.sampled_from(["small", "large", "large", "gradient"]),
)
def test_direct_convolutions_are_exact(
    spec: dict[str, Any], machine: Machine, kind: str
) -> None:
    gradient = kind == "gradient"
    conv = convolution(**with_large_kernel(spec) if kind == "large" else spec)
    hypothesis.assume(not gradient or conv.groups == max(conv.lhs_dilation) == 1)
    with jax.enable_x64(True):
        x, w = operands(conv)
        found = jax.jit(functools.partial(direct_on, conv, machine, gradient, ()))(x, w)
        np.testing.assert_allclose(found, on_padded(conv, x, w), 1e-11, 1e-11)


@pytest.mark.parametrize(
    ("image", "kernel", "groups"),
    [
        ((4, 19, 19, 12), (3, 3, 12, 70), 1),
        ((9, 17, 17, 8), (5, 5, 8, 7), 1),
        ((2, 30, 30, 24), (1, 1, 24, 130), 1),
        ((8, 12, 12, 40), (3, 3, 1, 40), 40),
        ((8, 12, 12, 40), (3, 3, 20, 50), 2),
        ((1, 5, 4, 130), (3, 3, 130, 260), 1),
        ((1, 8, 8, 64), (3, 3, 64, 130), 1),
        ((2, 2, 2, 260), (3, 3, 130, 260), 2),
    ],
)
def test_direct_convolutions_in_many_threads(
    image: tuple[int, ...], kernel: tuple[int, ...], groups: int
) -> None:
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in (image, kernel))
    run = functools.partial(layer, feature_group_count=groups)
    tuned = sslx.tune(run)
    expected = run(x, w)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: tuned(x, w), range(64)):
            np.testing.assert_allclose(found, expected, 1e-4, 1e-4)


@pytest.mark.parametrize("cores", [1, 3, 4])
@pytest.mark.parametrize("size", [2, 14])
def test_large_kernels_are_read_once_by_every_core(cores: int, size: int) -> None:
    """In parts that fit a cache, and of which no core has many more than another."""
    conv = Conv(
        lhs=(1, size, size, 512),
        rhs=(3, 3, 512, 768),
        strides=(1, 1),
        padding=((1, 1), (1, 1)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        groups=1,
        batch_groups=1,
        dtype="float32",
        result="float32",
        precision=None,
    )
    made = schedule(conv, Machine(64, 32, cores))
    assert made.tasks.parts == made.tasks.shares == 1
    assert -(-len(made.filters) // cores) * cores <= 1.2 * len(made.filters)
    assert max(t.vectors for t in made.filters) * 64 * 9 * 512 <= 1 << 20


@pytest.mark.parametrize("size", [2, 4])
def test_small_images_meet_every_column_once(size: int) -> None:
    """All positions of an image that registers have room for go through it together."""
    shapes = (1, size, size, 256), (3, 3, 256, 256)
    (choice,) = sslx.tune(layer).choices(*map(jnp.zeros, shapes))
    made = schedule(choice.conv, Machine(64, 32, 2))
    positions = 0
    for visit in made.visits:
        (columns,) = visit.columns
        rows = np.concatenate([section[:, 1] for section in columns])
        assert len(set(rows)) == len(rows) and len(visit.runs) == 1
        positions += len(visit.tile.places)
    assert positions == size**2 and len(made.visits) == size // 2
    assert made.macs_inside == (3 * size - 2) ** 2 * 256**2


OPS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@st.composite
def epilogues(draw: st.DrawFn) -> tuple[PostOp, ...]:
    counted = {"filter": 0, "entry": 0, "number": 0}
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        op = draw(st.sampled_from([*OPS]))
        kind: Any = draw(st.sampled_from([*counted]))
        number = draw(st.sampled_from([-1.5, 0.0, 0.3])) if op != "div" else 0.7
        swapped = op != "div" and draw(st.booleans())
        steps.append(PostOp(op, kind, number, counted[kind], swapped))
        counted[kind] += 1
    return tuple(steps)


@hypothesis.given(specifications(), st.sampled_from(MACHINES), epilogues())
def test_epilogues_are_exact(
    spec: dict[str, Any], machine: Machine, steps: tuple[PostOp, ...]
) -> None:
    conv = convolution(**spec)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x, w = operands(conv)
        y = np.asarray(conv.run(x, w))
        shapes = {"filter": y.shape[-1:], "entry": y.shape, "number": ()}
        given = {kind: [] for kind in shapes}
        for op, kind, number, _, swapped in steps:
            some = rng.uniform(0.5, 1.5, shapes[kind])
            operand = np.float64(number) if kind == "number" else some
            given[kind].append(some)
            y = OPS[op](operand, y) if swapped else OPS[op](y, operand)
        more = [jnp.asarray(a) for a in given["filter"] + given["entry"]]
        run = functools.partial(direct_on, conv, machine, False, steps)
        np.testing.assert_allclose(jax.jit(run)(x, w, *more), y, 1e-10, 1e-10)


def norm(x: jax.Array, v: dict[str, jax.Array]) -> jax.Array:
    mean, scale = (v[k].reshape(1, 1, 1, -1) for k in ("mean", "scale"))
    return (x - mean) * (jax.lax.rsqrt(jnp.square(scale) + 1e-3) * scale)


def block(v: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Two branches, one of them projected; the sum has two uses."""
    y = jax.nn.relu(norm(layer(x, v["w1"]), v))
    y = norm(layer(y, v["w2"]), v) + norm(layer(x, v["w3"]), v)
    y = jnp.clip(jax.nn.relu6(y), 0.25, 3)
    return y * jnp.tanh(layer(1 - y, v["w2"]) / 2 + y)


def test_what_follows_convolutions_is_done_with_them() -> None:
    with jax.enable_x64(True):
        keys = iter(jax.random.split(jax.random.key(0), 6))
        shapes = {"w1": (3, 3, 5, 4), "w2": (3, 3, 4, 4), "w3": (1, 1, 5, 4)}
        v = {k: jax.random.normal(next(keys), s) / 3 for k, s in shapes.items()}
        v |= {k: jax.random.normal(next(keys), (4,)) for k in ("mean", "scale")}
        x = jax.random.normal(next(keys), (3, 7, 7, 5))
        tuned = sslx.tune(block)
        np.testing.assert_allclose(tuned(v, x), block(v, x), 1e-11)
        outer = jax.make_jaxpr(tuned.apply)(v, x).eqns
        whole = [e for e in outer if e.outvars[0].aval.shape == (3, 7, 7, 4)]
        names = [e.primitive.name for e in whole if e.primitive.name != "direct_conv"]
        assert names == ["sub", "tanh", "mul"]
        slope = lambda fn: jax.jit(jax.grad(lambda *a: fn(*a).sum(), (0, 1)))(v, x)
        expected, found = slope(block), slope(tuned.apply)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-8, 1e-10), found, expected
        )


def test_epilogues_keep_derivative_rules_and_not_a_number() -> None:
    x, w = jnp.zeros((1, 2, 2, 3)), jnp.ones((3, 3, 3, 4))
    follow = lambda x, w: jax.nn.relu(layer(x, w))
    tuned = sslx.tune(follow)
    slope = jax.grad(lambda x: tuned.apply(x, w).sum())(x)
    np.testing.assert_array_equal(slope, 0)  # that of `max` is 1/2 at 0
    found = tuned(x.at[0, 0, 0, 0].set(jnp.nan), w)
    assert jnp.isnan(found).all()


def test_derivatives_and_maps_of_direct_convolutions() -> None:
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
        w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
        tuned = sslx.tune(layer)
        (choice,) = tuned.choices(x, w)
        assert choice.form.kind == "direct"
        jax.test_util.check_grads(tuned.apply, (x, w), order=2)
        xs = jnp.stack([x, 2 * x])
        found = jax.vmap(tuned.apply, (0, None))(xs, w)
        np.testing.assert_allclose(found, jax.vmap(layer, (0, None))(xs, w), 1e-12)


def test_gradients_pass_through() -> None:
    with jax.enable_x64(True):
        variables, x = weights(jax.random.key(0)), jnp.ones((2, 6, 6, 4)) / 3
        variables = {k: v for k, v in variables.items() if k != "stack"}

        def loss(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
            y = layer(jnp.tanh(layer(x, variables["dense"])), variables["one"])
            return jnp.sum(y**2)

        slope = lambda fn: jax.jit(jax.grad(fn))(variables, x)
        expected = slope(loss)
        outer = sslx.tune(jax.grad(loss))(variables, x)
        inner = slope(sslx.tune(loss).apply)
        for name, array in expected.items():
            np.testing.assert_allclose(outer[name], array, 1e-10)
            np.testing.assert_allclose(inner[name], array, 1e-10)


def test_measured_choices_are_kept_on_disk(tmp_path, monkeypatch) -> None:
    x, w = jnp.ones((4, 2, 2, 8)), jnp.ones((3, 3, 8, 8))
    first = sslx.tune(layer, lowering="measure", cache=tmp_path).choices(x, w)
    (choice,) = first
    assert choice.seconds and set(choice.seconds) <= set(
        lowering.candidates(choice.conv)
    )
    assert first.programs and min(first.programs.values()) > 0

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("sslx.lowering._timings.timings", refuse)
    again = sslx.tune(layer, lowering="measure", cache=tmp_path)
    np.testing.assert_allclose(again(x, w), layer(x, w), 1e-5)
    assert [c.conv for c in again.choices(x, w)] == [c.conv for c in first]


def test_a_damaged_table_names_itself(tmp_path) -> None:
    cache = lowering.Cache(tmp_path)
    cache.path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=cache.path.name):
        lowering.Cache(tmp_path)


def test_xla_leaves_the_program_alone() -> None:
    x, w = jnp.ones((4, 2, 2, 8)), jnp.ones((3, 3, 8, 8))
    tuned = sslx.tune(layer, lowering="xla")
    choices = tuned.choices(x, w)
    assert [str(choice.form) for choice in choices] == ["xla"]
    assert not tuned.compiler_options and not choices.compiler_options
    assert "conv_general_dilated" in str(jax.make_jaxpr(tuned.apply)(x, w))


@hypothesis.given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_sums_as_products_are_exact(leading: int, kept: int, other: int) -> None:
    with jax.enable_x64(True):
        shape = (*(9, 11, 13)[:leading], *(2, 3, 5)[:kept])
        x = np.random.default_rng(other).normal(size=shape)
        axes = tuple(range(leading)) if other else (len(shape) - 1,)

        def total(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.tanh(x), axes)

        tuned = sslx.tune(total)
        np.testing.assert_allclose(tuned(x), total(x), 1e-11, 1e-11)
        as_product = "dot_general" in str(jax.make_jaxpr(tuned.apply)(x))
        assert as_product == (other > 0 and leading == 3)


def columns_net(variables: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = jax.nn.relu(layer(x, variables["first"]))
    return layer(x, variables["second"].transpose(2, 3, 1, 0))


def sparse_columns() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    first, second = (
        rng.standard_normal((3, 3, 8, 12)),
        rng.standard_normal((6, 12, 3, 3)),
    )
    first *= rng.random((3, 3, 8, 1)) < 0.3
    second *= rng.random((1, 12, 3, 3)) < 0.6
    return {"first": jnp.asarray(first), "second": jnp.asarray(second)}


@pytest.mark.parametrize(
    "mode", ["rule", pytest.param("measure", marks=pytest.mark.slow)]
)
def test_compact_leaves_out_zero_columns(mode, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with jax.enable_x64(True):
        variables, x = sparse_columns(), jnp.linspace(0, 1, 4 * 5 * 5 * 8)
        x = x.reshape(4, 5, 5, 8)
        small = sslx.compact(columns_net, lowering=mode)(variables, x)
        assert small.tuned is not None and small.variables["first"].shape[2] == 8
        choices = small.tuned.choices(small.variables, x)
        macs = [choice.conv.macs for choice in choices]
        kept = [np.any(variables["first"] != 0, 3), np.any(variables["second"] != 0, 0)]
        assert macs == [100 * 12 * kept[0].sum(), 100 * 6 * kept[1].sum()]
        run = jax.jit(small.apply, compiler_options=small.compiler_options)
        expected = columns_net(variables, x)
        np.testing.assert_allclose(run(small.variables, x), expected, 1e-10, 1e-10)
        half = columns_net(variables, x[:2])
        np.testing.assert_allclose(run(small.variables, x[:2]), half, 1e-10, 1e-10)

        sslx.save(tmp_path / "net", small)
        loaded = sslx.load(tmp_path / "net", columns_net)
        assert loaded.tuned is not None
        assert loaded.tuned.choices(loaded.variables, x) == choices
        assert loaded.tuned.nonzero == small.tuned.nonzero
        assert loaded.compiler_options == small.compiler_options
        found = jax.jit(loaded.apply)(loaded.variables, x)
        np.testing.assert_allclose(found, expected, 1e-10, 1e-10)


def test_the_rule_gathers_where_most_columns_are_zero() -> None:
    halves = {k: w.astype(jnp.bfloat16) for k, w in sparse_columns().items()}
    x = jnp.ones((4, 5, 5, 8), jnp.bfloat16)
    small = sslx.compact(columns_net, lowering="rule")(halves, x)
    assert small.tuned is not None
    first, second = small.tuned.choices(small.variables, x)
    assert first.form.kind == "gather_columns" and second.form.kind == "crop"


@hypothesis.given(st.data())
def test_pools_as_slices_are_exact(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 2))
    several = lambda low, high: tuple(
        data.draw(st.integers(low, high)) for _ in range(ndim)
    )
    window, strides = several(1, 4), several(1, 3)
    pads = tuple((data.draw(st.integers(0, 2)), 1) for _ in range(ndim))
    combine, start = data.draw(
        st.sampled_from([("add", 0.0), ("max", -np.inf), ("min", np.inf)])
    )

    def pool(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(
            x,
            start,
            getattr(jax.lax, combine),
            (1, *window, 1),
            (1, *strides, 1),
            ((0, 0), *pads, (0, 0)),
        )

    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, *several(4, 9), 3))
        tuned = sslx.tune(pool)
        assert "reduce_window" not in str(jax.make_jaxpr(tuned.apply)(x))

        def slope(fn: Any, x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: jnp.sum(fn(jnp.round(x)) * jnp.cos(pool(x))))(x)

        both = jax.jit(lambda x: [(fn(x), slope(fn, x)) for fn in (tuned.apply, pool)])
        for found, expected in zip(*both(x), strict=True):
            np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 7, 40, 90])
def test_channels_are_gathered_exactly(count: int, dtype: str) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(count)
        x = jnp.asarray(rng.standard_normal((3, 9, 11, 64)), dtype)
        for places in (
            rng.integers(0, 64, count),
            rng.integers(0, 80, count),
            np.sort(rng.permutation(100)[:count]),
        ):

            def taken(x: jax.Array, places: Any = places) -> jax.Array:
                return jnp.take(x, places, axis=-1, mode="fill", fill_value=0) * 2

            tuned = sslx.tune(taken)
            code = str(jax.make_jaxpr(tuned.apply)(x))
            assert "take_channels" in code and "gather" not in code
            np.testing.assert_array_equal(tuned(x), taken(x))
            y = jnp.asarray(rng.standard_normal((3, 9, 11, count)), dtype)
            _, back = jax.vjp(tuned.apply, x)
            _, expected = jax.vjp(taken, x)
            np.testing.assert_allclose(back(y)[0], expected(y)[0], 1e-6)
        nan = jnp.full_like(x, jnp.nan)
        fill = functools.partial(jnp.take, indices=places, axis=-1)
        np.testing.assert_array_equal(sslx.tune(fill)(nan), fill(nan))


@hypothesis.given(specifications())
def test_direct_convolutions_are_counted(spec: dict[str, Any]) -> None:
    conv = convolution(**spec | {"density": 1.0})
    with jax.enable_x64(True):
        x, w = operands(conv)
        direct = functools.partial(lowering.run, Form("direct"), conv)
        found = sslx.measure.cost(lambda w: direct(x, w), w)
        expected = sslx.measure.cost(lambda w: conv.run(x, w), w)
        assert found.macs == expected.macs
        assert found.macs_inside == expected.macs_inside
        assert found.weights == expected.weights


def test_only_short_indices_are_worked_out_early() -> None:
    def net(x: jax.Array) -> jax.Array:
        large = jnp.broadcast_to(jnp.int32(3), (300, 400)) + 1
        return x * large + jax.lax.fori_loop(0, 3, lambda i, n: n + i, 0)

    code = jax.make_jaxpr(sslx.tune(net).apply)(jnp.ones(()))
    assert all(np.size(c) < 400 for c in code.consts)
    assert "scan" in str(code) or "while" in str(code)


def test_a_literal_operand_is_no_array() -> None:
    fn = lambda v, x: x.sum() * jnp.where(jax.lax.bitwise_not(True), 1.0, 2.0)
    tuned = sslx.tune(fn)
    assert float(tuned.apply({}, jnp.ones(3))) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_kept_memory_is_not_asked_for_again() -> None:
    """Pages that the system has to find for a call of a program, at least.

    A busy machine frees the memory of one call late for the next, hence the pauses.
    """
    program = """if True:
        import resource, sys, time
        import jax, jax.numpy as jnp
        import sslx
        if sys.argv[1] == "keep" and not sslx.keep_memory():
            sys.exit("not glibc")
        f = jax.jit(lambda x: jnp.sin(x @ x.T) @ jnp.ones((4096, 1)))
        x = jnp.ones((4096, 8))
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found = []
        for _ in range(12):
            before = faults()
            f(x).block_until_ready()
            found.append(faults() - before)
            time.sleep(0.02)
        print(min(found[4:]))
    """
    counts = {}
    for how in ("keep", "give back"):
        command = [sys.executable, "-c", program, how]
        done = subprocess.run(command, capture_output=True, text=True)
        if "not glibc" in done.stderr:
            pytest.skip("SKIPPED: the C library is not glibc")
        assert done.returncode == 0, done.stderr
        counts[how] = int(done.stdout)
    assert counts["give back"] > 10_000
    assert counts["keep"] < 1000
