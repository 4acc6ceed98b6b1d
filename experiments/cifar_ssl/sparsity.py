"""Which groups SSL penalises in each network, and how strong, until a target is met."""

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

import sslx
from sslx import measure

Structure = Literal[
    "coupled",
    "filter",
    "channel",
    "filter+channel",
    "shape",
    "filter+shape",
    "depth",
    "layer",
]


_WHOLE = {
    "shape": sslx.SHAPE,
    "filter+shape": sslx.FILTER | sslx.SHAPE,
}
AUTHORS_MULTIPLIERS = {"conv1/kernel:SHAPE": 0.2, "conv3/kernel:FILTER": 0.1}
"""Class of groups -> factor of lambda in the training log of Wen et al. that ends near
ConvNet 3 of their Table 3; 1 for the others."""


def kernels(params: PyTree[Array]) -> list[str]:
    """Paths of the kernels SSL may regularise: 3x3 and larger, in order of the net.

    A residual network's first convolution and its 1x1 shortcuts are left out.
    """
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path.endswith("/kernel") and leaf.ndim == 4 and leaf.shape[0] > 1:
            found.append(path)
    inner = [path for path in found if "stage" in path]
    return sorted(inner or found)


def pairs(params: PyTree[Array]) -> list[tuple[str, str]]:
    """(kernel, the kernel that alone reads its output) of every inner width."""
    paths = kernels(params)
    if any("stage" in path for path in paths):
        firsts = [path for path in paths if path.endswith("/conv1/kernel")]
        return [(path, path.replace("/conv1/", "/conv2/")) for path in firsts]
    return list(itertools.pairwise(paths))


def make_groups(
    structure: Structure, params: PyTree[Array], block: int = 1
) -> sslx.Groups:
    """The groups of one structure.

    coupled: a filter together with the input channel of the kernel that reads it;
    filter, channel, filter+channel: the same slices, each a group of its own;
    shape: every (h, w, input) column of every kernel;
    filter+shape: every filter (row) and every column of every kernel;
    depth: both kernels of a residual block as one group, or a kernel of a plain net;
    layer: every kernel, with the scale of the BatchNorm that follows it: what BatchNorm
    follows works the same however small it is, so that a kernel alone never dies.

    Args:
        structure: one of the above.
        params: of the network.
        block: for filters and channels, how many make one group: neighbours in the
            order of their norms in `params`, so that widths stay multiples of `block`.
    """
    groups = _single(structure, params)
    if block == 1 or structure in ("shape", "filter+shape", "depth", "layer"):
        return groups
    norms = sslx.norms(groups, params)
    return sslx.Groups(
        tuple(_blocks(c, np.asarray(norms[c.name]), block) for c in groups.classes)
    )


