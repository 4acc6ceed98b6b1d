"""From a JPEG file to the pixels of a training or a test image: what workers run."""

import io
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "S S 3"]
_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


def random_crop(
    content: bytes, rng: np.random.Generator, size: int, smallest: float = 0.08
) -> Pixels:
    """A random part of the image, resized, mirrored with odds 1/2.

    area ~ U(smallest, 1) of the image, log(width / height) ~ U(log 3/4, log 4/3), its
    corner uniform; the largest centred part of such a shape after ten that do not fit.

    Args:
        content: of the file.
        rng: where all draws come from.
        size: width and height of the result, unit: pixels.
        smallest: share of the image.
    """
    image = _open(content)
    box = _random_box(rng, *image.size, smallest)
    part = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(part)
    return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)


def centre_crop(content: bytes, size: int) -> Pixels:
    """The centre after the shorter side was brought to 8/7 `size`: 256 for 224."""
    image = _open(content)
    width, height = image.size
    side = min(width, height) * size / round(size * 8 / 7)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _random_box(
    rng: np.random.Generator, width: int, height: int, smallest: float
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a part."""
    for _ in range(_TRIES):
        area = width * height * rng.uniform(smallest, 1)
        ratio = math.exp(rng.uniform(*map(math.log, _RATIOS)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return float(left), float(top), float(left + w), float(top + h)
    low, high = _RATIOS
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


class TrainCrop:
    """Record -> pixels and label, for Grain's `random_map`."""

    def __init__(self, size: int, smallest: float) -> None:
        self.size, self.smallest = size, smallest

    def __call__(
        self, record: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        image = random_crop(record["image"], rng, self.size, self.smallest)
        return {"image": image, "label": np.int32(record["label"])}


class TestCrop:
    """Record -> pixels and label, for Grain's `map`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image = centre_crop(record["image"], self.size)
        return {"image": image, "label": np.int32(record["label"])}
