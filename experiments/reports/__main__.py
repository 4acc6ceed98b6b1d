"""Draw every picture and page of committed records again.

    python -m experiments.reports                          all of results/
    python -m experiments.reports results/networks ...     these folders

Records (`record.json`) are the only source; nothing is trained or timed. A minute for
all of results/.
"""

import dataclasses
import pathlib
import re
from typing import Annotated

import tyro

from experiments.cifar_depth import report as cifar_depth
from experiments.cifar_ssl import report as cifar_ssl
from experiments.granularity import report as granularity
from experiments.granularity_shapes import report as granularity_shapes
from experiments.imagenet_ssl import report as imagenet_ssl
from experiments.mnist_ssl import report as mnist_ssl
from experiments.psp_sweep import curves as psp_sweep
from experiments.reports import alexnet, lowerings, networks, overhead, runtimes
from experiments.reports.report import Record, Report
from experiments.training import records, runs

REPORTS: dict[str, Report] = {
    "alexnet_speed": alexnet.REPORT,
    "analysis": overhead.ANALYSIS,
    "cifar_depth": cifar_depth.REPORT,
    "cifar_psp": cifar_ssl.REPORT,
    "cifar_ssl": cifar_ssl.REPORT,
    "granularity": granularity.REPORT,
    "granularity_shapes": granularity_shapes.REPORT,
    "imagenet_ssl": imagenet_ssl.REPORT,
    "lowerings": lowerings.REPORT,
    "mnist_ssl": mnist_ssl.REPORT,
    "networks": networks.REPORT,
    "overhead": overhead.REPORT,
    "psp_sweep": psp_sweep.REPORT,
    "runtimes": runtimes.REPORT,
    "training": runtimes.TRAINING,
}
"""Study, as its command names it -> what it shows."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw pictures and pages from records."""

    folders: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional] = ()
    """Folders with a record.json [all in results/]."""


def main(config: Config) -> None:
    """Draw what the records in the folders show.

    Raises:
        records.DamageError: a record is damaged.
        runs.RunError: a folder has no record, or one of a study without pictures.
    """
    everywhere = sorted(
        place.parent for place in pathlib.Path("results").glob("*/record.json")
    )
    for folder in config.folders or everywhere:
        if not (folder / "record.json").exists():
            raise runs.RunError(
                f"{folder}: no record.json; give the folder of a record"
            )
        record = records.read_json(folder / "record.json")
        for path in report_of(record, folder).write(folder, record):
            print(path)


def report_of(record: Record, folder: pathlib.Path) -> Report:
    """What the study shows whose command made the record."""
    command = record["provenance"]["command"]
    found = re.search(r"-m experiments\.(?:bench )?(\w+)", command)
    if found is None or found[1] not in REPORTS:
        raise runs.RunError(
            f"{folder}: made by {command!r}; expected a command of {', '.join(REPORTS)}"
        )
    return REPORTS[found[1]]


if __name__ == "__main__":
    runs.command(lambda: main(tyro.cli(Config, description=__doc__)))
