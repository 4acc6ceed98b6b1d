"""A compact network leaves JAX: StableHLO with a free batch size, and ONNX."""

import functools
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import export

import sslx
from experiments import models
from tests.arrays import normals
from tests.public.harness import distance, perturbed, with_zeros


class Net(nn.Module):
    """Residual, normalised, pooled, with a channel that is constant but for borders."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.BatchNorm(True)(nn.Conv(16, (3, 3), use_bias=False)(x)))
        x = x + nn.Conv(16, (3, 3))(nn.relu(nn.Conv(12, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(nn.relu(nn.Dense(24)(x.reshape(x.shape[0], -1))))


@functools.cache
def compacted() -> tuple[sslx.Compact, jax.Array]:
    model = Net()
    x = normals()(4, 8, 8, 3)
    variables = perturbed(model.init(jax.random.key(0), x))
    variables = with_zeros(variables, "...IO", "kernels")
    small = sslx.compact(model.apply)(variables, x)
    want = model.apply(variables, x)
    assert distance(small.apply(small.variables, x), want) < 1e-5
    assert small.folded
    return small, x


def shapes(tree: object) -> object:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def test_stablehlo_comes_back_from_bytes() -> None:
    small, x = compacted()
    call = jax.jit(small.apply)
    data = export.export(call)(*shapes((small.variables, x))).serialize()
    again = export.deserialize(data)
    assert distance(again.call(small.variables, x), call(small.variables, x)) < 1e-6


def test_stablehlo_takes_any_batch_size() -> None:
    small, x = compacted()
    (batch,) = export.symbolic_shape("batch")
    free = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

    def call(variables: object, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: small.apply(variables, one[None])[0])(x)

    exported = export.export(jax.jit(call))(shapes(small.variables), free)
    again = export.deserialize(exported.serialize())
    for size in (1, 3):
        want = small.apply(small.variables, x[:size])
        assert distance(again.call(small.variables, x[:size]), want) < 1e-6


def test_stablehlo_holds_a_derivative() -> None:
    small, x = compacted()
    call = jax.jit(small.apply)
    exported = export.export(call)(*shapes((small.variables, x)))
    again = export.deserialize(exported.serialize(vjp_order=1))
    loss = lambda fn: lambda v: (fn(v, x) ** 2).sum()
    got = jax.grad(loss(again.call))(small.variables)
    assert distance(got, jax.grad(loss(call))(small.variables)) < 1e-5


ONNX = "ONNX export is not tested: pip install 'sslx[onnx]'"


@pytest.mark.filterwarnings("default")
def test_onnx_runtime_computes_the_same(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("jax2onnx", reason=ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=ONNX)
    from sslx.adapters import onnx

    small, x = compacted()
    with jax.numpy_rank_promotion("allow"):
        onnx.save(tmp_path / "small.onnx", small, x)
        (tmp_path / "small.onnx.data").write_bytes(b"of a larger network")
        path = onnx.save(tmp_path / "small.onnx", small, x)
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    (got,) = session.run(None, {entry.name: np.asarray(x)})
    assert distance(got, small.apply(small.variables, x)) < 1e-5


@pytest.mark.filterwarnings("default")
def test_onnx_file_with_large_parameters_is_written_over_in_the_current_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jax2onnx", reason=ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=ONNX)
    from sslx.adapters import onnx

    monkeypatch.chdir(tmp_path)
    x = normals()(2, 600)
    for scale in (1.0, 2.0):
        weights = {"kernel": scale * normals()(600, 600)}
        small = sslx.compact(lambda v, x: x @ v["kernel"])(weights, x)
        path = onnx.save("small.onnx", small, x)
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "small.onnx",
            "small.onnx.data",
        ]
        session = onnxruntime.InferenceSession(path)
        (got,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
        assert distance(got, x @ weights["kernel"]) < 1e-5


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["resnet8", "densenet40"])
def test_norms_and_pools_suit_the_runtime(name: str, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("jax2onnx", reason=ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=ONNX)
    library = pytest.importorskip("onnx", reason=ONNX)
    from sslx.adapters import onnx

    model, x = models.create(name), normals()(2, 32, 32, 3)
    variables = perturbed(model.init(jax.random.key(0), x))
    small = sslx.compact(model.apply)(variables, x)
    with jax.numpy_rank_promotion("allow"):
        path = onnx.save(tmp_path / "small.onnx", small, x)
    kinds = [node.op_type for node in library.load(path).graph.node]
    assert "Relu" in kinds and "Max" not in kinds and "Sqrt" not in kinds
    assert ("Sub" in kinds) == (name == "densenet40")  # norms after a concatenation
    assert kinds.count("Transpose") == 1  # of the images, which come channels last
    assert "Slice" not in kinds and "Expand" not in kinds
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    (got,) = session.run(None, {entry.name: np.asarray(x)})
    assert distance(got, model.apply(variables, x)) < 1e-4
