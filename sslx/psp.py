"""Parameterised structured pruning (PSP): one learned factor per group of weights.

The network computes with `q_i = w_i * prod_{g containing i} nu(alpha_g)`, where `nu`
sets small factors to zero (a `Gate`). Weights and factors (`Parameters`) are trained
together; factors keep learning while their group is zero, so that groups can return.
At the end `fold` multiplies the factors into the weights, with exact zeros.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PyTree

from sslx._arguments import expect, expect_number, expect_word
from sslx._groups.classes import Groups
from sslx._groups.groups import (
    Leaves,
    add_to_classes,
    expect_groups,
    flatten,
    present,
    scale,
    scale_classes,
    select_classes,
    unflatten,
)

__all__ = [
    "FixedSparsity",
    "Gate",
    "Gradient",
    "OptimizerState",
    "Parameters",
    "SSSState",
    "Threshold",
    "fold",
    "init",
    "materialize",
    "optimizer",
    "sgd",
    "sss",
]

Alphas: TypeAlias = Mapping[str, Array]
Scalar: TypeAlias = Array | float | int
Gradient: TypeAlias = Literal["sum", "chain"]


class Parameters(NamedTuple):
    """What is trained: weights and factors.

    Attributes:
        weights: The parameters of the network.
        alphas: Class name -> one factor per group, shaped as in `sslx.norms`.
    """

    weights: PyTree
    alphas: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Gate(abc.ABC):
    """Which factors count: `nu(alpha) = alpha` where open, 0 elsewhere."""

    @abc.abstractmethod
    def open(self, alphas: Alphas) -> dict[str, Bool[Array, "..."]]:
        """Class name -> whether each factor counts; one that is 0 never does."""


@dataclasses.dataclass(frozen=True)
class Threshold(Gate):
    """`nu(a) = 0` where `|a| < epsilon`, else a. NaN passes, so that it is noticed.

    Attributes:
        epsilon: >= 0, in the unit of the factors, which start at 1. With 0, only the
            factors that the optimiser makes exactly zero are pruned, as with `sss`.

    Source: Schindler et al. 2019.
    """

    epsilon: Scalar

    def __post_init__(self):
        expect_number("Threshold: epsilon", self.epsilon)

    def open(self, alphas: Alphas) -> dict[str, Bool[Array, "..."]]:
        """`|a| >= epsilon`, and not 0."""
        return {k: ~(jnp.abs(a) < self.epsilon) & (a != 0) for k, a in alphas.items()}


@dataclasses.dataclass(frozen=True)
class FixedSparsity(Gate):
    """Closes a given share of the factors, the smallest in absolute value first.

    `round(sparsity * n)` of n factors are closed; among equal ones, those with the
    larger index first.

    Attributes:
        sparsity: Share that is closed, 0 to 1; may be traced, for a schedule.
        scope: Whether the share is of every class or of all classes together.

    Source: Schindler et al. 2019, the variant of fixed sparsity in figure 3.
    """

    sparsity: Scalar
    scope: Literal["class", "global"] = "class"

    def __post_init__(self):
        expect_number("FixedSparsity: sparsity", self.sparsity, high=1.0)
        expect_word("FixedSparsity: scope", self.scope, ("class", "global"))

    def open(self, alphas: Alphas) -> dict[str, Bool[Array, "..."]]:
        """The largest `n - round(sparsity * n)` of each class or of all."""
        flat = {k: _size(a).reshape(-1) for k, a in alphas.items()}
        if self.scope == "class":
            kept = {k: self._largest(a) for k, a in flat.items()}
        else:
            together = self._largest(jnp.concatenate([*flat.values()]))
            ends = np.cumsum([a.size for a in flat.values()])[:-1]
            kept = dict(zip(flat, jnp.split(together, ends), strict=True))
        return {k: kept[k].reshape(a.shape) & (a != 0) for k, a in alphas.items()}

    def _largest(self, sizes: Array) -> Array:
        order = jnp.argsort(sizes, descending=True)
        count = sizes.size - jnp.round(jnp.asarray(self.sparsity) * sizes.size)
        ranked = jnp.arange(sizes.size) < count
        return jnp.zeros(sizes.shape, bool).at[order].set(ranked)


def _size(alpha: Array) -> Array:
    """Absolute values; NaN counts as the largest, to be noticed."""
    return jnp.where(jnp.isnan(alpha), jnp.inf, jnp.abs(alpha))


def init(groups: Groups, params: PyTree) -> Parameters:
    """The weights with a factor of 1 for every group.

    Args:
        groups: The groups, of any structure; they may be coupled or overlap.
        params: Weights. Classes whose leaves are all `optax.MaskedNode` get no factors.

    Returns:
        The weights as they are, and the factors: float32, or float64 for leaves in
        double precision.

    Raises:
        ValueError: A leaf is missing or has another shape.
    """
    expect_groups(groups)
    leaves, _ = flatten(params)
    alphas = {}
    for c in present(groups, leaves):
        types = [jnp.asarray(leaves[m.path]).dtype for m in c.members]
        real = jnp.finfo(jnp.result_type(jnp.float32, *types)).dtype
        alphas[c.name] = jnp.ones(c.shape, real)
    return Parameters(params, alphas)


def fold(groups: Groups, parameters: Parameters, gate: Gate) -> PyTree:
    """The factors multiplied into the weights.

    `q_i = w_i * prod_{g containing i} nu(alpha_g)`

    Args:
        groups: The groups.
        parameters: Weights and factors. Classes without factors count as factor 1.
        gate: Which factors count as zero; the gate used in training.

    Returns:
        A pytree like the weights, bit for bit what `materialize` gives; entries of
        closed groups are exactly 0, ready for `sslx.compact`.

    Raises:
        ValueError: Factors of an unknown class or a wrong shape, or a missing leaf.
    """
    expect("gate", gate, Gate, "such as Threshold(0.1)")
    fix = "as psp.init(groups, params) makes them"
    expect("parameters", parameters, Parameters, fix)
    scaled = scale(groups, parameters.weights, parameters.alphas)
    leaves, treedef = flatten(scaled)
    marks = gate.open(parameters.alphas)
    classes = [c for c in present(groups, leaves) if c.name in marks]
    leaves.update(select_classes(classes, leaves, marks))
    return unflatten(treedef, leaves)


def materialize(
    groups: Groups,
    parameters: Parameters,
    gate: Gate,
    *,
    gradient: Gradient = "chain",
) -> PyTree:
    """The weights the network computes with, as a function to differentiate.

    The value is that of `fold`. With `G = dL/dq`, the derivatives are

    - of the weights, exact: `dL/dw_i = G_i * prod_{g containing i} nu(alpha_g)`;
    - of the factors, as if `nu(a) = a` (straight through), for closed groups too:

      - `"chain"`: `dL/dalpha_g = sum_{i in g} G_i * w_i * prod_{h != g} nu(alpha_h)`
      - `"sum"`: `dL/dalpha_g = sum_{i in g} G_i`

    `"chain"` is the derivative of `q = w * alpha`, so the loss falls along it. `"sum"`
    is the rule as summaries of the paper state it, without the factor `w_i`; it
    ignores the signs of the weights and need not be a descent direction.

    Args:
        groups: The groups.
        parameters: Weights and factors. Classes without factors count as factor 1.
        gate: Which factors count as zero.
        gradient: The derivative of the factors.

    Returns:
        A pytree like the weights, to call the network with.

    Raises:
        ValueError: As in `fold`, or an unknown `gradient`.

    Source: Schindler et al. 2019.
    """
    expect_word("gradient", gradient, ("sum", "chain"))
    values, treedef = flatten(fold(groups, parameters, gate))
    slope = _slope_of_sum if gradient == "sum" else _slope_of_chain
    for path, leaf in slope(groups, parameters, gate).items():
        values[path] = _with_slope(values[path], leaf)
    return unflatten(treedef, values)


@jax.custom_jvp
def _with_slope(value: Array, slope: Array) -> Array:
    """The first argument's value with the second one's derivative."""
    del slope
    return value


@_with_slope.defjvp
def _(primals, tangents):
    return _with_slope(*primals), tangents[1]


def _slope_of_sum(
    groups: Groups, parameters: Parameters, gate: Gate
) -> dict[str, Array]:
    """`w_i * prod nu(alpha_g)` with the factors held constant, plus `sum alpha_g`."""
    leaves, marks = _start(parameters, gate)
    classes = [c for c in present(groups, leaves) if c.name in marks]
    factors = {
        c.name: jax.lax.stop_gradient(_gated(parameters.alphas, marks, c.name))
        for c in classes
    }
    slopes = scale_classes(classes, leaves, factors)
    return add_to_classes(classes, slopes, parameters.alphas)


def _slope_of_chain(
    groups: Groups, parameters: Parameters, gate: Gate
) -> dict[str, Array]:
    """`w_i * prod nu(alpha_g)` with `nu` straight through."""
    leaves, marks = _start(parameters, gate)
    classes = [c for c in present(groups, leaves) if c.name in marks]
    factors = {
        c.name: _with_slope(
            _gated(parameters.alphas, marks, c.name), parameters.alphas[c.name]
        )
        for c in classes
    }
    return scale_classes(classes, leaves, factors)


def _gated(alphas: Alphas, marks: Mapping[str, Array], name: str) -> Array:
    return jnp.where(marks[name], alphas[name], 0)


def _start(parameters: Parameters, gate: Gate) -> tuple[Leaves, dict[str, Array]]:
    leaves, _ = flatten(parameters.weights)
    return leaves, gate.open(parameters.alphas)


class OptimizerState(NamedTuple):
    """State of `optimizer`: those of its two parts."""

    weights: optax.OptState
    alphas: optax.OptState


def optimizer(
    weights: optax.GradientTransformation, alphas: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """One optimiser for the weights, another for the factors.

    Args:
        weights: Any transformation; it sees the weights' own pytree.
        alphas: `sgd`, `sss`, or any other; it sees the dict of factors.

    Returns:
        A transformation of `Parameters`.

    Example:
        >>> tx = optimizer(optax.sgd(0.1, momentum=0.9), sgd(0.1, decay=1e-3))
    """
    for what, part in (("weights", weights), ("alphas", alphas)):
        fix = "such as optax.sgd(0.1)"
        expect(f"optimizer: {what}", part, optax.GradientTransformation, fix)
    of_weights = optax.with_extra_args_support(weights)
    of_alphas = optax.with_extra_args_support(alphas)

    def start(params) -> OptimizerState:
        return OptimizerState(
            of_weights.init(params.weights), of_alphas.init(params.alphas)
        )

    def update(updates, state, params=None, **extra_args):
        old = (None, None) if params is None else (params.weights, params.alphas)
        moved = of_weights.update(updates.weights, state.weights, old[0], **extra_args)
        turned = of_alphas.update(updates.alphas, state.alphas, old[1], **extra_args)
        new: Any = moved[0], turned[0]
        return Parameters(*new), OptimizerState(moved[1], turned[1])

    return optax.GradientTransformationExtraArgs(start, update)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    decay: float = 0.0,
    l1: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with momentum on the factors, with weight decay (the paper's) or l1.

    `d_{t+1} = momentum * d_t - rate_t * (dL/dalpha + decay * alpha + l1 * sign(alpha))`
    and `alpha_{t+1} = alpha_t + d_{t+1}`.

    Unlike `optax.sgd`, the learning rate is inside the momentum, which matters where a
    schedule changes it. Neither penalty makes a factor exactly zero: the gate does.

    Args:
        learning_rate: A number or a schedule.
        momentum: mu, 0 to 1.
        decay: lambda of the weight decay, per unit factor.
        l1: lambda of the l1 penalty, per unit factor.

    Returns:
        A transformation; its state is the momentum, and a step count for a schedule.

    Source: Schindler et al. 2019, eq. (6), with l1 = 0.
    """
    _expect_rate("sgd", learning_rate)
    checks = (
        ("momentum", momentum, 1.0),
        ("decay", decay, math.inf),
        ("l1", l1, math.inf),
    )
    for name, value, high in checks:
        expect_number(f"sgd: {name}", value, high=high)
    return optax.chain(
        optax.add_decayed_weights(decay),
        _add_signs(l1),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(momentum),
    )


