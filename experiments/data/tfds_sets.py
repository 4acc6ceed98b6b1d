"""CIFAR and MNIST sets in tensorflow-datasets' own format, made without TensorFlow.

`prepare` leaves a set alone that any tool prepared (same name, version, features,
labels and pixels); else it fetches the official files and builds the set.
Only this module imports tensorflow_datasets, and only when an array cache is missing.
"""

import abc
import dataclasses
import gzip
import pathlib
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data import downloads

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Official(abc.ABC):
    """The official files of one set, and how to read them.

    Attributes:
        version: of the TFDS set that is made of them.
        shape: of an image.
        has_id: whether the TFDS set has a feature "id", such as `train_00012`.
    """

    version: str
    shape: tuple[int, int, int]
    has_id: bool

    @abc.abstractmethod
    def fetch(self, folder: pathlib.Path, looked_in: str) -> pathlib.Path:
        """Where the files are; downloads to `folder` what is missing."""

    @abc.abstractmethod
    def labels(self, place: pathlib.Path) -> dict[str, tuple[str, ...]]:
        """TFDS label feature -> names in label order."""

    @abc.abstractmethod
    def records(
        self, place: pathlib.Path, split: str
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(labels, image) of every example, in the official order."""


@dataclasses.dataclass(frozen=True)
class CifarArchive(Official):
    """A binary archive: records are label bytes, then 3x32x32 pixels."""

    url: str
    sha256: str
    names: Mapping[str, str]  # TFDS feature -> file of its names, in byte order
    train: tuple[str, ...]
    test: tuple[str, ...]

    version, shape, has_id = "3.0.2", (32, 32, 3), True

    def fetch(self, folder: pathlib.Path, looked_in: str) -> pathlib.Path:
        packed = folder / self.url.rsplit("/", 1)[-1]
        if not packed.exists():
            downloads.download(self.url, self.sha256, packed, looked_in)
        return packed

    def labels(self, place: pathlib.Path) -> dict[str, tuple[str, ...]]:
        return {
            feature: tuple(_member(place, file).decode().split())
            for feature, file in self.names.items()
        }

    def records(
        self, place: pathlib.Path, split: str
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        width = len(self.names)
        for name in getattr(self, split):
            raw = np.frombuffer(_member(place, name), np.uint8)
            for record in raw.reshape(-1, width + 3 * 32 * 32):
                image = record[width:].reshape(3, 32, 32).transpose(1, 2, 0)
                yield record[:width].tolist(), np.ascontiguousarray(image)


@dataclasses.dataclass(frozen=True)
class IdxFiles(Official):
    """MNIST's four files: gzipped arrays of bytes behind a header of sizes."""

    url: str
    sha256: Mapping[str, str]  # file -> checksum
    names: tuple[str, ...]
    version: str
    installed: pathlib.Path | None = None  # where a system package has the same files

    shape, has_id = (28, 28, 1), False

    def fetch(self, folder: pathlib.Path, looked_in: str) -> pathlib.Path:
        if self.installed is not None and self.installed.is_dir():
            return self.installed
        place = folder / self.url.rstrip("/").rsplit("/", 1)[-1]
        for file, sha256 in self.sha256.items():
            if not (place / file).exists():
                downloads.download(f"{self.url}{file}", sha256, place / file, looked_in)
        return place

    def labels(self, place: pathlib.Path) -> dict[str, tuple[str, ...]]:
        del place
        return {"label": self.names}

    def records(
        self, place: pathlib.Path, split: str
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        prefix = {"train": "train", "test": "t10k"}[split]
        images = _read_idx(place / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = _read_idx(place / f"{prefix}-labels-idx1-ubyte.gz", 1)
        for image, label in zip(images, labels, strict=True):
            yield [int(label)], image[..., None]


_IDX = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)
OFFICIAL: dict[str, Official] = {
    "cifar10": CifarArchive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        names={"label": "batches.meta.txt"},
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
    ),
    "cifar100": CifarArchive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        names={
            "coarse_label": "coarse_label_names.txt",
            "label": "fine_label_names.txt",
        },
        train=("train.bin",),
        test=("test.bin",),
    ),
    "mnist": IdxFiles(
        url="https://storage.googleapis.com/cvdf-datasets/mnist/",
        sha256=dict(
            zip(
                _IDX,
                (
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
                strict=True,
            )
        ),
        names=DIGITS,
        version="3.0.1",
    ),
    "fashion_mnist": IdxFiles(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256=dict(
            zip(
                _IDX,
                (
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
                strict=True,
            )
        ),
        names=CLOTHES,
        version="3.0.1",
        installed=pathlib.Path("/usr/share/datasets/fashion-mnist"),
    ),
}


def _tfds() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    return tfds


def source(name: str, root: pathlib.Path, split: str) -> Sequence[dict]:
    """Random access to a prepared split: dicts with image, label and perhaps id."""
    return _tfds().data_source(name, split=split, data_dir=root)


def class_names(name: str, root: pathlib.Path) -> tuple[str, ...]:
    """Class names in label order."""
    file = root / name / OFFICIAL[name].version / "label.labels.txt"
    return tuple(file.read_text().splitlines())


def prepare(name: str, root: pathlib.Path) -> None:
    """Make sure that `root/name/version` is a prepared array_record set.

    Raises:
        downloads.DataError: the set is missing and its official files cannot be had.
    """
    official = OFFICIAL[name]
    if (root / name / official.version / "dataset_info.json").exists():
        return
    place = official.fetch(root / "downloads", str(root / name))
    tfds = _tfds()
    builder = _builder_class(tfds, name, official, place)(
        data_dir=root, file_format="array_record"
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


def _member(packed: pathlib.Path, name: str) -> bytes:
    with tarfile.open(packed) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(f"/{name}") else None
            if file is not None:
                return file.read()
    raise downloads.DataError(f"{packed}: no {name} inside; delete it and run again")


def _read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """An array of bytes in the IDX format: magic 0x0800 + rank, sizes, entries."""
    with gzip.open(path) as file:
        header = np.frombuffer(file.read(4 + 4 * rank), ">u4")
        content = np.frombuffer(file.read(), np.uint8)
    sizes = header[1:].tolist()
    if header[0] != 0x0800 + rank or content.size != np.prod(sizes):
        raise downloads.DataError(
            f"{path}: got magic {header[0]:#x} and {content.size} bytes, expected "
            f"{0x0800 + rank:#x} and sizes {sizes}; delete it and run again"
        )
    return content.reshape(sizes)


def _builder_class(
    tfds: Any, name: str, official: Official, place: pathlib.Path
) -> type[Any]:
    """A builder whose class name gives the set its TFDS name."""
    from PIL import Image

    labels = official.labels(place)

    def info(self: Any) -> Any:
        classes = {
            feature: tfds.features.ClassLabel(names=list(names))
            for feature, names in labels.items()
        }
        image = {"image": tfds.features.Image(shape=official.shape)}
        text = {"id": tfds.features.Text()} if official.has_id else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{name}, from its official files",
            features=tfds.features.FeaturesDict({**text, **image, **classes}),
            supervised_keys=("image", "label"),
        )

    def examples(self: Any, split: str) -> Iterator[tuple[int, dict]]:
        del self
        for i, (numbers, image) in enumerate(official.records(place, split)):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            row = {"image": Image.fromarray(pixels)}
            row |= dict(zip(labels, numbers, strict=True))
            yield i, {"id": f"{split}_{i:05d}", **row} if official.has_id else row

    def splits(self: Any, _: Any) -> dict[str, Iterator]:
        return {split: examples(self, split) for split in ("train", "test")}

    body = {
        "VERSION": tfds.core.Version(official.version),
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": examples,
        "__module__": __name__,
    }
    title = "".join(word.capitalize() for word in name.split("_"))
    with tfds.core.registered.skip_registration():
        return type(title, (tfds.core.GeneratorBasedBuilder,), body)
