"""The schedule of a direct convolution: everything that is decided before code is made.

Every output entry is a sum over the kernel columns (one tap, one input channel) that
meet the image: `y[p, f] = sum over k of x[base[p] + offset[k]] * w[k, f]`. Nothing is
padded and no patches are copied; columns that are zero cost nothing.

The output is cut into tiles, each a few positions times a few vectors of filters, small
enough for its sums to stay in registers while the microkernel runs through the columns.
Positions whose columns lie at the same offsets form a region (`positions`): the inside
of the image, an edge, a corner, a phase of a dilated image. A `Visit` covers one region
with `PositionTile`s of one shape; `FilterTile`s cut up the filters; every tile of one
kind meets every tile of the other.

A tile may also hold positions that meet different taps, where a large kernel meets a
small image. Its columns then come in sections, and each section adds only to the places
that meet it, so that the kernel is read from memory once for all positions.

`scheduler` makes schedules; `loops` and `microkernel` turn them into code.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int


class PositionTile(NamedTuple):
    """Positions that are computed together: runs of places at fixed distances.

    Attributes:
      places: of a run: entries from its start, in `x` and in `y`.
      sections: of the columns: for each, the places that meet it.
      runs: how many runs.
    """

    places: tuple[tuple[int, int], ...]
    sections: tuple[tuple[int, ...], ...]
    runs: int


class FilterTile(NamedTuple):
    """Filters of one group that are computed together.

    Attributes:
      group: of filters.
      first: filter, counted over all groups.
      vectors: of filters.
      tail: filters in the last vector.
    """

    group: int
    first: int
    vectors: int
    tail: int


@dataclasses.dataclass(frozen=True)
class Visit:
    """All tiles of one shape in one region.

    Attributes:
      tile: their shape.
      columns: per group of filters and section, offsets in `x` and rows of `w`.
      runs: offsets of the runs in `x` and `y`, `tile.runs` of them per tile.
      pace: bytes of the next tile's input to prefetch per column, for kernels of one
        tap; with more taps, neighbouring tiles read the same lines.
    """

    tile: PositionTile
    columns: tuple[tuple[Int[np.ndarray, "_ 2"], ...], ...]
    runs: Int[np.ndarray, "runs 2"]
    pace: int


@dataclasses.dataclass(frozen=True)
class Vectors:
    """What the lanes of a vector hold.

    Attributes:
      dtype: of all arrays.
      lanes: entries of a vector.
      channelwise: whether filter `f` reads channel `f` alone: a vector of filters then
        takes a vector of channels, where else one entry of `x` goes to all lanes.
      interleave: neighbouring channels per filter in a vector, where there are few
        filters; their sums are added up at the end. A row of `w` is then one vector,
        filter after filter, each with its channels.
    """

    dtype: str
    lanes: int
    channelwise: bool
    interleave: int

    @property
    def filters(self) -> int:
        """Per vector."""
        return self.lanes // self.interleave


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of `w` come to the microkernel: packed, prefetched or as they are.

    Attributes:
      stride: entries from a row of `w` to the next.
      packed: per group of filters the rows that are copied into one dense panel before
        a filter tile is computed; None where they are read in place.
      ahead: columns between the prefetch of a row and its use; 0 for no prefetch.
    """

    stride: int
    packed: tuple[Int[np.ndarray, " _"], ...] | None
    ahead: int


@dataclasses.dataclass(frozen=True)
class Strides:
    """Where the arrays of a task start, in entries.

    Attributes:
      x_block, w_block: from a block to the next.
      y_share: from the output of a share to the next.
      x_group: from the channels of a group to those of the next.
    """

    x_block: int
    w_block: int
    y_share: int
    x_group: int


@dataclasses.dataclass(frozen=True)
class Tasks:
    """How the work is divided; every task is done by one worker.

    A task is one share of the blocks, one part of the positions and `tiles` filter
    tiles.

    Attributes:
      blocks: of images; of channels in a weight gradient, which is a sum over them.
      shares: of the blocks, each with an output of its own, to which it adds its blocks
        one after the other.
      parts: of the positions.
      tiles: of filters, computed one after the other on the same positions.
      workers: at most.
    """

    blocks: int
    shares: int
    parts: int
    tiles: int
    workers: int

    @property
    def blocks_per_share(self) -> int:
        """How many blocks a task adds up."""
        return self.blocks // self.shares


class PostOp(NamedTuple):
    """One elementwise operation of an epilogue: `y = op(y, operand)`.

    Attributes:
      op: `add`, `sub`, `mul`, `div`, `max` or `min`.
      kind: of the operand: a `number`, one per `filter`, or one per `entry` of `y`.
      number: the operand itself, where it is one.
      operand: which of the operands of its kind.
      swapped: whether it is `y = op(operand, y)`.
    """

    op: str
    kind: Literal["number", "filter", "entry"]
    number: float = 0.0
    operand: int = 0
    swapped: bool = False


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A convolution as its code computes it.

    Attributes:
      vectors: what their lanes hold.
      filters: in tiles, as many for every group.
      visits: of all positions.
      rows: of `w`, on their way to the microkernel.
      strides: between blocks, shares and groups.
      tasks: for the workers.
      epilogue: what is done to every entry before it is written.
    """

    vectors: Vectors
    filters: tuple[FilterTile, ...]
    visits: tuple[Visit, ...]
    rows: Rows
    strides: Strides
    tasks: Tasks
    epilogue: tuple[PostOp, ...]

    @property
    def per_filter(self) -> int:
        """Operands of the epilogue with one number per filter."""
        return sum(op.kind == "filter" for op in self.epilogue)

    @property
    def per_entry(self) -> int:
        """Operands of the epilogue like `y`."""
        return sum(op.kind == "entry" for op in self.epilogue)

    @property
    def macs_inside(self) -> int:
        """Multiply-accumulates, without those on padding and on zero columns."""
        count, vectors = 0, self.vectors
        for visit in self.visits:
            sections = visit.tile.sections
            meets = [
                sum(len(p) * len(k) for p, k in zip(sections, columns, strict=True))
                for columns in visit.columns
            ]
            for tile in self.filters:
                group = tile.group if len(visit.columns) > 1 else 0
                filters = (tile.vectors - 1) * vectors.filters + tile.tail
                products = meets[group] * len(visit.runs) * self.tasks.blocks
                count += products * filters * vectors.interleave
        return count
