"""Memory references of an outer-product dataflow, for given patterns of zeros."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

__all__ = ["Dataflow", "References", "references"]


@dataclasses.dataclass(frozen=True)
class Dataflow:
    """An accelerator that multiplies vectors of nonzero weights and inputs all-to-all.

    Attributes:
        weights: Weights fetched at once, all of one input channel.
        inputs: Inputs fetched at once, of the same channel; the array multiplies all
            `weights * inputs` pairs in one step.
        tile: Height and width of the tile of outputs that one buffer of partial sums
            serves, and of its inputs.
        accumulators: Partial sums that the buffer holds. As many filters are processed
            at once as fit, with the tile's halo.

    Source: SCNN, Parashar et al. 2017 (4 x 4 multipliers).
    """

    weights: int = 4
    inputs: int = 4
    tile: tuple[int, int] = (8, 8)
    accumulators: int = 1024

    def __post_init__(self):
        sizes = (self.weights, self.inputs, *self.tile, self.accumulators)
        if min(sizes) < 1:
            raise ValueError(f"Dataflow: sizes must be >= 1, got {sizes}")


@dataclasses.dataclass(frozen=True)
class References:
    """Counts of one layer; add those of several with `+`.

    Attributes:
        weights: Weights read.
        inputs: Inputs read.
        partial_sums: Partial sums read, added to and written back.
        products: Multiplications.
        steps: Steps of the multiplier array.
    """

    weights: int
    inputs: int
    partial_sums: int
    products: int
    steps: int

    def __add__(self, other: "References") -> "References":
        """Both layers together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return References(*(a + b for a, b in pairs))


def references(
    kernel: Num[Any, "..."] | Bool[Any, "..."],
    inputs: Num[Any, "..."] | Bool[Any, "..."],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dataflow: Dataflow | None = None,
) -> References:
    r"""Memory references of a convolution or matrix product, by simulation.

    For each image, tile of the input, input channel and block of filters, the nonzero
    inputs and weights are taken in order (rows, then columns; filters, then rows, then
    columns), in vectors of `dataflow.inputs` and `dataflow.weights`:

        for each vector of inputs:            reads its inputs
            for each vector of weights:       reads its weights; one step
                multiply all pairs
                add up products of the same output, then
                one partial sum per output    read, added to and written

    so that a partial sum is referenced once per step and output, and adjacent weights
    in a row of a kernel save references. Outputs outside the tile are kept in its halo,
    on all sides. With strides, weights and inputs meet only where their product is
    needed.

    Args:
        kernel: `(H, W, I / groups, O)`, or `(I, O)`; only which entries are zero
            matters.
        inputs: `(N, H, W, I)`, or `(N, I)`, likewise.
        strides: Strides of the convolution.
        padding: Rows of padding above and columns to the left.
        dataflow: Sizes of the accelerator; None for the defaults.

    Returns:
        Counts for all images.

    Raises:
        ValueError: Shapes do not fit.

    Source: dataflow of Parashar et al. 2017. Mao et al. 2017 compare grains by memory
    references of such an accelerator; counts here are of this simulation, not theirs.
    """
    flow = dataflow or Dataflow()
    w, x = np.asarray(kernel) != 0, np.asarray(inputs) != 0
    if w.ndim == 2 and x.ndim == 2:
        w, x = w[None, None], x[:, None, None]
    groups = _groups(w, x)
    filters = _at_once(w, x, strides, flow)
    total = References(0, 0, 0, 0, 0)
    for row in range(min(strides[0], w.shape[0])):
        for column in range(min(strides[1], w.shape[1])):
            rows = slice((row - padding[0]) % strides[0], None, strides[0])
            columns = slice((column - padding[1]) % strides[1], None, strides[1])
            taps = w[row :: strides[0], column :: strides[1]]
            total += _phase(taps, x[:, rows, columns], groups, filters, flow)
    return total


def _groups(w: np.ndarray, x: np.ndarray) -> int:
    """Feature groups of the convolution."""
    if w.ndim == x.ndim == 4 and w.shape[2] and x.shape[3] % w.shape[2] == 0:
        groups = x.shape[3] // w.shape[2]
        if groups and w.shape[3] % groups == 0:
            return groups
    raise ValueError(
        f"references: kernel {w.shape} does not fit inputs {x.shape}; expected"
        " (H, W, I / groups, O) and (N, H, W, I)"
    )


