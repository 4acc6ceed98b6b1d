"""AlexNet's convolutions with zeros at the ratios of SSL's Table 4."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from sslx.lowering import Columns, Conv

Pattern = Literal["random", "blocks", "classes"]
Shape = tuple[tuple[int, ...], tuple[int, ...], int, int, int]
BLOCK = 16

SHAPES: dict[str, Shape] = {
    "conv1": ((227, 227, 3), (11, 11, 3, 96), 4, 0, 1),
    "conv2": ((27, 27, 96), (5, 5, 48, 256), 1, 2, 2),
    "conv3": ((13, 13, 256), (3, 3, 256, 384), 1, 1, 1),
    "conv4": ((13, 13, 384), (3, 3, 192, 384), 1, 1, 2),
    "conv5": ((13, 13, 384), (3, 3, 192, 256), 1, 1, 2),
}
"""Image, kernel, stride, padding, groups."""
POOLED = ("conv1", "conv2")
"""Followed by the largest of 3x3 pixels, stride 2."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Sparsities, and the speed-ups of Table 4 on a CPU, conv1 to conv5."""

    cpu: tuple[float | None, ...] = (None,) * 5
    columns: tuple[float, ...] = (0.0,) * 5
    rows: tuple[float, ...] = (0.0,) * 5
    entries: tuple[float, ...] = ()


TABLE = {
    "ssl, 2% loss": Row(
        cpu=(1.05, 3.37, 6.27, 9.73, 4.93),
        columns=(0.0, 0.632, 0.769, 0.847, 0.807),
        rows=(0.094, 0.129, 0.406, 0.469, 0.0),
    ),
    "l1, 2% loss": Row(
        cpu=(0.80, 2.91, 4.84, 3.83, 2.76), entries=(0.676, 0.924, 0.972, 0.966, 0.943)
    ),
    "ssl, no loss": Row(
        cpu=(1.00, 1.27, 1.64, 1.68, 1.32), columns=(0.0, 0.209, 0.397, 0.397, 0.246)
    ),
    "l1, no loss": Row(
        cpu=(0.34, 0.99, 1.30, 1.10, 0.93), entries=(0.147, 0.762, 0.853, 0.815, 0.763)
    ),
    "half the filters": Row(
        columns=(0.0, 0.5, 0.5, 0.5, 0.5), rows=(0.5, 0.5, 0.5, 0.5, 0.0)
    ),
}
"""Rows of Table 4, and half of the filters of all layers but the last."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer: dense, its zeros, and what is left of it.

    Attributes:
        dense: all of it.
        small: without zero rows and dead channels, with the zero columns marked.
        kernel: dense values.
        alive: entries that are not zero.
        channels: of the input that are alive.
        filters: that are alive.
    """

    dense: Conv
    small: Conv
    kernel: Float[np.ndarray, "H W I O"]
    alive: Bool[np.ndarray, "H W I O"]
    channels: Bool[np.ndarray, " C"]
    filters: Bool[np.ndarray, " O"]

    @property
    def masked(self) -> Float[np.ndarray, "H W I O"]:
        """The kernel with its zeros."""
        return self.kernel * self.alive

    @property
    def small_kernel(self) -> Float[np.ndarray, "H W i o"]:
        """What `small` is given."""
        groups = self.dense.groups
        read = self.channels.reshape(groups, -1)
        parts = zip(
            np.split(self.masked, groups, axis=-1),
            np.split(self.filters, groups),
            read,
            strict=True,
        )
        return np.concatenate([w[:, :, c][..., f] for w, f, c in parts], axis=-1)

    @property
    def mac_ratio(self) -> float:
        """Multiply-accumulates of the dense layer over those of entries not zero."""
        return self.alive.size / int(self.alive.sum())


def convolution(layer: str, batch: int) -> Conv:
    """A layer of AlexNet, all of it."""
    image, kernel, stride, pad, groups = SHAPES[layer]
    return Conv(
        lhs=(batch, *image),
        rhs=kernel,
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        groups=groups,
        batch_groups=1,
        dtype="float32",
        result="float32",
        precision=None,
    )


