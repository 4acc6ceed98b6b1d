"""Kill `experiments.cifar_ssl` in many ways, on few images and a tiny network.

`python -m tests.experiments.killed_study FOLDER RANDOM` runs it whole in FOLDER/whole,
killed at every boundary in FOLDER/boundaries, and at RANDOM random moments in
FOLDER/random; it prints the number of kills. The command goes on after each kill.
"""

import contextlib
import dataclasses
import pathlib
import random
import re
import signal
import sys
import threading
import time
import types
import warnings
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint  # noqa: F401

from experiments import models
from experiments.cifar_ssl import __main__ as cifar_ssl
from experiments.data import image_sets
from tests.experiments import kills

OPTIONS = "--preset smoke --data digits --model lenet --structure filter+channel "
OPTIONS += "--batch 64 --block 1 --baseline-epochs 2 --ssl-epochs 2 --strength 6 "
OPTIONS += "--target 0.5 --finetune-epochs 2 --benchmark-batches 1 "
OPTIONS += "--benchmark-repeats 1 --benchmark-lowering xla"
BOUNDARY = re.compile(
    r"(options|result|record|compact)\.json|saving$|metrics\.jsonl$|report\.html"
    r"|checkpoints/\d+(\.orbax-checkpoint-tmp)?$"
)


class Tiny(nn.Module):
    """Two convolutions on a quarter of the pixels."""

    classes: int = 10

    @nn.compact
    def __call__(self, images: Any, *, train: bool = False) -> Any:
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")
        x = nn.relu(norm(nn.Conv(8, (3, 3), strides=(4, 4), name="conv1")(images)))
        x = nn.relu(nn.Conv(8, (3, 3), name="conv2")(x))
        return nn.Dense(self.classes, name="dense")(x.mean(axis=(1, 2)))


def few_digits() -> image_sets.Arrays:
    whole = image_sets.load("digits")
    return dataclasses.replace(
        whole,
        train_images=whole.train_images[:256],
        train_labels=whole.train_labels[:256],
        test_images=whole.test_images[:64],
        test_labels=whole.test_labels[:64],
    )


def study(folder: pathlib.Path, change: str = "") -> None:
    """Killed before that change, or not."""
    seen = kills.arm(folder, kills.before(change))
    with (folder.parent / "log.txt").open("a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log):
            cifar_ssl.main(cifar_ssl.parse([*OPTIONS.split(), "--run", str(folder)]))
    text = "\n".join(seen)
    folder.with_name("changes.txt").write_text(text, encoding="utf-8")


def timed(folder: pathlib.Path, seconds: float) -> None:
    def kill() -> None:
        time.sleep(seconds)
        signal.raise_signal(signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    study(folder)


def main(root: pathlib.Path, count: int) -> None:
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    models.MODELS["lenet"] = Tiny
    digits = few_digits()
    cifar_ssl.image_sets = types.SimpleNamespace(load=lambda *_: digits)
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    assert kills.fork(study, root / "whole") is None
    changes = (root / "changes.txt").read_text(encoding="utf-8").splitlines()
    boundaries = list(dict.fromkeys(x for x in changes if BOUNDARY.search(x)))
    number = 0
    for change in boundaries:
        killed = kills.fork(study, root / "boundaries", change)
        number += killed == signal.SIGKILL
    assert kills.fork(study, root / "boundaries") is None
    draw = random.Random(0)
    for _ in range(count):
        killed = kills.fork(timed, root / "random", draw.uniform(0.5, 5.0))
        number += killed == signal.SIGKILL
    assert kills.fork(study, root / "random") is None
    sys.stdout.write(f"{len(boundaries)} boundaries {number} kills\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
