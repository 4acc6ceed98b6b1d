"""CIFAR-10 and CIFAR-100 in tensorflow-datasets' own format, made without TensorFlow.

`prepare` leaves a set alone that any tool prepared (same name, version 3.0.2, the same
ids, labels and pixels); else it downloads the official archive and builds the set.
Only this module imports tensorflow_datasets, and only when an array cache is missing.
"""

import dataclasses
import pathlib
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments import data

VERSION = "3.0.2"


@dataclasses.dataclass(frozen=True)
class Archive:
    """An official binary archive: records are label bytes, then 3x32x32 pixels."""

    url: str
    sha256: str
    labels: dict[str, str]  # TFDS feature -> file of its class names, in byte order
    train: tuple[str, ...]
    test: tuple[str, ...]


ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        labels={"label": "batches.meta.txt"},
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        labels={
            "coarse_label": "coarse_label_names.txt",
            "label": "fine_label_names.txt",
        },
        train=("train.bin",),
        test=("test.bin",),
    ),
}


def _tfds() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    return tfds


def _prepared(name: str, root: pathlib.Path) -> bool:
    return (root / name / VERSION / "dataset_info.json").exists()


def source(name: str, root: pathlib.Path, split: str) -> Sequence[dict]:
    """Random access to a prepared split: dicts with id, image and label."""
    return _tfds().data_source(name, split=split, data_dir=root)


def class_names(name: str, root: pathlib.Path) -> tuple[str, ...]:
    """Class names in label order."""
    return tuple((root / name / VERSION / "label.labels.txt").read_text().split())


def prepare(name: str, root: pathlib.Path, archive: Archive | None = None) -> None:
    """Make sure that `root/name/3.0.2` is a prepared array_record set.

    Raises:
        data.DataError: the set is missing and its archive cannot be had.
    """
    if _prepared(name, root):
        return
    archive = archive or ARCHIVES[name]
    packed = root / "downloads" / archive.url.rsplit("/", 1)[-1]
    if not packed.exists():
        data.download(archive.url, archive.sha256, packed, str(root / name))
    tfds = _tfds()
    builder = _builder_class(tfds, name, archive, packed)(
        data_dir=root, file_format="array_record"
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


def records(
    archive: Archive, packed: pathlib.Path, split: str
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(label bytes, image (32, 32, 3)) of every record, in the official order."""
    width = len(archive.labels)
    for name in getattr(archive, split):
        raw = np.frombuffer(_member(packed, name), np.uint8)
        for record in raw.reshape(-1, width + 3 * 32 * 32):
            image = record[width:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield record[:width].tolist(), np.ascontiguousarray(image)


def _member(packed: pathlib.Path, name: str) -> bytes:
    with tarfile.open(packed) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(f"/{name}") else None
            if file is not None:
                return file.read()
    raise data.DataError(f"{packed}: no {name} inside; delete it and run again")


def _builder_class(
    tfds: Any, name: str, archive: Archive, packed: pathlib.Path
) -> type[Any]:
    """A builder whose class name gives the set its TFDS name."""
    from PIL import Image

    def info(self: Any) -> Any:
        labels = {
            feature: tfds.features.ClassLabel(
                names=_member(packed, file).decode().split()
            )
            for feature, file in archive.labels.items()
        }
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                **labels,
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{name} from {archive.url}",
            features=features,
            supervised_keys=("image", "label"),
        )

    def examples(self: Any, split: str) -> Iterator[tuple[int, dict]]:
        del self
        for i, (labels, image) in enumerate(records(archive, packed, split)):
            yield (
                i,
                {
                    "id": f"{split}_{i:05d}",
                    "image": Image.fromarray(image),
                    **dict(zip(archive.labels, labels, strict=True)),
                },
            )

    def splits(self: Any, _: Any) -> dict[str, Iterator]:
        return {split: examples(self, split) for split in ("train", "test")}

    body = {
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": examples,
        "__module__": __name__,
    }
    return type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), body)
