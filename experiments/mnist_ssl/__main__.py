"""SSL on LeNet and an MLP: Tables 1, 2 and the MLP's table of Wen et al. 2016.

    python -m experiments.mnist_ssl                      Table 1: filters and channels
    python -m experiments.mnist_ssl --preset table2      Table 2: filter shapes
    python -m experiments.mnist_ssl --preset mlp         neurons of 784-500-300-10
    python -m experiments.mnist_ssl --data mnist         the paper's data set

From one trained baseline, each strength of the penalty gives one network: SSL, then
fine-tuning with the zeros kept, then compaction. The report prints the paper's rows
(on MNIST) beside ours. The same command again continues where a killed run stopped.

Seen on Fashion-MNIST, 2 busy CPU cores: table1 in 48 minutes, 42% of the
multiply-accumulates left for 0.44 points of accuracy; table2 in 26 minutes, 59% of
conv2's columns for 0.67; mlp in 4 minutes, 21% for 0.46 (docs/results/mnist_ssl.md).
"""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

from experiments.data import image_sets
from experiments.mnist_ssl import stages as mnist_stages
from experiments.training import runs

Stage = Literal["baseline", "ssl", "finetune", "compact", "report"]
STAGES: tuple[Stage, ...] = ("baseline", "ssl", "finetune", "compact", "report")


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, drive groups to zero at two strengths, fine-tune, compact, compare."""

    preset: Literal["table1", "table2", "mlp"] = "table1"
    """Table of the paper: its network, its groups, and defaults of all numbers."""
    data: Literal["fashion_mnist", "mnist", "digits"] = "fashion_mnist"
    """Images; the paper's are mnist."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    run: pathlib.Path | None = None
    """Run folder [runs/mnist_ssl-DATA-PRESET]."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to do; those before them must be done, those done are kept."""
    redo: tuple[Stage, ...] = ()
    """Stages to throw away and do again, with all that follow."""
    tensorboard: bool = False
    """Write metrics as TensorBoard events too, into RUN/STAGE/tensorboard."""
    seed: int = 0
    """Of initial values and order."""
    batch: int = 64
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 decay of kernels; in SSL not of those that SSL regularises."""
    baseline_epochs: int = 6
    """Epochs from scratch."""
    learning_rate: float = 0.02
    """Baseline: peak of warm-up and cosine."""
    strengths: tuple[float, ...] = (0.08, 0.16)
    """Group lasso's lambdas, per unit group norm, one per network."""
    ssl_epochs: int = 5
    """Epochs of SSL, from the trained baseline."""
    ssl_learning_rate: float = 0.03
    """SSL: peak of warm-up and cosine."""
    finetune_epochs: int = 2
    """Epochs without penalty, zeros kept."""
    finetune_learning_rate: float = 0.01
    """Fine-tuning: peak of warm-up and cosine."""
    benchmark_batch: int = 256
    """Images per call when dense and compact are timed."""
    benchmark_repeats: int = 20
    """Rounds of the timing."""

    def __post_init__(self) -> None:
        whole = ("batch", "benchmark_batch", "benchmark_repeats")
        whole += ("baseline_epochs", "ssl_epochs", "finetune_epochs")
        for name in whole:
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option}: got {getattr(self, name)}, expected >= 1"
                )
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(
                f"--strengths: got {self.strengths}, expected positive ones"
            )

    @property
    def model(self) -> str:
        """The table's network."""
        return "mlp" if self.preset == "mlp" else "lenet"


PRESETS = {
    "table1": Config(),
    "table2": Config(
        preset="table2", strengths=(0.02, 0.05), ssl_epochs=4, finetune_epochs=1
    ),
    "mlp": Config(
        preset="mlp",
        baseline_epochs=15,
        strengths=(0.005, 0.01),
        ssl_epochs=20,
        ssl_learning_rate=0.05,
        finetune_epochs=8,
    ),
}

_BASELINE = ("data", "model", "seed", "batch", "weight_decay", "baseline_epochs")
_BASELINE += ("learning_rate",)
_SSL = (*_BASELINE, "preset", "strengths", "ssl_epochs", "ssl_learning_rate")
_FINETUNE = (*_SSL, "finetune_epochs", "finetune_learning_rate")
_FIELDS = {
    "baseline": _BASELINE,
    "ssl": _SSL,
    "finetune": _FINETUNE,
    "compact": (*_FINETUNE, "benchmark_batch", "benchmark_repeats"),
    "report": (),
}


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"mnist_ssl-{config.data}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, STAGES)
    arrays = image_sets.load(config.data, config.data_dir)
    context = mnist_stages.Context(config, run, arrays)

    def act(stage: str) -> dict[str, Any]:
        if stage == "report":
            from experiments.mnist_ssl import report as mnist_report

            return mnist_report.write(context)
        return getattr(mnist_stages, stage)(context)

    run.do(config, _FIELDS, act)
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "table1", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
