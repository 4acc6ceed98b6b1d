"""Slices of a value as one boolean vector per axis.

Most of them are short, and most say the same of every slice, so that NumPy's own
overhead would be most of an analysis: the uniform ones are shared and recognised.
"""

import functools

import numpy as np
from jaxtyping import Bool

Mask = Bool[np.ndarray, "_"]
Masks = list[Mask]


@functools.cache
def _shared(size: int, state: bool) -> Mask:
    mask = np.full(size, state)
    mask.flags.writeable = False
    return mask


def uniform(shape: tuple[int, ...], state: bool) -> Masks:
    """The same fact for every slice of a shape; do not write to the vectors."""
    return [_shared(n, state) for n in shape or (1,)]


def some(mask: Mask) -> bool:
    """Whether it holds anywhere."""
    return bool(np.count_nonzero(mask))


def every(mask: Mask) -> bool:
    """Whether it holds everywhere."""
    return bool(np.count_nonzero(mask) == mask.size)


def is_region(masks: Masks) -> bool:
    """Whether the product of the axes' slices holds any entry."""
    return all(map(some, masks))


def within(inner: Masks, outer: Masks) -> bool:
    """Whether all slices of one are among those of the other."""
    return all(a is b or not some(a > b) for a, b in zip(inner, outer, strict=True))


def same(left: Masks, right: Masks) -> bool:
    """Whether two values have the same slices."""
    return all(a is b or not some(a != b) for a, b in zip(left, right, strict=True))


def either(left: Masks, right: Masks) -> Masks:
    """Slices of any of the two."""
    return [a if a is b else a | b for a, b in zip(left, right, strict=True)]


def without(left: Masks, right: Masks) -> Masks:
    """Slices of the first that are not of the second."""
    return [a > b for a, b in zip(left, right, strict=True)]
