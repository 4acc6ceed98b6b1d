"""What follows from a convolution and a machine before any choice is made."""

import dataclasses
import functools
import math

import jax.numpy as jnp

from sslx.lowering._conv import Conv
from sslx.lowering._native.limits import image_bytes
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.positions import memory_order, strides_of
from sslx.lowering._native.tiling import BLOCK_BYTES

_FEW_POSITIONS = 256
_LARGE_KERNEL = 1 << 17


@dataclasses.dataclass(frozen=True)
class Problem:
    """A convolution on a machine.

    Attributes:
      conv: what to compute.
      machine: where.
      gradient: see `schedule`.
    """

    conv: Conv
    machine: Machine
    gradient: bool

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return jnp.dtype(self.conv.dtype).itemsize

    @property
    def lanes(self) -> int:
        """Entries of a vector."""
        return self.machine.bytes // self.itemsize

    @property
    def channelwise(self) -> bool:
        """Whether every filter reads the channel of its own number."""
        return self.conv.groups > 1 and self.conv.rhs[-2:] == (1, self.conv.groups)

    @property
    def groups(self) -> int:
        """Of filters, that read channels of their own."""
        return 1 if self.channelwise else self.conv.groups

    @property
    def per_group(self) -> int:
        """Filters of a group."""
        return self.conv.rhs[-1] // self.groups

    @functools.cached_property
    def interleave(self) -> int:
        """Neighbouring channels per filter in a vector; see `Vectors`."""
        plain = not self.gradient and self.conv.groups == 1
        return _interleave(self.conv, self.lanes) if plain else 1

    @property
    def vectors(self) -> int:
        """Of vectors that the filters of a group fill."""
        return -(-self.per_group * self.interleave // self.lanes)

    @property
    def positions(self) -> int:
        """Of the output, of all images."""
        return self.conv.lhs[0] * math.prod(self.conv.out)

    @functools.cached_property
    def kept(self) -> int:
        """Entries of the kernel that are not zero."""
        conv = self.conv
        return int(conv.mask.sum()) * conv.rhs[-1] // conv.groups

    @property
    def kernel_once(self) -> bool:
        """Whether so few positions meet so large a kernel that it is read only once."""
        large = self.kept * self.itemsize > _LARGE_KERNEL
        several = self.groups * self.vectors >= self.machine.cores
        return (
            not self.gradient and self.positions <= _FEW_POSITIONS and large and several
        )

    @property
    def filters_inside(self) -> bool:
        """Whether the loop over filters is the inner one, on a block in the cache."""
        small = self.kept * self.itemsize <= BLOCK_BYTES
        return self.gradient or (not self.kernel_once and small)

    @functools.cached_property
    def batch(self) -> int:
        """Images of a block."""
        if self.gradient:
            return self.conv.lhs[0]
        apart = 1 if self.filters_inside else self.groups * -(-self.vectors // 2)
        return _batch(self.conv, self.machine, apart)

    @property
    def blocks(self) -> int:
        """Of channels in a gradient, else of images."""
        return self.conv.lhs[-1] if self.gradient else self.conv.lhs[0] // self.batch

    @property
    def shares(self) -> int:
        """Parts of the blocks, each with an output of its own."""
        return _shares(self.conv, self.machine) if self.gradient else self.blocks

    @property
    def x_strides(self) -> list[int]:
        """Of `x`, in entries, by axis."""
        return strides_of(self.conv.lhs, memory_order(self.conv, self.gradient)[0])

    @property
    def y_strides(self) -> list[int]:
        """Of `y`, in entries, by axis."""
        shape = self.conv.shape
        return strides_of(shape, range(len(shape)))


def _interleave(conv: Conv, lanes: int) -> int:
    """How many neighbouring channels fit a vector beside each other, up to 4."""
    interleave = 1
    while 2 * interleave <= 4 and 2 * interleave * conv.rhs[-1] <= lanes:
        if conv.rhs[-2] % (2 * interleave):
            break
        pairs = conv.mask.reshape(*conv.window, -1, 2 * interleave)
        if not (pairs == pairs[..., :1]).all():
            break
        interleave *= 2
    return interleave


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _batch(conv: Conv, machine: Machine, apart: int) -> int:
    """Images of a block: they fit a cache and leave enough blocks for all cores."""
    image = image_bytes(conv)
    sizes = _divisors(conv.lhs[0])
    fitting = [b for b in sizes if b * image <= BLOCK_BYTES] or [1]
    busy = [b for b in fitting if conv.lhs[0] // b * apart >= 4 * machine.cores]
    return busy[-1] if busy else fitting[0]


def _shares(conv: Conv, machine: Machine) -> int:
    """Parts of a weight gradient that are added up in the end."""
    out = conv.lhs[0] * math.prod(conv.out) * conv.rhs[-1]
    most = (math.prod(conv.lhs) + math.prod(conv.rhs)) // (4 * out)
    sizes = [d for d in _divisors(conv.lhs[-1]) if d <= 4 * machine.cores]
    return max([d for d in sizes if d <= most], default=1)
