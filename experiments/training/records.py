"""Files of a run that carry a digest, so that damage is seen when they are read."""

import hashlib
import json
import os
import pathlib
from typing import Any


class DamageError(RuntimeError):
    """A file is not what was written; the text says which, and what to do."""


def digest(content: Any) -> str:
    """Of plain data: 16 hexadecimal digits that follow from its canonical JSON."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a dictionary at once, with its digest: a reader sees the old or the new."""
    plain = json.loads(json.dumps(content, default=str))
    whole = {**plain, "digest": digest(plain)}
    write_text(path, json.dumps(whole, indent=1) + "\n")


def read_json(path: pathlib.Path, fix: str = "restore it from a copy") -> Any:
    """The content of a file that `write_json` wrote.

    Raises:
        DamageError: it was changed since, or has no digest; `fix` says what to do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("digest")
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is damaged ({error}): {fix}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise DamageError(f"{path} has no digest (damaged, or old): {fix}") from error
    if found != digest(content):
        raise DamageError(f"{path} is damaged (its digest is another): {fix}")
    return content


def write_text(path: pathlib.Path, text: str) -> None:
    """Write at once, and to the disk: a power cut leaves the old file or the new."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
