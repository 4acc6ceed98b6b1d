"""Kill this process at its n-th change of files below a folder.

Python announces what it does with files; the kill comes just before it is done. As a
program: `python kills.py FOLDER N MODULE ARGUMENTS...` runs a module that way and
writes the changes seen to FOLDER/../changes.txt if it ends before (N = 0: it does).
"""

import os
import pathlib
import runpy
import signal
import sys
from typing import Any

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR


def arm(folder: str | pathlib.Path, number: int) -> list[str]:
    """From now on; the list grows with every change."""
    root, seen = os.path.abspath(folder), []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _CHANGES or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (args[2] or 0) & _WRITING:
            return
        inside = event in ("os.remove", "os.rmdir") and args[1] != -1
        path = os.path.abspath(os.fsdecode(args[0]))
        if not inside and not path.startswith(root):
            return
        seen.append(f"{event} {os.path.relpath(path, root)}")
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def fork(action: Any, *args: Any) -> int | None:
    """Run `action` in a child: the signal that ended it, or None; it must not raise."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            action(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a child raised")
    return None


if __name__ == "__main__":
    place, count, module = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    changes = arm(place, count)
    sys.argv = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    text = "\n".join(changes)
    pathlib.Path(place).with_name("changes.txt").write_text(text, encoding="utf-8")
