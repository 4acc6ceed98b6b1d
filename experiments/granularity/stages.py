"""The stages of `experiments.granularity` for one seed."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import sslx
from experiments.cifar_ssl import stages as ssl_stages
from experiments.cifar_ssl.stages import baseline as baseline
from experiments.training import loop
from sslx import measure, select

Grain = Literal["fine", "vector", "kernel", "filter"]
GRAINS: dict[str, sslx.Structure] = {
    "fine": sslx.WEIGHT,
    "vector": sslx.VECTOR,
    "kernel": sslx.KERNEL,
    "filter": sslx.FILTER,
}
_PLACES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65)


class Context(ssl_stages.Context):
    """The network, its data and its run folder."""


def grain_groups(params: PyTree[Array], grain: str) -> sslx.Groups:
    """The groups of one grain in every convolution's kernel."""
    paths = [
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim == 4
    ]
    return sslx.groups(params, {f"^{re.escape(p)}$": GRAINS[grain] for p in paths})


def sensitivity(context: Context) -> dict[str, Any]:
    """Per grain: loss on training images with each convolution alone pruned."""
    config, variables = context.config, context.trained
    count = config.sensitivity_images
    images = loop.preprocess(context.arrays)(
        jnp.asarray(context.arrays.train_images[:count])
    )
    labels = jnp.asarray(context.arrays.train_labels[:count])

    def loss(params: PyTree[Array]) -> Float[Array, ""]:
        logits = context.model.apply({**variables, "params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    found = {}
    for grain in config.grains:
        groups = grain_groups(variables["params"], grain)
        scores = select.sum_abs(groups, variables["params"])
        curve = select.sensitivity(loss, groups, variables["params"], scores, _PLACES)
        found[grain] = {
            "densities": curve.densities,
            "losses": {name: row.tolist() for name, row in curve.losses.items()},
            "baseline": curve.baseline,
        }
        print(f"sensitivity of {len(scores)} layers, {grain}: done")
    return found


def allocation(
    context: Context, groups: sslx.Groups, grain: str, density: float
) -> dict[str, float]:
    """Layer densities at which every layer alone costs the same loss."""
    found = (context.run.result("sensitivity") or {})[grain]
    curve = select.Sensitivity(
        tuple(found["densities"]),
        {name: np.array(row) for name, row in found["losses"].items()},
        found["baseline"],
    )
    total = sum(int(sizes.sum()) for sizes in groups.sizes.values())
    return curve.allocate(groups.sizes, density * total)


class Point(NamedTuple):
    """A pruned and retrained network."""

    grain: str
    density: float
    stage: str
    shares: dict[str, float]
    variables: dict[str, Any]


def points(context: Context) -> Iterator[Point]:
    """Every grain at every density, trained as far as it is not yet.

    Each network starts from that of the next larger density, the first one from the
    baseline.
    """
    for grain in context.config.grains:
        variables: Mapping[str, Any] = context.trained
        groups = grain_groups(variables["params"], grain)
        for density in sorted(context.config.densities, reverse=True):
            shares = allocation(context, groups, grain, density)
            stage = pruned_stage(context, variables, groups, grain, density, shares)
            variables = ssl_stages.fit(context, stage, context.config.retrain_epochs)
            yield Point(grain, density, stage.name, shares, variables)


def pruned_stage(
    context: Context,
    variables: Mapping[str, Any],
    groups: sslx.Groups,
    grain: str,
    density: float,
    shares: dict[str, float],
) -> loop.Stage:
    """Pruning by the sum of magnitudes at the first step, then training on."""
    config = context.config
    schedule = context.schedule(config.retrain_learning_rate, config.retrain_epochs)
    pruning = sslx.select.prune(groups, shares, until=0)

    def watch(params: PyTree[Array]) -> dict[str, Array]:
        alive = sslx.alive(groups, params).values()
        zero = jnp.sum(jnp.stack([jnp.sum(~mask) for mask in alive]))
        return {"zero_groups": zero, "groups": jnp.asarray(groups.count)}

    return loop.Stage(
        f"retrain/{grain}-{density:g}",
        context.model.apply,
        variables,
        optax.chain(ssl_stages.sgd(schedule, config.weight_decay), pruning),
        schedule,
        watch,
    )


def retrain(context: Context) -> dict[str, Any]:
    """Accuracy of every grain at every density, after its last epoch."""
    rows = []
    for point in points(context):
        metrics = loop.read_metrics(context.run.path(point.stage) / "metrics.jsonl")
        row = {
            "grain": point.grain,
            "density": point.density,
            "test_accuracy": metrics[-1]["test_accuracy"],
            "layers": point.shares,
        }
        rows.append(row)
        print(
            f"{point.grain} at density {point.density:g}: "
            f"{100 * row['test_accuracy']:.2f}%"
        )
    return {"points": rows}


def account(context: Context) -> dict[str, Any]:
    """Storage and memory references of the dense network and of every pruned one."""
    dense = accounts(context, context.trained, sslx.WEIGHT)
    rows = [
        {
            "grain": point.grain,
            "density": point.density,
            **accounts(context, point.variables, GRAINS[point.grain]),
        }
        for point in points(context)
    ]
    return {"dense": dense, "points": rows}


def accounts(
    context: Context, variables: Mapping[str, Any], structure: sslx.Structure
) -> dict[str, Any]:
    """Bits and references of all convolutions on a few test images."""
    images = context.images(context.config.account_images)
    return totals(convolutions(context.model, variables, images), structure)


def totals(layers: Sequence["Layer"], structure: sslx.Structure) -> dict[str, Any]:
    """Bits, with 8-bit weights and 4-bit indices, and references of all layers."""
    bits = [measure.storage(x.kernel, structure) for x in layers]
    traffic = [
        measure.references(x.kernel, x.inputs, strides=x.strides, padding=x.padding)
        for x in layers
    ]
    return {
        "storage": dataclasses.asdict(sum(bits[1:], bits[0])),
        "references": dataclasses.asdict(sum(traffic[1:], traffic[0])),
    }


class Layer(NamedTuple):
    """A convolution as it was called; padding above and to the left."""

    kernel: Float[np.ndarray, "H W I O"]
    inputs: Float[np.ndarray, "N h w J"]
    strides: tuple[int, int]
    padding: tuple[int, int]


def convolutions(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "N H W C"]
) -> list[Layer]:
    """Every `nn.Conv` that a call of the model runs, in order."""
    found: list[Layer] = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            found.append(_layer(context.module, np.asarray(args[0])))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        model.apply(variables, images)
    return found


def _layer(conv: nn.Conv, inputs: Float[np.ndarray, "N h w J"]) -> Layer:
    kernel = np.asarray(conv.get_variable("params", "kernel"))
    down, across = np.broadcast_to(conv.strides or 1, 2).tolist()
    pads = conv.padding
    if isinstance(pads, str):
        size, taps = inputs.shape[1:3], kernel.shape[:2]
        pads = jax.lax.padtype_to_pads(size, taps, (down, across), pads)
    (top, _), (left, _) = np.broadcast_to(pads, (2, 2)).tolist()
    return Layer(kernel, inputs, (down, across), (top, left))
