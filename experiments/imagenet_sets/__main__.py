"""Prepare ImageNet for tensorflow-datasets, from its tars, without TensorFlow.

    python -m experiments.imagenet_sets                  prepare `imagenet2012`
    python -m experiments.imagenet_sets --data sample    a small set of the same format

Which files it needs, and what it makes, is in experiments/data/imagenet_sets.py.

Seen: the sample in 10 seconds, and read back by `tfds.data_source`. The official tars
were not at hand.
"""

import dataclasses
import pathlib
import sys

import tyro

from experiments.data import downloads, image_sets, imagenet_sets
from experiments.training import runs


@dataclasses.dataclass(frozen=True)
class Config:
    """Prepare ImageNet, or a small set of its format, without TensorFlow."""

    data: imagenet_sets.Name = "imagenet2012"
    """What to prepare."""
    data_dir: pathlib.Path | None = None
    """Folder of tensorflow-datasets [$SSLX_DATA_DIR or ~/tensorflow_datasets]."""
    manual_dir: pathlib.Path | None = None
    """Folder of the tars [DATA_DIR/downloads/manual]."""


def main(config: Config) -> None:
    """Prepare the set and say where it is."""
    root = config.data_dir or image_sets.default_folder()
    print(f"prepared: {imagenet_sets.prepare(config.data, root, config.manual_dir)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, prog=runs.program(), description=__doc__))
    except (downloads.DataError, OSError) as error:
        sys.exit(f"error: {error}")
