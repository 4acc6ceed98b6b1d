"""Kill a process just before a change of files below a folder.

Python announces what it does with files (`sys.addaudithook`). A forked child costs no
imports, so that many can be killed.
"""

import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR

Due = Callable[[list[str]], bool]
"""The changes so far, the next one last -> whether to kill before it."""


def nth(number: int) -> Due:
    """Before the n-th change; 0 never."""
    return lambda seen: len(seen) == number


def before(change: str) -> Due:
    """Before this change; "" never."""
    return lambda seen: seen[-1] == change


def arm(folder: str | pathlib.Path, due: Due) -> list[str]:
    """From now on; the list that is returned grows with every change."""
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
        name = re.sub(r"\.\w{8}\.\S+\.saving", ".saving", os.path.relpath(path, root))
        seen.append(f"{event} {name}")
        if due(seen):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def fork(action: Callable[..., Any], *args: Any) -> int | None:
    """Run `action` in a child: the signal that ended it, or None; it must not raise."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            action(*args)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit("a child raised")
    return None
