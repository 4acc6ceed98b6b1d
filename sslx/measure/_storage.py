"""Storage of a sparse tensor, to the bit, by grain and format."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Integer, Num

from sslx._groups.structure import Layout, Structure, view

__all__ = ["Encoded", "Storage", "encode", "storage"]

Format = Literal["dense", "relative", "bitmask", "rows"]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tensor as a string of bits; `decode` restores it.

    Attributes:
        format: See `encode`.
        shape: Shape of the tensor.
        structure: Which entries form a grain.
        layout: Order of the tensor's axes, as in `sslx.groups`.
        weight_bits: Bits per entry.
        index_bits: Bits per relative index.
        bits: Length of the code, in bits.
        stored: Grains stored, without fillers.
        fillers: Grains of zeros stored where a gap is too long for its index.
        payload: The code, padded to whole bytes.
    """

    format: Format
    shape: tuple[int, ...]
    structure: Structure
    layout: Layout
    weight_bits: int
    index_bits: int
    bits: int
    stored: int
    fillers: int
    payload: bytes

    def decode(self) -> Integer[np.ndarray, "..."]:
        """The tensor that was encoded."""
        code = np.unpackbits(np.frombuffer(self.payload, np.uint8))[: self.bits]
        code = code.astype(bool)
        count, size = _grid(self.shape, self.structure, self.layout)
        total, width = math.prod(count), size * self.weight_bits
        if self.format == "dense":
            places, values = np.arange(total), code.reshape(total, width)
        elif self.format == "relative":
            records = code.reshape(self.stored + self.fillers, self.index_bits + width)
            gaps = _from_bits(records[:, : self.index_bits])
            places, values = np.cumsum(gaps + 1) - 1, records[:, self.index_bits :]
        elif self.format == "bitmask":
            places, values = np.flatnonzero(code[:total]), code[total:]
        else:
            places = _rows_places(code, count, self.stored)
            values = code[code.size - self.stored * width :]
        grains = np.zeros((total, size), np.int64)
        signed = _from_bits(values.reshape(-1, self.weight_bits))
        signed -= (signed >> (self.weight_bits - 1)) << self.weight_bits
        grains[places] = signed.reshape(len(places), size)
        return _from_grains(grains, self.shape, self.structure, self.layout)


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bits of one tensor in each format of `encode`; add those of several with `+`.

    Attributes:
        entries: Entries of the tensor.
        kept: Entries in stored grains.
        nonzero: Entries that are not zero.
        stored: Grains that are stored.
        fillers: Fillers that the relative format adds.
        dense: Bits of the dense format.
        relative: Bits of the relative format, with indices and fillers.
        bitmask: Bits of the bitmask format, with one bit per grain.
        rows: Bits of the row format, with pointers and column numbers.
    """

    entries: int
    kept: int
    nonzero: int
    stored: int
    fillers: int
    dense: int
    relative: int
    bitmask: int
    rows: int

    def __add__(self, other: "Storage") -> "Storage":
        """Both tensors together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Storage(*(a + b for a, b in pairs))

    @property
    def density(self) -> float:
        """Share of the entries that are in stored grains."""
        return self.kept / self.entries

    def ratio(self, format: Format) -> float:
        """Bits in a format over those of the dense one."""
        return getattr(self, format) / self.dense


