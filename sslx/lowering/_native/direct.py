"""Direct convolution by machine code that reads only columns that are not zero."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sslx.lowering._conv import Columns, Conv
from sslx.lowering._native import limits, llvm, loops
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.positions import memory_order
from sslx.lowering._native.primitive import Axes, call, machine_code
from sslx.lowering._native.schedule import PostOp
from sslx.lowering._native.scheduler import schedule
from sslx.lowering._taps import dilated

MISSING = "llvmlite is not installed: pip install 'sslx[cpu]'"


def unfit(conv: Conv) -> str | None:
    """Why a convolution cannot be computed directly, or None."""
    if llvm.binding() is None:
        return MISSING
    if llvm.machine() is None:
        return "there is no code for this device"
    if conv.batch_groups > 1:
        return "it has groups of images"
    if conv.dtype not in ("float32", "float64") or conv.result != conv.dtype:
        return f"there is no code for {conv.dtype} to {conv.result}"
    if not conv.window or conv.is_empty:
        return "it has no image"
    return limits.too_large(conv, is_gradient(conv))


def is_gradient(conv: Conv) -> bool:
    """Whether it looks like a weight gradient: a kernel like the image, few outputs.

    A kernel that is the whole image, without dilation, may also be a dense layer, and
    counts as one.
    """
    spans = map(dilated, conv.window, conv.rhs_dilation)
    covers = all(2 * span >= n for span, n in zip(spans, conv.image, strict=True))
    taps, positions = math.prod(conv.window), math.prod(conv.out)
    moves = positions > 1 or any(d > 1 for d in conv.rhs_dilation)
    plain = all(s == 1 for s in conv.strides)
    alone = conv.groups == 1 and all(d == 1 for d in conv.lhs_dilation)
    return covers and plain and moves and alone and taps >= 16 and taps > positions


def direct(
    conv: Conv, x: Float[Array, "*lhs"], w: Float[Array, "*rhs"]
) -> Float[Array, "N *out O"]:
    """The convolution, where it is not `unfit`, as one equation `direct_conv`.

    Derivatives and devices other than CPUs take XLA's convolution.
    """
    return _direct_conv(Direct(conv), x, w)


def direct_with_epilogue(
    conv: Conv,
    epilogue: tuple[PostOp, ...],
    follow: Callable[..., Array],
    x: Float[Array, "*lhs"],
    w: Float[Array, "*rhs"],
    *operands: Array,
) -> Float[Array, "N *out O"]:
    """`direct` with an epilogue, applied before the result is written.

    Args:
      conv: what to compute; no weight gradient.
      epilogue: the operations.
      follow: the same as a function of the result and the operands, for derivatives
        and other devices.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`.
      *operands: of the epilogue, those with one number per filter first.
    """
    return _direct_conv(Direct(conv, epilogue, follow), x, w, *operands)


@dataclasses.dataclass(frozen=True)
class Direct:
    """The parameter of an equation `direct_conv`.

    The operands of the equation are the arrays that `direct_with_epilogue` takes.

    Attributes:
      conv: what to compute.
      epilogue: operations on the result.
      follow: the same as a function.
    """

    conv: Conv
    epilogue: tuple[PostOp, ...] = ()
    follow: Callable[..., Array] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )

    def plain(self, x: Array, w: Array, *operands: Array) -> Array:
        if self.follow is None:
            return self.conv.run(x, masked(self.conv, w))
        return self.follow(direct(self.conv, x, w), *operands)

    def code(self, x: Array, w: Array, *operands: Array) -> Array:
        machine = llvm.machine()
        assert machine is not None, "see `unfit`"
        gradient = is_gradient(self.conv)
        return direct_on(self.conv, machine, gradient, self.epilogue, x, w, *operands)

    def mapped(self, size: int, operands: Sequence[Array], axes: Axes) -> Array:
        """More images where one kernel serves all, else more groups of filters."""
        first = 2 + sum(op.kind == "filter" for op in self.epilogue)
        of_images = [k == 0 or k >= first for k in range(len(operands))]
        shared = all(of_images[k] or axis is None for k, axis in enumerate(axes))
        conv = (
            _more_images(self.conv, size) if shared else _more_groups(self.conv, size)
        )
        if unfit(conv) or (is_gradient(self.conv) and not shared):
            return jax.vmap(self.plain, tuple(axes))(*operands)
        join = _Join(size, 0 if shared else -1)
        joined = [images or not shared for images in of_images]
        given = [
            join.together(operand, axis) if many else operand
            for operand, axis, many in zip(operands, axes, joined, strict=True)
        ]
        follow = self.follow and join.around(self.follow, joined[2:])
        program = Direct(conv, self.epilogue, follow)
        return join.apart(_direct_conv(program, *given))


_direct_conv = machine_code("direct_conv")


class _Join(NamedTuple):
    """Joins arrays of several calls along their first or last axis.

    Attributes:
      size: how many calls.
      axis: 0 or -1; calls are the slower part of the joined axis.
    """

    size: int
    axis: int

    def together(self, array: Array, axis: int | None) -> Array:
        if axis is None:
            array, axis = jnp.broadcast_to(array, (self.size, *array.shape)), 0
        array = jnp.moveaxis(array, axis, 2 * self.axis)
        if self.axis == 0:
            return array.reshape(-1, *array.shape[2:])
        return array.reshape(*array.shape[:-2], -1)

    def apart(self, array: Array) -> Array:
        if self.axis == 0:
            return array.reshape(self.size, -1, *array.shape[1:])
        return jnp.moveaxis(array.reshape(*array.shape[:-1], self.size, -1), -2, 0)

    def around(
        self, fn: Callable[..., Array], joined: Sequence[bool]
    ) -> Callable[..., Array]:
        """The function, of a joined result and of operands, some of them joined."""

        def run(y: Array, *operands: Array) -> Array:
            given = [
                self.apart(operand) if many else operand
                for operand, many in zip(operands, joined, strict=True)
            ]
            axes = (0, *[0 if many else None for many in joined])
            return self.together(jax.vmap(fn, axes)(self.apart(y), *given), 0)

        return run


def _more_images(conv: Conv, size: int) -> Conv:
    return dataclasses.replace(conv, lhs=(size * conv.lhs[0], *conv.lhs[1:]))


def _more_groups(conv: Conv, size: int) -> Conv:
    return dataclasses.replace(
        conv,
        lhs=(*conv.lhs[:-1], size * conv.lhs[-1]),
        rhs=(*conv.rhs[:-1], size * conv.rhs[-1]),
        groups=size * conv.groups,
        columns=Columns.of(np.tile(conv.mask, size)),
    )


def direct_on(
    conv: Conv,
    machine: Machine,
    gradient: bool,
    epilogue: tuple[PostOp, ...],
    x: Float[Array, "*lhs"],
    w: Float[Array, "*rhs"],
    *operands: Array,
) -> Float[Array, "N *out O"]:
    """`direct_with_epilogue` by the schedule for a machine, perhaps not this one.

    Args:
      conv: what to compute.
      machine: whose vectors to use.
      gradient: read the operands in the memory order of a weight gradient.
      epilogue: the operations, none of a gradient.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`.
      *operands: of the epilogue.
    """
    made = _schedule(conv, machine, gradient, epilogue)
    shares = made.tasks.shares if gradient else 1
    interleave = made.vectors.interleave
    x_order, w_order = memory_order(conv, gradient)
    per_filter = [o.reshape(-1) for o in operands[: made.per_filter]]
    more = [*per_filter, *operands[made.per_filter :]]
    run = call(
        loops.target(made),
        (
            jax.ShapeDtypeStruct((shares, *conv.shape), x.dtype),
            jax.ShapeDtypeStruct((loops.scratch_size(made),), x.dtype),
        ),
        input_layouts=(
            x_order,
            w_order if interleave == 1 else None,
            *[None for _ in more],
        ),
    )
    if gradient or conv.rhs[-2] == 1:  # one list of columns serves all groups
        w = masked(conv, w)
    if interleave > 1:
        rows = w.reshape(-1, interleave, conv.rhs[-1]).swapaxes(1, 2)
        free = made.vectors.filters - conv.rhs[-1]
        w = jnp.pad(rows, ((0, 0), (0, free), (0, 0)))
    y, _ = run(x, w, *more)
    return y.sum(0) if shares > 1 else y.reshape(conv.shape)


_schedule = functools.lru_cache(1024)(schedule)


def masked(conv: Conv, w: Float[Array, "*rhs"]) -> Float[Array, "*rhs"]:
    """The kernel with zeros in its zero columns."""
    if conv.columns is None:
        return w
    by_group = w.reshape(*conv.rhs[:-1], conv.groups, -1)
    return jnp.where(conv.mask[..., None], by_group, 0).reshape(w.shape)
