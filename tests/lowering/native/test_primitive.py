"""The direct convolution as a primitive: derivatives, maps, platforms, devices."""

import gc
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import sslx
from sslx import lowering
from sslx.lowering._native import llvm

ROOT = pathlib.Path(__file__).parents[3]
NUMBERS = ("NHWC", "HWIO", "NHWC")


def layer(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NUMBERS, **options
    )


def net(x: jax.Array, w: jax.Array, bias: jax.Array, other: jax.Array) -> jax.Array:
    """A convolution with an epilogue of every kind of operand."""
    return jax.nn.relu(layer(x, w) * 0.5 + bias.reshape(1, 1, 1, -1) - other)


def arrays(dtype: str = "float64") -> list[jax.Array]:
    normal = np.random.default_rng(0).normal
    shapes = ((2, 5, 5, 3), (3, 3, 3, 4), (4,), (2, 5, 5, 4))
    return [jnp.asarray(normal(size=shape), dtype) for shape in shapes]


def primitives(fn: Any, *args: Any) -> set[str]:
    return {eqn.primitive.name for eqn in jax.make_jaxpr(fn)(*args).eqns}


def test_derivatives_of_both_modes_and_orders() -> None:
    with jax.enable_x64(True):
        args = arrays()
        tuned = sslx.tune(net).apply
        assert "direct_conv" in primitives(tuned, *args)

        def of(fn: Any) -> Any:
            grad = jax.grad(lambda *a: (fn(*a) ** 3).sum(), (0, 1, 2, 3))
            forward = jax.jvp(fn, args, args)
            return jax.jit(lambda: (forward, jax.jvp(grad, args, args)))()

        for found, expected in zip(
            *map(jax.tree.leaves, map(of, (tuned, net))), strict=True
        ):
            np.testing.assert_allclose(found, expected, 1e-9, 1e-9)


def test_it_is_linear_in_each_operand() -> None:
    with jax.enable_x64(True):
        x, w, *_ = arrays()
        tuned = sslx.tune(layer).apply
        y = layer(x, w) + 1
        for k, value in enumerate((x, w)):
            of = lambda fn, k=k: lambda v: fn(v, w) if k == 0 else fn(x, v)
            (found,) = jax.linear_transpose(of(tuned), value)(y)
            (expected,) = jax.linear_transpose(of(layer), value)(y)
            np.testing.assert_allclose(found, expected, 1e-12)


AXES = [(0, None, None, 0), (None, None, None, 0), (1, 3, None, None), (4, 4, 0, 4)]


@pytest.mark.parametrize("axes", AXES)
def test_maps_have_more_images_or_groups_and_no_loop(axes: tuple) -> None:
    with jax.enable_x64(True):
        args = [
            a if axis is None else jnp.stack([a, 1 - a, a * a], axis)
            for a, axis in zip(arrays(), axes, strict=True)
        ]
        tuned = jax.vmap(sslx.tune(net).apply, axes)
        names = primitives(tuned, *args)
        assert "direct_conv" in names and not names & {"scan", "while"}

        def of(fn: Any) -> Any:
            grad = jax.grad(lambda *a: (fn(*a) ** 2).sum(), (0, 1, 2, 3))
            return jax.jit(lambda *a: (fn(*a), *grad(*a)))(*args)

        for found, expected in zip(of(tuned), of(jax.vmap(net, axes)), strict=True):
            np.testing.assert_allclose(found, expected, 1e-10, 1e-10)


def test_maps_in_maps_zero_columns_and_nothing() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = rng.normal(size=(2, 3, 3, 1, 3, 4)) * (rng.random((3, 3, 1, 3, 1)) < 0.4)
        x = jnp.asarray(rng.normal(size=(2, 3, 1, 5, 5, 3)))
        fn = lambda w, x: layer(x, w[:, :, 0])
        tuned = sslx.tune(fn).apply
        twice = lambda fn: jax.jit(jax.vmap(jax.vmap(fn, (None, 0)), (0, 0)))
        np.testing.assert_allclose(twice(tuned)(w, x), twice(fn)(w, x), 1e-11, 1e-12)
        small = sslx.compact(fn, lowering="rule")(jnp.asarray(w[0]), x[0, 0])
        ws = jnp.stack([small.variables, 2 * small.variables])
        masked = jax.jit(jax.vmap(lambda w: small.apply(w, x[0, 0])))(ws)
        expected = fn(w[0], x[0, 0])
        both = jnp.stack([expected, 2 * expected])
        np.testing.assert_allclose(masked, both, 1e-11, 1e-12)
        assert jax.vmap(tuned, (None, 0))(w[0], x[:0, 0]).shape == (0, 1, 5, 5, 4)