def encode(
    codes: Integer[np.ndarray, "..."],
    structure: Structure,
    format: Format = "relative",
    *,
    weight_bits: int = 8,
    index_bits: int = 4,
    layout: Layout = "...IO",
) -> Encoded:
    r"""Encode a tensor of small integers as bits, storing only the nonzero grains.

    Grains are numbered with the output axis first, then input, then spatial axes. Of G
    grains of `s` entries each, n are stored, in that order.

        dense     G * s * weight_bits
        relative  (n + fillers) * (index_bits + s * weight_bits)
        bitmask   G + n * s * weight_bits
        rows      (rows + 1) * log2(n + 1) + n * (log2(columns) + s * weight_bits)

    relative: each grain with the number of zero grains before it; a gap of
    `2^index_bits` or more is bridged by fillers, grains of zeros at the largest index
    that stand for `2^index_bits` grains each.
    rows: compressed rows, one per index of the first axis that numbers grains: CSR for
    `WEIGHT`, BSR for blocks. Logarithms are rounded up to whole bits.

    What is the same for all tensors of a shape (shape, bit widths, quantisation scales)
    is not counted.

    Args:
        codes: Integers that fit `weight_bits` in two's complement.
        structure: Which entries form a grain.
        format: See above.
        weight_bits: Bits per entry.
        index_bits: Bits per relative index.
        layout: Order of the tensor's axes, as in `sslx.groups`.

    Returns:
        The code; `encode(...).decode()` equals `codes`.

    Raises:
        ValueError: A code does not fit.

    Source: relative indices with fillers: Han et al. 2015; one index per grain instead
    of one per weight: Mao et al. 2017.
    """
    low, high = -(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1
    if codes.size and not (low <= codes.min() and codes.max() <= high):
        raise ValueError(
            f"encode: codes from {codes.min()} to {codes.max()} do not fit"
            f" {weight_bits} bits ({low} to {high})"
        )
    grains = _to_grains(codes, structure, layout)
    count, size = _grid(codes.shape, structure, layout)
    alive = grains.any(axis=1)
    places = np.flatnonzero(alive)
    values = _to_bits(grains[alive], weight_bits)
    values = values.reshape(len(places), size * weight_bits)
    fillers = 0
    if format == "dense":
        code = _to_bits(grains, weight_bits)
    elif format == "relative":
        gaps, real = _records(places, index_bits)
        fillers = int(np.sum(~real))
        rows = np.zeros((len(gaps), values.shape[1]), bool)
        rows[real] = values
        code = np.concatenate([_to_bits(gaps, index_bits), rows], axis=1)
    elif format == "bitmask":
        code = np.concatenate([alive, values.ravel()])
    else:
        code = np.concatenate([_rows_index(places, count), values.ravel()])
    return Encoded(
        format=format,
        shape=codes.shape,
        structure=structure,
        layout=layout,
        weight_bits=weight_bits,
        index_bits=index_bits,
        bits=code.size,
        stored=len(places),
        fillers=fillers,
        payload=np.packbits(code.ravel()).tobytes(),
    )


def storage(
    array: Num[Any, "..."] | Bool[Any, "..."],
    structure: Structure,
    *,
    weight_bits: int = 8,
    index_bits: int = 4,
    layout: Layout = "...IO",
) -> Storage:
    """Number of bits that `encode` would take in each format.

    Depends only on which grains are zero, so the weights need not be quantised.

    Args:
        array: A tensor, as NumPy or JAX array.
        structure: Which entries form a grain.
        weight_bits: Bits per entry.
        index_bits: Bits per relative index.
        layout: Order of the tensor's axes, as in `sslx.groups`.

    Returns:
        Bits per format; add those of several tensors with `+`.

    Example:
        >>> parts = [storage(k, KERNEL) for k in kernels]
        >>> sum(parts[1:], parts[0]).ratio("relative")
    """
    pattern = np.asarray(array) != 0
    count, size = _grid(pattern.shape, structure, layout)
    places = np.flatnonzero(_to_grains(pattern, structure, layout).any(axis=1))
    stored, total, width = len(places), math.prod(count), size * weight_bits
    fillers = _fillers(places, index_bits)
    rows, _, pointer, column = _row_sizes(count, stored)
    return Storage(
        entries=pattern.size,
        kept=stored * size,
        nonzero=int(np.count_nonzero(pattern)),
        stored=stored,
        fillers=fillers,
        dense=pattern.size * weight_bits,
        relative=(stored + fillers) * (index_bits + width),
        bitmask=total + stored * width,
        rows=(rows + 1) * pointer + stored * (column + width),
    )


def _grid(
    shape: Sequence[int], structure: Structure, layout: Layout
) -> tuple[tuple[int, ...], int]:
    """Numbers of grains per axis, output first, and entries per grain."""
    sizes, kept = view(_output_first(shape, layout), structure, "OI...")
    count = tuple(sizes[a] for a in kept)
    return count, math.prod(sizes) // max(math.prod(count), 1)


def _output_first(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    if layout == "OI..." or len(shape) < 2:
        return tuple(shape)
    return (shape[-1], shape[-2], *shape[:-2])


def _to_grains(array: np.ndarray, structure: Structure, layout: Layout) -> np.ndarray:
    if layout == "...IO" and array.ndim > 1:
        array = np.moveaxis(array, (-1, -2), (0, 1))
    sizes, kept = view(array.shape, structure, "OI...")
    count, size = _grid(array.shape, structure, "OI...")
    slices = np.moveaxis(array.reshape(sizes), kept, range(len(kept)))
    return slices.reshape(math.prod(count), size)


def _from_grains(
    grains: np.ndarray, shape: tuple[int, ...], structure: Structure, layout: Layout
) -> np.ndarray:
    front = _output_first(shape, layout)
    sizes, kept = view(front, structure, "OI...")
    rest = [n for a, n in enumerate(sizes) if a not in kept]
    slices = grains.reshape(*(sizes[a] for a in kept), *rest)
    array = np.moveaxis(slices, range(len(kept)), kept).reshape(front)
    if layout == "...IO" and len(shape) > 1:
        array = np.moveaxis(array, (0, 1), (-1, -2))
    return array


def _to_bits(values: np.ndarray, width: int) -> Bool[np.ndarray, "..."]:
    """Two's complement, the highest bit first, along a new last axis."""
    shifts = np.arange(width)[::-1]
    return ((values.astype(np.int64)[..., None] >> shifts) & 1).astype(bool)


def _from_bits(bits: Bool[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
    """Unsigned numbers from bits along the last axis."""
    weights = np.int64(1) << np.arange(bits.shape[-1], dtype=np.int64)[::-1]
    return (bits * weights).sum(axis=-1, dtype=np.int64)


def _gaps(places: np.ndarray) -> np.ndarray:
    return np.diff(places, prepend=-1) - 1


def _fillers(places: np.ndarray, index_bits: int) -> int:
    return int(np.sum(_gaps(places) >> index_bits))


def _records(places: np.ndarray, index_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative indices, and which of them are of real grains, not of fillers."""
    gaps = _gaps(places)
    ends = np.cumsum((gaps >> index_bits) + 1) - 1
    indices = np.full(len(places) + _fillers(places, index_bits), (1 << index_bits) - 1)
    real = np.zeros(len(indices), bool)
    real[ends] = True
    indices[real] = gaps & ((1 << index_bits) - 1)
    return indices, real


def _row_sizes(count: tuple[int, ...], stored: int) -> tuple[int, int, int, int]:
    """Rows, columns, bits of a pointer, bits of a column number."""
    rows = count[0] if count else 1
    columns = math.prod(count[1:])
    return rows, columns, stored.bit_length(), max(columns - 1, 0).bit_length()


def _rows_index(places: np.ndarray, count: tuple[int, ...]) -> np.ndarray:
    rows, columns, pointer, column = _row_sizes(count, len(places))
    starts = np.searchsorted(places, np.arange(rows + 1) * columns)
    numbers = _to_bits(places % max(columns, 1), column)
    return np.concatenate([_to_bits(starts, pointer).ravel(), numbers.ravel()])


def _rows_places(code: np.ndarray, count: tuple[int, ...], stored: int) -> np.ndarray:
    rows, columns, pointer, column = _row_sizes(count, stored)
    head = (rows + 1) * pointer
    starts = _from_bits(code[:head].reshape(rows + 1, pointer))
    numbers = _from_bits(code[head : head + stored * column].reshape(stored, column))
    return np.repeat(np.arange(rows), np.diff(starts)) * columns + numbers
