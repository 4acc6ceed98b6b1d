"""Kill `experiments.cifar_ssl` in many ways; the same command each time.

`python killed_study.py FOLDER RANDOM` runs it whole in FOLDER/whole, killed at every
boundary in FOLDER/boundaries, and at RANDOM random moments in FOLDER/random; it prints
the number of kills. The command goes on after each kill.
"""

import contextlib
import pathlib
import random
import re
import signal
import sys
import threading
import time
import warnings

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import kills  # noqa: E402
import orbax.checkpoint  # noqa: E402, F401

from experiments import cifar_ssl, ssl_report  # noqa: E402, F401

OPTIONS = "--preset smoke --data digits --model lenet --batch 512 --block 4 "
OPTIONS += "--baseline-epochs 2 --ssl-epochs 2 --ssl-learning-rate 0.2 --strength 4 "
OPTIONS += "--finetune-epochs 2 --benchmark-batches 1 --benchmark-repeats 1 "
OPTIONS += "--benchmark-lowering xla"
BOUNDARY = re.compile(
    r"(options|result|record|compact)\.json|saving$|metrics\.jsonl$|report\.html"
    r"|checkpoints/\d+(\.orbax-checkpoint-tmp)?$"
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
        killed = kills.fork(timed, root / "random", draw.uniform(0.5, 8.0))
        number += killed == signal.SIGKILL
    assert kills.fork(study, root / "random") is None
    sys.stdout.write(f"{len(boundaries)} boundaries {number} kills\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
