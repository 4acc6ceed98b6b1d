"""How long tracing, analysis, rewriting and the search for units take, without XLA.

    python -m experiments.bench analysis      3 minutes on 2 cores
    python -m experiments.bench analysis --torch-python PYTHON

Every network is given as shapes, with half of the units of every class masked out.
Each runs in a process of its own, whose peak memory is reported too. Those that end
with `-jax` are the same networks on the same variables, without Flax. `trace` is
`jax.make_jaxpr` of the dense function, JAX's caches empty; `analysis` is what
`sslx.compact` takes beyond it, and `rewrite` is `jax.make_jaxpr` of the compact
function after that, all without Python's garbage collector, as `timeit` measures. For
`--compiled` networks XLA compiles the forward pass, dense and compact, in turn; `=` is
a tie with the dense one against itself. With `--torch-python`, an interpreter that has
`torch` and `torch-pruning`, Torch-Pruning builds its graph and halves the networks that
both have.
"""

import dataclasses
import functools
import gc
import multiprocessing
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sslx
from experiments import models
from experiments.bench import functions, timing, workers
from experiments.models import imagenet as imagenet_models
from experiments.reports import overhead

Case = tuple[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the analysis of networks given as shapes."""

    cases: tuple[str, ...] = (
        "resnet56",
        "resnet56-jax",
        "densenet100bc",
        "densenet100bc-jax",
        "resnet50",
        "densenet121",
        "transformer-7b",
        "depth-10",
        "depth-30",
        "depth-100",
        "depth-300",
        "depth-1000",
    )
    """Networks of experiments.models (with -jax: without Flax) and of imagenet_models,
    transformer-7b, depth-N."""
    compiled: tuple[str, ...] = ("resnet56", "densenet100bc", "resnet50")
    """Those of the networks that XLA compiles, dense and compact."""
    rounds: int = 3
    """Repetitions; medians are reported, and the spread."""
    torch_python: pathlib.Path | None = None
    """An interpreter with torch and torch-pruning, to compare with."""
    out: pathlib.Path | None = None
    """Folder for record.json."""


def case(name: str) -> Case:
    """A function with variables and inputs as shapes, and its settings."""
    if name == "transformer-7b":
        return transformer, _transformer_shapes(), (_struct(1, 128, dtype="int32"),), {}
    if name.startswith("depth-"):
        depth = int(name.removeprefix("depth-"))
        return residual_mlp, _mlp_shapes(depth), (_struct(8, 64),), {}
    module = name.removesuffix("-jax")
    if module in models.MODELS:
        model, shape = models.create(module), (32, 32, 3)
    else:
        model, shape = imagenet_models.create(name), imagenet_models.image_shape(name)
    image = _struct(1, *shape)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    if name != module:
        return functions.FUNCTIONS[type(model)], variables, (image,), {}
    return model.apply, variables, (image,), {"train": False}


def _struct(*shape: int, dtype: Any = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def residual_mlp(params: Any, x: jax.Array) -> jax.Array:
    """N blocks `x + relu(norm(x) a + b) c`, then a projection."""
    for block in params["blocks"]:
        y = _rms(x) * block["scale"]
        x = x + jax.nn.relu(y @ block["a"] + block["b"]) @ block["c"]
    return x @ params["head"]


def _mlp_shapes(depth: int) -> Any:
    block = {"scale": (1, 64), "a": (64, 128), "b": (1, 128), "c": (128, 64)}
    shapes = {k: _struct(*s) for k, s in block.items()}
    return {"blocks": [dict(shapes) for _ in range(depth)], "head": _struct(64, 10)}


def _rms(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


WIDTH, HEADS, HEAD, HIDDEN, LAYERS, WORDS = 4096, 32, 128, 11008, 32, 32000


def _transformer_shapes() -> Any:
    layer = {
        "norm1": (1, 1, WIDTH),
        "query": (WIDTH, HEADS, HEAD),
        "key": (WIDTH, HEADS, HEAD),
        "value": (WIDTH, HEADS, HEAD),
        "out": (HEADS, HEAD, WIDTH),
        "norm2": (1, 1, WIDTH),
        "gate": (WIDTH, HIDDEN),
        "up": (WIDTH, HIDDEN),
        "down": (HIDDEN, WIDTH),
    }
    half = {k: _struct(*s, dtype="bfloat16") for k, s in layer.items()}
    return {
        "embedding": _struct(WORDS, WIDTH, dtype="bfloat16"),
        "layers": [dict(half) for _ in range(LAYERS)],
        "norm": _struct(1, 1, WIDTH, dtype="bfloat16"),
        "head": _struct(WIDTH, WORDS, dtype="bfloat16"),
    }


def _rotated(x: jax.Array) -> jax.Array:
    """Rotary position embedding of (batch, time, heads, width)."""
    half = x.shape[-1] // 2
    speed = 10000.0 ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[None, :, None, None] * speed[None, None, None]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def transformer(params: Any, tokens: jax.Array) -> jax.Array:
    """A decoder of 32 layers: rotary attention, SwiGLU, RMS norms; 6.7e9 weights."""
    x = params["embedding"][tokens]
    seen = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None, None]
    for layer in params["layers"]:
        y = _rms(x) * layer["norm1"]
        project = functools.partial(jnp.einsum, "btc,chd->bthd")
        q, k = _rotated(project(y, layer["query"])), _rotated(project(y, layer["key"]))
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * HEAD**-0.5
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
        y = jnp.einsum("bhts,bshd->bthd", weights, project(y, layer["value"]))
        x = x + jnp.einsum("bthd,hdc->btc", y, layer["out"])
        y = _rms(x) * layer["norm2"]
        x = x + (jax.nn.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
    return (_rms(x) * params["norm"]) @ params["head"]


def half_of_units(units: sslx.Groups) -> dict[str, np.ndarray]:
    """Masks for `sslx.compact`: every second unit of every class is kept."""
    return {c.name: np.arange(c.count).reshape(c.shape) % 2 == 0 for c in units.classes}


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, result
    finally:
        gc.enable()


def compile_times(
    programs: dict[str, tuple[Callable[..., Any], Any]], args: Any, rounds: int
) -> timing.Rounds:
    """Seconds of XLA for each of the functions of variables and `args`."""
    todo = programs | {f"dense{timing.AGAIN}": programs["dense"]}
    times: dict[str, list[float]] = {name: [] for name in todo}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(todo)).tolist():
            jax.clear_caches()
            fn, variables = todo[name]
            times[name].append(timing.compiled(fn, variables, *args)[1])
    return timing.Rounds(times)


def measure_case(name: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """The row of one network, measured in this process."""
    fn, variables, args, settings = case(name)
    call = functools.partial(fn, **settings)
    jax.make_jaxpr(call)(variables, *args)
    units_seconds, units = _seconds(lambda: sslx.units(call)(variables, *args))
    masks = half_of_units(units)
    rows: list[dict[str, float]] = []
    for _ in range(rounds):
        jax.clear_caches()
        trace, jaxpr = _seconds(lambda: jax.make_jaxpr(call)(variables, *args))
        jax.clear_caches()
        whole, small = _seconds(
            lambda: sslx.compact(call, groups=units, masks=masks)(variables, *args)
        )
        rewrite, reduced = _seconds(
            lambda small=small: jax.make_jaxpr(small.apply)(small.variables, *args)
        )
        rows.append({"trace": trace, "analysis": whole - trace, "rewrite": rewrite})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, after = (
        sum(x.size for x in jax.tree.leaves(v)) for v in (variables, small.variables)
    )
    row: dict[str, Any] = {}
    if compiled:
        programs = {
            "dense": (call, variables),
            "compact": (small.apply, small.variables),
        }
        found = compile_times(programs, args, rounds)
        ratio = found.speedup("dense", "compact").as_dict()
        row["compile"] = found.as_dict() | {"compact_over_dense": ratio}
    return row | {
        "name": name,
        "equations": len(jaxpr.eqns),
        "equations_compact": len(reduced.eqns),
        "parameters": before,
        "parameters_compact": after,
        "units_seconds": units_seconds,
        "rounds": rows,
        "seconds": {k: statistics.median(r[k] for r in rows) for k in rows[0]},
        "peak_megabytes": peak,
    }


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and write JSON where asked."""
    versions = workers.torch_versions(config.torch_python)
    context = multiprocessing.get_context("spawn")
    rows = []
    print("seconds            trace  analysis   rewrite     units   equations  peak MB")
    for name in config.cases:
        compiled = name in config.compiled
        with context.Pool(1) as pool:
            row = pool.apply(measure_case, (name, config.rounds, compiled))
        rows.append(row)
        times = [*row["seconds"].values(), row["units_seconds"]]
        cells = "".join(f"{t:10.3f}" for t in times)
        print(f"{name:14s}{cells}{row['equations']:12d}{row['peak_megabytes']:9.0f}")
    for row in rows:
        if "compile" in row:
            print(_compile_text(row))
    record: dict[str, Any] = {"cases": rows, "torch": versions}
    if config.torch_python is not None:
        shared = [name for name in config.cases if name in models.MODELS]
        record["torch_pruning"] = _torch_pruning(
            config.torch_python, shared, config.rounds
        )
    return timing.finish(record, config.out, overhead.ANALYSIS)


def _compile_text(row: dict[str, Any]) -> str:
    medians = row["compile"]["median"]
    ratio = timing.cell(row["compile"]["compact_over_dense"])
    return (
        f"{row['name']}: XLA compiles dense in {medians['dense']:.2f} s, "
        f"compact in {medians['compact']:.2f} s ({ratio} of the dense time)"
    )


def _torch_pruning(
    python: pathlib.Path, names: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of Torch-Pruning's parts, per network."""
    found = {}
    with workers.Worker(python) as worker:
        for name in names:
            parts = worker.ask("pruning", network=name, rounds=rounds)["rounds"]
            found[name] = {k: statistics.median(p[k] for p in parts) for k in parts[0]}
            cells = ", ".join(f"{k} {t:.3f} s" for k, t in found[name].items())
            print(f"{name}, Torch-Pruning: {cells}")
    return found
