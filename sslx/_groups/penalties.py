"""Penalties on group norms, each with its proximal operator.

A penalty is `P(w) = sum_g weight_g * value(norm_g)`, with `weight_g` the weight of the
group's class, times `sqrt(size_g)` if asked for. As it depends on a group only through
its norm, its proximal operator only scales the group:
`prox(w)_g = factor(norm_g, step * weight_g) * w_g`.
"""

import abc
import dataclasses
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from sslx._arguments import expect_number

__all__ = [
    "GroupElastic",
    "GroupHalf",
    "GroupL0",
    "GroupLasso",
    "GroupMCP",
    "GroupSCAD",
    "Penalty",
    "SparseGroupLasso",
]

Norms: TypeAlias = Float[Array, "..."]
Scalar: TypeAlias = Array | float | int


@dataclasses.dataclass(frozen=True)
class Penalty(abc.ABC):
    """A function of group norms and its proximal operator.

    `P(w) = sum_g weight_g * value(norm_g)`;
    `prox(w)_g = factor(norm_g, step * weight_g) * w_g`.

    Attributes:
        strength: lambda in the penalty's formula; for `GroupLasso`, loss per unit norm.
        scale_by_size: Whether `weight_g` includes `sqrt(size_g)`, so that groups of
            different sizes are equally likely to survive on pure noise.
    """

    strength: Scalar
    scale_by_size: bool = dataclasses.field(default=False, kw_only=True)

    convex = True
    """Whether the penalty is a convex function of the weights."""
    nests = False
    """Whether nested groups have its exact operator by taking inner groups first."""

    def __post_init__(self):
        expect_number(f"{_kind(self)}: strength", self.strength)

    @abc.abstractmethod
    def value(self, norm: Norms) -> Norms:
        """The penalty of groups with the given norms, weight 1."""

    @abc.abstractmethod
    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """The factor by which the proximal operator scales a group of this norm.

        `factor(n, t) * n = argmin_{z >= 0} (z - n)^2 / 2 + t * value(z)`

        Args:
            norm: Group norms.
            step: Step t >= 0, the learning rate times the weight; broadcasts.

        Returns:
            Factors in [0, 1], exactly 0 for groups that are removed.
        """

    @property
    def entry_strength(self) -> Scalar | None:
        """Strength of an l1 penalty on the single entries, None for none."""
        return None


@dataclasses.dataclass(frozen=True)
class GroupLasso(Penalty):
    """Group lasso: `value(n) = strength * n`.

    `factor(n, t) = max(0, 1 - t * strength / n)`

    Source: Yuan and Lin 2006; on the structures of networks, Wen et al. 2016.
    """

    nests = True

    def value(self, norm: Norms) -> Norms:
        """`strength * n`."""
        return self.strength * norm

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """`max(0, 1 - t * strength / n)`."""
        return _shrink(norm, step * self.strength)


@dataclasses.dataclass(frozen=True)
class SparseGroupLasso(Penalty):
    """Group lasso plus l1 on the entries of the groups.

    `P(w) = strength * ((1 - ratio) * sum_g weight_g * norm_g + ratio * sum_i |w_i|)`,
    where the second sum runs over entries in at least one group, each once and with
    weight 1. The proximal operator is that of the entries (soft thresholding), then
    that of the groups; the composition is exact.

    Attributes:
        ratio: Share of the l1 term, from 0 (group lasso) to 1 (l1).

    Source: Simon et al. 2013; Yu 2013 for the composition.
    """

    ratio: Scalar = 0.5
    nests = True

    def __post_init__(self):
        super().__post_init__()
        expect_number(f"{_kind(self)}: ratio", self.ratio, high=1.0)

    def value(self, norm: Norms) -> Norms:
        """`strength * (1 - ratio) * n`, without the l1 term."""
        return self.strength * (1 - self.ratio) * norm

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """`max(0, 1 - t * strength * (1 - ratio) / n)`, after soft thresholding."""
        return _shrink(norm, step * self.strength * (1 - self.ratio))

    @property
    def entry_strength(self) -> Scalar:
        """`strength * ratio`."""
        return self.strength * self.ratio


