"""Exact ways to compute one convolution, over its non-zero columns."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from sslx.lowering._conv import Columns, Conv, dilated

Kind = Literal[
    "xla",
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

    | kind | what it does |
    | --- | --- |
    | `xla` | leaves it to XLA |
    | `crop` | drops border taps that are zero or only ever meet padding |
    | `union` | `crop`, over the channels that any tap keeps |
    | `dot` | one product; kernels of one tap, no padding |
    | `im2col` | patches of all columns, one product |
    | `gather` | patches of the kept columns only, `(positions, columns)`, one product |
    | `gather_columns` | the same as `(columns, positions)`, channels first inside |
    | `shifted` | one product per tap, over the channels this tap keeps |
    | `classes` | one convolution per set of channels that keep the same taps |
    | `unrolled` | one product per output position, without taps on padding |
    | `depthwise` | one multiply-add per tap; one input channel per group |
    | `split` | one convolution per group of filters, by `inner` where that applies |
    | `phases` | the same per phase of a dilated input |

    Attributes:
      kind: as above.
      chunk: images at a time, one after the other (`jax.lax.map`); 0 means all.
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
    """The convolution's result, computed in this form.

    Args:
      form: one that `applies`.
      conv: what to compute.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`; columns that are not in `conv.mask` count as zero.
    """
    if not form.chunk:
        return _whole(form, conv, x, w)
    images = conv.lhs[0]
    part = dataclasses.replace(conv, lhs=(form.chunk, *conv.lhs[1:]))
    parts = x.reshape(images // form.chunk, *part.lhs)
    whole = dataclasses.replace(form, chunk=0)
    out = jax.lax.map(lambda chunk: _whole(whole, part, chunk, w), parts)
    return out.reshape(images, *out.shape[2:])


def applies(form: Form, conv: Conv) -> str | None:
    """Why a form cannot compute a convolution, or None."""
    if form == XLA:
        return None
    if conv.batch_groups > 1:
        return "it has groups of images"
    if form.chunk and (conv.lhs[0] % form.chunk or form.chunk >= conv.lhs[0]):
        return f"{conv.lhs[0]} images do not come in chunks of {form.chunk}"
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
        shape = (conv.lhs[0], *conv.out, conv.rhs[-1])
        return jnp.zeros(shape, conv.result)
    if form.kind == "split":
        return _split(conv, x, w, Form(form.inner))
    if form.kind == "phases":
        return _phases(conv, x, w, Form(form.inner))
    return _FORMS[form.kind](conv, x, w)


def live(conv: Conv) -> Conv:
    """Without the columns that only ever meet padding."""
    if any(d > 1 for d in conv.lhs_dilation):
        return conv
    mask = conv.mask
    for axis in range(len(conv.window)):
        meets = _meets(conv, axis).any(0)
        mask = mask & meets.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
    return dataclasses.replace(conv, columns=Columns.of(mask))


# Smaller convolutions.


def _crop(conv: Conv, x: Array, w: Array) -> Array:
    small, box = cropped(conv)
    return small.run(x, w[box])


def cropped(conv: Conv) -> tuple[Conv, tuple[slice, ...]]:
    """The same convolution over the box of taps that count, and that box."""
    taps = np.any(live(conv).mask, axis=(-2, -1))
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
    return small.run(_take(x, keep), _take(w[box], keep, axis=-2))


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
        xs, ws = _take(x, keep), _take(w, keep, axis=-2)[box]
        full = small.columns is None
        out = small.run(xs, ws) if full else _gather(small, xs, ws)
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


# Products.


def _dot(conv: Conv, x: Array, w: Array) -> Array:
    limits = tuple(dilated(n, s) for n, s in zip(conv.out, conv.strides, strict=True))
    if limits != conv.image or any(s > 1 for s in conv.strides):
        x = jax.lax.slice(
            x,
            (0,) * x.ndim,
            (x.shape[0], *limits, x.shape[-1]),
            (1, *conv.strides, 1),
        )
    return _product(conv, x, w.reshape(conv.rhs[-2:]))


def _im2col(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    taps = [_tap(conv, xp, k) for k in np.ndindex(*conv.window)]
    patches = jnp.concatenate(taps, axis=-1)
    return _product(conv, patches, w.reshape(-1, conv.rhs[-1]))


def _gather(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    taps = [_take(_tap(conv, xp, k), keep) for k, keep in _kept(conv)]
    return _product(conv, jnp.concatenate(taps, axis=-1), _kept_rows(conv, w))


def _gather_columns(conv: Conv, x: Array, w: Array) -> Array:
    xp = jnp.moveaxis(_padded(conv, x), -1, 0)
    rows = []
    for k, keep in _kept(conv):
        start, limit, strides = _extent(conv, k)
        tap = jax.lax.slice(
            xp,
            (0, 0, *start),
            (*xp.shape[:2], *limit),
            (1, 1, *strides),
        )
        rows.append(_take(tap, keep, axis=0))
    patches = jnp.concatenate(rows, axis=0)
    out = _contracted(conv, _kept_rows(conv, w), patches, ((0,), (0,)))
    return jnp.moveaxis(out, 0, -1)


def _shifted(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    total = None
    for k, keep in _kept(conv):
        part = _product(
            conv, _take(_tap(conv, xp, k), keep), _take(w[k], keep, axis=-2)
        )
        total = part if total is None else total + part
    assert total is not None
    return total


def _unrolled(conv: Conv, x: Array, w: Array) -> Array:
    outs = []
    for p in np.ndindex(*conv.out):
        taps, entries = [], []
        for axis, at in enumerate(p):
            meets = np.flatnonzero(_meets(conv, axis)[at])
            taps.append(meets)
            first = at * conv.strides[axis] - conv.padding[axis][0]
            entries.append(first + meets * conv.rhs_dilation[axis])
        if not all(t.size for t in taps):
            outs.append(jnp.zeros((conv.lhs[0], conv.rhs[-1]), conv.result))
            continue
        xs = x[(slice(None), *map(_as_slice, entries))]
        ws = w[tuple(map(_as_slice, taps))]
        axes = tuple(range(1, xs.ndim))
        outs.append(_contracted(conv, xs, ws, (axes, tuple(a - 1 for a in axes))))
    out = jnp.stack(outs, axis=1)
    return out.reshape(conv.lhs[0], *conv.out, conv.rhs[-1])


def _depthwise(conv: Conv, x: Array, w: Array) -> Array:
    xp = _padded(conv, x)
    times = conv.rhs[-1] // conv.lhs[-1]
    total = None
    for k in np.ndindex(*conv.window):
        if not conv.mask[k].any():
            continue
        tap = _tap(conv, xp, k)
        tap = jnp.repeat(tap, times, axis=-1) if times > 1 else tap
        part = tap.astype(conv.result) * jnp.broadcast_to(
            w[k].reshape(-1).astype(conv.result), tap.shape
        )
        total = part if total is None else total + part
    assert total is not None
    return total


_FORMS: dict[str, Callable[[Conv, Array, Array], Array]] = {
    "crop": _crop,
    "union": _union,
    "classes": _classes,
    "dot": _dot,
    "im2col": _im2col,
    "gather": _gather,
    "gather_columns": _gather_columns,
    "shifted": _shifted,
    "unrolled": _unrolled,
    "depthwise": _depthwise,
}


# Taps.


def _padded(conv: Conv, x: Array) -> Array:
    config = [(0, 0, 0), *((low, high, 0) for low, high in conv.padding), (0, 0, 0)]
    if all(low == high == 0 for low, high, _ in config):
        return x
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _extent(
    conv: Conv, k: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Start, limit and strides of a tap in the padded input."""
    start = tuple(i * d for i, d in zip(k, conv.rhs_dilation, strict=True))
    limit = tuple(
        a + dilated(n, s) for a, n, s in zip(start, conv.out, conv.strides, strict=True)
    )
    return start, limit, conv.strides


def _tap(conv: Conv, xp: Array, k: tuple[int, ...]) -> Array:
    """What one tap reads: the shape of the output, with the input's channels."""
    start, limit, strides = _extent(conv, k)
    return jax.lax.slice(
        xp,
        (0, *start, 0),
        (xp.shape[0], *limit, xp.shape[-1]),
        (1, *strides, 1),
    )


def _kept(conv: Conv) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Taps with the channels they keep."""
    mask = conv.mask[..., 0]
    return [
        (k, np.flatnonzero(mask[k])) for k in np.ndindex(*conv.window) if mask[k].any()
    ]


def _kept_rows(conv: Conv, w: Array) -> Array:
    keep = np.flatnonzero(conv.mask[..., 0])
    return _take(w.reshape(-1, conv.rhs[-1]), keep, axis=0)


def _meets(conv: Conv, axis: int) -> Bool[np.ndarray, "positions taps"]:
    """Whether a tap meets the image, rather than padding, at an output position."""
    positions = np.arange(conv.out[axis]) * conv.strides[axis]
    taps = np.arange(conv.window[axis]) * conv.rhs_dilation[axis]
    entry = positions[:, None] + taps - conv.padding[axis][0]
    return (entry >= 0) & (entry < conv.image[axis])


def _as_slice(indices: np.ndarray) -> slice:
    step = int(indices[1] - indices[0]) if indices.size > 1 else 1
    return slice(int(indices[0]), int(indices[-1]) + 1, step)


def _take(array: Array, keep: np.ndarray, axis: int = -1) -> Array:
    if keep.size == array.shape[axis]:
        return array
    first, last = int(keep[0]), int(keep[-1])
    if last - first + 1 == keep.size:
        return jax.lax.slice_in_dim(array, first, last + 1, axis=axis % array.ndim)
    return jnp.take(
        array,
        keep,
        axis=axis,
        mode="clip",
        unique_indices=True,
        indices_are_sorted=True,
    )


def _product(conv: Conv, x: Array, w: Array) -> Array:
    return _contracted(conv, x, w, ((x.ndim - 1,), (0,)))


def _contracted(conv: Conv, x: Array, w: Array, axes: Any) -> Array:
    return jax.lax.dot_general(
        x,
        w,
        (axes, ((), ())),
        precision=conv.precision,
        preferred_element_type=jnp.dtype(conv.result),
    )
