"""ImageNet in tensorflow-datasets' own format, made from its tars without TensorFlow.

The two official files, which need a free registration at image-net.org, are expected in
DATA_DIR/downloads/manual, where `tfds build imagenet2012` looks for them too:

    ILSVRC2012_img_train.tar    a tar per synset, n01440764.tar ..., of JPEG files
    ILSVRC2012_img_val.tar      JPEG files; their labels come with tensorflow-datasets

Then DATA_DIR/imagenet2012/5.1.0 holds the splits train and validation with the features
image (the bytes of the file), label and file_name, as array_record, in the tars' order.
Files that are not RGB or grey JPEG (some are CMYK, one is PNG) are converted. A
labels.txt or validation_labels.txt beside the tars takes the place of those that
tensorflow-datasets has, for sets of other classes.

`sample` writes such tars from scikit-learn's digits first: 10 classes, 1,797 images.
"""

import io
import pathlib
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import rich.progress
from PIL import Image

from experiments.data import downloads, image_sets

VERSION = "5.1.0"
TARS = {
    "train": "ILSVRC2012_img_train.tar",
    "validation": "ILSVRC2012_img_val.tar",
}
NAMES = {"imagenet2012": "imagenet2012", "sample": "imagenet2012_sample"}
Name = Literal["imagenet2012", "sample"]
_PER_SHARD = 1252  # 1,024 shards of ImageNet's training images
_PER_WRITE = 128


def tfds() -> Any:
    """tensorflow_datasets, imported late: it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets

    return tensorflow_datasets


def prepared(name: Name, root: pathlib.Path) -> pathlib.Path:
    """The folder of the newest prepared version.

    Raises:
        downloads.DataError: there is none, or not as array_record.
    """
    found = [
        path.parent for path in (root / NAMES[name]).glob("*.*.*/dataset_info.json")
    ]
    if not found:
        raise downloads.DataError(_missing(name, root))
    newest = max(found, key=lambda path: tuple(map(int, path.name.split("."))))
    if not list(newest.glob("*.array_record-*")):
        raise downloads.DataError(
            f"{newest} is not in the array_record format, which random access needs: "
            "prepare it with `tfds build imagenet2012 --file_format array_record`, or "
            f"move it away and run `{_command(name, root)}`"
        )
    return newest


def _missing(name: Name, root: pathlib.Path) -> str:
    if name == "sample":
        return f"no set in {root / NAMES[name]}: run `{_command(name, root)}`"
    manual = root / "downloads" / "manual"
    files = [file for file in TARS.values() if not (manual / file).exists()]
    first = f"put {' and '.join(files)} into {manual} " if files else ""
    source = "(from https://image-net.org/download-images) and " if files else ""
    return (
        f"no prepared {name} in {root / NAMES[name]}: {first}{source}run "
        f"`{_command(name, root)}`; or point --data-dir to a folder that has it, or "
        "use --preset smoke"
    )


def _command(name: Name, root: pathlib.Path) -> str:
    option = "" if name == "imagenet2012" else f" --data {name}"
    return f"python -m experiments.imagenet_sets{option} --data-dir {root}"


def prepare(
    name: Name, root: pathlib.Path, manual: pathlib.Path | None = None
) -> pathlib.Path:
    """Make the set of the tars in `manual`, if it is not there; its folder.

    Args:
        name: imagenet2012, or sample, whose tars are written first.
        root: where tensorflow-datasets keeps its sets.
        manual: where the tars are; None: `root/downloads/manual`.

    Raises:
        downloads.DataError: a tar is missing or damaged, or has other classes or
            numbers.
    """
    folder = root / NAMES[name] / VERSION
    if (folder / "dataset_info.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="incomplete-") as part:
        if name == "sample":
            manual = pathlib.Path(part) / "manual"
            write_sample(manual)
        manual = manual or root / "downloads" / "manual"
        missing = [file for file in TARS.values() if not (manual / file).exists()]
        if missing:
            raise downloads.DataError(
                f"{manual} has no {' and no '.join(missing)}: get them from "
                "https://image-net.org/download-images, or give another --manual-dir"
            )
        new = pathlib.Path(part) / VERSION
        new.mkdir()
        try:
            _write(NAMES[name], manual, new)
        except tarfile.TarError as error:
            raise downloads.DataError(
                f"a tar in {manual} is damaged ({error})"
            ) from error
        new.rename(folder)
    return folder


def _write(name: str, manual: pathlib.Path, folder: pathlib.Path) -> None:
    """Both splits of the set `name` from the tars in `manual`."""
    library = tfds()
    features = library.features
    names = _lines(manual, "labels.txt")
    info = library.core.DatasetInfo(
        builder=library.core.dataset_info.DatasetIdentity(
            name=name,
            version=library.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
        ),
        description=f"{name}, from its tars",
        features=features.FeaturesDict(
            {
                "image": features.Image(encoding_format="jpeg"),
                "label": features.ClassLabel(names=names),
                "file_name": features.Text(),
            }
        ),
        supervised_keys=("image", "label"),
        homepage="https://image-net.org/",
    )
    writer = library.core.SequentialWriter(
        info, max_examples_per_shard=_PER_SHARD, file_format="array_record"
    )
    writer.initialize_splits(list(TARS))
    known = frozenset(names)
    for split, read in (("train", train_files), ("validation", validation_files)):
        rows = []
        for row in rich.progress.track(read(manual), split):
            if row["label"] not in known:
                raise downloads.DataError(
                    f"{manual / TARS[split]}: {row['label']!r} is not one of the "
                    f"{len(names)} classes; put a labels.txt beside the tar"
                )
            rows.append(row)
            if len(rows) == _PER_WRITE:
                writer.add_examples({split: rows})
                rows = []
        writer.add_examples({split: rows})
    writer.close_all()


def train_files(manual: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Features of every training image: a tar of a tar per synset."""
    for member, packed in _members(manual / TARS["train"]):
        synset = member.removesuffix(".tar")
        for file, content in _members(io.BytesIO(packed)):
            yield {"file_name": file, "image": as_jpeg(file, content), "label": synset}


