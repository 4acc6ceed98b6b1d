"""Structures: which axes of a kernel index its groups.

A kernel has axes `(spatial..., I, O)`; a dense kernel `(I, O)` is the same with every
spatial size 1, a vector `(O,)` (bias, norm scale) has the output axis alone.
"""

import dataclasses
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "BLOCK",
    "CHANNEL",
    "FILTER",
    "KERNEL",
    "LAYER",
    "SHAPE",
    "VECTOR",
    "WEIGHT",
    "Structure",
    "Structures",
]

Layout: TypeAlias = Literal["...IO", "OI..."]


@dataclasses.dataclass(frozen=True)
class Structure:
    """A way to divide one leaf into groups, by the axes that index them.

    Exactly one of `keep`, `drop` and `block` is given. Axes are numbered as in
    `(spatial..., I, O)`, whatever the layout: -1 is O, -2 is I, -3 the last spatial
    axis.

    Attributes:
        name: Shown in the names of classes.
        keep: Axes that index the groups; the others are summed over.
        drop: Axes summed over, where the leaf has them; the others index the groups.
        block: Sizes of blocks, one per axis, None for all of it; groups are the blocks.
        parts: Number of equal parts of O, each with groups of its own.

    Example:
        >>> HEAD = Structure("HEAD", keep=(1,))  # axis 1 of (features, heads, size)
    """

    name: str
    keep: tuple[int, ...] | None = None
    drop: tuple[int, ...] | None = None
    block: tuple[int | None, ...] | None = None
    parts: int = 1

    def __post_init__(self):
        given = [x for x in (self.keep, self.drop, self.block) if x is not None]
        if len(given) != 1:
            raise ValueError(f"{self.name}: give exactly one of keep, drop and block")
        sizes = [size for size in self.block or () if size is not None]
        axes = [*(self.keep or ()), *(self.drop or ())]
        if not all(isinstance(n, int) for n in (*sizes, *axes, self.parts)):
            raise TypeError(f"{self.name}: sizes, axes and parts must be whole numbers")
        if any(size is not None and size < 1 for size in self.block or ()):
            raise ValueError(f"{self.name}: block sizes must be >= 1")
        if self.parts < 1:
            raise ValueError(f"{self.name}: parts must be >= 1, got {self.parts}")

    def __or__(self, other: "Structure | Structures") -> "Structures":
        """Both structures on one leaf; their groups overlap."""
        return Structures((self,)) | other

    def __str__(self) -> str:
        """The name, with the parts of a grouped convolution."""
        return self.name if self.parts == 1 else f"{self.name}.within({self.parts})"

    def within(self, parts: int) -> "Structure":
        """Groups taken inside each part of a convolution with `parts` feature groups.

        O is cut into `parts` equal parts, and a column of weights (`SHAPE`), an input
        channel or a layer is a separate group in each; the parts are an extra axis of
        the index, in place of O. Filters lie inside one part anyway.
        """
        return dataclasses.replace(self, parts=parts)


@dataclasses.dataclass(frozen=True)
class Structures:
    """Several structures on one leaf, made with `|`."""

    structures: tuple[Structure, ...]

    def __or__(self, other: "Structure | Structures") -> "Structures":
        """All structures of both."""
        more = other.structures if isinstance(other, Structures) else (other,)
        return Structures(self.structures + more)

    def __str__(self) -> str:
        """The structures joined with `|`."""
        return " | ".join(map(str, self.structures))

    def within(self, parts: int) -> "Structures":
        """Each structure within `parts` parts."""
        return Structures(tuple(s.within(parts) for s in self.structures))


FILTER = Structure("FILTER", keep=(-1,))
"""Indexed by O: filters, neurons, or the entries of a vector."""
CHANNEL = Structure("CHANNEL", keep=(-2,))
"""Indexed by I: input channels."""
SHAPE = Structure("SHAPE", drop=(-1,))
"""Indexed by every spatial axis and I: shape fibres, columns of the GEMM."""
KERNEL = Structure("KERNEL", keep=(-2, -1))
"""Indexed by I and O: one spatial kernel per pair of input and output channels."""
VECTOR = Structure("VECTOR", drop=(-3,))
"""Indexed by all axes but the last spatial one: rows of a spatial kernel."""
WEIGHT = Structure("WEIGHT", drop=())
"""Indexed by every axis: single weights."""
LAYER = Structure("LAYER", keep=())
"""One group: the whole leaf."""


