"""A convolution as data: sizes, strides and the kernel columns that are not zero."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sslx.lowering._taps import Axis

Pads = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a kernel may be nonzero.

    A column is one tap and input channel of one group of filters; its entries lie in
    the `O / groups` filters of that group.

    Attributes:
      shape: `(*window, I, groups)`.
      bits: the mask, one bit per column.
    """

    shape: tuple[int, ...]
    bits: bytes = dataclasses.field(repr=False)

    @classmethod
    def of(cls, mask: np.ndarray) -> "Columns | None":
        """The columns of a boolean mask of that shape; None where all are alive."""
        return None if mask.all() else cls(mask.shape, np.packbits(mask).tobytes())

    def to_json(self) -> list[Any]:
        """Plain numbers and strings."""
        return [list(self.shape), self.bits.hex()]

    @classmethod
    def from_json(cls, data: Any) -> "Columns":
        """The inverse of `to_json`."""
        shape, bits = data
        return cls(tuple(shape), bytes.fromhex(bits))

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "*shape"]:
        """One boolean per column."""
        flat = np.unpackbits(
            np.frombuffer(self.bits, np.uint8), count=math.prod(self.shape)
        )
        return flat.astype(bool).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of `(N, *image, C)` with `(*window, C / groups, O)`.

    `y[n, p, o] = sum over k, c of x[n, p * stride + k * dilation - pad, c] w[k, c, o]`

    Attributes:
      lhs: shape of `x`, channels last.
      rhs: shape of `w`, filters last.
      strides: per image axis.
      padding: low and high, per image axis; may be negative.
      lhs_dilation: distance of the entries of `x`, with zeros between them.
      rhs_dilation: distance of the taps.
      groups: number of groups of filters, each of which reads its part of the channels.
      batch_groups: number of groups of images, each of which meets its part of the
        filters.
      dtype: dtype of `x`.
      result: dtype of `y`.
      precision: as for `jax.lax.conv_general_dilated`.
      columns: the columns that may be nonzero; None means all.
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pads
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    batch_groups: int
    dtype: str
    result: str
    precision: Any
    columns: Columns | None = None

    @property
    def image(self) -> tuple[int, ...]:
        """Spatial sizes of the input."""
        return self.lhs[1:-1]

    @property
    def window(self) -> tuple[int, ...]:
        """Spatial sizes of the kernel."""
        return self.rhs[:-2]

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The spatial axes."""
        every = zip(
            self.image,
            self.lhs_dilation,
            self.padding,
            self.window,
            self.rhs_dilation,
            self.strides,
            strict=True,
        )
        return tuple(itertools.starmap(Axis, every))

    @functools.cached_property
    def out(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        return tuple(axis.out for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `y`."""
        return (self.lhs[0] // self.batch_groups, *self.out, self.rhs[-1])

    @property
    def is_empty(self) -> bool:
        """Whether an operand or the result has no entries."""
        return 0 in (*self.lhs, *self.rhs, *self.out)

    @functools.cached_property
    def mask(self) -> Bool[np.ndarray, "*window I groups"]:
        """The columns that may be nonzero."""
        if self.columns is None:
            return np.ones((*self.rhs[:-1], self.groups), bool)
        return self.columns.mask

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the columns that are not zero.

        Padding counts, the holes of a dilated input do not.
        """
        if any(d > 1 for d in self.lhs_dilation):
            return self.macs_inside
        return self._macs(np.full(self.window, math.prod(self.out)))

    @property
    def macs_inside(self) -> int:
        """Multiply-accumulates without padding."""
        taps = np.ones((), int)
        for axis in self.axes:
            _, meets = axis.reads()
            taps = np.multiply.outer(taps, meets.sum(0))
        return self._macs(taps)

    def _macs(self, positions: np.ndarray) -> int:
        """Given the number of positions at which each tap is used."""
        columns = self.mask.sum((-2, -1))
        filters = self.rhs[-1] // self.groups // self.batch_groups
        return int((columns * positions).sum()) * self.lhs[0] * filters

    @functools.cached_property
    def key(self) -> str:
        """A string that is equal for equal convolutions, as a key on disk."""
        columns = "all" if self.columns is None else self.columns.bits.hex()
        fields = dataclasses.replace(self, columns=None)
        return f"{fields}, columns={columns}"

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for a `precision` of None."""
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: getattr(self, name) for name in names}
        return fields | {"columns": self.columns and self.columns.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Conv":
        """The inverse of `to_json`, also after a trip through a file."""
        columns = data["columns"] and Columns.from_json(data["columns"])
        fields: dict[str, Any] = {k: _tuples(v) for k, v in data.items()}
        fields["columns"] = columns
        return cls(**fields)

    def run(self, x: Array, w: Array) -> Array:
        """XLA's own convolution.

        Negative padding is sliced off first: XLA is wrong with it in half precision.
        """
        x, padding = self._cut(x)
        if self.is_empty or 0 in x.shape[1:-1]:
            return jnp.zeros(self.shape, self.result)
        return jax.lax.conv_general_dilated(
            x,
            w,
            self.strides,
            padding,
            self.lhs_dilation,
            self.rhs_dilation,
            dimension_numbers=_canonical(len(self.lhs)),
            feature_group_count=self.groups,
            batch_group_count=self.batch_groups,
            precision=self.precision,
            preferred_element_type=jnp.dtype(self.result),
        )

    def _cut(self, x: Array) -> tuple[Array, Pads]:
        """The image without what negative padding removes, and the padding left."""
        bounds, padding = [], []
        for n, hole, sides in zip(
            self.image, self.lhs_dilation, self.padding, strict=True
        ):
            cuts = [min(n, -(min(side, 0) // hole)) for side in sides]
            left = [side + cut * hole for side, cut in zip(sides, cuts, strict=True)]
            bounds.append((cuts[0], max(cuts[0], n - cuts[1])))
            padding.append(tuple(left))
        if any(side < 0 for sides in self.padding for side in sides):
            x = x[(slice(None), *(slice(*bound) for bound in bounds))]
        return x, tuple(padding)


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tuples(v) for v in value)
    return value


def has_sizes(eqn: Any) -> bool:
    """Whether all shapes of an equation are numbers, none of them symbolic."""
    shapes = [getattr(atom.aval, "shape", ()) for atom in (*eqn.invars, *eqn.outvars)]
    return all(isinstance(n, int) for shape in shapes for n in shape)


def from_params(
    params: Mapping[str, Any],
    lhs: Any,
    rhs: Any,
    alive: np.ndarray | None = None,
) -> Conv:
    """The convolution of an equation `conv_general_dilated`.

    Args:
      params: of the equation.
      lhs: input, or its shape and dtype.
      rhs: kernel, or its shape and dtype.
      alive: the entries of the kernel that may differ from zero; None means all.
    """
    numbers = params["dimension_numbers"]
    groups = params["feature_group_count"]
    shape = _permuted(rhs.shape, _kernel_last(numbers.rhs_spec))
    columns = None
    if alive is not None:
        entries = alive.transpose(_kernel_last(numbers.rhs_spec))
        by_group = entries.reshape(*shape[:-1], groups, shape[-1] // groups)
        columns = Columns.of(np.any(by_group, axis=-1))
    result = params["preferred_element_type"] or lhs.dtype
    return Conv(
        lhs=_permuted(lhs.shape, _channels_last(numbers.lhs_spec)),
        rhs=shape,
        strides=tuple(params["window_strides"]),
        padding=tuple((int(a), int(b)) for a, b in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        groups=groups,
        batch_groups=params["batch_group_count"],
        dtype=jnp.dtype(lhs.dtype).name,
        result=jnp.dtype(result).name,
        precision=params["precision"],
        columns=columns,
    )


def to_canonical(params: Mapping[str, Any], lhs: Array, rhs: Array) -> list[Array]:
    """The operands with channels and filters last."""
    numbers = params["dimension_numbers"]
    return [
        lhs.transpose(_channels_last(numbers.lhs_spec)),
        rhs.transpose(_kernel_last(numbers.rhs_spec)),
    ]


def from_canonical(params: Mapping[str, Any], out: Array) -> Array:
    """The result in the layout of the equation."""
    order = _channels_last(params["dimension_numbers"].out_spec)
    return out.transpose(np.argsort(order))


def channels_are_last(params: Mapping[str, Any]) -> bool:
    """Whether the result of an equation has its channels last, as `Conv`'s has."""
    order = _channels_last(params["dimension_numbers"].out_spec)
    return order == tuple(range(len(order)))


def _channels_last(spec: tuple[int, ...]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])


def _kernel_last(spec: tuple[int, ...]) -> tuple[int, ...]:
    return (*spec[2:], spec[1], spec[0])


def _permuted(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[a] for a in order)


def _canonical(ndim: int) -> jax.lax.ConvDimensionNumbers:
    image = tuple(range(1, ndim - 1))
    last = ndim - 1
    kernel = tuple(range(ndim - 2))
    return jax.lax.ConvDimensionNumbers(
        (0, last, *image), (last, last - 1, *kernel), (0, last, *image)
    )
