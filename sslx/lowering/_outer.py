"""Convolutions with kernels as large as the image, which weight gradients are."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sslx.lowering._conv import Conv, dilated


def outer(
    conv: Conv,
    x: Float[Array, "C *image N"],
    w: Float[Array, "*window N O"],
    chunk: int,
) -> Float[Array, "C *out O"]:
    """One product of shifted inputs and shifted kernels per `chunk` of the N channels.

    In a weight gradient N counts the images, C the channels and O the filters; both
    operands lie in memory with N first. A shift of axis a is one position of the
    output; it moves the kernel where strides and dilations allow, else the input, and
    the last axis always moves the input:

    `y[c, p, o] = sum over n, u of x[n, u + p[on input], c] w[n, u - p[on kernel], o]`
    """
    xs = jnp.moveaxis(x, (0, -1), (-1, 0))
    ws = jnp.moveaxis(w, -2, 0)
    if 0 < chunk < len(xs):
        xs, ws = (a.reshape(-1, chunk, *a.shape[1:]) for a in (xs, ws))
    else:
        xs, ws = xs[None], ws[None]
    shape = jax.eval_shape(lambda: _product(conv, xs[0], ws[0])).shape
    zeros = jnp.zeros(shape, jnp.promote_types(conv.result, jnp.float32))
    total, _ = jax.lax.scan(
        lambda sums, parts: (sums + _product(conv, *parts), None), zeros, (xs, ws)
    )
    return total.transpose(_order(conv)).astype(conv.result)


def _kernel_axes(conv: Conv) -> list[int]:
    plain = zip(conv.strides[:-1], conv.rhs_dilation[:-1], strict=True)
    return [a for a, (stride, dilation) in enumerate(plain) if stride == dilation == 1]


def _order(conv: Conv) -> list[int]:
    """Where C, the output's axes and O stand in the product."""
    on_kernel = _kernel_axes(conv)
    on_input = [a for a in range(len(conv.out)) if a not in on_kernel]
    made = [*on_input, "C", *on_kernel, "O"]
    return [made.index(a) for a in ("C", *range(len(conv.out)), "O")]


def _product(conv: Conv, x: Array, w: Array) -> Array:
    on_kernel = _kernel_axes(conv)
    xs, ws = [x], [w]
    for axis in range(len(conv.out)):
        if axis in on_kernel:
            ws = [moved for part in ws for moved in _kernels(conv, part, axis)]
        else:
            xs = [moved for part in xs for moved in _inputs(conv, part, axis)]
    rows = jnp.concatenate(xs, axis=-1).reshape(-1, len(xs) * x.shape[-1])
    columns = jnp.concatenate(ws, axis=-1).reshape(-1, len(ws) * w.shape[-1])
    product = jax.lax.dot_general(
        rows,
        columns,
        (((0,), (0,)), ((), ())),
        precision=conv.precision,
        preferred_element_type=jnp.promote_types(conv.result, jnp.float32),
    )
    sizes = [conv.out[a] for a in range(len(conv.out)) if a not in on_kernel]
    moved = [conv.out[a] for a in on_kernel]
    return product.reshape(*sizes, x.shape[-1], *moved, w.shape[-1])


def _inputs(conv: Conv, x: Array, axis: int) -> list[Array]:
    """What the taps of an axis meet, per output position."""
    low, high = conv.padding[axis]
    padded = _padded(x, axis, low, high)
    span = dilated(conv.window[axis], conv.rhs_dilation[axis])
    starts = [p * conv.strides[axis] for p in range(conv.out[axis])]
    step = conv.rhs_dilation[axis]
    return [
        jax.lax.slice_in_dim(padded, first, first + span, step, axis + 1)
        for first in starts
    ]


def _kernels(conv: Conv, w: Array, axis: int) -> list[Array]:
    """The kernel over the image, per output position."""
    size, low = conv.image[axis], conv.padding[axis][0]
    return [
        _padded(w, axis, p - low, size - conv.window[axis] - p + low)
        for p in range(conv.out[axis])
    ]


def _padded(x: Array, axis: int, low: int, high: int) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis + 1] = (low, high, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)
