"""The densest choice whose exact cost is within a budget."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array

from sslx._arguments import expect_number
from sslx.select._keep import Masks

__all__ = ["within_budget"]


def within_budget(
    choose: Callable[[float], dict[str, Array]],
    cost: Callable[[Masks], float],
    budget: float | int,
    *,
    tolerance: float = 1e-3,
) -> dict[str, Array]:
    """The masks of the largest density with `cost(masks) <= budget`, by bisection.

    Costs need not be additive over groups: `cost` may compact the network and count,
    which is exact, including channels removed in the next layer and constants.

    Args:
        choose: Density from 0 to 1 -> masks, nested for falling densities.
        cost: Masks -> cost, which must not rise when groups are removed.
        budget: Upper limit, in the unit of `cost`.
        tolerance: Of the density; `cost` is called about log2(1 / tolerance) times,
            less often where masks repeat.

    Returns:
        Masks whose cost is within the budget.

    Raises:
        ValueError: Density 0 costs more than the budget (minimum widths, or weights
            that are in no group).

    Example:
        >>> def macs(masks):
        ...     small = sslx.compact(apply)(sslx.scale(groups, params, masks), x)
        ...     return measure.cost(small.apply, small.variables, x).macs
        >>> masks = within_budget(lambda d: keep(groups, scores, d), macs, 20e6)
    """
    expect_number("within_budget: budget", budget)
    expect_number("within_budget: tolerance", tolerance, 1e-9, 1)
    whole = choose(1.0)
    if cost(whole) <= budget:
        return whole
    best, low, high = choose(0.0), 0.0, 1.0
    least = cost(best)
    if least > budget:
        raise ValueError(
            f"within_budget: density 0 costs {least:g}, the budget is {budget:g}"
        )
    too_many = whole
    while high - low > tolerance:
        middle = (low + high) / 2
        masks = choose(middle)
        if _same(masks, best) or (not _same(masks, too_many) and cost(masks) <= budget):
            best, low = masks, middle
        else:
            too_many, high = masks, middle
    return best


def _same(a: Masks, b: Masks) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)
