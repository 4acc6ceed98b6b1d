"""Image sets as whole arrays: CIFAR, MNIST, Fashion-MNIST through TFDS, and digits.

`load("cifar10", folder)` looks, in this order, for a cache of decoded arrays in
`folder/sslx`, a set prepared by tensorflow-datasets (array_record), and the official
files on the network. No TensorFlow is needed. Fashion-MNIST may also be installed as
Debian's package dataset-fashion-mnist. `load("digits")` needs nothing: scikit-learn's
wheel has it.
`augment` crops and flips on the device, inside jit.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from experiments.data import downloads, tfds_sets

_CACHE_VERSION = 1
_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
NAMES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "digits")


@dataclasses.dataclass(frozen=True)
class Arrays:
    """One data set, decoded: images uint8 (N, H, W, C), labels int32 (N,)."""

    name: str
    train_images: UInt8[np.ndarray, "N H W C"]
    train_labels: Int[np.ndarray, " N"]
    test_images: UInt8[np.ndarray, "M H W C"]
    test_labels: Int[np.ndarray, " M"]
    classes: tuple[str, ...]

    def moments(self) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """Mean and standard deviation of each colour of the training images, 0..1."""
        count = np.stack(
            [
                np.bincount(self.train_images[..., c].reshape(-1), minlength=256)
                for c in range(self.train_images.shape[-1])
            ]
        )
        level = np.arange(256) / 255.0
        total = count.sum(axis=1)
        mean = count @ level / total
        deviation = np.sqrt(count @ level**2 / total - mean**2)
        return mean.astype(np.float32), deviation.astype(np.float32)


def augment(
    key: PRNGKeyArray,
    images: UInt8[Array, "N H W C"],
    pad: int = 4,
    *,
    flip: bool = True,
) -> UInt8[Array, "N H W C"]:
    """Zero-pad by `pad` pixels, crop back at random, mirror with odds 1/2."""
    n, h, w, c = images.shape
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corner = jax.random.randint(crop_key, (n, 2), 0, 2 * pad + 1)

    def crop(image: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(image, (at[0], at[1], 0), (h, w, c))

    cropped = jax.vmap(crop)(padded, corner)
    if not flip:
        return cropped
    mirror = jax.random.bernoulli(flip_key, shape=(n, 1, 1, 1))
    return jnp.where(mirror, cropped[:, :, ::-1], cropped)


def default_folder() -> pathlib.Path:
    """$SSLX_DATA_DIR, else the folder tensorflow-datasets uses."""
    default = pathlib.Path.home() / "tensorflow_datasets"
    return pathlib.Path(os.environ.get("SSLX_DATA_DIR", default))


def load(name: str, folder: str | os.PathLike | None = None) -> Arrays:
    """The data set `name`, from its cache, its prepared files or the network.

    Args:
        name: one of `NAMES`.
        folder: where tensorflow-datasets keeps its sets; the cache is `folder/sslx`.

    Raises:
        downloads.DataError: missing and not downloadable, or damaged.
        ValueError: an unknown name.
    """
    if name not in NAMES:
        raise ValueError(f"data: got {name!r}, expected one of {', '.join(NAMES)}")
    if name == "digits":
        return digits()
    root = pathlib.Path(folder) if folder is not None else default_folder()
    cached = root / "sslx" / f"{name}.npz"
    if cached.with_suffix(".json").exists():
        return read_cache(cached, name)
    arrays = _decode(name, root)
    write_cache(cached, arrays)
    return arrays


def digits() -> Arrays:
    """Scikit-learn's 1,797 handwritten digits as 32x32x3: each pixel repeated 4x4.

    Every sixth image is a test image (300); the others train (1,497).
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[..., None]
    images = np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
    labels = bunch.target.astype(np.int32)
    test = np.arange(len(labels)) % 6 == 5
    classes = tuple(str(c) for c in bunch.target_names)
    return Arrays(
        "digits", images[~test], labels[~test], images[test], labels[test], classes
    )


def write_cache(path: pathlib.Path, arrays: Arrays) -> None:
    """Write `path` (npz) and, last, its json with the sha256: complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **{key: getattr(arrays, key) for key in _KEYS})
    facts = {
        "version": _CACHE_VERSION,
        "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        "classes": arrays.classes,
    }
    for target, content in (
        (path, buffer.getbuffer()),
        (path.with_suffix(".json"), json.dumps(facts).encode()),
    ):
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(target)


def read_cache(path: pathlib.Path, name: str) -> Arrays:
    """Read what `write_cache` wrote; a changed byte anywhere raises `DataError`."""
    facts_path = path.with_suffix(".json")
    fix = f"delete {path} and {facts_path.name} beside it, and run again"
    try:
        facts = json.loads(facts_path.read_text())
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        expected, classes = facts["sha256"], tuple(facts["classes"])
    except (OSError, ValueError, KeyError) as error:
        raise downloads.DataError(
            f"data cache {path} cannot be read ({error}); {fix}"
        ) from error
    if found != expected:
        raise downloads.DataError(
            f"data cache {path} is damaged: sha256 is {found[:12]}..., "
            f"expected {expected[:12]}...; {fix}"
        )
    with np.load(io.BytesIO(content)) as stored:
        return Arrays(name, *(stored[key] for key in _KEYS), classes=classes)


def _decode(name: str, root: pathlib.Path) -> Arrays:
    """Every image of a TFDS set, prepared first where it is missing."""
    tfds_sets.prepare(name, root)
    train_images, train_labels = _stack(tfds_sets.source(name, root, "train"))
    test_images, test_labels = _stack(tfds_sets.source(name, root, "test"))
    classes = tfds_sets.class_names(name, root)
    return Arrays(name, train_images, train_labels, test_images, test_labels, classes)


def _stack(source: Iterable[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a data source, ordered by their TFDS id if they have one."""
    rows = sorted(
        (
            (row.get("id", ""), row["image"], row["label"])
            for row in rich.progress.track(source, "decode")
        ),
        key=lambda row: row[0],
    )
    images = np.stack([row[1] for row in rows])
    return images, np.asarray([row[2] for row in rows], np.int32)