@pytest.mark.parametrize("platforms", [["cpu"], ["tpu"], ["cpu", "cuda"]])
def test_exported_programs_hold_no_code_of_this_process(platforms: list[str]) -> None:
    x, w = jnp.ones((8, 14, 14, 3)), arrays("float32")[1]
    fn = lambda x, w: jax.nn.relu(layer(x, w))
    moved = lambda x, w: fn(jnp.take(x, np.array([0, 2, 1]), -1), w)
    tuned = sslx.tune(moved).apply
    exported = export.export(jax.jit(tuned), platforms=platforms)(x, w)
    text = exported.mlir_module()
    assert "sslx_" not in text and "stablehlo.convolution" in text
    if "cpu" in platforms:
        again = export.deserialize(exported.serialize())
        np.testing.assert_allclose(again.call(x, w), moved(x, w), 1e-5, 1e-5)
    assert {"take_channels", "direct_conv"} <= primitives(tuned, x, w)
    here = jax.jit(tuned).lower(x, w).as_text()
    assert here.count("@sslx_") == 2 and "stablehlo.convolution" not in here


def test_exported_programs_take_any_batch_size() -> None:
    x, w, *_ = arrays("float32")

    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        y = jax.nn.relu(layer(x, w) + 1)
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, window, window, "VALID")

    (batch,) = export.symbolic_shape("batch")
    free = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(jax.jit(sslx.tune(fn).apply))(free, w)
    for size in (1, 2):
        found = exported.call(x[:size], w)
        np.testing.assert_allclose(found, fn(x[:size], w), 1e-5, 1e-5)


def test_tuned_functions_in_other_transformations() -> None:
    """In a scan, donated, and jitted with static arguments of its caller."""
    with jax.enable_x64(True):
        x, w, *_ = arrays()
        w = w @ jnp.ones((4, 3)) / 9
        tuned = sslx.tune(layer)
        expected = layer(layer(x, w), w)
        twice = lambda fn: (
            lambda x: jax.lax.scan(lambda x, _: (fn(x, w), None), x, None, 2)[0]
        )
        np.testing.assert_allclose(jax.jit(twice(tuned))(x), expected, 1e-11)
        slope = lambda fn: jax.jit(jax.grad(lambda x: (twice(fn)(x) ** 2).sum()))(x)
        np.testing.assert_allclose(slope(tuned), slope(layer), 1e-10)
        given = jnp.array(x)
        same_shape = jax.jit(tuned.apply, donate_argnums=0)
        np.testing.assert_allclose(same_shape(given, w), layer(x, w), 1e-11)
        assert given.is_deleted()


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import sslx
from sslx.lowering._native import llvm
from tests.lowering.native.test_primitive import layer

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
normal = np.random.default_rng(0).normal
x, w, b = (jnp.asarray(normal(size=s)) for s in ((8, 6, 6, 16), (3, 3, 16, 4), (4,)))
places = np.array([3, 0, 1, 2] * 4)
def fn(x, w, b):
    return jax.nn.relu(layer(jnp.take(x, places, -1), w) + b.reshape(1, 1, 1, -1))

tuned = sslx.tune(fn).apply
loss = lambda fn: lambda w, x, b: (fn(x, w, b) ** 2).sum()
expected, slope = fn(x, w, b), jax.grad(loss(fn))(w, x, b)

