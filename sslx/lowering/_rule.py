"""Which forms are worth timing, and which one to take without timing."""

import math

import jax
import jax.numpy as jnp

from sslx.lowering._conv import Conv
from sslx.lowering._forms.compute import groups_of
from sslx.lowering._forms.form import XLA, Form, Kind, applies

_CHUNK_BYTES = 2 << 20
_MOST_BYTES = 1 << 29
_DENSE: tuple[Kind, ...] = ("xla", "im2col", "dot")


def candidates(conv: Conv) -> list[Form]:
    """All forms worth timing for a convolution, XLA's own first."""
    found = [XLA]
    if jax.default_backend() == "cpu":
        found += [Form("direct")]
    if conv.groups > 1:
        found += [Form("depthwise")]
        if conv.groups <= 8:
            found += [Form("split", inner=kind) for kind in _inner(conv)]
            found += [Form("split", chunk, "gather_columns") for chunk in chunks(conv)]
    elif any(d > 1 for d in conv.lhs_dilation):
        found += [Form("phases", inner=kind) for kind in _DENSE]
    elif conv.columns is None:
        found += [Form(kind) for kind in ("crop", "dot", "im2col", "unrolled")]
    else:
        found += [Form(kind) for kind in ("crop", "dot", "unrolled")]
        found += [Form("gather_columns", chunk) for chunk in (0, *chunks(conv))]
    return [
        form
        for form in dict.fromkeys(found)
        if not applies(form, conv) and _patch_bytes(form, conv) <= _MOST_BYTES
    ]


def _patch_bytes(form: Form, conv: Conv) -> int:
    """Size of what a form writes down before it multiplies."""
    if {"im2col", "gather_columns"}.isdisjoint((form.kind, form.inner)):
        return 0
    dense = "im2col" in (form.kind, form.inner)
    columns = conv.mask.size if dense else int(conv.mask.sum())
    images = form.chunk or conv.lhs[0]
    return columns * math.prod(conv.out) * images * jnp.dtype(conv.result).itemsize


def rule(conv: Conv) -> Form:
    """The form to take on a CPU where nothing was measured; the first that applies.

    - `direct`: float32 or float64, no groups of images.
    - `depthwise`: one channel per group.
    - `split`: 2 to 8 groups, each part by the rule.
    - `phases`: a dilated input without strides.
    - `dot`: one tap, no padding.
    - `unrolled`: one output position.
    - `unrolled` or `im2col`: a kernel larger than the image.
    - `gather_columns`, in chunks: half of the columns zero, or more.
    - `crop`: other zero columns.
    - `xla`: all others.
    """
    if not applies(Form("direct"), conv):
        return Form("direct")
    if conv.batch_groups > 1:
        return XLA
    if conv.groups > 1:
        if not applies(Form("depthwise"), conv):
            return Form("depthwise")
        if conv.groups > 8 or applies(Form("split"), conv):
            return XLA
        first, *rest = {rule(part) for part in groups_of(conv)}
        return Form("split") if rest else Form("split", first.chunk, first.kind)
    if any(d > 1 for d in conv.lhs_dilation):
        phases = Form("phases")
        return XLA if applies(phases, conv) else phases
    if not applies(Form("dot"), conv):
        return Form("dot")
    if math.prod(conv.out) == 1:
        return Form("unrolled")
    if any(k > n for k, n in zip(conv.window, conv.image, strict=True)):
        small = math.prod(conv.out) <= 4
        return Form("unrolled" if small else "im2col")
    if conv.columns is not None:
        if conv.mask.mean() <= 0.5:
            return Form("gather_columns", next(iter(chunks(conv)), 0))
        return Form("crop")
    return XLA


def _inner(conv: Conv) -> tuple[Kind, ...]:
    return _DENSE if conv.columns is None else ("xla", "crop", "gather_columns")


def chunks(conv: Conv) -> tuple[int, ...]:
    """Images at a time whose gathered patches fit the cache; none without zeros."""
    if conv.columns is None:
        return ()
    columns = int(conv.mask.sum(tuple(range(conv.mask.ndim - 1))).max())
    per_image = max(1, columns * math.prod(conv.out) * 4)
    images = conv.lhs[0]
    parts = [n for n in range(1, images) if images % n == 0]
    fitting = [n for n in parts if n * per_image <= _CHUNK_BYTES]
    return tuple(sorted({*fitting[-1:], *[n for n in parts if n not in fitting][:1]}))
