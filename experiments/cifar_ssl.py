"""Train, make sparse with SSL, compact, fine-tune, benchmark, report.

    python -m experiments.cifar_ssl                                  CIFAR-10, ResNet-20
    python -m experiments.cifar_ssl --data digits --preset smoke     2 minutes, no data
    python -m experiments.cifar_ssl --preset paper                   a GPU, full length

The same command again continues where a killed run stopped, to the bit on CPU, and
skips what is done. `--redo ssl --target 0.5` does a stage, and what follows, again.
"""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

import tyro

from experiments import checkpoints, data, runs, ssl_stages, train
from experiments.sparsity import Structure

Stage = Literal["baseline", "ssl", "compact", "finetune", "benchmark", "report"]
STAGES: tuple[Stage, ...] = (
    "baseline",
    "ssl",
    "compact",
    "finetune",
    "benchmark",
    "report",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a network, drive groups to exact zero with SSL, compact it, measure it."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Defaults of all numbers: smoke (minutes), cpu (1.5 hours, 2 cores), paper."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """Images; digits are scikit-learn's 1,797, brought to 32x32x3."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    model: Literal[
        "resnet8", "resnet20", "resnet32", "resnet56", "resnet110", "convnet", "lenet"
    ] = "resnet20"
    """Network."""
    run: pathlib.Path | None = None
    """Run folder [runs/cifar_ssl-DATA-MODEL-PRESET]."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to do; those before them must be done, those done are kept."""
    redo: tuple[Stage, ...] = ()
    """Stages to throw away and do again, with all that follow."""
    seed: int = 0
    """Of initial values, order and augmentation."""
    batch: int = 128
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 decay of kernels; in SSL not of those that SSL regularises."""
    baseline_epochs: int = 9
    """Epochs from scratch."""
    learning_rate: float = 0.3
    """Baseline: peak of warm-up and cosine."""
    ssl_epochs: int = 4
    """Epochs of SSL, from the trained baseline."""
    ssl_learning_rate: float = 0.1
    """SSL: peak of warm-up and cosine."""
    structure: Structure = "coupled"
    """What a group is; coupled: a filter with the input channel that reads it."""
    block: int = 8
    """Filters and channels in one group: fast widths are multiples of 8."""
    strength: float = 5e-3
    """Group lasso's lambda at the start of SSL, per unit group norm."""
    growth: float = 8.0
    """Factor of lambda per epoch, until the target is met; 1 keeps it fixed."""
    target: float = 0.4
    """Share of multiply-accumulates in zero groups that ends the growth; 1: never."""
    finetune_epochs: int = 5
    """Epochs of the compact network."""
    finetune_learning_rate: float = 0.1
    """Fine-tuning: peak of warm-up and cosine."""
    benchmark_batches: tuple[int, ...] = (1, 32, 256)
    """Batch sizes to time."""
    benchmark_repeats: int = 30
    """Rounds of the timing, dense and compact side by side in each."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch", 1, 1 << 20),
            ("block", 1, 1 << 20),
            ("baseline_epochs", 1, 1 << 20),
            ("ssl_epochs", 1, 1 << 20),
            ("finetune_epochs", 1, 1 << 20),
            ("benchmark_repeats", 1, 1 << 20),
            ("learning_rate", 0.0, 1e3),
            ("ssl_learning_rate", 0.0, 1e3),
            ("finetune_learning_rate", 0.0, 1e3),
            ("weight_decay", 0.0, 1.0),
            ("strength", 0.0, 1e6),
            ("growth", 1.0, 1e6),
            ("target", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: got {value}, expected {low} to {high:g}")


PRESETS = {
    "smoke": Config(
        preset="smoke",
        batch=32,
        baseline_epochs=4,
        learning_rate=0.1,
        ssl_epochs=4,
        ssl_learning_rate=0.05,
        strength=1.0,
        growth=3.0,
        finetune_epochs=2,
        finetune_learning_rate=0.03,
        benchmark_repeats=10,
    ),
    "cpu": Config(),
    "paper": Config(
        preset="paper",
        baseline_epochs=160,
        ssl_epochs=80,
        strength=1e-3,
        growth=1.15,
        finetune_epochs=54,
    ),
}

_BASELINE = ("data", "model", "seed", "batch", "weight_decay", "baseline_epochs")
_BASELINE += ("learning_rate",)
_SSL = ("ssl_epochs", "ssl_learning_rate", "structure", "block", "strength")
_SSL += ("growth", "target")
_FINETUNE = ("finetune_epochs", "finetune_learning_rate")
_FIELDS = {
    "baseline": _BASELINE,
    "ssl": _BASELINE + _SSL,
    "compact": _BASELINE + _SSL,
    "finetune": _BASELINE + _SSL + _FINETUNE,
    "benchmark": (
        *_BASELINE,
        *_SSL,
        *_FINETUNE,
        "benchmark_batches",
        "benchmark_repeats",
    ),
    "report": (),
}


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"cifar_ssl-{config.data}-{config.model}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, STAGES)
    run.redo(config.redo)
    origin = runs.provenance()  # now: the folder may change while this runs
    context = ssl_stages.Context(config, run, data.load(config.data, config.data_dir))
    for stage in STAGES:
        done = run.result(stage) is not None and stage != "report"
        if stage not in config.stages:
            later = [s for s in config.stages if STAGES.index(s) > STAGES.index(stage)]
            if later and not done:
                raise runs.RunError(
                    f"--stages {' '.join(later)}: needs stage {stage}, which is not "
                    f"complete in {run.folder}; add {stage} to --stages"
                )
            continue
        run.begin(stage, {name: getattr(config, name) for name in _FIELDS[stage]})
        if not done:
            result = getattr(ssl_stages, stage)(context)
            run.finish(stage, {**result, "provenance": origin})
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    preset = "cpu"
    for place, word in enumerate(arguments):
        if word == "--preset" and place + 1 < len(arguments):
            preset = arguments[place + 1]
        elif word.startswith("--preset="):
            preset = word.removeprefix("--preset=")
    default = PRESETS.get(preset, Config())
    config: Any = tyro.cli(Config, args=arguments, default=default, description=__doc__)
    return config


if __name__ == "__main__":
    try:
        main(parse(sys.argv[1:]))
    except (
        ValueError,
        OSError,
        data.DataError,
        runs.RunError,
        train.TrainingError,
        checkpoints.CheckpointError,
    ) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues from the last checkpoint")
