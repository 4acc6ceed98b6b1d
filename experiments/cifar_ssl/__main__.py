"""Train, make sparse with SSL, compact, fine-tune, benchmark, report.

    python -m experiments.cifar_ssl                                  CIFAR-10, ResNet-20
    python -m experiments.cifar_ssl --data digits --preset smoke     2 minutes, no data
    python -m experiments.cifar_ssl --preset paper                   a GPU, full length
    python -m experiments.cifar_ssl --preset convnet                 rows and columns

The same command again continues where a killed run stopped, to the bit on CPU, and
skips what is done. `--redo ssl --target 0.5` does a stage, and what follows, again.

Seen on CIFAR-10, 2 CPU cores (docs/results): `cpu`, 72 minutes of training, 56%
of the multiply-accumulates left for 1.7 points of accuracy; `convnet`, 43 minutes, 65%
left at no loss. The presets `paper` and `convnet-paper` were not run.
"""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.training import runs

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
class Config(ssl_stages.Config):
    """Train a network, drive groups to exact zero with SSL, compact it, measure it."""

    preset: Literal["smoke", "cpu", "paper", "convnet", "convnet-paper"] = "cpu"
    """Defaults of all numbers: smoke (minutes), cpu (1.5 hours, 2 cores), paper;
    convnet (an hour, 2 cores) and convnet-paper for ConvNet, rows and columns."""
    run: pathlib.Path | None = None
    """Run folder [runs/cifar_ssl-DATA-MODEL-PRESET]."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to do; those before them must be done, those done are kept."""
    redo: tuple[Stage, ...] = ()
    """Stages to throw away and do again, with all that follow."""
    ssl_epochs: int = 4
    """Epochs of SSL, from the trained baseline."""
    ssl_learning_rate: float = 0.1
    """SSL: peak of warm-up and cosine."""
    strength: float = 5e-3
    """Group lasso's lambda at the start of SSL, per unit group norm."""
    growth: float = 8.0
    """Factor of lambda per epoch, until the target is met; 1 keeps it fixed."""
    target: float = 0.4
    """Share of multiply-accumulates in zero groups that ends the growth; 1: never."""
    multipliers: Literal["even", "authors"] = "even"
    """Lambda's factors by layer; authors: those of the paper's ConvNet (Table 3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multipliers == "authors" and (
            (self.model, self.structure) != ("convnet", "filter+shape")
        ):
            raise ValueError(
                "--multipliers: authors has factors for --model convnet --structure "
                f"filter+shape only, got {self.model} and {self.structure}"
            )

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Option -> smallest and largest value."""
        return super().ranges() | {
            "ssl_epochs": (1, 1 << 20),
            "ssl_learning_rate": (0.0, 1e3),
            "strength": (0.0, 1e6),
            "growth": (1.0, 1e6),
            "target": (0.0, 1.0),
        }


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
    "convnet": Config(
        preset="convnet",
        model="convnet",
        baseline_epochs=16,
        learning_rate=0.05,
        structure="filter+shape",
        multipliers="authors",
        strength=0.06,
        growth=1.0,
        target=1.0,
        ssl_epochs=3,
        ssl_learning_rate=0.02,
        finetune_epochs=10,
        finetune_learning_rate=0.04,
    ),
    "convnet-paper": Config(
        preset="convnet-paper",
        model="convnet",
        batch=100,
        baseline_epochs=600,
        learning_rate=0.05,
        structure="filter+shape",
        multipliers="authors",
        strength=0.02,
        growth=1.0,
        target=1.0,
        ssl_epochs=400,
        ssl_learning_rate=0.03,
        finetune_epochs=300,
        finetune_learning_rate=0.01,
    ),
}

SSL_OPTIONS = ("ssl_epochs", "ssl_learning_rate", "structure", "block", "strength")
SSL_OPTIONS += ("growth", "target", "multipliers")
_FIELDS = ssl_stages.fields(STAGES, SSL_OPTIONS)


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"cifar_ssl-{config.data}-{config.model}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, STAGES)
    arrays = image_sets.load(config.data, config.data_dir)
    context = ssl_stages.Context(config, run, arrays)

    def act(stage: str) -> dict[str, Any]:
        if stage == "report":
            from experiments.cifar_ssl import report as ssl_report

            return ssl_report.write(context)
        return getattr(ssl_stages, stage)(context)

    run.do(config, _FIELDS, act)
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "cpu", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
