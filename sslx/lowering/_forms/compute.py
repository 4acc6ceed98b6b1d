"""Compute a convolution in a form, over its non-zero columns."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sslx.lowering._conv import Columns, Conv
from sslx.lowering._forms import products
from sslx.lowering._forms.form import XLA, Form, applies
from sslx.lowering._native import direct


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
"""The dtype in which parts are summed."""


def live(conv: Conv) -> Conv:
    """The convolution without columns that only meet padding."""
    mask = conv.mask
    for a, axis in enumerate(conv.axes):
        met = axis.reads()[1].any(0)
        mask = mask & met.reshape([-1 if b == a else 1 for b in range(mask.ndim)])
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
    """One convolution per `p mod d` of the output positions, which fixes their taps."""
    d = conv.lhs_dilation
    outs = np.empty(d, object)
    longest = tuple(-(-n // s) for n, s in zip(conv.out, d, strict=True))
    for phase in itertools.product(*map(range, d)):
        part, taps = _phase(conv, phase)
        y = None if part is None else _part(inner, part, x, w[taps])
        outs[phase] = _padded_to(conv, y, longest)
    return _interleaved(outs, conv)


def _phase(conv: Conv, phase: tuple[int, ...]) -> tuple[Conv | None, tuple[slice, ...]]:
    """The convolution of one phase without dilation, and its taps."""
    taps, padding, window = [], [], []
    for axis, first in zip(conv.axes, phase, strict=True):
        met, reads = axis.phase(first)
        positions = len(range(first, axis.out, axis.hole))
        if not met.size or not positions:
            return None, ()
        before = -int(reads[0])
        after = positions + met.size - 1 - axis.size - before
        taps.append(slice(int(met[0]), None, axis.hole))
        padding.append((before, after))
        window.append(met.size)
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
    "dot": products.dot,
    "im2col": products.im2col,
    "gather_columns": products.gather_columns,
    "unrolled": products.unrolled,
    "depthwise": products.depthwise,
}
