"""Some primitives on NumPy arrays.

Constants are evaluated while a program is traced. XLA would compile every operation
for every shape there, which takes longer than the rest of the tracing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

_FLOATING: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "integer_pow": lambda x, y: x**y,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "dot_general": lambda x, y, dimension_numbers: np.tensordot(
        x, y, dimension_numbers[0]
    ),
    "reduce_sum": lambda x, axes: np.sum(x, axes),
}
_LAYOUT: dict[str, Callable[..., Any]] = {
    "copy": lambda x: x,
    "stop_gradient": lambda x: x,
    "convert_element_type": lambda x: x,
    "select_n": lambda which, *cases: np.where(which, cases[1], cases[0]),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "reduce_max": lambda x, axes: np.max(x, axes),
    "reduce_min": lambda x, axes: np.min(x, axes),
}
_OPTIONS = ("y", "axes", "permutation", "dimensions", "dimension", "dimension_numbers")


def on_host(arrays: Sequence[Any]) -> bool:
    """Whether all arrays are NumPy's."""
    return all(isinstance(x, np.ndarray | np.generic) for x in arrays)


def bind(eqn: Any, operands: Sequence[Any]) -> np.ndarray | None:
    """The result of a primitive; None where there is no NumPy form of it."""
    layout, floating = _LAYOUT.get(eqn.name), _FLOATING.get(eqn.name)
    call = layout or floating
    if call is None or not _fits(eqn, operands, any_dtype=layout is not None):
        return None
    options = {k: eqn.params[k] for k in _OPTIONS if k in eqn.params}
    operands = operands if layout else [_wide(x) for x in operands]
    with np.errstate(all="ignore"):
        return np.asarray(call(*operands, **options), eqn.outputs[0].dtype)


def _fits(eqn: Any, operands: Sequence[Any], any_dtype: bool) -> bool:
    if eqn.name == "select_n" and (len(operands) != 3 or operands[0].dtype != bool):
        return False
    if eqn.name in ("reduce_max", "reduce_min") and 0 in np.shape(operands[0]):
        return False
    if eqn.name == "dot_general" and eqn.params["dimension_numbers"][1][0]:
        return False
    if eqn.name == "convert_element_type" and not _is_floating(eqn.outputs[0].dtype):
        return False
    return any_dtype or all(_is_floating(x.dtype) for x in operands)


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wide(array: Any) -> Any:
    """At least single precision."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def convolve_uniform(eqn: Any, image: Any, kernel: Any) -> Any | None:
    r"""A convolution of an image that does not vary in space.

    $$y_{b,o,p} = \sum_t \Big(\prod_a v^a_{p_a,t_a}\Big) \sum_i x_{b,i} w_{o,i,t}$$

    where $v^a_{p,t}$ is 1 if tap $t$ at output position $p$ reads a pixel of axis $a$,
    and 0 if it reads padding.

    Args:
      eqn: the convolution.
      image: the image; size 1 along all spatial axes.
      kernel: the kernel, at full size.

    Returns:
      The result, of size 1 along axes on which no tap reads padding; None where the
      operands do not have this form.
    """
    params = eqn.params
    numbers, parts = params["dimension_numbers"], params["feature_group_count"]
    spatial = numbers.lhs_spec[2:]
    if any(np.shape(image)[a] != 1 for a in spatial) or not all(
        _is_floating(x.dtype) for x in (image, kernel)
    ):
        return None
    xp: Any = np if on_host((image, kernel)) else jnp
    rows = xp.transpose(_wide(image), numbers.lhs_spec)
    rows = rows.reshape(rows.shape[0], parts, -1)
    taps = xp.transpose(_wide(kernel), numbers.rhs_spec)
    taps = taps.reshape(parts, -1, *taps.shape[1:])
    out = xp.einsum("bgi,goi...->bgo...", rows, taps, optimize=True)
    out = out.reshape(len(rows), -1, *taps.shape[3:])
    for a in range(len(spatial)):
        reads = _reads_pixel(eqn, a)
        reads = reads[:1] if reads.all() else reads
        out = xp.tensordot(out, reads.astype(out.dtype), ([2], [1]))
    out = xp.transpose(out, np.argsort(numbers.out_spec))
    return out.astype(eqn.outputs[0].dtype)


def _reads_pixel(eqn: Any, a: int) -> np.ndarray:
    """Per output position and tap of a spatial axis, whether it is inside the image."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    size = eqn.inputs[0].shape[numbers.lhs_spec[2 + a]]
    taps = eqn.inputs[1].shape[numbers.rhs_spec[2 + a]]
    count = eqn.outputs[0].shape[numbers.out_spec[2 + a]]
    spread = params["lhs_dilation"][a]
    start = params["window_strides"][a] * np.arange(count) - params["padding"][a][0]
    place = start[:, None] + params["rhs_dilation"][a] * np.arange(taps)
    return (place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)
