"""Train, learn a factor per group (PSP), compact, fine-tune, benchmark, report.

    python -m experiments.cifar_psp                                  CIFAR-10, ResNet-20
    python -m experiments.cifar_psp --method prune --sparsity 0.6    l1-norm pruning
    python -m experiments.cifar_psp --data digits --preset smoke     2 minutes, no data
    python -m experiments.cifar_psp --preset paper --model resnet56  a GPU, full length

Seen on 2 cores of a busy machine: `--data digits --preset smoke --model resnet8` takes
4 minutes; 698 of 1,584 columns are zero at 97.66% (dense 97.32%, 299 test images).
Zero columns make a layer smaller only where a whole input channel goes, and faster
where the lowering leaves out the rest (sslx.tune); `--structure coupled --block 8`
removes filters.

The stages, the run folder and the report are those of `experiments.cifar_ssl`; only the
second stage differs. The same command again continues where a killed run stopped.
`python -m experiments.psp_sweep` draws error against sparsity for every method.
"""

import pathlib
import sys
from typing import Any

from experiments.cifar_psp import stages as psp_stages
from experiments.cifar_psp.stages import STAGES, Config
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.training import runs

PRESETS = {
    "smoke": Config(
        preset="smoke",
        batch=32,
        baseline_epochs=4,
        learning_rate=0.1,
        sparse_epochs=4,
        sparse_learning_rate=0.05,
        strength=3e-3,
        finetune_epochs=2,
        finetune_learning_rate=0.03,
        benchmark_repeats=10,
    ),
    "cpu": Config(),
    "paper": Config(
        preset="paper",
        baseline_epochs=160,
        sparse_epochs=160,
        alpha_learning_rate=0.1,
        strength=1e-4,
        threshold=0.1,
        start="ones",
        finetune_epochs=54,
    ),
}


def main(config: Config) -> runs.Run:
    """Do the stages of `config` that are not done yet.

    Raises:
        runs.RunError: an earlier stage is missing, or the folder has other options.
    """
    name = f"cifar_psp-{config.method}-{config.data}-{config.model}-{config.preset}"
    run = runs.Run(config.run or pathlib.Path("runs") / name, STAGES)
    arrays = image_sets.load(config.data, config.data_dir)
    context = psp_stages.Context(config, run, arrays)
    fields = ssl_stages.fields(STAGES, psp_stages.fields(config.method))

    def act(stage: str) -> dict[str, Any]:
        if stage == "report":
            from experiments.cifar_ssl import report as ssl_report

            return ssl_report.write(context)
        source = psp_stages if stage == "sparse" else ssl_stages
        return getattr(source, stage)(context)

    run.do(config, fields, act)
    return run


def parse(arguments: list[str]) -> Config:
    """Options from the command line; the preset gives the defaults."""
    return runs.parse(PRESETS, "cpu", arguments, __doc__)


if __name__ == "__main__":
    runs.command(lambda: main(parse(sys.argv[1:])))
