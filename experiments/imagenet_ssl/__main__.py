"""Train on ImageNet, make sparse with SSL, compact, fine-tune, benchmark, report.

    python -m experiments.imagenet_ssl                   ResNet-50, units
    python -m experiments.imagenet_ssl --preset paper    AlexNet, rows and columns
    python -m experiments.imagenet_ssl --preset smoke    minutes, a small set it makes

Images come from TFDS `imagenet2012` in DATA_DIR through Grain's worker processes;
`python -m experiments.imagenet_sets` prepares it from the official tars. `smoke` makes
a set of the same format from scikit-learn's digits. Training is data parallel over all
devices of one host, with BatchNorm's moments over the whole batch; parameters are
float32, the computation is in `--dtype`. The same command again continues where a
killed run stopped, with the batches it had not seen.

`resnet50`: learning rate 0.1 per 256 images, 5 epochs of warm-up, cosine, 90 epochs,
label smoothing 0.1, weight decay 1e-4; then SSL for half and fine-tuning for a third as
long, at a tenth of the rate. `paper`: rows and columns of AlexNet's convolutions as the
authors' SSL and fine-tuning (lambda 1e-3 and their factors by layer, rate 1e-3, 90 and
44 epochs, weight decay 2.5e-4); its baseline and crops are ours.

Seen: `smoke` on 2 busy CPU cores in about 7 minutes: 92.3% of 299 digits right, 93.3%
with 69% of the multiply-accumulates at 1.85x the speed (batch 32; nothing was gained at
batch 1). ImageNet was not at hand: `resnet50` and `paper` were not run on it (AlexNet
for an epoch of the sample), and the strength and growth of `resnet50` are guesses.
"""

import dataclasses
import pathlib
import sys
from typing import Any, Literal

from experiments.cifar_ssl import __main__ as cifar_ssl
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets, imagenet_sets
from experiments.data import imagenet as imagenet_data
from experiments.imagenet_ssl import groups as imagenet_groups
from experiments.imagenet_ssl import stages as imagenet_stages
from experiments.models import imagenet as imagenet_models
from experiments.training import runs

_OWN = ("image_size", "dtype", "smoothing", "warmup_epochs", "drops", "smallest_crop")
_FIELDS = {
    stage: (*names, *_OWN) if names else ()
    for stage, names in ssl_stages.fields(
        cifar_ssl.STAGES, cifar_ssl.SSL_OPTIONS
    ).items()
}