def draw(layer: str, row: Row, batch: int, seed: int, pattern: Pattern) -> Case:
    """A layer with zeros at the ratios of a row of Table 4.

    Zero rows are drawn at random, as many in both halves of the filters. The channels
    that the previous layer's zero rows leave dead are among the zero columns; the
    others are drawn per group of filters:

    | pattern | zero rows | zero columns | in `sslx.groups` |
    | --- | --- | --- | --- |
    | `random` | any | any | `FILTER`, `SHAPE` |
    | `blocks` | 16 neighbours | one tap of 16 channels that are alive | `BLOCK` |
    | `classes` | any | all taps but the centre, of any channels | |

    Blocks are drawn until one more would lead farther from the ratio.
    """
    conv, at = convolution(layer, batch), list(SHAPES).index(layer)
    kernel = _values(conv, seed, at)
    if row.entries:
        alive = _rng(seed, at, 2).random(conv.rhs) >= row.entries[at]
        every = np.ones(conv.lhs[-1], bool), np.ones(conv.rhs[-1], bool)
        return Case(conv, conv, kernel, alive, *every)
    filters = _halves(conv.rhs[-1], row.rows[at], seed, at, pattern)
    channels = np.ones(conv.lhs[-1], bool)
    if at:
        channels = _halves(conv.lhs[-1], row.rows[at - 1], seed, at - 1, pattern)
    read = channels.reshape(conv.groups, -1)
    rng = _rng(seed, at, 1)
    wanted = round((1 - row.columns[at]) * int(np.prod(conv.rhs[:-1])))
    kept = [_DRAWN[pattern]((*conv.window, int(c.sum())), wanted, rng) for c in read]
    columns = np.zeros((*conv.rhs[:-1], conv.groups), bool)
    for g, part in enumerate(kept):
        columns[:, :, read[g], g] = part
    alive = np.repeat(columns, conv.rhs[-1] // conv.groups, axis=-1) & filters
    small = dataclasses.replace(
        conv,
        lhs=(*conv.lhs[:-1], int(channels.sum())),
        rhs=(*kept[0].shape, int(filters.sum())),
        columns=Columns.of(np.stack(kept, axis=-1)),
    )
    return Case(conv, small, kernel, alive, channels, filters)


def _rng(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(seeds)


def _values(conv: Conv, seed: int, at: int) -> Float[np.ndarray, "H W I O"]:
    values = _rng(seed, at, 3).standard_normal(conv.rhs, np.float32)
    return values / np.float32(np.sqrt(np.prod(conv.rhs[:-1]) / 2))


def _halves(
    count: int, sparsity: float, seed: int, at: int, pattern: Pattern
) -> Bool[np.ndarray, " n"]:
    """The filters that stay, as many in both halves; the same wherever it is asked."""
    rng, size = _rng(seed, at, 0), BLOCK if pattern == "blocks" else 1
    alive = np.ones((2, count // 2 // size, size), bool)
    for half in alive:
        dead = round(sparsity * len(half))
        half[rng.permutation(len(half))[:dead]] = False
    return alive.reshape(-1)


Window = tuple[int, ...]


def _random(shape: Window, wanted: int, rng: np.random.Generator) -> np.ndarray:
    kept = np.zeros(shape, bool)
    kept.reshape(-1)[rng.permutation(kept.size)[:wanted]] = True
    return kept


def _blocks(shape: Window, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Whole blocks, until the next one would lead farther from what is wanted."""
    kept = np.zeros(shape, bool)
    starts = range(0, shape[-1], BLOCK)
    places = [(*tap, first) for tap in np.ndindex(*shape[:-1]) for first in starts]
    for place in rng.permutation(places).tolist():
        *tap, first = place
        block = kept[tuple(tap)][first : first + BLOCK]
        if kept.sum() + block.size / 2 <= wanted:
            block[:] = True
    return kept


def _classes(shape: Window, wanted: int, rng: np.random.Generator) -> np.ndarray:
    kept = np.zeros(shape, bool)
    taps, channels = int(np.prod(shape[:-1])), rng.permutation(shape[-1])
    whole = max(0, (wanted - channels.size) // (taps - 1))
    kept[..., channels[:whole]] = True
    kept[tuple(k // 2 for k in shape[:-1])][channels[:wanted]] = True
    return kept


_DRAWN = {"random": _random, "blocks": _blocks, "classes": _classes}
