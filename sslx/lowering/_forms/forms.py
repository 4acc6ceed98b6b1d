"""Exact ways to compute one convolution, over its non-zero columns."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx.lowering._conv import Columns, Conv
from sslx.lowering._forms import products
from sslx.lowering._forms.taps import take
from sslx.lowering._native import direct

Kind = Literal[
    "xla",
    "direct",
    "crop",
    "union",
    "dot",
    "im2col",
    "gather",
    "gather_columns",
    "shifted",
    "classes",
    "unrolled",
    "depthwise",
    "split",
    "phases",
]


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to compute a convolution; all of them are exact.

    - `xla`: leaves it to XLA.
    - `direct`: machine code for a CPU that reads only columns that are not zero, and
      computes the elementwise operations that follow.
    - `crop`: without border taps that are zero or only ever meet padding.
    - `union`: `crop`, over the channels that any tap keeps.
    - `dot`: one product; for kernels of one tap, without padding.
    - `im2col`: patches of all columns, one product.
    - `gather`: patches of the kept columns only, `(positions, columns)`, one product.
    - `gather_columns`: the same as `(columns, positions)`, channels first inside.
    - `shifted`: one product per tap, over the channels that this tap keeps.
    - `classes`: one convolution per set of channels that keep the same taps.
    - `unrolled`: one product per output position, without taps on padding.
    - `depthwise`: one multiply-add per tap; for one input channel per group.
    - `split`: one convolution per group of filters, by `inner` where that applies.
    - `phases`: one convolution per phase of a dilated input.

    Attributes:
      kind: one of these.
      chunk: images at a time, one chunk after the other (`jax.lax.map`); 0 means all.
      inner: the form of the parts.
    """

    kind: Kind
    chunk: int = 0
    inner: Kind = "xla"

    def __str__(self) -> str:
        parts = f" of {self.inner}" if self.kind in _COMPOSED else ""
        chunks = f", {self.chunk} images at a time" if self.chunk else ""
        return f"{self.kind}{parts}{chunks}"


XLA = Form("xla")
_COMPOSED = ("split", "phases")


