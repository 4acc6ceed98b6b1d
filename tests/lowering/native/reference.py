"""Convolutions without machine code: by their definition, and by their schedule."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from sslx.lowering import Conv
from sslx.lowering._native.positions import memory_order
from sslx.lowering._native.schedule import FilterTile, PostOp, Schedule, Visit
from sslx.lowering._taps import dilated

OPS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def convolution(conv: Conv, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """By its definition: a product per tap, of images with zeros between and around."""
    sizes = [dilated(n, d) for n, d in zip(conv.image, conv.lhs_dilation, strict=True)]
    spread = np.zeros((x.shape[0], *sizes, x.shape[-1]))
    spread[:, *(slice(None, None, d) for d in conv.lhs_dilation)] = x
    for axis, (low, high) in enumerate(conv.padding, 1):
        around = [(0, 0)] * spread.ndim
        around[axis] = max(low, 0), max(high, 0)
        spread = np.pad(spread, around)
        inside = slice(max(-low, 0), spread.shape[axis] - max(-high, 0))
        spread = spread[(slice(None),) * axis + (inside,)]
    by_group = w.reshape(*conv.rhs[:-1], conv.groups, -1) * conv.mask[..., None]
    y = np.zeros((x.shape[0], *conv.out, conv.groups, by_group.shape[-1]))
    for tap in np.ndindex(*conv.window):
        read = tuple(
            slice(k * d, k * d + dilated(n, s), s)
            for k, d, n, s in zip(
                tap, conv.rhs_dilation, conv.out, conv.strides, strict=True
            )
        )
        met = spread[:, *read].reshape(*y.shape[:-1], conv.rhs[-2])
        y += np.einsum("...gc,cgf->...gf", met, by_group[tap])
    return y.reshape(x.shape[0], *conv.out, conv.rhs[-1])


def followed(y: np.ndarray, epilogue: Sequence[PostOp], operands: Any) -> np.ndarray:
    """The operations of an epilogue; operands by kind."""
    for op, kind, number, which, swapped in epilogue:
        operand = np.float64(number) if kind == "number" else operands[kind][which]
        y = OPS[op](operand, y) if swapped else OPS[op](y, operand)
    return y


def laid_out(
    conv: Conv, schedule: Schedule, gradient: bool, x: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The memory that code reads."""
    x_order, w_order = memory_order(conv, gradient)
    by_group = w.reshape(*conv.rhs[:-1], conv.groups, -1) * conv.mask[..., None]
    w = by_group.reshape(conv.rhs)
    if schedule.vectors.interleave > 1:
        rows = w.reshape(-1, schedule.vectors.interleave, conv.rhs[-1]).swapaxes(1, 2)
        free = schedule.vectors.filters - conv.rhs[-1]
        w = np.pad(rows, ((0, 0), (0, free), (0, 0)))
        w_order = range(w.ndim)
    return x.transpose(x_order).reshape(-1), w.transpose(w_order).reshape(-1)


