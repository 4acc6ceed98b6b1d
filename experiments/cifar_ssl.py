"""Train, make sparse with SSL, compact, fine-tune, benchmark, report.

    python -m experiments.cifar_ssl                         CIFAR-10, ResNet-20
    python -m experiments.cifar_ssl --data digits --preset smoke
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from typing import Any, Literal

import jax
import optax
import tyro

from experiments import checkpoints, data, models, train

STAGES = ("baseline", "ssl", "compact", "finetune", "benchmark", "report")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of one run; a preset gives the defaults of the numbers."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    """Lengths: smoke (2 minutes), cpu (1.5 hours on 2 cores), paper (a GPU)."""
    data: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """Images; digits are scikit-learn's, brought to 32x32x3."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    model: str = "resnet20"
    """resnet8, 20, 32, 56, 110, convnet or lenet."""
    run: pathlib.Path | None = None
    """Run folder [runs/cifar_ssl-DATA-MODEL-PRESET]."""
    stages: tuple[str, ...] = STAGES
    """Stages to do; one that is done already is taken from the run folder."""
    seed: int = 0
    """Of initial values, order and augmentation."""
    batch: int = 128
    """Images per step."""
    weight_decay: float = 5e-4
    """L2 decay of kernels (not of those that SSL regularises, in SSL)."""
    baseline_epochs: int = 9
    """Epochs from scratch."""
    learning_rate: float = 0.3
    """Peak of the baseline's warm-up and cosine."""


PRESETS = {
    "smoke": Config(preset="smoke", baseline_epochs=3, learning_rate=0.1),
    "cpu": Config(),
    "paper": Config(preset="paper", baseline_epochs=160, learning_rate=0.1),
}


def one_cycle(peak: float, steps: int, warmup: float = 0.2) -> optax.Schedule:
    """Linear from peak/20 to peak in the first `warmup` of `steps`, cosine to zero."""
    return optax.warmup_cosine_decay_schedule(
        peak / 20, peak, max(1, int(warmup * steps)), steps, 0.0
    )


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def baseline(config: Config, arrays: data.Arrays, folder: pathlib.Path) -> dict:
    """Train the dense network from scratch."""
    model = models.create(config.model, len(arrays.classes))
    steps = config.baseline_epochs * (len(arrays.train_labels) // config.batch)
    schedule = one_cycle(config.learning_rate, steps)
    optimizer = optax.chain(
        optax.add_decayed_weights(config.weight_decay, _is_kernel),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )
    variables = models.init(model, arrays.train_images.shape[1:], config.seed)
    stage = train.Stage("baseline", model.apply, variables, optimizer, schedule)
    options = train.Options(
        config.baseline_epochs,
        config.batch,
        config.seed,
        flip=arrays.name != "digits",
    )
    return train.fit(stage, arrays, options, folder)


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(config: Config) -> None:
    """Do the stages of `config` that are not done yet."""
    name = f"cifar_ssl-{config.data}-{config.model}-{config.preset}"
    run = config.run or pathlib.Path("runs") / name
    arrays = data.load(config.data, config.data_dir)
    folder = run / "baseline"
    start = time.time()
    variables = baseline(config, arrays, folder)
    model = models.create(config.model, len(arrays.classes))
    result = {
        "test_accuracy": train.evaluate(model.apply, variables, arrays),
        "seconds": time.time() - start,
        "commit": _commit(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (data.DataError, train.TrainingError, checkpoints.CheckpointError) as error:
        sys.exit(f"error: {error}")
