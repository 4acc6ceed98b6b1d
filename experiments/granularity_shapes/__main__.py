"""Storage, memory references and speed by grain, at the shapes of ImageNet networks.

    python -m experiments.granularity_shapes                      five networks
    python -m experiments.granularity_shapes --models alexnet     one

No data and no training: weights are drawn at random and every convolution is pruned by
the sum of magnitudes to one density, so that what differs between grains is the grain
alone. Activations are those of one image of noise. Whole filters are also cut out and
timed; the other grains leave a dense convolution as slow as it was.

Seen: half an hour for all five on 2 overloaded cores, half a minute of processor time
for AlexNet; results/granularity_shapes holds what came out.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import sslx
from experiments.granularity import stages as granularity_stages
from experiments.granularity_shapes import report as shapes_report
from experiments.models import imagenet as imagenet_models
from experiments.training import progress, runs
from sslx import measure, select

Model = Literal["alexnet", "vgg16", "googlenet", "resnet50", "densenet121"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Prune untrained ImageNet networks at several grains and count what that saves."""

    models: tuple[Model, ...] = (
        "alexnet",
        "vgg16",
        "googlenet",
        "resnet50",
        "densenet121",
    )
    """Networks."""
    density: float = 0.3
    """Share of each convolution's weights to keep."""
    seed: int = 0
    """Of weights and image."""
    repeats: int = 10
    """Rounds of the timing, dense and without filters side by side in each."""
    run: pathlib.Path = pathlib.Path("runs/granularity_shapes")
    """Run folder; a network that is done there is not done again."""

    def __post_init__(self) -> None:
        if not 0 < self.density < 1:
            raise ValueError(
                f"--density: got {self.density}, expected above 0, below 1"
            )


def study(name: str, config: Config) -> dict[str, Any]:
    """Counts per grain, and times with and without the filters that are zero."""
    model = imagenet_models.create(name)
    image, variables = _draw(name, model, config.seed)
    counts = {"dense": _accounts(model, variables, image, sslx.WEIGHT)}
    speed = {}
    for grain, structure in granularity_stages.GRAINS.items():
        groups = granularity_stages.grain_groups(variables["params"], grain)
        scores = select.sum_abs(groups, variables["params"])
        masks = select.keep(groups, scores, config.density)
        params = sslx.scale(groups, variables["params"], masks)
        pruned = {**variables, "params": params}
        counts[grain] = _accounts(model, pruned, image, structure)
        print(f"{name}, {grain}: counted")
        if grain == "filter":
            speed = _speed(model, variables, pruned, image, config.repeats)
    return {"counts": counts, "speed": speed}


def _draw(name: str, model: Any, seed: int) -> tuple[Any, Any]:
    """An image of noise; kernels N(0, 2 / fan-in), norms that change nothing."""
    random = np.random.default_rng(seed)
    shape = (1, *imagenet_models.image_shape(name))
    image = jnp.asarray(random.standard_normal(shape, np.float32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)

    def leaf(keys: Any, struct: jax.ShapeDtypeStruct) -> Array:
        if len(struct.shape) > 1:
            fan_in = math.prod(struct.shape[:-1])
            drawn = random.standard_normal(struct.shape, np.float32)
            return jnp.asarray(drawn * np.float32(math.sqrt(2 / fan_in)))
        return jnp.full(struct.shape, keys[-1].key in ("scale", "var"), struct.dtype)

    return image, jax.tree_util.tree_map_with_path(leaf, shapes)


def _accounts(
    model: Any, variables: Any, image: Any, structure: sslx.Structure
) -> dict[str, Any]:
    layers = granularity_stages.convolutions(model, variables, image)
    return granularity_stages.totals(layers, structure)


def _speed(
    model: Any, dense: Any, pruned: Any, image: Any, repeats: int
) -> dict[str, Any]:
    """Latency at batch 1, compact against dense, and the MACs of both."""
    small = sslx.compact(model.apply)(pruned, image)
    whole, cut = jax.jit(model.apply), jax.jit(small.apply)
    found = measure.latency(
        {
            "dense": functools.partial(whole, dense, image),
            "compact": functools.partial(cut, small.variables, image),
        },
        repeats=repeats,
        control=True,
    )
    return {
        "macs_dense": measure.cost(model.apply, dense, image).macs,
        "macs_compact": measure.cost(small.apply, small.variables, image).macs,
        "latency": found.as_dict(),
    }


def main(config: Config) -> dict[str, Any]:
    """Study the networks that are not done yet; write the report.

    Raises:
        runs.RunError: the folder has other options.
    """
    run = runs.Run(config.run, config.models)
    options = {k: getattr(config, k) for k in ("density", "seed", "repeats")}
    results = {}
    with runs.taken(run.folder):
        for name in config.models:
            run.begin(name, options)
            if run.result(name) is None:
                origin = runs.provenance()
                run.finish(name, {**study(name, config), "provenance": origin})
            results[name] = run.result(name)
    record = {"options": options, "models": results, "provenance": runs.provenance()}
    folder = config.run / "report"
    folder.mkdir(exist_ok=True)
    runs.write_json(folder / "record.json", record)
    page = shapes_report.REPORT.write(folder, record)[-1]
    shares = ("network", "grain", "density", "storage", "sum refs")
    speeds = ("network", "compact", "speed-up", "quartiles")
    for title, rows, columns in (
        ("Shares of the dense network", shapes_report.storage_rows(record), shares),
        ("Whole filters cut out, batch 1", shapes_report.speed_rows(record), speeds),
    ):
        picked = [{name: row[name] for name in columns} for row in rows]
        progress.print_rows(title, picked)
    print(f"report: {page}")
    return record


if __name__ == "__main__":
    runs.command(lambda: main(runs.parse({"": Config()}, "", sys.argv[1:], __doc__)))