@dataclasses.dataclass(frozen=True)
class Config(cifar_ssl.Config):
    """Train an ImageNet network, drive groups to zero with SSL, compact, measure."""

    preset: Literal["smoke", "resnet50", "paper"] = "resnet50"
    """Defaults of all numbers: smoke (minutes), resnet50, paper (AlexNet as in SSL)."""
    data: imagenet_sets.Name = "imagenet2012"
    """Images; sample is a small set of the same format, made where it is missing."""
    model: Literal[
        "alexnet", "vgg16", "googlenet", "resnet50", "densenet121", "resnet14"
    ] = "resnet50"
    """Network; resnet14 is a small one to try things out."""
    run: pathlib.Path | None = None
    """Run folder [runs/imagenet_ssl-DATA-MODEL-PRESET]."""
    image_size: int | None = None
    """Width and height, in pixels [227 for AlexNet, 224]."""
    workers: int = 16
    """Processes that decode images; 0: threads of this one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the computation; parameters, moments and logits are float32."""
    batch: int = 256
    """Images per step, over all devices."""
    smallest_crop: float = 0.08
    """Share of a training image in the smallest random crop."""
    smoothing: float = 0.1
    """Label smoothing."""
    weight_decay: float = 1e-4
    """L2 decay of kernels; in SSL not of those it regularises."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up; at most a fifth of the stage."""
    drops: tuple[float, ...] = ()
    """Parts of a stage after which the rate falls to 0.1; none: cosine to zero."""
    baseline_epochs: int = 90
    """Epochs from scratch."""
    learning_rate: float = 0.1
    """Baseline: largest rate per 256 images of a batch."""
    structure: imagenet_groups.Structure = "units"
    """What a group is; units: a channel with all that write and read it."""
    ssl_epochs: int = 45
    """Epochs of SSL, from the trained baseline."""
    ssl_learning_rate: float = 0.01
    """SSL: largest rate per 256 images."""
    strength: float = 1e-3
    """Group lasso's lambda at the start of SSL, per unit group norm."""
    growth: float = 1.15
    """Factor of lambda per epoch, until the target is met; 1 keeps it fixed."""
    multipliers: Literal["even", "alexnet"] = "even"
    """Lambda's factors by layer; alexnet: the authors', for rows and columns."""
    finetune_epochs: int = 30
    """Epochs of the compact network."""
    finetune_learning_rate: float = 0.01
    """Fine-tuning: largest rate per 256 images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multipliers == "alexnet" and (
            (self.model, self.structure) != ("alexnet", "filter+shape")
        ):
            raise ValueError(
                "--multipliers: alexnet has factors for --model alexnet --structure "
                f"filter+shape only, got {self.model} and {self.structure}"
            )
        bad = [part for part in self.drops if not 0 < part < 1]
        if bad:
            raise ValueError(f"--drops: got {bad[0]}, expected parts between 0 and 1")

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Option -> smallest and largest value."""
        return super().ranges() | {
            "workers": (0, 1 << 10),
            "smallest_crop": (0.0, 1.0),
            "smoothing": (0.0, 1.0),
            "warmup_epochs": (0, 1 << 20),
        }


PRESETS = {
    "smoke": Config(
        preset="smoke",
        data="sample",
        model="resnet14",
        image_size=48,
        workers=2,
        batch=64,
        smallest_crop=0.5,
        baseline_epochs=5,
        learning_rate=1.0,
        ssl_epochs=6,
        ssl_learning_rate=0.3,
        strength=1.0,
        growth=1.25,
        target=0.3,
        finetune_epochs=4,
        finetune_learning_rate=0.2,
        benchmark_batches=(1, 32),
        benchmark_repeats=10,
    ),
    "resnet50": Config(),
    "paper": Config(
        preset="paper",
        model="alexnet",
        smoothing=0.0,
        weight_decay=2.5e-4,
        warmup_epochs=0,
        drops=(5 / 9, 7 / 9, 8 / 9),
        learning_rate=0.01,
        structure="filter+shape",
        multipliers="alexnet",
        ssl_epochs=90,
        ssl_learning_rate=1e-3,
        growth=1.0,
        target=1.0,
        finetune_epochs=44,
        finetune_learning_rate=1e-3,
    ),
}


def open_data(config: Config) -> imagenet_data.ImageNet:
    """The stream that `config` asks for; the sample is made where it is missing.

    Raises:
        downloads.DataError: ImageNet is not prepared; says how to.
    """
    root = config.data_dir or image_sets.default_folder()
    if config.data == "sample":
        imagenet_sets.prepare("sample", root)
    return imagenet_data.ImageNet(
        config.data,
        imagenet_sets.prepared(config.data, root),
        config.image_size or imagenet_models.image_shape(config.model)[0],
        config.smallest_crop,
        config.workers,
    )


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        downloads.DataError: ImageNet is not prepared; says how to.
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"imagenet_ssl-{config.data}-{config.model}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, cifar_ssl.STAGES)
    context = imagenet_stages.Context(config, run, open_data(config))

    def act(stage: str) -> dict[str, Any]:
        if stage == "report":
            from experiments.imagenet_ssl import report as imagenet_report

            return imagenet_report.write(context)
        return getattr(ssl_stages, stage)(context)

    run.do(config, _FIELDS, act)
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "resnet50", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
