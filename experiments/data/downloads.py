"""Files from the network, checked; and the error that every data set raises."""

import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Iterator

import rich.progress


class DataError(RuntimeError):
    """A data set is missing, damaged or out of reach; the text says what to do."""


def download(url: str, sha256: str, target: pathlib.Path, looked_in: str) -> None:
    """Fetch `url` to `target` with a progress bar; only a matching checksum stays.

    Args:
        url: what to fetch.
        sha256: of the whole file, in hex.
        target: where the file goes; a partial file never has this name.
        looked_in: the folder to name when there is no network.

    Raises:
        DataError: no network, or other bytes than expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        digest = hashlib.sha256()
        with part.open("wb") as out:
            for block in _blocks(url):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url}: sha256 is {digest.hexdigest()}, expected {sha256}; "
                "the download is damaged or was changed: run again"
            )
        part.replace(target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"no data set in {looked_in} and {url} cannot be reached ({error}): "
            "point --data-dir to a folder that has it, or use --data digits"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _blocks(url: str) -> Iterator[bytes]:
    with (
        urllib.request.urlopen(url, timeout=30) as reply,
        rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
        ) as bar,
    ):
        size = reply.headers.get("Content-Length")
        task = bar.add_task("download", total=int(size) if size else None)
        while block := reply.read(1 << 20):
            bar.advance(task, len(block))
            yield block
