"""Products of data and weights: `dot_general`, `conv_general_dilated`, ragged ones."""

from typing import Any

import numpy as np

from sslx._compact.jaxpr.masks import Masks
from sslx._compact.rules.relation import (
    UNKNOWN,
    Link,
    Relation,
    Shapes,
    Summed,
    each,
    register,
)

PRODUCTS = ("dot_general", "conv_general_dilated")


@register("dot_general")
def _dot_general(equation: Any) -> Relation:
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    shapes = [v.shape for v in equation.inputs]
    links = [Link(0, a, 0, b) for b, a in enumerate(lhs_batch)]
    links += [Link(1, a, 0, b) for b, a in enumerate(rhs_batch)]
    position = len(lhs_batch)
    for k, used in ((0, (*lhs_sum, *lhs_batch)), (1, (*rhs_sum, *rhs_batch))):
        for a in range(len(shapes[k])):
            if a not in used:
                links.append(Link(k, a, 0, position))
                position += 1
    sums = tuple(
        (Summed(0, a), Summed(1, b)) for a, b in zip(lhs_sum, rhs_sum, strict=True)
    )
    return Relation(tuple(links), sums, zero=each(2))


@register("ragged_dot_general")
def _ragged_dot_general(equation: Any) -> Relation:
    """Groups of rows of the left operand, each with its own matrix (experts)."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    ragged, experts = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    grouped = equation.params["group_offset"] is not None or len(experts) != 1
    if grouped or {*ragged} & {*lhs_sum, *lhs_batch}:
        return UNKNOWN
    links = [Link(0, a, 0, b) for b, a in enumerate(lhs_batch)]
    links += [Link(1, a, 0, b) for b, a in enumerate(rhs_batch)]
    position = len(lhs_batch)
    for k, used in ((0, (*lhs_sum, *lhs_batch)), (1, (*rhs_sum, *rhs_batch, *experts))):
        for a in range(len(equation.inputs[k].shape)):
            if a not in used:
                if k == 1 or a not in ragged:
                    links.append(Link(k, a, 0, position))
                position += 1
    sums = tuple(
        (Summed(0, a), Summed(1, b)) for a, b in zip(lhs_sum, rhs_sum, strict=True)
    )
    return Relation(tuple(links), sums, zero=each(2), constant=False)


@register("conv_general_dilated")
def _conv(equation: Any) -> Relation:
    params = equation.params
    empty = any(0 in v.shape for v in equation.inputs)
    if params["batch_group_count"] != 1 or empty:
        return UNKNOWN
    dims, parts = params["dimension_numbers"], params["feature_group_count"]
    batch, channels = dims.lhs_spec[0], dims.lhs_spec[1]
    filters, per_part = dims.rhs_spec[0], dims.rhs_spec[1]
    out_batch, out_channels = dims.out_spec[0], dims.out_spec[1]
    n_in = equation.inputs[0].shape[channels]
    n_out = equation.outputs[0].shape[out_channels]
    links = [Link(0, batch, 0, out_batch), Link(1, filters, 0, out_channels)]
    if parts == 1:
        sums = ((Summed(0, channels), Summed(1, per_part)),)
        return Relation(tuple(links), sums, zero=each(2))

    in_part = np.arange(n_in) // (n_in // parts)
    out_part = np.arange(n_out) // (n_out // parts)
    links.append(Link(0, channels, 0, out_channels, in_part, out_part))
    within = np.arange(n_in) % (n_in // parts)
    sums = ((Summed(0, channels, within), Summed(1, per_part)),)

    def widen(masks: list[Masks]) -> list[Masks]:
        ((*axes,),) = masks
        wanted = axes[out_channels].reshape(parts, -1)
        count = wanted.sum(1)
        spare = np.cumsum(~wanted, 1) <= (count.max(initial=0) - count)[:, None]
        grown = (wanted | (spare & (count > 0)[:, None])).ravel()
        return [[grown if a == out_channels else m for a, m in enumerate(axes)]]

    def emit(eqn: Any, operands: list[Any], shapes: Shapes) -> list[Any]:
        del shapes
        kept = operands[0].shape[channels] // operands[1].shape[per_part]
        return eqn.bind(operands, feature_group_count=kept)

    place = ((0, out_channels, np.arange(n_out) % (n_out // parts)),)
    return Relation(
        tuple(links), sums, zero=each(2), widen=widen, emit=emit, factors=place
    )
