"""Compact functions on several devices, which take a process of their own."""

import os
import subprocess
import sys
import textwrap

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, sslx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

rng = np.random.default_rng(0)
random = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
p = {"a": random(4, 16).at[:, jnp.array([1, 5, 6])].set(0), "b": random(16),
     "c": random(16, 4)}
x = random(8, 4)
net = lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]
small = sslx.compact(net)(p, x)
tuned = sslx.tune(net)
want, v = net(p, x), small.variables
loss = lambda v, x: (small.apply(v, x) ** 2).mean()
slope = jax.grad(loss)(v, x)
auto = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Explicit,))

def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4), got, want)

# Inside shard_map, with types that say what varies.
rows = dict(mesh=auto, in_specs=(P(), P("m")))
close(jax.jit(jax.shard_map(small.apply, out_specs=P("m"), **rows))(v, x), want)
close(jax.jit(jax.shard_map(tuned.apply, out_specs=P("m"), **rows))(p, x), want)
mean = lambda v, x: jax.lax.pmean(jax.grad(loss)(v, x), "m")
close(jax.jit(jax.shard_map(mean, out_specs=P(), check_vma=False, **rows))(v, x), slope)

# A mesh with explicit axes: a sharded batch, its gradients, sharded kernels.
with jax.set_mesh(explicit):
    xs = jax.device_put(x, P("m", None))
    close(jax.jit(small.apply)(v, xs), want)
    close(jax.jit(jax.grad(loss))(v, xs), slope)
    specs = {"a": P(None, "m"), "b": P("m"), "c": P("m", None)}
    ps = {k: jax.device_put(p[k], spec) for k, spec in specs.items()}
    gathered = lambda p, x: jnp.einsum(
        "bi,io->bo", jax.nn.relu(x @ p["a"] + p["b"]), p["c"], out_sharding=P()
    )
    cut = sslx.compact(gathered)(ps, x)
    assert cut.variables["a"].shape == v["a"].shape
    close(jax.jit(cut.apply)(cut.variables, x), want)

# Widths that stop to divide.
columns = NamedSharding(auto, P(None, "m"))

def constrained(p, x):
    h = jax.nn.relu(x @ p["a"] + p["b"])
    return jax.lax.with_sharding_constraint(h, columns) @ p["c"]

def placed(p, x):
    first = lambda x: jax.nn.relu(x @ p["a"] + p["b"])
    return jax.jit(first, out_shardings=columns)(x) @ p["c"]

for fn in (constrained, placed):
    s = sslx.compact(fn)(p, x)
    close(jax.jit(s.apply)(s.variables, x), want)

# What runs on every device is kept whole, with the reason.
def within(p, x):
    f = lambda x, a, c: jax.lax.psum(jax.nn.relu(x @ a) @ c, "m")
    specs = (P(), P(None, "m"), P("m", None))
    return jax.shard_map(f, mesh=auto, in_specs=specs, out_specs=P())(x, p["a"], p["c"])

s = sslx.compact(within)(p, x)
close(jax.jit(s.apply)(s.variables, x), jax.jit(within)(p, x))
assert s.held_back[0].primitive == "shard_map"
assert s.variables["a"].shape == (4, 16)
"""


def test_several_devices() -> None:
    settings = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(
        command, env=settings, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