def _blocks(
    single: sslx.GroupClass, norms: Float[np.ndarray, " G"], block: int
) -> sslx.GroupClass:
    """A class whose groups are `block` groups of `single` of neighbouring norm."""
    rank = np.argsort(np.argsort(norms, kind="stable"))
    ids = tuple((rank // block).tolist())
    members = tuple(dataclasses.replace(m, ids=ids) for m in single.members)
    return sslx.GroupClass(single.name, (max(ids) + 1,), members)


def _single(structure: Structure, params: PyTree[Array]) -> sslx.Groups:
    joined = pairs(params)
    if structure == "coupled":
        return _sum(
            sslx.coupled(params, {first: sslx.FILTER, second: sslx.CHANNEL})
            for first, second in joined
        )
    if structure in _WHOLE:
        rule = _WHOLE[structure]
        return sslx.groups(params, {f"^{path}$": rule for path in kernels(params)})
    if structure == "layer":
        return _sum(
            sslx.coupled(params, dict.fromkeys(layer, sslx.LAYER), name=layer[0])
            for layer in _layers(params)
        )
    if structure == "depth":
        residual = any("stage" in path for path in kernels(params))
        blocks = joined if residual else [(path,) for path in kernels(params)]
        return _sum(
            sslx.coupled(params, dict.fromkeys(block, sslx.LAYER)) for block in blocks
        )
    parts = []
    if "filter" in structure:
        parts += [sslx.groups(params, {f"^{a}$": sslx.FILTER}) for a, _ in joined]
    if "channel" in structure:
        parts += [sslx.groups(params, {f"^{b}$": sslx.CHANNEL}) for _, b in joined]
    return _sum(parts)


def _layers(params: PyTree[Array]) -> list[tuple[str, ...]]:
    """Every kernel's path, with that of its BatchNorm's scale if it has one."""
    found = jax.tree_util.tree_leaves_with_path(params)
    paths = {jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in found}
    pairs = [
        (path, re.sub(r"conv([^/]*)/kernel$", r"bn\1/scale", path))
        for path in kernels(params)
    ]
    return [(path, scale) if scale in paths else (path,) for path, scale in pairs]


def _sum(parts: Iterable[sslx.Groups]) -> sslx.Groups:
    classes = tuple(c for part in parts for c in part.classes)
    if not classes:
        raise ValueError("structure: this network has no groups of this structure")
    return sslx.Groups(classes)


def group_macs(groups: sslx.Groups, cost: measure.Cost) -> dict[str, float]:
    """Path of every kernel that groups lie in -> its share of the network's MACs."""
    macs = {layer.name.removeprefix("params/"): layer.macs for layer in cost.layers}
    paths = {m.path: None for c in groups.classes for m in c.members}
    return {path: macs[path] / cost.macs for path in paths if path in macs}


def removed_share(
    groups: sslx.Groups, alive: dict[str, Bool[Array, "..."]], macs: dict[str, float]
) -> Float[Array, ""]:
    """Share of the multiply-accumulates with weights in zero groups, 0..1.

    sum over kernels of macs(kernel) * entries in any zero group / entries

    Args:
        groups: the groups; a weight may be in several.
        alive: per class, which groups are not zero.
        macs: as `group_macs` gives them.
    """
    shapes = {m.path: m.shape for c in groups.classes for m in c.members}
    ones = {path: jnp.ones(shape) for path, shape in shapes.items()}
    kept = sslx.scale(groups, ones, alive)
    shares = [share * (1 - jnp.mean(kept[path])) for path, share in macs.items()]
    return jnp.sum(jnp.stack(shares))


def observe(
    penalty: sslx.GroupLasso, groups: sslx.Groups, macs: dict[str, float]
) -> Any:
    """params -> penalty, groups at zero, all groups, share of MACs removed, norms.

    Of the norms of a class, those at five quantiles, ascending: all its groups where
    there are five, the median in the middle.
    """
    names = _names(groups)

    def watch(params: PyTree[Array]) -> dict[str, Any]:
        found = sslx.norms(groups, params)
        alive = sslx.alive(groups, params)
        zero = jnp.sum(jnp.stack([jnp.sum(~mask) for mask in alive.values()]))
        return {
            "penalty": sslx.penalty_value(penalty, groups, params),
            "zero_groups": zero,
            "groups": jnp.asarray(groups.count),
            "removed_macs": removed_share(groups, alive, macs),
            "norms": {names[name]: _quantiles(row) for name, row in found.items()},
        }

    return watch


class TargetState(NamedTuple):
    """Steps taken, and whether the target has been met."""

    count: Int[Array, ""]
    met: Bool[Array, ""]


def proximal_to_target(
    groups: sslx.Groups,
    learning_rate: optax.Schedule,
    strength: optax.Schedule,
    macs: dict[str, float],
    target: float,
) -> optax.GradientTransformation:
    """Group lasso by proximal steps until enough is zero; then zeros stay zero.

    Until the zero groups hold the share `target` of the multiply-accumulates:
        w <- prox(w + update), step learning_rate_t, lambda = strength_t
    and from then on no penalty, and updates of zero groups are dropped.

    Args:
        groups: penalised groups.
        learning_rate: the optimiser's schedule.
        strength: lambda by step, per unit group norm.
        macs: as `group_macs` gives them.
        target: share of the network's multiply-accumulates to remove; 1 is never met.
    """

    def init(params: PyTree[Array]) -> TargetState:
        del params
        return TargetState(jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def update(updates: Any, state: TargetState, params: Any = None) -> Any:
        alive = sslx.alive(groups, params)
        moved = jax.tree.map(jnp.add, params, updates)
        penalty = sslx.GroupLasso(strength(state.count))
        shrunk = sslx.prox(penalty, groups, moved, learning_rate(state.count))
        kept = sslx.scale(groups, moved, alive)
        new = jax.tree.map(lambda a, b: jnp.where(state.met, a, b), kept, shrunk)
        share = removed_share(groups, sslx.alive(groups, new), macs)
        met = state.met | (share >= target)
        step = jax.tree.map(jnp.subtract, new, params)
        return step, TargetState(state.count + 1, met)

    return optax.GradientTransformation(init, update)


def growing(start: float, growth: float, period: int) -> optax.Schedule:
    """start * growth^(step / period)."""
    return lambda step: start * growth ** (step / period)


def norm_arrays(
    groups: sslx.Groups, params: PyTree[Array]
) -> dict[str, Float[np.ndarray, "..."]]:
    """Every class's group norms, on the host, under the name of its first kernel.

    Where several classes share a kernel: under their own names.
    """
    names = _names(groups)
    found = sslx.norms(groups, params)
    return {names[name]: np.asarray(norms) for name, norms in found.items()}


def _names(groups: sslx.Groups) -> dict[str, str]:
    """Class of groups -> its short name."""
    firsts = [c.members[0].path for c in groups.classes]
    return {
        c.name: (first if firsts.count(first) == 1 else c.name).replace("/kernel", "")
        for c, first in zip(groups.classes, firsts, strict=True)
    }


def _quantiles(norms: Float[Array, "..."]) -> Float[Array, "5"]:
    """Smallest, quartiles and largest; each the norm of a group, so that 0 stays 0."""
    return jnp.quantile(norms.ravel(), jnp.linspace(0, 1, 5), method="nearest")
