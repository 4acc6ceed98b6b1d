"""Run folders: a folder per stage, with its options, result and origin.

RUN/lock                  the process that holds the folder, while it does
RUN/STAGE/options.json    what the stage was started with
RUN/STAGE/result.json     written last: the stage is complete
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, TypeVar

import jax
import tyro

import sslx
from experiments.data import downloads
from experiments.training import checkpoints, loop, records
from experiments.training.records import read_json as read_json
from experiments.training.records import write_json as write_json

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
        """The result of a complete stage, else None.

        Raises:
            records.DamageError: it was changed since it was written.
        """
        path = self.path(stage) / "result.json"
        fix = "restore it from a copy, or delete it and run the same command again"
        return read_json(path, fix) if path.exists() else None

    def fresh(self, stage: str, name: str) -> pathlib.Path:
        """Where a stage that is not complete puts a file or folder.

        What an attempt that was cut has left there goes.
        """
        path = self.path(stage) / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return path

    def redo(self, stages: Sequence[str]) -> None:
        """Forget these stages and all that come after the first of them."""
        forgotten = {s: self.folder / f"{s}.forgotten" for s in self.stages}
        for place in forgotten.values():
            shutil.rmtree(place, ignore_errors=True)
        # Moved at once, the last first: no half stage, none without those before it.
        for stage in reversed(self._from_first(stages)):
            if self.path(stage).exists():
                self.path(stage).rename(forgotten[stage])
        for place in forgotten.values():
            shutil.rmtree(place, ignore_errors=True)

    def _from_first(self, stages: Sequence[str]) -> tuple[str, ...]:
        """The first of some stages and all that come after it."""
        places = [self.stages.index(stage) for stage in stages]
        return self.stages[min(places) :] if places else ()

    def check(self, stage: str, options: Mapping[str, Any]) -> None:
        """Compare the options of `stage` with those of last time, if there was one.

        Raises:
            RunError: the folder was made with other options.
            records.DamageError: what it was made with cannot be read.
        """
        path = self.path(stage) / "options.json"
        fix = (
            f"restore it from a copy, or delete {path.parent} and run the same command "
            "again"
        )
        if not path.exists():
            parts = path.parent.glob("[!.]*") if path.parent.exists() else ()
            if any(part.suffix != ".part" for part in parts):
                raise records.DamageError(f"{path} is missing: {fix}")
            return
        was, wanted = read_json(path, fix), json.loads(json.dumps(options, default=str))
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

    def begin(self, stage: str, options: Mapping[str, Any]) -> None:
        """Note the options of `stage`, or check that they are those of last time.

        Raises:
            RunError: the folder was made with other options.
        """
        self.check(stage, options)
        path = self.path(stage) / "options.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, options)

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

        Those of `config.redo` are forgotten first, once nothing speaks against the
        rest.

        Args:
            config: with `stages`, `redo`, and the options that `fields` names.
            fields: stage -> the options it depends on, which must not change.
            act: stage -> its result.

        Raises:
            RunError: an earlier stage is missing, the folder has other options, or
                another process uses it.
            records.DamageError: a file of a stage was changed since it was written.
        """
        origin = provenance()  # now: the folder may change while this runs
        redone = self._from_first([s for s in config.redo if s in self.stages])
        wanted = [stage for stage in self.stages if stage in config.stages]
        options = {
            stage: {name: getattr(config, name) for name in fields[stage]}
            for stage in wanted
        }
        with taken(self.folder):
            self._do(wanted, redone, options, act, origin)

    def _do(
        self,
        wanted: Sequence[str],
        redone: Sequence[str],
        options: Mapping[str, Mapping[str, Any]],
        act: Callable[[str], Mapping[str, Any]],
        origin: Mapping[str, Any],
    ) -> None:
        done = {
            stage: stage not in redone and self.result(stage) is not None
            for stage in self.stages[:-1]
        }
        for place, stage in enumerate(self.stages):
            later = [s for s in wanted if self.stages.index(s) > place]
            if stage not in wanted and later and not done[stage]:
                raise RunError(
                    f"--stages {' '.join(later)}: needs stage {stage}, which is not"
                    f" complete in {self.folder}; add {stage} to --stages"
                )
            if stage in wanted and stage not in redone:
                self.check(stage, options[stage])
        self.redo(redone)
        for stage in wanted:
            self.begin(stage, options[stage])
            if not done.get(stage):
                self.finish(stage, {**act(stage), "provenance": origin})


@contextlib.contextmanager
def taken(folder: pathlib.Path) -> Iterator[None]:
    """Hold a run folder, against other processes on this host and on others.

    The system forgets the lock of a process that ends, however it ends. Where it
    reaches no other host, the name written in `folder/lock` speaks for that.

    Raises:
        RunError: another process holds it, or one of another host did not give it back.
        ValueError: the locale of this process cannot name the folder.
    """
    _check_name(folder)
    if jax.process_index():  # The first of several processes holds it for all.
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+", encoding="utf-8") as file:
        alone = _lock(file)
        file.seek(0)
        holder = file.read()
        if not alone:
            raise RunError(
                f"{folder} is in use by {holder or 'another process'}: wait until it "
                "ends, stop it, or give another --run"
            )
        if holder and not holder.endswith(_host()):
            raise RunError(
                f"{folder} was taken by {holder}, and not given back: if that process "
                f"does not run any more, delete {path}"
            )
        file.truncate(0)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()}, started at {now} {_host()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _host() -> str:
    return f"on {platform.node()}"


def _lock(file: IO[str]) -> bool:
    """Whether this process now holds a file; True, with a note, where none can."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        print(f"note: {file.name} cannot be locked ({error}); start one process only")
    return True


def _check_name(folder: pathlib.Path) -> None:
    try:
        os.fsencode(folder.absolute()).decode("utf-8")
        str(folder.absolute()).encode("utf-8")
    except UnicodeError as error:
        raise ValueError(
            f"--run {str(folder)!a}: the locale of this process cannot name this "
            "folder; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        ) from error


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
        type(start),
        prog=program(),
        args=arguments,
        default=start,
        description=about,
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
        downloads.DataError,
        RunError,
        loop.TrainingError,
        checkpoints.CheckpointError,
        records.DamageError,
    ) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues from the last checkpoint")


def program() -> str:
    """How this process was started, arguments apart: `python -m experiments.NAME`."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if not module:
        return sys.argv[0]
    return f"python -m {module.name.removesuffix('.__main__')}"


def provenance() -> dict[str, Any]:
    """Command, commit, versions, hardware and date of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "command": " ".join([program(), *_portable(sys.argv[1:])]),
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