for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        args = jax.device_put(x, split), *jax.device_put((w, b), whole)
        run = jax.jit(tuned)
        text = run.lower(*args).compile().as_text()
        assert "all-gather" not in text and "all-to-all" not in text, kind
        y = run(*args)
        assert y.sharding.is_equivalent_to(split, y.ndim), y.sharding
        np.testing.assert_allclose(y, expected, 1e-11)
        g = jax.jit(jax.grad(loss(tuned)))(args[1], args[0], args[2])
        np.testing.assert_allclose(g, slope, 1e-10)

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
for check in (True, False):
    spread = jax.shard_map(
        tuned, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P("data"),
        check_vma=check,
    )
    compiled = jax.jit(spread).lower(x, w, b).compile()
    text = compiled.as_text()
    assert "sslx_" in text and "f64[2,6,6,4]" in text
    np.testing.assert_allclose(jax.jit(spread)(x, w, b), expected, 1e-11)

def mean(w, x, b):
    return jax.lax.psum(loss(tuned)(w, x, b), "data")

total = jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P())
np.testing.assert_allclose(jax.jit(jax.grad(total))(w, x, b), slope, 1e-10)
inner = jax.shard_map(
    jax.grad(mean), mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P()
)
np.testing.assert_allclose(jax.jit(inner)(w, x, b), slope, 1e-10)
"""


def test_images_on_several_devices_stay_there() -> None:
    env = os.environ | {
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", DEVICES]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


WITHOUT_LLVM = """
import sys, warnings
sys.modules["llvmlite"] = sys.modules["llvmlite.binding"] = None
import jax, jax.numpy as jnp, numpy as np, sslx
from tests.lowering.native.test_primitive import layer

x, w = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    tuned = sslx.tune(layer), sslx.tune(layer)
    results = [run(x, w) for run in tuned]
(warning,) = found
assert warning.category is RuntimeWarning
assert "pip install 'sslx[cpu]'" in str(warning.message)
assert {str(choice.form) for choice in tuned[0].choices(x, w)} == {"xla"}
np.testing.assert_allclose(results, [layer(x, w)] * 2, 1e-6)
"""


def test_without_llvm_tune_takes_forms_of_xla_and_says_so_once() -> None:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_LLVM]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def test_cost_reads_the_parameter() -> None:
    x, w, bias, other = arrays("float32")
    tuned = sslx.tune(net).apply
    found = sslx.measure.cost(lambda w: tuned(x, w, bias, other), w)
    expected = sslx.measure.cost(lambda w: net(x, w, bias, other), w)
    assert (found.macs, found.macs_inside) == (expected.macs, expected.macs_inside)
    assert found.weights == w.size and found.layers[0].kernel == w.shape


def test_timings_belong_to_a_processor_and_the_cores_it_may_use(
    tmp_path, monkeypatch
) -> None:
    name = lambda: lowering.Cache(tmp_path).path.name
    first = name()
    monkeypatch.setattr("sslx.lowering._timings._cores", lambda: 1234)
    second = name()
    monkeypatch.setattr("sslx.lowering._timings._processor", lambda: "Z80")
    assert "1234cores" in second and len({first, second, name()}) == 3


def test_code_that_no_executable_holds_is_bounded(monkeypatch) -> None:
    """What is dropped is compiled again, and what is held is never dropped."""
    monkeypatch.setattr("sslx.lowering._native.primitive._MOST_UNUSED", 2)
    w = jnp.ones((3, 3, 3, 4)) / 9
    shapes = [(1, 4, 4 + k, 3) for k in range(8)]
    run = sslx.tune(layer).apply
    held = jax.jit(run).lower(jnp.ones(shapes[0]), w).compile()
    before = len(llvm.unused())
    for shape in shapes[1:]:
        x = jnp.ones(shape)
        once = jax.jit(lambda x, w: run(x, w) + 1)
        np.testing.assert_allclose(once(x, w), layer(x, w) + 1, 1e-5)
        once.clear_cache()
        del once
        gc.collect()
    jax.jit(run).lower(jnp.ones((1, 3, 3, 3)), w).compile()
    assert len(llvm.unused()) <= max(before, 4)
    x = jnp.ones(shapes[0])
    np.testing.assert_allclose(held(x, w), layer(x, w), 1e-5)
    again = jnp.ones(shapes[1])
    np.testing.assert_allclose(jax.jit(run)(again, w), layer(again, w), 1e-5)