def validation_files(manual: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Features of every validation image; labels are in the order of the file names.

    Raises:
        downloads.DataError: another number of images than of labels.
    """
    path = manual / TARS["validation"]
    with tarfile.open(path) as tar:
        files = sorted(member.name for member in tar if member.isfile())
    labels = _lines(manual, "validation_labels.txt")
    if len(files) != len(labels):
        raise downloads.DataError(
            f"{path}: got {len(files)} images, expected {len(labels)}, the lines of "
            "validation_labels.txt"
        )
    label = dict(zip(files, labels, strict=True))
    for file, content in _members(path):
        yield {
            "file_name": file,
            "image": as_jpeg(file, content),
            "label": label[file],
        }


def _members(packed: pathlib.Path | io.BytesIO) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file in a tar, in order."""
    given = (
        {"name": packed} if isinstance(packed, pathlib.Path) else {"fileobj": packed}
    )
    with tarfile.open(mode="r:", **given) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def _lines(manual: pathlib.Path, file: str) -> list[str]:
    """Lines of `file` beside the tars, else of the one in tensorflow-datasets."""
    own = manual / file
    if not own.exists():
        own = pathlib.Path(tfds().core.tfds_path(f"datasets/imagenet2012/{file}"))
    return own.read_text().split()


def as_jpeg(name: str, content: bytes) -> bytes:
    """The file itself if it is an RGB or grey JPEG, else the same pixels as one.

    Raises:
        downloads.DataError: not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return content
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=100, subsampling=0)
            return out.getvalue()
    except OSError as error:
        raise downloads.DataError(
            f"{name} in the tar is not an image ({error})"
        ) from error


def write_sample(manual: pathlib.Path) -> None:
    """Digits as ImageNet's tars: synsets n00000000 to n00000009, of varied sizes."""
    arrays = image_sets.digits()
    manual.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    synsets = [f"n{int(digit):08d}" for digit in arrays.classes]
    files: dict[str, dict[str, bytes]] = {synset: {} for synset in synsets}
    for image, label in zip(arrays.train_images, arrays.train_labels, strict=True):
        own = files[synsets[label]]
        own[f"{synsets[label]}_{len(own)}.JPEG"] = _photograph(image, rng)
    packed = {f"{synset}.tar": pack(own) for synset, own in files.items()}
    (manual / TARS["train"]).write_bytes(pack(packed))
    tests = {
        f"ILSVRC2012_val_{number:08d}.JPEG": _photograph(image, rng)
        for number, image in enumerate(arrays.test_images, 1)
    }
    (manual / TARS["validation"]).write_bytes(pack(tests))
    (manual / "labels.txt").write_text("\n".join(synsets) + "\n")
    labels = [synsets[label] for label in arrays.test_labels]
    (manual / "validation_labels.txt").write_text("\n".join(labels) + "\n")


def _photograph(image: np.ndarray, rng: np.random.Generator) -> bytes:
    """A JPEG of the image, 64 to 95 pixels wide and high."""
    size = tuple(rng.integers(64, 96, 2).tolist())
    out = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.BILINEAR).save(out, "JPEG")
    return out.getvalue()


def pack(files: dict[str, bytes]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()