def _add_signs(strength: float) -> optax.GradientTransformation:
    def update(updates, params):
        return jax.tree.map(lambda u, p: u + strength * jnp.sign(p), updates, params)

    return optax.stateless(update) if strength else optax.identity()


class SSSState(NamedTuple):
    """State of `sss`: steps taken and the momentum."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    momentum: PyTree


def sss(
    learning_rate: optax.ScalarOrSchedule, *, strength: float, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Accelerated proximal gradient steps on the factors, which reach exact zero.

    With `S` soft thresholding: `z = S(alpha - rate * dL/dalpha, rate * strength)`,
    `m_{t+1} = z - alpha_t + momentum * m_t`, and
    `alpha_{t+1} = max(0, z + momentum * m_{t+1})`. Factors are never negative.

    Use it with `Threshold(0)` and `gradient="chain"`.

    Args:
        learning_rate: A number or a schedule.
        strength: gamma of the l1 penalty, per unit factor.
        momentum: mu, 0 to 1.

    Returns:
        A transformation to use on its own: it contains the learning rate.

    Source: Huang and Wang 2018 (Sparse Structure Selection), as in their published
    optimiser.
    """
    _expect_rate("sss", learning_rate)
    expect_number("sss: strength", strength)
    expect_number("sss: momentum", momentum, high=1.0)

    def start(params: PyTree) -> SSSState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SSSState(jnp.zeros((), jnp.int32), zeros)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "sss looks at the factors: tx.update(grads, state, params)"
            )
        count = state.count
        rate = learning_rate(count) if callable(learning_rate) else learning_rate

        def shrink(gradient, alpha):
            moved = alpha - rate * gradient
            size = jnp.maximum(jnp.abs(moved) - rate * strength, 0)
            return (jnp.sign(moved) * size).astype(alpha.dtype)

        z = jax.tree.map(shrink, updates, params)
        trace = jax.tree.map(
            lambda z, a, m: z - a + momentum * m, z, params, state.momentum
        )
        step = jax.tree.map(
            lambda z, a, m: jnp.maximum(z + momentum * m, 0) - a, z, params, trace
        )
        return step, SSSState(jnp.asarray(optax.safe_increment(count)), trace)

    return optax.GradientTransformation(start, update)


def _expect_rate(what: str, learning_rate: optax.ScalarOrSchedule) -> None:
    if not callable(learning_rate):
        expect_number(f"{what}: learning_rate", learning_rate)