@dataclasses.dataclass(frozen=True)
class GroupElastic(Penalty):
    """Group elastic net: `value(n) = strength * (ratio * n + (1 - ratio) * n^2 / 2)`.

    `factor(n, t) = max(0, 1 - t*strength*ratio / n) / (1 + t*strength*(1 - ratio))`

    Attributes:
        ratio: Share of the lasso term, from 0 (ridge) to 1 (group lasso).

    Source: Zou and Hastie 2005, with the group norm in place of the entry.
    """

    ratio: Scalar = 0.5

    def __post_init__(self):
        super().__post_init__()
        expect_number(f"{_kind(self)}: ratio", self.ratio, high=1.0)

    def value(self, norm: Norms) -> Norms:
        """`strength * (ratio * n + (1 - ratio) * n^2 / 2)`."""
        square = jnp.square(norm) / 2
        return self.strength * (self.ratio * norm + (1 - self.ratio) * square)

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """`max(0, 1 - t*strength*ratio / n) / (1 + t*strength*(1 - ratio))`."""
        t = step * self.strength
        return _shrink(norm, t * self.ratio) / (1 + t * (1 - self.ratio))


@dataclasses.dataclass(frozen=True)
class GroupL0(Penalty):
    """Number of groups that are not zero: `value(n) = strength * [n > 0]`.

    `factor(n, t) = [n > sqrt(2 * t * strength)]`: hard thresholding.

    Source: Blumensath and Davies 2008, on group norms.
    """

    convex = False

    def value(self, norm: Norms) -> Norms:
        """`strength * [n > 0]`."""
        return self.strength * jnp.sign(norm)

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """`[n > sqrt(2 * t * strength)]`."""
        cut = jnp.sqrt(2 * jnp.asarray(step * self.strength, norm.dtype))
        return _beyond(norm, cut)


@dataclasses.dataclass(frozen=True)
class GroupHalf(Penalty):
    """Square root of the norm: `value(n) = strength * sqrt(n)`.

    With `s = t * strength`: `factor(n, t) = 0` for `n <= 1.5 * s^(2/3)`, else
    `2/3 * (1 + cos(2/3 * (pi - arccos(s/4 * (n/3)^(-3/2)))))`.

    Source: Xu et al. 2012, theorem 1, on group norms.
    """

    convex = False

    def value(self, norm: Norms) -> Norms:
        """`strength * sqrt(n)`, with derivative 0 at 0."""
        return self.strength * jnp.where(norm == 0, 0, jnp.sqrt(_safe(norm)))

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """Half thresholding; see the class."""
        s = jnp.asarray(step * self.strength, norm.dtype)
        gone = norm <= 1.5 * jnp.cbrt(s) ** 2
        n = jnp.where(gone, 1, _safe(norm))
        cosine = jnp.where(gone, 0, (3 * jnp.cbrt(s) ** 2 / n) ** 1.5 / 4)
        angle = jnp.arccos(jnp.minimum(cosine, 1))
        return jnp.where(gone, 0, 2 / 3 * (1 + jnp.cos(2 / 3 * (jnp.pi - angle))))


@dataclasses.dataclass(frozen=True)
class GroupMCP(Penalty):
    """Minimax concave penalty: as group lasso near 0, constant for large groups.

    With `l = strength`: `value(n) = l*n - n^2 / (2*gamma)` for `n <= gamma*l`, else
    `gamma * l^2 / 2`.

    `factor(n, t) * n` is, for `t < gamma`: 0 up to `t*l`, `(n - t*l) / (1 - t/gamma)`
    up to `gamma*l`, then n; for `t >= gamma`: 0 up to `l * sqrt(t*gamma)`, then n.

    Attributes:
        gamma: Where the penalty becomes flat, in units of `strength`; > 0.

    Source: Zhang 2010, eq. 2.1, 2.6; on groups Huang, Breheny and Ma 2012.
    """

    gamma: float = 3.0
    convex = False

    def __post_init__(self):
        super().__post_init__()
        expect_number("GroupMCP: gamma", self.gamma)
        if not self.gamma > 0:
            raise ValueError(f"GroupMCP: gamma must be > 0, got {self.gamma}")

    def value(self, norm: Norms) -> Norms:
        """`l*n - n^2 / (2*gamma)` up to `gamma*l`, then constant."""
        n = jnp.minimum(norm, self.gamma * self.strength)
        return self.strength * n - jnp.square(n) / (2 * self.gamma)

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """Firm thresholding, hard thresholding for long steps; see the class."""
        t, gamma = jnp.asarray(step, norm.dtype), self.gamma
        flat = norm >= gamma * self.strength
        short = jnp.where(t < gamma, 1 - t / gamma, 1)
        firm = _shrink(norm, t * self.strength) / short
        hard = _beyond(norm, self.strength * jnp.sqrt(t * gamma))
        return jnp.where(t < gamma, jnp.where(flat, 1, jnp.minimum(firm, 1)), hard)


