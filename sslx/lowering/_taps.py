"""What the taps of a convolution read, one axis at a time.

Entry `i` of an image whose entries lie `hole` apart stands at `i * hole`. At output
position `p` tap `k` looks at `p * stride + k * distance - low`: it reads an entry where
that is one's place, and meets only padding, or a hole, where it is not.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Axis(NamedTuple):
    """One axis of a convolution.

    Attributes:
      size: entries of the image.
      hole: their distance (`lhs_dilation`).
      padding: before the first and behind the last one; may be negative.
      window: taps of the kernel.
      distance: from tap to tap (`rhs_dilation`).
      stride: from position to position.
    """

    size: int
    hole: int
    padding: tuple[int, int]
    window: int
    distance: int
    stride: int

    @property
    def out(self) -> int:
        """Output positions."""
        room = dilated(self.size, self.hole) + sum(self.padding)
        return max(0, (room - dilated(self.window, self.distance)) // self.stride + 1)

    @property
    def starts(self) -> Int[np.ndarray, " out"]:
        """Where positions stand among entries and holes, padding not counted."""
        return np.arange(self.out) * self.stride

    @property
    def offsets(self) -> Int[np.ndarray, " window"]:
        """Where taps look, from where a position stands."""
        return np.arange(self.window) * self.distance - self.padding[0]

    def reads(
        self,
    ) -> tuple[Int[np.ndarray, "out window"], Bool[np.ndarray, "out window"]]:
        """The entry at or before the place of every tap, and whether a tap meets it."""
        entry, rest = np.divmod(self.starts[:, None] + self.offsets, self.hole)
        return entry, (rest == 0) & (entry >= 0) & (entry < self.size)

    def phase(
        self, start: int
    ) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        """The taps that hit no hole at positions in one phase of the entries.

        Args:
          start: where such a position stands, modulo `hole`.

        Returns:
          The taps, and the entries at their places, counted from `start // hole` of
          each position; those outside of the image are padding.
        """
        place = start + self.offsets
        taps = np.flatnonzero(place % self.hole == 0)
        return taps, place[taps] // self.hole

    def span(self, tap: int) -> slice:
        """What a tap reads of the padded image, which has no holes."""
        first = tap * self.distance
        return slice(first, first + dilated(self.out, self.stride), self.stride)


def dilated(size: int, distance: int) -> int:
    """Length of `size` entries at a distance."""
    return (size - 1) * distance + 1 if size else 0
