"""Run folders: a folder per stage, with its options, result and origin.

RUN/STAGE/options.json    what the stage was started with
RUN/STAGE/result.json     written last: the stage is complete
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import tyro

import sslx
from experiments import checkpoints, data, train

Config = TypeVar("Config")


class RunError(RuntimeError):
    """A run folder does not fit what is asked; the text says what to do."""


class Run:
    """The stages of one run, in order, each done once."""

    def __init__(self, folder: pathlib.Path, stages: Sequence[str]) -> None:
        self.folder, self.stages = folder, tuple(stages)

    def path(self, stage: str) -> pathlib.Path:
        """The stage's own folder."""
        return self.folder / stage

    def result(self, stage: str) -> dict[str, Any] | None:
        """The result of a complete stage, else None."""
        path = self.path(stage) / "result.json"
        return read_json(path) if path.exists() else None

    def redo(self, stages: Sequence[str]) -> None:
        """Forget these stages and all that come after the first of them."""
        places = [self.stages.index(stage) for stage in stages]
        for stage in self.stages[min(places) :] if places else ():
            shutil.rmtree(self.path(stage), ignore_errors=True)

    def begin(self, stage: str, options: Mapping[str, Any]) -> None:
        """Note the options of `stage`, or check that they are those of last time.

        Raises:
            RunError: the folder was made with other options.
        """
        path = self.path(stage) / "options.json"
        wanted = json.loads(json.dumps(options, default=str))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)
            return
        was = read_json(path)
        changed = [
            f"{name} was {was.get(name)!r}, now {wanted.get(name)!r}"
            for name in sorted({*was, *wanted})
            if was.get(name) != wanted.get(name)
        ]
        if changed:
            raise RunError(
                f"{self.path(stage)} was made with other options "
                f"({'; '.join(changed)}): give another --run, "
                f"or --redo {stage} to replace it"
            )

    def finish(self, stage: str, result: Mapping[str, Any]) -> None:
        """Write the result; from now on the stage is complete."""
        write_json(self.path(stage) / "result.json", result)

    def do(
        self,
        config: Any,
        fields: Mapping[str, Sequence[str]],
        act: Callable[[str], Mapping[str, Any]],
    ) -> None:
        """Do the stages of `config.stages` that are not done yet; the last one always.

        Args:
            config: with `stages`, and the options that `fields` names.
            fields: stage -> the options it depends on, which must not change.
            act: stage -> its result.

        Raises:
            RunError: an earlier stage is missing, or the folder has other options.
        """
        origin = provenance()  # now: the folder may change while this runs
        wanted = [stage for stage in self.stages if stage in config.stages]
        for place, stage in enumerate(self.stages):
            done = self.result(stage) is not None and stage != self.stages[-1]
            if stage not in wanted:
                later = [s for s in wanted if self.stages.index(s) > place]
                if later and not done:
                    raise RunError(
                        f"--stages {' '.join(later)}: needs stage {stage}, which is not"
                        f" complete in {self.folder}; add {stage} to --stages"
                    )
                continue
            self.begin(stage, {name: getattr(config, name) for name in fields[stage]})
            if not done:
                self.finish(stage, {**act(stage), "provenance": origin})


def parse(
    presets: Mapping[str, Config], default: str, arguments: list[str], about: str | None
) -> Config:
    """Options from the command line; `--preset` gives the defaults."""
    preset = default
    for place, word in enumerate(arguments):
        if word == "--preset" and place + 1 < len(arguments):
            preset = arguments[place + 1]
        elif word.startswith("--preset="):
            preset = word.removeprefix("--preset=")
    start = presets.get(preset, presets[default])
    config: Any = tyro.cli(
        type(start), args=arguments, default=start, description=about
    )
    return config


def command(main: Callable[[], Any]) -> None:
    """Run a command line; what can be expected to go wrong is said in one line."""
    sslx.keep_memory()
    try:
        main()
    except (
        ValueError,
        OSError,
        data.DataError,
        RunError,
        train.TrainingError,
        checkpoints.CheckpointError,
    ) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues from the last checkpoint")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file that `write_json` wrote."""
    return json.loads(path.read_text())


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write at once: a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, default=str) + "\n")
    part.replace(path)


def provenance() -> dict[str, Any]:
    """Command, commit, versions, hardware and date of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {module.name}" if module else sys.argv[0]
    return {
        "command": " ".join([program, *_portable(sys.argv[1:])]),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "hardware": _hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


_PLACES = {
    "--data-dir": "$SSLX_DATA_DIR",
    "--torch-python": "PYTHON",
    "--cache": "CACHE",
}


def _portable(arguments: list[str]) -> list[str]:
    """The arguments without the places of one machine."""
    given = list(arguments)
    for at, word in enumerate(given[:-1]):
        given[at + 1] = _PLACES.get(word.replace("_", "-"), given[at + 1])
    return given


def _commit() -> str:
    here = pathlib.Path(__file__).parent
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=here
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _hardware() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    name = platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"
