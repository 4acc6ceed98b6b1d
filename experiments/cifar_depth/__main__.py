"""Layers that SSL removes from residual networks: the depth study of Wen et al. 2016.

    python -m experiments.cifar_depth                                ResNet-20, CIFAR-10
    python -m experiments.cifar_depth --data digits --preset smoke   2 minutes, no data
    python -m experiments.cifar_depth --preset paper                 a GPU, full length

Each 3x3 convolution between the ends of a shortcut is one group, together with the
scale of its BatchNorm: what BatchNorm follows works the same however small it is, and a
kernel alone never reached zero in our trials (lambda 0.5 to 40). A layer that dies is
gone from the compact program, and so is the other one of its block; what its BatchNorm
leaves is a constant, folded exactly. The report counts layers as the paper does.

Seen: `smoke` on digits, 4 minutes on 2 busy CPU cores: ResNet-8 loses one of 3 blocks,
62% of the multiply-accumulates are left, 96.99% -> 97.32% of 299 test images. The
presets `cpu` and `paper` were not run yet.
"""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

from experiments.cifar_ssl import __main__ as cifar_ssl
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.training import runs

_FIELDS = ssl_stages.fields(cifar_ssl.STAGES, cifar_ssl.SSL_OPTIONS)


@dataclasses.dataclass(frozen=True)
class Config(cifar_ssl.Config):
    """Train a residual network, drive whole layers to zero, cut them out, compare."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Defaults of all numbers: smoke (minutes), cpu (1.5 hours, 2 cores), paper."""
    model: Literal["resnet8", "resnet20", "resnet32", "resnet56", "resnet110"] = (
        "resnet20"
    )
    """Network."""
    run: pathlib.Path | None = None
    """Run folder [runs/cifar_depth-DATA-MODEL-PRESET]."""
    structure: sparsity.Structure = "layer"
    """What a group is; layer: one convolution; depth: both of a block."""
    block: int = 1
    """Not used for layers."""
    weight_decay: float = 1e-4
    """L2 decay of all kernels, in every stage."""
    strength: float = 0.07
    """Group lasso's lambda; 0.1 of it acts in the loss, where the paper has 0.007."""
    growth: float = 2.0
    """Factor of lambda per epoch, until the target is met; 1 keeps it fixed."""
    target: float = 0.1
    """Share of multiply-accumulates in zero groups that ends the growth; 1: never."""


PRESETS = {
    "smoke": Config(
        preset="smoke",
        model="resnet8",
        batch=32,
        baseline_epochs=4,
        learning_rate=0.1,
        ssl_epochs=4,
        strength=0.5,
        growth=3.0,
        target=0.3,
        finetune_epochs=1,
        finetune_learning_rate=0.03,
        benchmark_repeats=10,
    ),
    "cpu": Config(),
    "paper": Config(
        preset="paper",
        batch=256,
        baseline_epochs=328,
        learning_rate=0.1,
        ssl_epochs=328,
        growth=1.0,
        target=1.0,
        finetune_epochs=492,
        finetune_learning_rate=0.01,
    ),
}


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"cifar_depth-{config.data}-{config.model}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, cifar_ssl.STAGES)
    arrays = image_sets.load(config.data, config.data_dir)
    context = ssl_stages.Context(config, run, arrays)

    def act(stage: str) -> dict[str, Any]:
        if stage == "report":
            from experiments.cifar_depth import report as depth_report

            return depth_report.write(context)
        return getattr(ssl_stages, stage)(context)

    run.do(config, _FIELDS, act)
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "cpu", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
