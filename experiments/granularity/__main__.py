"""How the grain of sparsity trades accuracy for storage and memory references.

    python -m experiments.granularity                                CIFAR-10, ResNet-20
    python -m experiments.granularity --data digits --preset smoke   minutes, no data
    python -m experiments.granularity --preset paper                 a GPU, full length

Mao et al. 2017: for each grain (single weights, vectors, kernels, filters) the
convolutions of one trained network are pruned by the sum of magnitudes to falling
densities, those of the layers chosen by sensitivity, and retrained after each. The
same command again continues where a killed run stopped. Every seed has a folder
RUN/seed-N; the report is in RUN/report.

On CIFAR-10 (`cpu` preset, an hour for each seed on 2 cores) accuracy falls with the
grain at every density; see docs/results/granularity.md.
"""

import dataclasses
import pathlib
import sys
from typing import Literal

from experiments.data import image_sets
from experiments.granularity import stages as granularity_stages
from experiments.training import runs

Stage = Literal["baseline", "sensitivity", "retrain", "account", "report"]
STAGES: tuple[Stage, ...] = (
    "baseline",
    "sensitivity",
    "retrain",
    "account",
    "report",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Prune and retrain one network at several grains, and count what that saves."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Defaults of all numbers: smoke (minutes), cpu (hours, 2 cores), paper."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """Images; digits are scikit-learn's 1,797, brought to 32x32x3."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    model: str = "resnet20"
    """Network, a key of experiments.models.MODELS."""
    run: pathlib.Path | None = None
    """Run folder [runs/granularity-DATA-MODEL-PRESET]."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to do; those before them must be done, those done are kept."""
    redo: tuple[Stage, ...] = ()
    """Stages to throw away and do again, with all that follow."""
    tensorboard: bool = False
    """Write metrics as TensorBoard events too, into RUN/STAGE/tensorboard."""
    seeds: tuple[int, ...] = (0, 1)
    """Of initial values, order and augmentation; one network each."""
    batch: int = 128
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 decay of kernels."""
    baseline_epochs: int = 9
    """Epochs from scratch."""
    learning_rate: float = 0.3
    """Baseline: peak of warm-up and cosine."""
    grains: tuple[granularity_stages.Grain, ...] = (
        "fine",
        "vector",
        "kernel",
        "filter",
    )
    """Grains to compare."""
    densities: tuple[float, ...] = (0.5, 0.3, 0.15)
    """Shares of the convolutions' weights to keep, from one to the next."""
    sensitivity_images: int = 512
    """Training images on which each layer's loss is measured."""
    retrain_epochs: int = 1
    """Epochs after each pruning."""
    retrain_learning_rate: float = 0.1
    """Retraining: peak of warm-up and cosine."""
    account_images: int = 2
    """Test images whose activations memory references are counted for."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("--seeds: expected at least one")
        wrong = [d for d in self.densities if not 0.05 <= d < 1]
        if wrong or not self.densities:
            raise ValueError(f"--densities: got {wrong}, expected 0.05 to below 1")


PRESETS = {
    "smoke": Config(
        preset="smoke",
        model="resnet8",
        seeds=(0,),
        batch=32,
        baseline_epochs=4,
        learning_rate=0.1,
        densities=(0.4, 0.15),
        sensitivity_images=128,
        retrain_learning_rate=0.03,
    ),
    "cpu": Config(),
    "paper": Config(
        preset="paper",
        model="vgg16",
        seeds=(0, 1, 2),
        baseline_epochs=160,
        learning_rate=0.1,
        densities=(0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1),
        sensitivity_images=4096,
        retrain_epochs=20,
        retrain_learning_rate=0.02,
    ),
}

_BASELINE = ("data", "model", "seed", "batch", "weight_decay", "learning_rate")
_BASELINE += ("baseline_epochs",)
_SENSITIVITY = (*_BASELINE, "grains", "sensitivity_images")
_RETRAIN = (*_SENSITIVITY, "densities", "retrain_epochs", "retrain_learning_rate")
_FIELDS = {
    "baseline": _BASELINE,
    "sensitivity": _SENSITIVITY,
    "retrain": _RETRAIN,
    "account": (*_RETRAIN, "account_images"),
}


@dataclasses.dataclass(frozen=True)
class Seeded(Config):
    """The options of one network."""

    seed: int = 0


def main(config: Config) -> pathlib.Path:
    """Do the stages of `config` that are not done yet; the run folder.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"granularity-{config.data}-{config.model}-{config.preset}"
    folder = config.run or pathlib.Path("runs") / name
    arrays = image_sets.load(config.data, config.data_dir)
    for seed in config.seeds:
        run = runs.Run(folder / f"seed-{seed}", STAGES[:-1])
        seeded = Seeded(**vars(config), seed=seed)
        context = granularity_stages.Context(seeded, run, arrays)
        run.do(seeded, _FIELDS, lambda s, c=context: getattr(granularity_stages, s)(c))
    if "report" in config.stages:
        from experiments.granularity import report as granularity_report

        granularity_report.write(folder, config)
    return folder


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "cpu", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
