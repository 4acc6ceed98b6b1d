"""Sensitivity of the loss to each class of groups, and densities chosen from it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from sslx._arguments import expect_number
from sslx._groups.classes import Groups
from sslx._groups.groups import scale
from sslx._table import Table, Tabular
from sslx.select._keep import Costs, keep
from sslx.select._scores import Loss, Scores

__all__ = ["Sensitivity", "sensitivity"]

_TILT = 1e-6


@dataclasses.dataclass(frozen=True)
class Sensitivity(Tabular):
    """Loss with one class of groups pruned at a time.

    Attributes:
        densities: Shares kept, ascending, below 1.
        losses: Class name -> loss at each density, all other classes whole.
        baseline: Loss with all classes whole.
    """

    densities: tuple[float, ...]
    losses: Mapping[str, Float[np.ndarray, " D"]]
    baseline: float

    def _table(self) -> Table:
        rows = [
            [name, *(f"{loss:.4g}" for loss in losses)]
            for name, losses in self.losses.items()
        ]
        head = ["loss at density", *(f"{density:g}" for density in self.densities)]
        return Table(head, rows, [f"nothing removed: {self.baseline:.4g}"])

    def plot(self, label: str = "loss") -> Any:
        """A panel per class: its loss by density (`sslx.report.sensitivity`).

        Args:
            label: What the loss is, with unit.

        Returns:
            A `matplotlib.figure.Figure`; needs the extra `sslx[report]`.
        """
        from sslx import report

        return report.sensitivity(self.densities, self.losses, self.baseline, label)

    def allocate(self, costs: Costs, budget: float | int) -> dict[str, float]:
        """Densities under a budget that raise the loss equally, each class alone.

        `density_c(t) = min {d : loss_c(d') <= baseline + t for all d' >= d}`, linear
        between the measured densities and never below the smallest of them, with t such
        that `sum_c density_c(t) * cost_c = budget`.

        Args:
            costs: Class name -> cost per group; see `keep`.
            budget: Total cost to keep over these classes, in the unit of `costs`.

        Returns:
            Class name -> density, for `keep(groups, scores, densities)`.

        Raises:
            ValueError: The smallest measured densities exceed the budget, a loss is
                NaN, or a class has no costs.

        Source: layer densities from sensitivity curves: Han et al. 2015.
        """
        expect_number("allocate: budget", budget)
        bad = [name for name, loss in self.losses.items() if np.isnan(loss).any()]
        if bad or np.isnan(self.baseline):
            raise ValueError(f"allocate: losses are NaN: {bad or 'the baseline'}")
        missing = [name for name in self.losses if name not in costs]
        if missing:
            raise ValueError(f"allocate: no costs of the classes {missing}")
        total = {name: float(np.sum(costs[name])) for name in self.losses}
        spent = lambda shares: sum(total[name] * d for name, d in shares.items())
        curves = {name: self._rise(loss) for name, loss in self.losses.items()}
        places = [*self.densities, 1.0]

        def at(rise: float) -> dict[str, float]:
            return {
                name: float(np.interp(rise, curve[::-1], places[::-1]))
                for name, curve in curves.items()
            }

        low, high = 0.0, max(float(curve[0]) for curve in curves.values())
        if spent(at(high)) > budget * (1 + 1e-9):
            raise ValueError(
                f"allocate: the smallest densities measured cost {spent(at(high)):g},"
                f" the budget is {budget:g}; measure smaller ones"
            )
        if spent(at(low)) <= budget:
            return at(low)
        for _ in range(100):
            middle = (low + high) / 2
            fits = spent(at(middle)) <= budget
            low, high = (low, middle) if fits else (middle, high)
        return at(high)

    def _rise(self, losses: Float[np.ndarray, " D"]) -> Float[np.ndarray, " E"]:
        """Worst loss over the baseline from each density up; strictly falling, to 0."""
        above = np.append(np.maximum(losses - self.baseline, 0), 0)
        worst = np.maximum.accumulate(above[::-1])[::-1]
        span = max(float(np.max(v)) - self.baseline for v in self.losses.values())
        places = np.array([*self.densities, 1.0])
        return worst + _TILT * (span if span > 0 else 1) * (1 - places)


def sensitivity(
    loss: Loss,
    groups: Groups,
    params: PyTree,
    scores: Scores,
    densities: Sequence[float],
    *,
    batch_size: int = 1,
) -> Sensitivity:
    """Loss of the network with one class of groups at a time pruned to each density.

    One compiled program evaluates all (class, density) pairs.

    Args:
        loss: Parameters -> loss, or error rate, on data it closes over.
        groups: The groups.
        params: Parameters.
        scores: Class name -> scores; the lowest are pruned first.
        densities: Shares to keep, from 0 to below 1, all different.
        batch_size: Pairs computed at once, by `jax.vmap`; memory is that many copies
            of the parameters and activations. 1 is fastest on CPUs, where a
            convolution with several kernels at once is slow.

    Returns:
        Losses per class and density.

    Raises:
        ValueError: A density is outside [0, 1), or occurs twice.

    Example:
        >>> found = sensitivity(loss, groups, params, scores, [0.1, 0.3, 0.5, 0.7])
        >>> shares = found.allocate(groups.sizes, budget=50_000)
        >>> masks = keep(groups, scores, shares)
    """
    places = sorted(map(float, densities))
    inside = places and 0 <= places[0] and places[-1] < 1
    if not inside or len(set(places)) < len(places):
        raise ValueError(
            f"sensitivity: densities must differ and be from 0 to below 1, got {places}"
        )
    names = list(scores)
    free = {name: jnp.asarray(value) for name, value in scores.items()}

    @jax.jit
    def run(params: PyTree, scores: Scores) -> tuple[Array, Array]:
        def single(pair: tuple[Array, Array]) -> Array:
            which, density = pair
            masks = {}
            for number, name in enumerate(names):
                share = jnp.where(which == number, density, 1.0)
                one = {name: scores[name]}
                masks |= keep(groups, one, share, minimum=0)
            return jnp.asarray(loss(scale(groups, params, masks)))

        which = jnp.repeat(jnp.arange(len(names)), len(places))
        shares = jnp.tile(jnp.asarray(places), len(names))
        each = jax.lax.map(single, (which, shares), batch_size=batch_size)
        return each.reshape(len(names), len(places)), jnp.asarray(loss(params))

    losses, baseline = jax.device_get(run(params, free))
    return Sensitivity(
        tuple(places),
        {name: np.asarray(row, float) for name, row in zip(names, losses, strict=True)},
        float(baseline),
    )
