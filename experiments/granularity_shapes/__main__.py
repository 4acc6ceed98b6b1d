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
import matplotlib
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import sslx
from experiments.granularity import report as granularity_report
from experiments.granularity import stages as granularity_stages
from experiments.models import imagenet as imagenet_models
from experiments.reports import style
from experiments.training import runs
from sslx import measure, report, select

Model = Literal["alexnet", "vgg16", "googlenet", "resnet50", "densenet121"]
_COLOURS = {"fine": "#2563eb", "vector": "#d97706", "kernel": "#059669"}
_COLOURS |= {"filter": "#dc2626"}


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
    figures = pictures(record)
    for name, figure in figures.items():
        report.save_png(figure, folder / f"{name}.png")
    page = report.page(folder / "report.html", **page_content(record, figures))
    pick = lambda rows, *names: [{name: row[name] for name in names} for row in rows]
    granularity_report.print_table(
        "Shares of the dense network",
        pick(
            storage_rows(record), "network", "grain", "density", "storage", "sum refs"
        ),
    )
    granularity_report.print_table(
        "Whole filters cut out, batch 1",
        pick(speed_rows(record), "network", "compact", "speed-up", "quartiles"),
    )
    print(f"report: {page}")
    return record


def figures_of(record: dict[str, Any], name: str, grain: str) -> dict[str, float]:
    """Shares of the dense network's bits and references."""
    counts = record["models"][name]["counts"]
    return granularity_report.shares(counts[grain], counts["dense"])


def storage_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """A row per network and grain."""
    percent = lambda x: f"{100 * x:.1f}%"
    rows = []
    for name in record["models"]:
        for grain in granularity_stages.GRAINS:
            found = figures_of(record, name, grain)
            rows.append(
                {
                    "network": name,
                    "grain": grain,
                    "density": percent(found["density"]),
                    "storage": percent(found["relative"]),
                    "storage / density": f"{found['relative'] / found['density']:.3f}",
                    "bitmask": percent(found["bitmask"]),
                    "weight refs": percent(found["weights"]),
                    "input refs": percent(found["inputs"]),
                    "sum refs": percent(found["partial_sums"]),
                    "sum refs / product": f"{found['sums_per_product']:.3f}",
                }
            )
    return rows


def speed_rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """A row per network."""
    rows = []
    for name, result in record["models"].items():
        speed = result["speed"]
        times = {row["name"]: row for row in speed["latency"]["rows"]}
        compact = times["compact"]
        control = next(row for key, row in times.items() if "again" in key)
        rows.append(
            {
                "network": name,
                "MACs, dense": f"{speed['macs_dense']:,}",
                "compact": f"{100 * speed['macs_compact'] / speed['macs_dense']:.1f}%",
                "dense, batch 1": f"{1e3 * times['dense']['median']:.1f} ms",
                "compact, batch 1": f"{1e3 * compact['median']:.1f} ms",
                "speed-up": f"{compact['speedup']:.2f}x",
                "quartiles": f"{compact['speedup_q1']:.2f} to "
                f"{compact['speedup_q3']:.2f}",
                "control": f"{control['speedup']:.2f}x",
            }
        )
    return rows


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Storage and partial sums by network and grain."""
    return {
        "storage": _bars(record, "relative", "bits of dense 8-bit weights"),
        "references": _bars(record, "partial_sums", "references of partial sums"),
    }


def _bars(record: dict[str, Any], key: str, label: str) -> Figure:
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axis = figure.subplots()
        names = list(record["models"])
        for place, (grain, colour) in enumerate(_COLOURS.items()):
            heights = [figures_of(record, name, grain)[key] for name in names]
            at = np.arange(len(names)) + 0.2 * (place - 1.5)
            axis.bar(at, heights, width=0.18, color=colour, label=grain)
        axis.axhline(record["options"]["density"], color="#9aa5b1", ls="--", lw=1)
        axis.set_xticks(np.arange(len(names)), names)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylabel(label)
        axis.legend(ncols=4, loc="upper center")
        axis.set_ylim(top=1.25 * axis.get_ylim()[1])
    return figure


def page_content(record: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """Arguments of `sslx.report.page`."""
    density = record["options"]["density"]
    rows = storage_rows(record)
    vgg = [row for row in rows if row["network"] == next(iter(record["models"]))]
    return {
        "title": "The grain of sparsity at ImageNet shapes",
        "lead": (
            f"Every convolution pruned to density {density:g}; weights and image are "
            "random, nothing is trained, so this says nothing about accuracy."
        ),
        "facts": [
            report.Fact(row["storage"], f"storage, {row['grain']}", row["network"])
            for row in vgg
        ],
        "sections": [
            report.Section(
                "Storage",
                "8-bit weights and a 4-bit relative index per stored grain, fillers "
                "counted; the line is the density.",
                figures["storage"],
                rows,
            ),
            report.Section(
                "Memory references",
                "Partial sums in an outer-product dataflow of 4x4 multipliers; the "
                "line is the density.",
                figures["references"],
            ),
            report.Section(
                "Speed",
                "Zero filters cut out by compaction, end to end at batch 1; the "
                "control is the dense network against itself.",
                rows=speed_rows(record),
            ),
        ],
        "origin": granularity_report.origin_of(record),
    }


if __name__ == "__main__":
    runs.command(lambda: main(runs.parse({"": Config()}, "", sys.argv[1:], __doc__)))