class Executor:
    """Goes through a schedule as its code does, task by task and tile by tile.

    An index outside of an array is an error, entries of `y` that nobody wrote are not a
    number, and `written` counts how often each was.

    Args:
      schedule: what to do.
      x: its memory.
      w: its memory.
      size: entries of all shares of `y`.
      operands: of the epilogue, by kind, each as it lies in memory.
    """

    def __init__(
        self,
        schedule: Schedule,
        x: np.ndarray,
        w: np.ndarray,
        size: int,
        operands: dict[str, list[np.ndarray]],
    ):
        self.schedule = schedule
        self.x, self.w, self.operands = x, w, operands
        self.y = np.full(size, np.nan)
        self.written = np.zeros(size, int)

    def run(self) -> np.ndarray:
        """All tasks, the last one first."""
        schedule = self.schedule
        tasks, filters = schedule.tasks, schedule.filters
        rounds = len(filters) // tasks.tiles
        for task in reversed(range(rounds * tasks.shares * tasks.parts)):
            rest, part = divmod(task, tasks.parts)
            some, share = divmod(rest, tasks.shares)
            tiles = filters[some * tasks.tiles : (some + 1) * tasks.tiles]
            per_share = tasks.blocks_per_share
            for k, visit, tile in itertools.product(
                range(per_share), schedule.visits, tiles
            ):
                self._tile(visit, tile, share, share * per_share + k, part, k > 0)
        return self.y

    def _tile(
        self,
        visit: Visit,
        tile: FilterTile,
        share: int,
        block: int,
        part: int,
        more: bool,
    ) -> None:
        """The tiles of positions of a part, for one of filters."""
        schedule, shape = self.schedule, visit.tile
        count = len(visit.runs) // shape.runs
        assert count * shape.runs == len(visit.runs)
        ends = [
            p * count // schedule.tasks.parts * shape.runs for p in (part, part + 1)
        ]
        starts = visit.runs[ends[0] : ends[1]].astype(np.int64)
        at = starts[:, None] + np.array(shape.places, np.int64)
        lanes = np.arange(tile.vectors * schedule.vectors.lanes)
        wide = schedule.vectors.filters
        filters = np.arange((tile.vectors - 1) * wide + tile.tail)
        into = (
            share * schedule.strides.y_share + tile.first + at[..., 1, None] + filters
        )
        sums = np.zeros((*at.shape[:2], len(lanes)))
        if more:
            sums[..., filters] = _read(self.y, into)
        columns = visit.columns[tile.group if len(visit.columns) > 1 else 0]
        rows = self._rows(tile, block, lanes)
        for met, column in zip(shape.sections, columns, strict=True):
            reads = (
                block * schedule.strides.x_block
                + at[:, list(met), 0, None]
                + column[:, 0]
            )
            if schedule.vectors.channelwise:
                reads = reads[..., None] + tile.first + filters
                values = np.zeros((*reads.shape[:-1], len(lanes)))
                values[..., filters] = _read(self.x, reads)
            else:
                reads = reads + tile.group * schedule.strides.x_group
                values = _read(
                    self.x, reads[..., None] + lanes % schedule.vectors.interleave
                )
            sums[:, list(met)] += np.einsum("rpkl,kl->rpl", values, rows[column[:, 1]])
        sums = sums.reshape(
            *at.shape[:2],
            len(lanes) // schedule.vectors.interleave,
            schedule.vectors.interleave,
        ).sum(-1)[..., filters]
        given = {
            "filter": [_read(a, tile.first + filters) for a in self._given("filter")],
            "entry": [_read(a, into) for a in self._given("entry")],
        }
        assert into.size == 0 or (0 <= into.min() and into.max() < len(self.y))
        self.y[into] = followed(sums, schedule.epilogue, given)
        np.add.at(self.written, into.reshape(-1), 1)

    def _given(self, kind: str) -> list[np.ndarray]:
        return self.operands.get(kind, [])

    def _rows(self, tile: FilterTile, block: int, lanes: np.ndarray) -> np.ndarray:
        """Every row that columns may name, for the filters of a tile."""
        schedule = self.schedule
        groups = schedule.rows.packed or ()
        named = [k[:, 1] for v in schedule.visits for c in v.columns for k in c]
        count = 1 + max((int(k.max()) for k in named if len(k)), default=-1)
        at = np.arange(count)
        if groups:
            packed = groups[tile.group if len(groups) > 1 else 0]
            at = np.full(count, -1)
            at[: len(packed)] = packed[:count]
        whole = schedule.vectors.interleave > 1
        some = (
            lanes
            if whole
            else lanes[: (tile.vectors - 1) * schedule.vectors.lanes + tile.tail]
        )
        places = (
            block * schedule.strides.w_block
            + at[:, None] * schedule.rows.stride
            + tile.first
            + some
        )
        rows = np.full((count, len(lanes)), np.nan)
        rows[:, len(some) :] = 0
        inside = (at >= 0) & (places.max(1) < len(self.w))
        rows[np.ix_(inside, some)] = self.w[places[inside]]
        return rows


def _read(array: np.ndarray, places: np.ndarray) -> np.ndarray:
    assert places.size == 0 or (0 <= places.min() and places.max() < len(array))
    return array[places]
