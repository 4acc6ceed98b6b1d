"""Speed of networks at a share of their widths, beside the ratio of their MACs.

    python -m experiments.bench networks --out FOLDER           hours on 2 calm cores
    python -m experiments.bench networks --networks resnet20 --keep 0.8125

In every family of channels that go together (`sslx.units`) the half with the smaller
norms is zero (or another share, `--keep`): in `all` families, or only in the `inner`
ones, which one layer writes, so that no residual add joins them. Dense and compact
networks are lowered by the same search, `--lowering`, on timings of its own, and run by
XLA as it comes, too. Outputs are compared with the dense network's before the timing.
"""

import dataclasses
import functools
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import sslx
from experiments import models
from experiments.bench import mobilenet, timing
from experiments.models import imagenet as imagenet_models
from experiments.reports import networks
from sslx import measure
from sslx.lowering import Lowering

Width = Literal["inner", "all"]
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Config:
    """Time networks, dense and at a share of their widths."""

    networks: tuple[str, ...] = (
        "resnet20",
        "resnet56",
        "vgg16",
        "vgg19",
        "densenet40",
        "resnet50",
        "mobilenet",
    )
    """Of experiments.models, imagenet_models (resnet50), or mobilenet."""
    widths: tuple[Width, ...] = ("inner", "all")
    """Which families of channels are thinned."""
    keep: float = 0.5
    """Share of a family that stays, rounded up; 0.8125 makes odd widths."""
    batches: tuple[int, ...] = (1, 32, 256)
    """Images per call."""
    lowering: Lowering = "measure"
    """How forms are chosen, for the dense and the compact network alike."""
    rounds: int = 15
    """Rounds of the timing that is reported; fewer where a minute is not enough."""
    memory: float = 12.0
    """GiB; sizes that need more are left out."""
    cache: pathlib.Path | None = None
    """Folder of the timings that choices are made on [~/.cache/sslx]."""
    out: pathlib.Path | None = None
    """Folder for record.json and networks.png."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with weights at random.

    Attributes:
        apply: of variables and images.
        variables: what Flax made, BatchNorm's means and variances perturbed.
        shape: of an image.
    """

    apply: Callable[..., jax.Array]
    variables: Any
    shape: tuple[int, ...]


def create(name: str) -> Network:
    """A network by its name."""
    model, shape = _model(name)
    image = jax.ShapeDtypeStruct((1, *shape), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(_values(path[-1].key, leaf.shape, rng)), shapes
    )
    return Network(functools.partial(model.apply, train=False), variables, shape)


