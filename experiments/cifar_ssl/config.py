"""The options that the stages of `experiments.cifar_ssl.stages` read."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Literal

from experiments.cifar_ssl import sparsity


@dataclasses.dataclass(frozen=True)
class Config:
    """The options that baseline, compact, fine-tuning and benchmark read."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Defaults of all numbers: smoke (minutes), cpu (1.5 hours, 2 cores), paper."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """Images; digits are scikit-learn's 1,797, brought to 32x32x3."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    model: Literal[
        "resnet8",
        "resnet20",
        "resnet32",
        "resnet56",
        "resnet110",
        "resnet164",
        "densenet40",
        "densenet100",
        "densenet100bc",
        "vgg16",
        "vgg19",
        "convnet",
        "lenet",
    ] = "resnet20"
    """Network."""
    tensorboard: bool = False
    """Write metrics as TensorBoard events too, into RUN/STAGE/tensorboard."""
    seed: int = 0
    """Of initial values, order and augmentation."""
    batch: int = 128
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 decay of kernels; in SSL not of those it regularises, but of whole layers."""
    baseline_epochs: int = 9
    """Epochs from scratch."""
    learning_rate: float = 0.3
    """Baseline: peak of warm-up and cosine."""
    structure: sparsity.Structure = "coupled"
    """What a group is; coupled: a filter with the input channel that reads it."""
    block: int = 8
    """Filters and channels in one group: fast widths are multiples of 8."""
    finetune_epochs: int = 5
    """Epochs of the compact network."""
    finetune_learning_rate: float = 0.1
    """Fine-tuning: peak of warm-up and cosine."""
    benchmark_batches: tuple[int, ...] = (1, 32, 256)
    """Batch sizes to time."""
    benchmark_repeats: int = 30
    """Rounds of the timing, dense and compact side by side in each."""
    benchmark_lowering: Literal["xla", "rule", "measure"] = "rule"
    """How convolutions of both are computed, see sslx.tune; measure takes minutes."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Option -> smallest and largest value."""
        counts = ("batch", "block", "baseline_epochs", "finetune_epochs")
        rates = ("learning_rate", "finetune_learning_rate")
        return {
            **dict.fromkeys((*counts, "benchmark_repeats"), (1, 1 << 20)),
            **dict.fromkeys(rates, (0.0, 1e3)),
            "weight_decay": (0.0, 1.0),
        }

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges().items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: got {value}, expected {low} to {high:g}")


def fields(
    stages: Sequence[str], sparse: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Stage -> the options it depends on: its own and those of all before it.

    Args:
        stages: baseline, one that makes zeros, compact, finetune, benchmark, report.
        sparse: the options of the second.
    """
    baseline = ("data", "model", "seed", "batch", "weight_decay", "learning_rate")
    own = (
        (*baseline, "baseline_epochs"),
        sparse,
        (),
        ("finetune_epochs", "finetune_learning_rate"),
        ("benchmark_batches", "benchmark_repeats", "benchmark_lowering"),
    )
    sums = itertools.accumulate(own)
    return {**dict(zip(stages, sums, strict=False)), stages[-1]: ()}
