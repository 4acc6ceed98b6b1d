"""Error against sparsity for PSP and l1-norm pruning, beside the paper's figure 3.

    python -m experiments.psp_sweep                                  CIFAR-10, ResNet-20
    python -m experiments.psp_sweep --preset smoke                   digits, no data
    python -m experiments.psp_sweep --preset paper                   a GPU, full length

Seen on 2 cores: `--preset smoke --curves decay prune`, 20 minutes, PSP and pruning tie;
CIFAR-10, 45 minutes beside other work, PSP is 0.6 to 0.0 points above pruning at 23 to
56% of the columns (docs/results/psp_sweep.md). The paper preset has not been run.

Every point is one training of its own from the baseline: a method, a level (lambda of
the factors' penalty, or a sparsity) and a seed. The same command again continues where
a killed run stopped, and draws what there is. `--matched` prunes at the sparsities that
PSP with weight decay reached, so that the two can be compared at equal sparsity.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Literal

from experiments.cifar_psp import __main__ as cifar_psp
from experiments.cifar_psp import stages as psp_stages
from experiments.cifar_psp.stages import Config, Method
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.training import runs


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Methods, levels and seeds, and the options that all points share."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Defaults of all numbers: smoke (digits, minutes), cpu (2 cores), paper."""
    point: Config = dataclasses.field(default_factory=Config)
    """Of every point; method, level, seed and folder are the sweep's."""
    curves: tuple[Method, ...] = ("decay", "prune")
    """The methods."""
    decay: tuple[float, ...] = (6.5e-4, 8e-4, 9.5e-4)
    """lambda of the weight decay on factors."""
    l1: tuple[float, ...] = (6.5e-4, 8e-4, 9.5e-4)
    """lambda of the l1 penalty on factors."""
    sss: tuple[float, ...] = (4e-4, 8e-4, 1.6e-3)
    """gamma of the proximal steps."""
    sparsities: tuple[float, ...] = (0.4, 0.6, 0.8)
    """Of the methods `fixed` and `prune`."""
    matched: bool = True
    """Prune at the sparsities that the points of `decay` reached, seed by seed."""
    seeds: tuple[int, ...] = (0, 1)
    """Of every point."""
    one_baseline: bool = False
    """All seeds start from the baseline of the first seed, instead of their own."""
    run: pathlib.Path | None = None
    """Run folder [runs/psp_sweep-DATA-MODEL-PRESET]."""

    def __post_init__(self) -> None:
        if self.matched and "prune" in self.curves and "decay" not in self.curves:
            raise ValueError("--matched: needs decay among --curves")
        if not self.seeds:
            raise ValueError("--seeds: got none, expected at least one")


