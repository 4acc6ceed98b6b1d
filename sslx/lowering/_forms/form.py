"""The forms of a convolution, and which of them can compute one."""

import dataclasses
import math
from typing import Literal

from sslx.lowering._conv import Conv
from sslx.lowering._native import direct

Kind = Literal[
    "xla",
    "direct",
    "crop",
    "dot",
    "im2col",
    "gather_columns",
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
    - `dot`: one product; for kernels of one tap, without padding.
    - `im2col`: patches of all columns, one product.
    - `gather_columns`: patches of the kept columns only, channels first, one product.
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
_MOST_UNROLLED = 64


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
        return f"{whole} images cannot be divided into chunks of {form.chunk}"
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