def _at_once(
    w: np.ndarray, x: np.ndarray, strides: tuple[int, int], flow: Dataflow
) -> int:
    """Filters whose partial sums of a tile and its halo fit the buffer."""
    room = 1
    for axis in (0, 1):
        reach = -(-w.shape[axis] // strides[axis])
        size = -(-x.shape[axis + 1] // strides[axis])
        room *= min(flow.tile[axis], size) + reach - 1
    return max(1, flow.accumulators // max(room, 1))


def _phase(
    w: Bool[np.ndarray, "h w i o"],
    x: Bool[np.ndarray, "n H W I"],
    groups: int,
    filters: int,
    flow: Dataflow,
) -> References:
    """Counts of a convolution of stride 1."""
    channels, pitch = x.shape[3], x.shape[2] + w.shape[1]
    a = _inputs(x, flow, pitch)
    b = _weights(w, groups, filters, flow, pitch)
    meetings = b.histogram(channels).T @ a.histogram(channels)
    a_each, b_each = a.per_channel(channels), b.per_channel(channels)
    return References(
        weights=int(b_each.items @ a_each.vectors),
        inputs=int(a_each.items @ b_each.runs),
        partial_sums=_outputs(meetings, b.patterns, a.patterns),
        products=int(b_each.items @ a_each.items),
        steps=int(b_each.vectors @ a_each.vectors),
    )


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Per channel: entries that are not zero, vectors of them, runs of vectors."""

    items: Int[np.ndarray, " C"]
    vectors: Int[np.ndarray, " C"]
    runs: Int[np.ndarray, " C"]


@dataclasses.dataclass(frozen=True)
class _Vectors:
    """Entries that are not zero, in runs cut into vectors.

    Attributes:
        channel: Per entry.
        run: Per entry: which run, ascending.
        vector: Per entry: which vector, ascending.
        patterns: Different sets of positions that meet in a step, relative to the
            first, padded with -1.
        pattern: Per set: which pattern.
        pattern_channel: Per set.
    """

    channel: np.ndarray
    run: np.ndarray
    vector: np.ndarray
    patterns: Int[np.ndarray, "P L"]
    pattern: np.ndarray
    pattern_channel: np.ndarray

    def per_channel(self, channels: int) -> _Counts:
        count = lambda of: np.bincount(of, minlength=channels)
        return _Counts(
            items=count(self.channel),
            vectors=count(self.channel[_starts(self.vector)]),
            runs=count(self.channel[_starts(self.run)]),
        )

    def histogram(self, channels: int) -> Float[np.ndarray, "C P"]:
        """How often each pattern occurs in each channel; whole numbers."""
        many = len(self.patterns)
        cells = self.pattern_channel * many + self.pattern
        counts = np.bincount(cells, minlength=channels * many)
        return counts.reshape(channels, many).astype(float)


def _inputs(x: np.ndarray, flow: Dataflow, pitch: int) -> _Vectors:
    """A run per image, tile and channel."""
    n, height, width, channels = x.shape
    tall, wide = flow.tile
    down, across = -(-height // tall), -(-width // wide)
    grown = np.zeros((n, down * tall, across * wide, channels), bool)
    grown[:, :height, :width] = x
    tiles = grown.reshape(n, down, tall, across, wide, channels)
    tiles = tiles.transpose(0, 1, 3, 5, 2, 4).reshape(-1, channels, tall, wide)
    tile, channel, row, column = np.nonzero(tiles)
    run = tile * channels + channel
    vector = _cut(run, flow.inputs)
    places = row * pitch + column
    return _gather(channel, run, vector, vector, places, flow.inputs)


def _weights(
    w: np.ndarray, groups: int, filters: int, flow: Dataflow, pitch: int
) -> _Vectors:
    """A run per channel and block of filters; sets lie within one filter."""
    height, width, inside, outputs = w.shape
    each = outputs // groups
    parts = w.reshape(height, width, inside, groups, each).transpose(3, 2, 4, 0, 1)
    flat = parts.reshape(groups * inside, each, height, width)
    channel, number, row, column = np.nonzero(flat)
    run = channel * -(-each // filters) + number // filters
    vector = _cut(run, flow.weights)
    sets = vector * each + number
    places = row * pitch + column
    return _gather(channel, run, vector, sets, places, flow.weights)


def _starts(marks: np.ndarray) -> np.ndarray:
    """Where ascending marks change."""
    return np.flatnonzero(np.diff(marks, prepend=-1))


def _within(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of the mark, and place among entries of the same mark."""
    starts = _starts(marks)
    number = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(marks)))
    return number, np.arange(len(marks)) - starts[number]


def _cut(run: np.ndarray, length: int) -> np.ndarray:
    """Runs cut into vectors, numbered."""
    number, place = _within(run)
    return _within(number * (len(run) + 1) + place // length)[0]


def _gather(
    channel: np.ndarray,
    run: np.ndarray,
    vector: np.ndarray,
    sets: np.ndarray,
    places: np.ndarray,
    length: int,
) -> _Vectors:
    starts = _starts(sets)
    number, place = _within(sets)
    padded = np.full((len(starts), length), -1)
    padded[number, place] = places - places[starts][number]
    patterns, pattern = _different(padded)
    return _Vectors(channel, run, vector, patterns, pattern, channel[starts])


def _different(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that differ, and the number of each row among them."""
    base = int(rows.max(initial=0)) + 2
    if base ** rows.shape[1] > 1 << 62:
        return np.unique(rows, axis=0, return_inverse=True)
    codes = (rows + 1) @ base ** np.arange(rows.shape[1])
    _, first, number = np.unique(codes, return_index=True, return_inverse=True)
    return rows[first], number


def _outputs(meetings: np.ndarray, weights: np.ndarray, inputs: np.ndarray) -> int:
    """Sum over pairs of sets of their different outputs, times their meetings."""
    total, never = 0, np.iinfo(np.int64).max
    for times, taps in zip(meetings, weights, strict=True):
        met = np.flatnonzero(times)
        if len(met):
            places = inputs[met][:, :, None]
            sums = np.where(places < 0, never, places - taps[taps >= 0])
            sums = np.sort(sums.reshape(len(met), -1), axis=1)
            different = np.sum(np.diff(sums, axis=1, prepend=never) != 0, axis=1)
            different -= sums[:, -1] == never
            total += int(times[met].astype(np.int64) @ different)
    return total