def run(form: Form, conv: Conv, x: Array, w: Array) -> Array:
    """Compute a convolution in a form.

    Args:
      form: a form for which `applies` gives None.
      conv: the convolution.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`; columns outside `conv.mask` count as zero.
    """
    if form.kind == "direct":
        return direct.direct(conv, x, w)
    if not form.chunk:
        return _whole(form, conv, x, w)
    images = conv.lhs[0]
    part = dataclasses.replace(conv, lhs=(form.chunk, *conv.lhs[1:]))
    parts = x.reshape(images // form.chunk, *part.lhs)
    whole = dataclasses.replace(form, chunk=0)
    out = jax.lax.map(lambda chunk: _whole(whole, part, chunk, w), parts)
    return out.reshape(images, *out.shape[2:])


def applies(form: Form, conv: Conv) -> str | None:
    """Why a form cannot compute a convolution; None if it can."""
    if form == XLA:
        return None
    if form.kind == "direct":
        return direct.unfit(conv) or ("it has no chunks" if form.chunk else None)
    if conv.batch_groups > 1:
        return "it has groups of images"
    if conv.is_empty:
        return "it has no entries"
    whole = conv.lhs[0]
    if form.chunk and (whole % form.chunk or form.chunk >= whole):
        return f"{whole} do not come in chunks of {form.chunk}"
    if form.kind == "xla":
        return None
    dilation = any(d > 1 for d in conv.lhs_dilation)
    if form.kind == "phases":
        if not dilation or any(n > 1 for n in (*conv.strides, *conv.rhs_dilation)):
            return "it is for dilated inputs without strides or dilated kernels"
        return None
    if dilation:
        return "the input is dilated"
    if form.kind == "split":
        return None if conv.groups > 1 else "it has one group"
    if form.kind == "depthwise":
        return None if conv.rhs[-2] == 1 else "groups have more than one channel"
    if conv.groups > 1:
        return "it has several groups: split it"
    if form.kind == "dot" and (
        math.prod(conv.window) > 1 or any(low or high for low, high in conv.padding)
    ):
        return "the kernel has several taps, or padding"
    if form.kind == "unrolled" and math.prod(conv.out) > _MOST_UNROLLED:
        return f"there are more than {_MOST_UNROLLED} output positions"
    return None


_MOST_UNROLLED = 64


def _whole(form: Form, conv: Conv, x: Array, w: Array) -> Array:
    if form.kind == "xla":
        return conv.run(x, w)
    conv = live(conv)
    if not conv.mask.any():
        return jnp.zeros(conv.shape, conv.result)
    if form.kind == "split":
        return _split(conv, x, w, Form(form.inner))
    if form.kind == "phases":
        return _phases(conv, x, w, Form(form.inner))
    wide = dataclasses.replace(conv, result=_WIDE.get(conv.result, conv.result))
    return _FORMS[form.kind](wide, x, w).astype(conv.result)


_WIDE = {"bfloat16": "float32", "float16": "float32"}
"""What sums of parts are held in."""


def live(conv: Conv) -> Conv:
    """Without the columns that only ever meet padding."""
    mask = conv.mask
    for axis in range(len(conv.window)):
        met = conv.meets(axis).any(0)
        mask = mask & met.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
    return dataclasses.replace(conv, columns=Columns.of(mask))


# Smaller convolutions.


def _crop(conv: Conv, x: Array, w: Array) -> Array:
    small, box = cropped(conv)
    return small.run(x, w[box])


def cropped(conv: Conv) -> tuple[Conv, tuple[slice, ...]]:
    """A live convolution over the box of its taps, and that box."""
    taps = np.any(conv.mask, axis=(-2, -1))
    box, padding = [], []
    for axis, ((low, high), d) in enumerate(
        zip(conv.padding, conv.rhs_dilation, strict=True)
    ):
        rest = tuple(a for a in range(taps.ndim) if a != axis)
        alive = np.flatnonzero(np.any(taps, axis=rest))
        first, last = (int(alive[0]), int(alive[-1])) if alive.size else (0, 0)
        box.append(slice(first, last + 1))
        after = conv.window[axis] - 1 - last
        padding.append((low - first * d, high - after * d))
    window = tuple(b.stop - b.start for b in box)
    columns = Columns.of(conv.mask[tuple(box)])
    small = dataclasses.replace(
        conv,
        rhs=(*window, *conv.rhs[-2:]),
        padding=tuple(padding),
        columns=columns,
    )
    return small, tuple(box)


def _union(conv: Conv, x: Array, w: Array) -> Array:
    small, box = cropped(conv)
    keep = np.flatnonzero(
        np.any(small.mask[..., 0], axis=tuple(range(small.mask.ndim - 2)))
    )
    small = _over_channels(small, keep)
    return small.run(take(x, keep), take(w[box], keep, axis=-2))


def _over_channels(conv: Conv, keep: np.ndarray) -> Conv:
    return dataclasses.replace(
        conv,
        lhs=(*conv.lhs[:-1], keep.size),
        rhs=(*conv.window, keep.size, conv.rhs[-1]),
        columns=Columns.of(conv.mask[..., keep, :]),
    )


def _classes(conv: Conv, x: Array, w: Array) -> Array:
    total = None
    for part, keep in classes(conv):
        small, box = cropped(part)
        xs, ws = take(x, keep), take(w, keep, axis=-2)[box]
        full = small.columns is None
        out = small.run(xs, ws) if full else products.gather(small, xs, ws)
        total = out if total is None else total + out
    assert total is not None
    return total


def classes(conv: Conv) -> list[tuple[Conv, np.ndarray]]:
    """Per set of channels that keep the same taps: a convolution, and the channels."""
    support = np.moveaxis(conv.mask[..., 0], -1, 0).reshape(conv.rhs[-2], -1)
    patterns, which = np.unique(support, axis=0, return_inverse=True)
    which = which.reshape(-1)
    kept = [np.flatnonzero(which == k) for k, p in enumerate(patterns) if p.any()]
    return [(_over_channels(conv, keep), keep) for keep in kept]


def groups_of(conv: Conv) -> list[Conv]:
    """The convolution of every group of filters, on its own channels."""
    channels, filters = conv.rhs[-2], conv.rhs[-1] // conv.groups
    return [
        dataclasses.replace(
            conv,
            lhs=(*conv.lhs[:-1], channels),
            rhs=(*conv.rhs[:-1], filters),
            groups=1,
            columns=Columns.of(conv.mask[..., g : g + 1]),
        )
        for g in range(conv.groups)
    ]


def _split(conv: Conv, x: Array, w: Array, inner: Form) -> Array:
    channels, filters = conv.rhs[-2], conv.rhs[-1] // conv.groups
    outs = []
    for g, part in enumerate(groups_of(conv)):
        xs = x[..., g * channels : (g + 1) * channels]
        ws = w[..., g * filters : (g + 1) * filters]
        outs.append(_part(inner, part, xs, ws))
    return jnp.concatenate(outs, axis=-1)


def _part(form: Form, conv: Conv, x: Array, w: Array) -> Array:
    return run(form if applies(form, conv) is None else XLA, conv, x, w)


def _phases(conv: Conv, x: Array, w: Array, inner: Form) -> Array:
    """Output positions p with p mod d equal meet the same taps of the kernel."""
    d = conv.lhs_dilation
    outs = np.empty(d, object)
    longest = tuple(-(-n // s) for n, s in zip(conv.out, d, strict=True))
    for phase in itertools.product(*map(range, d)):
        part, taps = _phase(conv, phase)
        y = None if part is None else _part(inner, part, x, w[taps])
        outs[phase] = _padded_to(conv, y, longest)
    return _interleaved(outs, conv)


def _phase(conv: Conv, phase: tuple[int, ...]) -> tuple[Conv | None, tuple[slice, ...]]:
    taps, padding, window = [], [], []
    for axis, (f, d) in enumerate(zip(phase, conv.lhs_dilation, strict=True)):
        low = conv.padding[axis][0]
        first = (low - f) % d
        count = -(-(conv.window[axis] - first) // d)
        positions = -(-(conv.out[axis] - f) // d)
        if count <= 0 or positions <= 0:
            return None, ()
        before = (low - f - first) // d
        after = positions + count - 1 - conv.image[axis] - before
        taps.append(slice(first, None, d))
        padding.append((before, after))
        window.append(count)
    ones = (1,) * len(phase)
    part = dataclasses.replace(
        conv,
        rhs=(*window, *conv.rhs[-2:]),
        padding=tuple(padding),
        lhs_dilation=ones,
        columns=Columns.of(conv.mask[tuple(taps)]),
    )
    return part, tuple(taps)


def _padded_to(conv: Conv, y: Array | None, size: tuple[int, ...]) -> Array:
    shape = (conv.lhs[0], *size, conv.rhs[-1])
    if y is None:
        return jnp.zeros(shape, conv.result)
    return jnp.pad(y, [(0, n - m) for n, m in zip(shape, y.shape, strict=True)])


def _interleaved(outs: np.ndarray, conv: Conv) -> Array:
    for axis in reversed(range(outs.ndim)):
        stacked = np.empty(outs.shape[:-1], object)
        for index in np.ndindex(*stacked.shape):
            parts = jnp.stack(list(outs[index]), axis=axis + 2)
            shape = list(parts.shape)
            shape[axis + 1 : axis + 3] = [shape[axis + 1] * shape[axis + 2]]
            whole = parts.reshape(shape)
            stacked[index] = jax.lax.slice_in_dim(
                whole, 0, conv.out[axis], axis=axis + 1
            )
        outs = stacked
    return outs.item()


_FORMS: dict[str, Callable[[Conv, Array, Array], Array]] = {
    "crop": _crop,
    "union": _union,
    "classes": _classes,
    "dot": products.dot,
    "im2col": products.im2col,
    "gather": products.gather,
    "gather_columns": products.gather_columns,
    "shifted": products.shifted,
    "unrolled": products.unrolled,
    "depthwise": products.depthwise,
}
