"""A small ImageNet: tars in the official layout, and streams of the prepared set."""

import io
import pathlib

import numpy as np
from PIL import Image

from experiments.data import imagenet as imagenet_data
from experiments.data import imagenet_sets

SYNSETS = ("n01440764", "n01443537", "n01484850")
PER_CLASS, TESTS = 7, 5


def picture(rng, size=(40, 30), mode="RGB", kind="JPEG") -> bytes:
    pixels = rng.integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode=None).convert(mode).save(out, kind)
    return out.getvalue()


def write_tars(folder: pathlib.Path, tests: int = TESTS) -> dict[str, bytes]:
    """Tars in the official layout of `SYNSETS`; the training files by name."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    found, outer = {}, {}
    for synset in SYNSETS:
        sizes = [tuple(rng.integers(24, 60, 2).tolist()) for _ in range(PER_CLASS)]
        own = {f"{synset}_{k}.JPEG": picture(rng, s) for k, s in enumerate(sizes)}
        outer[f"{synset}.tar"] = imagenet_sets.pack(own)
        found |= own
    (folder / imagenet_sets.TARS["train"]).write_bytes(imagenet_sets.pack(outer))
    shown = {
        f"ILSVRC2012_val_{k:08d}.JPEG": picture(rng) for k in reversed(range(tests))
    }
    (folder / imagenet_sets.TARS["validation"]).write_bytes(imagenet_sets.pack(shown))
    labels = [SYNSETS[k % 3] for k in range(TESTS)]
    (folder / "validation_labels.txt").write_text("\n".join(labels) + "\n")
    return found


def stream(root, **options) -> imagenet_data.ImageNet:
    folder = imagenet_sets.prepared("imagenet2012", root)
    return imagenet_data.ImageNet("imagenet2012", folder, **{"size": 16, **options})


def take(loader, count: int) -> list[dict[str, np.ndarray]]:
    batches = [{k: np.array(v) for k, v in next(loader).items()} for _ in range(count)]
    loader.close()
    return batches


def assert_same_batches(a, b):
    for x, y in zip(a, b, strict=True):
        assert x["image"].dtype == np.uint8 and x["label"].dtype == np.int32
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["label"], y["label"])