def _values(
    name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> Float[np.ndarray, "..."]:
    """He's normal for kernels; near 1 for scales and variances; else near 0."""
    values = rng.standard_normal(shape, np.float32)
    if name == "kernel":
        return values * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return np.float32(name in ("scale", "var")) + np.float32(0.1) * abs(values)


def _model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name == "mobilenet":
        return mobilenet.MobileNet(), (32, 32, 3)
    if name in models.MODELS:
        return models.create(name), (32, 32, 3)
    return imagenet_models.create(name), imagenet_models.image_shape(name)


def thinned(
    network: Network, widths: tuple[Width, ...], keep: float = 0.5
) -> dict[Width, Any]:
    """Variables with a share of every family left; once if all are inner."""
    x = jax.ShapeDtypeStruct((1, *network.shape), "float32")
    units = sslx.units(network.apply)(network.variables, x)
    inner = sslx.Groups(tuple(c for c in units.classes if _writers(c) == 1))
    if inner.names == units.names:
        widths = ("all",)
    chosen = {"all": units, "inner": inner}
    return {width: _strongest(chosen[width], network, keep) for width in widths}


def _strongest(units: sslx.Groups, network: Network, keep: float) -> Any:
    norms = jax.jit(functools.partial(sslx.norms, units))(network.variables)
    factors = {name: _largest(np.asarray(n), keep) for name, n in norms.items()}
    return jax.jit(functools.partial(sslx.scale, units))(network.variables, factors)


def _writers(family: sslx.GroupClass) -> int:
    """Kernels whose filters are of a family, depthwise ones not counted."""
    return sum(
        len(m.shape) > 1 and m.kept == (len(m.shape) - 1,) and m.shape[-2] > 1
        for m in family.members
    )


def _largest(norms: np.ndarray, keep: float) -> np.ndarray:
    """1 for this share of the norms, rounded up; 0 for the rest."""
    factors = np.zeros(norms.size, np.float32)
    order = np.argsort(-norms.reshape(-1), kind="stable")
    factors[order[: math.ceil(keep * norms.size)]] = 1
    return factors.reshape(norms.shape)


def time_case(
    network: Network, zeros: Any, batch: int, config: Config
) -> dict[str, Any] | None:
    """One network, set of widths and batch size; None where it needs too much memory.

    Args:
        network: dense.
        zeros: its variables with a part of some families zero.
        batch: images.
        config: of the command.
    """
    x = jax.random.normal(jax.random.key(2), (batch, *network.shape))
    apply, variables = network.apply, network.variables
    default, _ = timing.compiled(apply, variables, x)
    if _bytes(default) > config.memory * _GIB:
        return None
    tuned = sslx.tune(apply, lowering=config.lowering, cache=config.cache)
    choices = tuned.choices(variables, x)
    small = sslx.compact(apply)(zeros, x)
    fast = small.lowered(x, lowering=config.lowering, cache=config.cache)
    options = {"dense": choices.compiler_options, "compact": fast.compiler_options}
    programs = {
        "dense": (tuned.apply, variables),
        "dense, XLA": (apply, variables),
        "compact": (fast.apply, small.variables),
        "compact, XLA": (small.apply, small.variables),
    }
    calls, seconds = {}, {}
    for name, (fn, tree) in programs.items():
        chosen = options.get(name, {})
        program, seconds[name] = _compiled(fn, tree, x, options=chosen)
        calls[name] = functools.partial(program, tree, x)
        expected = default(zeros if "compact" in name else variables, x)
        timing.check(name, calls[name](), expected)
    found = timing.interleaved(calls, config.rounds)
    before, after = (
        measure.cost(fn, tree, x).macs
        for fn, tree in (programs["dense, XLA"], programs["compact, XLA"])
    )
    return {
        "batch": batch,
        "mac_ratio": before / after,
        "speedups": {
            f"{name} over {other}": found.speedup(name, other).as_dict()
            for name, other in _RATIOS
        },
        "compile": seconds,
        "options": options,
        "chosen": {
            "dense": timing.chosen(tuned, variables, x),
            "compact": timing.chosen(fast.tuned, fast.variables, x),
        },
        "calls": found.as_dict(),
    }


def _compiled(
    fn: Callable[..., Any], *args: Any, options: Mapping[str, str]
) -> tuple[Any, float]:
    """The program, and the median of XLA's seconds for it, caches empty."""
    made = []
    for _ in range(3):
        jax.clear_caches()
        made.append(timing.compiled(fn, *args, **options))
    return made[0][0], statistics.median(seconds for _, seconds in made)


_RATIOS = (
    ("compact", "dense"),
    ("compact, XLA", "dense, XLA"),
    ("dense", "dense, XLA"),
    ("compact", "dense, XLA"),
)


def _bytes(program: Any) -> int:
    """What a compiled program needs: arguments, results and the rest."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def main(config: Config) -> dict[str, Any]:
    """Time all, print a line each, write record and picture where asked."""
    rows = []
    head = "latency ratios over the MAC ratio; '=' is a tie with 1\n"
    print(head + _line("network", "batch", "MACs", _HEAD))
    for name in config.networks:
        network = create(name)
        for width, zeros in thinned(network, config.widths, config.keep).items():
            for batch in config.batches:
                case = time_case(network, zeros, batch, config)
                jax.clear_caches()
                if case is None:
                    print(f"{name}, {width}, batch {batch}: over {config.memory} GiB")
                    continue
                rows.append({"network": name, "width": width, **case})
                print(_row(rows[-1]), flush=True)
    record = {"lowering": config.lowering, "keep": config.keep, "cases": rows}
    return timing.finish(record, config.out, networks.REPORT)


_HEAD = ("compact", "of MACs", "XLA alone", "dense/XLA", "ms", "compile")


def _line(name: str, batch: str, macs: str, cells: tuple[str, ...]) -> str:
    return f"{name:22s}{batch:>6s}{macs:>8s}" + "".join(f"{c:>11s}" for c in cells)


def _row(case: dict[str, Any]) -> str:
    speed, macs = case["speedups"], case["mac_ratio"]
    compiled = case["compile"]["compact"] / case["compile"]["dense"]
    cells = (
        timing.cell(speed["compact over dense"]),
        f"{speed['compact over dense']['median'] / macs:.2f}",
        timing.cell(speed["compact, XLA over dense, XLA"]),
        timing.cell(speed["dense over dense, XLA"]),
        f"{1e3 * case['calls']['median']['compact']:.2f}",
        f"{compiled:.2f}",
    )
    name = f"{case['network']}, {case['width']}"
    return _line(name, f"{case['batch']}", f"{macs:.2f}", cells)
