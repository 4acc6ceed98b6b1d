"""Folders that appear complete or not at all, whenever their writer is killed."""

import contextlib
import os
import pathlib
import platform
import secrets
import shutil
from collections.abc import Iterator


def locatable(path: str | pathlib.Path) -> pathlib.Path:
    """The absolute path.

    Raises:
      ValueError: if this process cannot name it: in an ASCII locale without Python's
        UTF-8 mode, other names reach neither files nor orbax.
    """
    path = pathlib.Path(path).absolute()
    try:
        str(path).encode("utf-8")
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{str(path)!a}: the locale of this process cannot name this path; "
            "set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
        ) from error
    return path


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write in, which becomes `path` when the block ends without an error.

    It is written as a hidden folder beside `path`; what killed processes left there is
    removed.

    Raises:
      FileExistsError: if the path exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    taken = FileExistsError(f"{path} exists; give a new folder or remove it first")
    if path.exists():
        raise taken
    folder = path.with_name(f".{secrets.token_hex(4)}{_suffix()}")
    folder.mkdir()
    with _locked(folder):
        try:
            yield folder
            for written in (*folder.rglob("*"), folder):
                _flush(written)
            if path.exists():
                raise taken
            folder.rename(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _suffix() -> str:
    return f".{platform.node()}.saving"


def _remove_abandoned(parent: pathlib.Path) -> None:
    for place in parent.iterdir():
        if place.name.startswith(".") and place.name.endswith(_suffix()):
            with _locked(place) as free:
                if free:
                    shutil.rmtree(place)


@contextlib.contextmanager
def _locked(place: pathlib.Path) -> Iterator[bool]:
    """Whether no other process of this host holds a folder; if so, this one does."""
    if os.name == "nt":
        yield False
        return
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(place, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:  # held, gone meanwhile, or on a disk without locks
            free = False
        yield free


def _flush(path: pathlib.Path) -> None:
    """Bring a file or a folder from memory to the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
