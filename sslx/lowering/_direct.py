"""Direct convolution: machine code that reads only the columns that are not zero."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sslx.lowering import _limits, _llvm, _sweep, _sweep_code
from sslx.lowering._conv import Conv, dilated
from sslx.lowering._llvm import Machine
from sslx.lowering._sweep import Step


def unfit(conv: Conv) -> str | None:
    """Why a convolution cannot be computed directly, or None."""
    if _llvm.machine() is None or jax.default_backend() != "cpu":
        return "there is no code for this device"
    if conv.batch_groups > 1:
        return "it has groups of images"
    if conv.dtype not in ("float32", "float64") or conv.result != conv.dtype:
        return f"there is no code for {conv.dtype} to {conv.result}"
    shapes = (*conv.lhs, *conv.rhs, *conv.out)
    if not conv.window or min(shapes) < 1:
        return "it has no image"
    return _limits.too_large(conv, is_gradient(conv))


def is_gradient(conv: Conv) -> bool:
    """Whether it looks like a weight gradient: few outputs of a kernel like the image.

    The whole image as one kernel, without dilation, may as well be a dense layer.
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
    """The convolution, where it is not `unfit`.

    Its derivatives are left to XLA, `jax.vmap` computes one after the other, and
    operands that are spread over several devices are brought together first.
    """
    return followed(conv, (), functools.partial(_by_xla, conv), x, w)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def followed(
    conv: Conv,
    epilogue: tuple[Step, ...],
    plain: Callable[..., Array],
    x: Float[Array, "*lhs"],
    w: Float[Array, "*rhs"],
    *operands: Array,
) -> Float[Array, "N *out O"]:
    """`direct` with operations on its result before it is written.

    Args:
      conv: what to compute; with an epilogue not a weight gradient.
      epilogue: the operations.
      plain: the same function of `x`, `w` and the operands, which is differentiated.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`.
      *operands: of the epilogue, those with one number per filter first.
    """
    machine = _llvm.machine()
    assert machine is not None, "see `unfit`"
    return swept(conv, machine, is_gradient(conv), epilogue, x, w, *operands)


def swept(
    conv: Conv,
    machine: Machine,
    gradient: bool,
    epilogue: tuple[Step, ...],
    x: Float[Array, "*lhs"],
    w: Float[Array, "*rhs"],
    *operands: Array,
) -> Float[Array, "N *out O"]:
    """`followed` as planned for a machine, which may have shorter vectors than this.

    Args:
      conv: what to compute.
      machine: whose vectors to use.
      gradient: read the operands in the memory order of a weight gradient.
      epilogue: the operations, none of a gradient.
      x: shape `conv.lhs`.
      w: shape `conv.rhs`.
      *operands: of the epilogue.
    """
    plan = _plan(conv, machine, gradient, epilogue)
    shape = (conv.lhs[0], *conv.out, conv.rhs[-1])
    shares = plan.shares if gradient else 1
    x_order, w_order = _sweep.memory_order(conv, gradient)
    per_filter = [o.reshape(-1) for o in operands[: plan.per_filter]]
    more = [*per_filter, *operands[plan.per_filter :]]
    call = jax.ffi.ffi_call(
        _sweep_code.target(plan),
        (
            jax.ShapeDtypeStruct((shares, *shape), x.dtype),
            jax.ShapeDtypeStruct((_sweep_code.scratch_size(plan),), x.dtype),
        ),
        vmap_method="sequential",
        input_layouts=(
            x_order,
            w_order if plan.fold == 1 else None,
            *[None for _ in more],
        ),
    )
    if gradient or conv.rhs[-2] == 1:  # one list of columns serves all groups
        w = _masked(conv, w)
    if plan.fold > 1:
        rows = w.reshape(-1, plan.fold, conv.rhs[-1]).swapaxes(1, 2)
        free = plan.lanes // plan.fold - conv.rhs[-1]
        w = jnp.pad(rows, ((0, 0), (0, free), (0, 0)))
    y, _ = call(x, w, *more, **_counts(conv, plan))
    return y.sum(0) if shares > 1 else y.reshape(shape)


def _counts(conv: Conv, plan: _sweep.Sweep) -> dict[str, np.int64 | str]:
    """What `sslx.measure.cost` reads: multiply-adds, and the kernel's shape."""
    inside = plan.macs_inside
    whole = inside if any(d > 1 for d in conv.lhs_dilation) else conv.macs
    return {
        "macs": np.int64(whole),
        "macs_inside": np.int64(inside),
        "kernel": " ".join(map(str, conv.rhs)),
    }


_plan = functools.lru_cache(1024)(_sweep.plan)


def _by_xla(conv: Conv, x: Array, w: Array) -> Array:
    return conv.run(x, _masked(conv, w))


@functools.partial(followed.defjvp, symbolic_zeros=True)
def _jvp(
    conv: Conv,
    epilogue: tuple[Step, ...],
    plain: Callable[..., Array],
    primals: Any,
    tangents: Any,
) -> tuple[Any, Any]:
    y = followed(conv, epilogue, plain, *primals)
    moving = [k for k, tangent in enumerate(tangents) if not _is_zero(tangent)]
    if not moving:
        return y, jax.custom_derivatives.SymbolicZero.from_primal_value(y)

    def along(*values: Any) -> Any:
        given = list(primals)
        for k, value in zip(moving, values, strict=True):
            given[k] = value
        return plain(*given)

    points, directions = ([side[k] for k in moving] for side in (primals, tangents))
    _, tangent = jax.jvp(along, points, directions)
    return y, tangent


def _is_zero(tangent: object) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _masked(conv: Conv, w: Array) -> Array:
    if conv.columns is None:
        return w
    by_group = w.reshape(*conv.rhs[:-1], conv.groups, -1)
    return jnp.where(conv.mask[..., None], by_group, 0).reshape(w.shape)