def BLOCK(*sizes: int | None) -> Structure:
    """Blocks of the given sizes, one size per axis of the leaf: `BLOCK(h, w, i, o)`.

    None means the whole axis: `BLOCK(1, 1, 16, None)` is one tap and 16 adjacent input
    channels, over all filters: a run of GEMM columns that a compact program reads
    contiguously. Leading sizes of 1 are dropped for a leaf with fewer axes, so that
    `BLOCK(1, 1, 8, 8)` also divides dense kernels. Sizes must divide their axes.
    """
    return Structure(f"BLOCK({','.join(map(str, sizes))})", block=sizes)


class View(NamedTuple):
    """A leaf as slices: reshape to `shape`, index by the axes `kept`."""

    shape: tuple[int, ...]
    kept: tuple[int, ...]


def view(shape: tuple[int, ...], structure: Structure, layout: Layout) -> View:
    """How a leaf of the given shape divides into the groups of a structure.

    Raises:
        ValueError: The structure does not fit the shape; says which size and why.
    """
    order = _order(len(shape), layout)
    dims = tuple(shape[axis] for axis in order)
    blocks, kept = _blocks(dims, structure)
    sizes: list[int] = []
    indices: list[int] = []
    for axis, dim in enumerate(shape):
        place = order.index(axis)
        if not kept[place]:
            sizes.append(dim)
            continue
        indices.append(len(sizes))
        block = blocks[place]
        sizes += [dim] if block == 1 else [dim // block, block]
    return View(tuple(sizes), tuple(indices))


def _order(rank: int, layout: Layout) -> tuple[int, ...]:
    """The leaf's axes in the order spatial, I, O."""
    if layout == "...IO" or rank < 2:
        return tuple(range(rank))
    if layout == "OI...":
        return (*range(2, rank), 1, 0)
    raise ValueError(f"layout must be '...IO' or 'OI...', got {layout!r}")


def _blocks(
    dims: tuple[int, ...], structure: Structure
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Block length per axis, and whether the axis indexes groups."""
    if structure.block is not None:
        blocks, kept = _fitted(dims, structure.block, structure)
        inside = blocks[-1] if dims and kept[-1] else 1
    else:
        kept = _kept(len(dims), structure)
        blocks = [1 if k else dim for k, dim in zip(kept, dims, strict=True)]
        inside = 1
    if structure.parts > 1:
        length = _part_length(dims, structure, inside)
        if not kept[-1]:
            kept[-1], blocks[-1] = True, length
    return tuple(blocks), tuple(kept)


def _kept(rank: int, structure: Structure) -> list[bool]:
    if structure.keep is not None:
        needed = max((-a if a < 0 else a + 1 for a in structure.keep), default=0)
        axes = structure.keep
    else:
        needed = 2 if structure.drop else 0
        axes = structure.drop or ()
    if rank < needed:
        raise ValueError(f"{structure} needs at least {needed} axes, got {rank}")
    named = {a % rank for a in axes if -rank <= a < rank} if rank else set()
    return [(a in named) == (structure.keep is not None) for a in range(rank)]


def _fitted(
    dims: tuple[int, ...], block: tuple[int | None, ...], structure: Structure
) -> tuple[list[int], list[bool]]:
    extra = len(block) - len(dims)
    if extra < 0 or any(size != 1 for size in block[:extra]):
        raise ValueError(f"{structure}: give one size for each of {len(dims)} axes")
    rows = list(zip(block[extra:], dims, strict=True))
    sizes = [dim if size is None else size for size, dim in rows]
    bad = [f"{s} of {d}" for s, d in zip(sizes, dims, strict=True) if d % s]
    if bad:
        raise ValueError(f"{structure}: sizes must divide the axes: {', '.join(bad)}")
    return sizes, [size is not None for size, _ in rows]


def _part_length(dims: tuple[int, ...], structure: Structure, inside: int) -> int:
    if not dims or dims[-1] % structure.parts:
        got = dims[-1] if dims else "no axis"
        raise ValueError(f"{structure}: parts must divide the output axis, got {got}")
    length = dims[-1] // structure.parts
    if length % inside:
        raise ValueError(
            f"{structure}: blocks of {inside} outputs do not divide parts of {length}"
        )
    return length