_SMOKE = dataclasses.replace(cifar_psp.PRESETS["smoke"], data="digits", model="resnet8")
_CPU = dataclasses.replace(
    cifar_psp.PRESETS["cpu"],
    sparse_epochs=1,
    sparse_steps=300,
    sparse_learning_rate=0.05,
    alpha_learning_rate=1.0,
    alpha_part=0.5,
)
_FOUR: tuple[Method, ...] = ("prune", "fixed", "l1", "decay")
PRESETS = {
    "smoke": Sweep(
        preset="smoke", point=_SMOKE, curves=_FOUR, decay=(3e-3, 3.8e-3, 4.6e-3)
    ),
    "cpu": Sweep(preset="cpu", point=_CPU, one_baseline=True),
    "paper": Sweep(
        preset="paper",
        point=dataclasses.replace(cifar_psp.PRESETS["paper"], model="resnet56"),
        curves=_FOUR,
        decay=(2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4),
        l1=(1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4),
        sparsities=(0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
        matched=False,
        seeds=(0, 1, 2),
    ),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One training: its name in the folder, and its options."""

    name: str
    config: Config
    level: float


def main(sweep: Sweep) -> dict[str, Any]:
    """Do the points that are not done yet, then draw all; the record.

    Raises:
        runs.RunError: the folder was made with other options.
    """
    shared = sweep.point
    name = f"psp_sweep-{shared.data}-{shared.model}-{sweep.preset}"
    folder = sweep.run or pathlib.Path("runs") / name
    arrays = image_sets.load(shared.data, shared.data_dir)
    origin = runs.provenance()
    with runs.taken(folder):
        for seed in sweep.seeds:
            base = dataclasses.replace(
                shared, seed=sweep.seeds[0] if sweep.one_baseline else seed
            )
            run = runs.Run(folder / f"baseline{base.seed}", ())
            _baseline(psp_stages.Context(base, run, arrays), origin)
            for point in _points(sweep, seed, run):
                _do(
                    point,
                    psp_stages.Context(point.config, run, arrays, point.name),
                    origin,
                )
                from experiments.psp_sweep import curves

                curves.write(folder, collect(sweep, folder))
    return collect(sweep, folder)


def _baseline(context: psp_stages.Context, origin: dict[str, Any]) -> None:
    fields = ssl_stages.fields(psp_stages.STAGES, ())["baseline"]
    options = {name: getattr(context.config, name) for name in fields}
    context.run.begin("baseline", options)
    if context.run.result("baseline") is None:
        result = ssl_stages.baseline(context)
        context.run.finish("baseline", {**result, "provenance": origin})


def _points(sweep: Sweep, seed: int, run: runs.Run) -> Iterator[Point]:
    """In an order in which a pruning finds the sparsity it is to match."""
    for level in sweep.decay if "decay" in sweep.curves else ():
        decay = _point(sweep, "decay", level, seed)
        yield decay
        if sweep.matched and "prune" in sweep.curves:
            reached = run.result(decay.name)["group_sparsity"]
            yield _point(sweep, "prune", reached, seed, f"as-{decay.name}")
    for method in sweep.curves:
        if method == "decay" or (method == "prune" and sweep.matched):
            continue
        levels = getattr(sweep, method) if method in ("l1", "sss") else sweep.sparsities
        for level in levels:
            yield _point(sweep, method, level, seed)


def _point(
    sweep: Sweep, method: Method, level: float, seed: int, name: str | None = None
) -> Point:
    option = "strength" if method in ("decay", "l1", "sss") else "sparsity"
    config = dataclasses.replace(
        sweep.point, method=method, seed=seed, **{option: level}
    )
    return Point(f"{method}-{name or f'{level:g}-seed{seed}'}", config, level)


def _do(point: Point, context: psp_stages.Context, origin: dict[str, Any]) -> None:
    names = ("seed", *psp_stages.fields(point.config.method))
    options = {name: getattr(point.config, name) for name in names}
    context.run.begin(point.name, options)
    if context.run.result(point.name) is not None:
        return
    result = psp_stages.sparse(context)
    context.run.finish(point.name, {**result, "provenance": origin})
    share, error = result["group_sparsity"], 1 - result["test_accuracy"]
    print(f"{point.name}: {share:.1%} of the groups zero, error {error:.2%}")


def collect(sweep: Sweep, folder: pathlib.Path) -> dict[str, Any]:
    """Every complete point under `folder`, with its options and its result."""
    found: dict[str, Any] = {"baselines": [], "points": []}
    for place in sorted(folder.glob("baseline*/*/result.json")):
        run = runs.Run(place.parent.parent, ())
        stage, options = place.parent.name, place.with_name("options.json")
        row = {
            "name": f"{place.parent.parent.name}/{stage}",
            "options": runs.read_json(options),
            **(run.result(stage) or {}),
        }
        found["baselines" if stage == "baseline" else "points"].append(row)
    shared = dataclasses.asdict(sweep.point)
    for name in ("data_dir", "run", "stages", "redo", "seed", "method", "tensorboard"):
        shared.pop(name)
    return {**found, "options": shared, "provenance": runs.provenance()}


def parse(arguments: list[str]) -> Sweep:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "cpu", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
