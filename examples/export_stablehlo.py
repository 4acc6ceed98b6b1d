"""Ship a compact network: as StableHLO through `jax.export`, and as its own files.

Needs: pip install sslx
"""

import pathlib
import tempfile

import jax
import jax.export
import jax.numpy as jnp

import sslx


def net(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["out"]


one, two, three = jax.random.split(jax.random.key(0), 3)
params = {
    "hidden": jax.random.normal(one, (64, 256)) / 8,
    "out": jax.random.normal(two, (256, 10)) / 16,
}
x = jax.random.normal(three, (4, 64))

groups = sslx.groups(params, {"hidden": sslx.FILTER})
masks = sslx.select.keep(groups, sslx.norms(groups, params), density=0.25)
pruned = sslx.scale(groups, params, masks)
small = sslx.compact(net)(pruned, x)
print(small.summary())

# StableHLO with an open batch size, for CPUs and GPUs. It runs without sslx.
(batch,) = jax.export.symbolic_shape("batch")
shape = jax.ShapeDtypeStruct((batch, 64), x.dtype)


@jax.jit
def serve(variables, x):
    return jax.vmap(lambda one: small.apply(variables, one[None])[0])(x)


exported = jax.export.export(serve, platforms=["cpu", "cuda"])(small.variables, shape)

with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    (folder / "small.stablehlo").write_bytes(exported.serialize())
    data = (folder / "small.stablehlo").read_bytes()
    print(f"{len(data):,} bytes of StableHLO; the parameters are an argument of it")
    served = jax.export.deserialize(data)

    # Parameters and plan as files, without pickle; the original code rebuilds the rest.
    sslx.save(folder / "small", small)
    loaded = sslx.load(folder / "small", net)

images = jax.random.normal(jax.random.key(1), (7, 64))
want = net(pruned, images)
assert jnp.allclose(served.call(loaded.variables, images), want, atol=1e-5)
assert jnp.allclose(loaded.apply(loaded.variables, images), want, atol=1e-5)