@dataclasses.dataclass(frozen=True)
class GroupSCAD(Penalty):
    """Smoothly clipped absolute deviation: lasso, then a bend, then constant.

    With `l = strength`: `value(n) = l*n` for `n <= l`,
    `(2*a*l*n - n^2 - l^2) / (2*(a - 1))` up to `a*l`, then `l^2 * (a + 1) / 2`.

    `factor(n, t) * n` is, for `t < a - 1`: `max(0, n - t*l)` up to `l*(1 + t)`,
    `((a - 1)*n - t*a*l) / (a - 1 - t)` up to `a*l`, then n. For `t >= a - 1`:
    `max(0, n - t*l)` up to the cut `l * (a + 1 + t) / 2`, or `l * sqrt(t * (a + 1))`
    if `t > a + 1`, then n.

    Attributes:
        a: Where the penalty becomes flat, in units of `strength`; > 2.

    Source: Fan and Li 2001, eq. 2.7, 2.8 (step 1, where a = 3.7 is advised).
    """

    a: float = 3.7
    convex = False

    def __post_init__(self):
        super().__post_init__()
        expect_number("GroupSCAD: a", self.a)
        if not self.a > 2:
            raise ValueError(f"GroupSCAD: a must be > 2, got {self.a}")

    def value(self, norm: Norms) -> Norms:
        """Linear up to l, a parabola up to `a*l`, then constant."""
        l, a = self.strength, self.a
        n = jnp.minimum(norm, a * l)
        bend = (2 * a * l * n - jnp.square(n) - l * l) / (2 * (a - 1))
        return jnp.where(n <= l, l * n, bend)

    def factor(self, norm: Norms, step: Scalar) -> Norms:
        """Soft thresholding for small norms, 1 for large ones; see the class."""
        l, a = self.strength, self.a
        t = jnp.asarray(step, norm.dtype)
        soft = _shrink(norm, t * l)
        slope = jnp.where(t < a - 1, a - 1 - t, 1)
        bend = jnp.maximum((a - 1) - t * a * l / _safe(norm), 0) / slope
        short = jnp.where(norm <= l * (1 + t), soft, jnp.where(norm > a * l, 1, bend))
        cut = jnp.where(t <= a + 1, l * (a + 1 + t) / 2, l * jnp.sqrt(t * (a + 1)))
        return jnp.where(t < a - 1, short, jnp.where(norm > cut, 1, soft))


def _safe(norm: Norms) -> Norms:
    """Norms to divide by: 1 in the place of 0."""
    return jnp.where(norm == 0, 1, norm)


def _beyond(norm: Norms, cut: Array) -> Norms:
    """`[n > cut]` for a cut that is not negative; NaN for NaN."""
    return jnp.where(norm <= cut, 0, jnp.sign(norm))


def _shrink(norm: Norms, cut: Scalar) -> Norms:
    """`max(0, 1 - cut / n)`, for n = 0: 0 if the cut is positive, else 1."""
    cut = jnp.asarray(cut, norm.dtype)
    ratio = jnp.where(norm <= cut, jnp.where(cut > 0, 1, 0), cut / _safe(norm))
    return 1 - ratio


def _kind(penalty: Penalty) -> str:
    return type(penalty).__name__
