"""Processes of other runtimes and interpreters, asked line by line."""

import json
import os
import pathlib
import subprocess
from typing import Any

from experiments.bench.timing import Timer

_ROOT = pathlib.Path(__file__).parents[2]

_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_ARENA_MAX": "1",
}
"""What `sslx.keep_memory` does here."""


class WorkerError(RuntimeError):
    """What was asked cannot be done there; the text says why."""


class Worker:
    """A process of `experiments.bench.worker`; a context manager that ends it."""

    def __init__(self, python: str | pathlib.Path) -> None:
        threads = str(os.cpu_count())
        places = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        setting = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in places if p),
            "OMP_NUM_THREADS": threads,
            **_KEEP_MEMORY,
        }
        try:
            self._process = subprocess.Popen(
                [str(python), "-m", "experiments.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=setting,
            )
        except OSError as error:
            raise WorkerError(f"{python}: does not start ({error})") from error

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=60)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerError: it could not be done, or the process has ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **request}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass
        line = stdout.readline()
        if not line:
            raise WorkerError(f"{do}: the process ended (code {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{do}: {answer['error']}")
        return answer

    def timer(self, name: str) -> Timer:
        """Of a call that was loaded under this name."""
        return lambda count: self.ask("run", name=name, count=count)["seconds"]


def torch_versions(python: pathlib.Path | None) -> dict[str, str]:
    """Of an interpreter's PyTorch and Torch-Pruning; none where none is given.

    Raises:
        SystemExit: it has them not.
    """
    if python is None:
        return {}
    try:
        with Worker(python) as worker:
            return worker.ask("torch_versions")
    except WorkerError as error:
        fix = f"{python} -m pip install numpy torch torch-pruning"
        raise SystemExit(f"--torch-python: {error}. Fix: {fix}") from error
