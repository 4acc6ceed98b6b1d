"""The stages of `experiments.mnist_ssl`: each takes the context, gives its result."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import sslx
from experiments import models
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl import stages as ssl_stages
from experiments.cifar_ssl.stages import baseline as baseline
from experiments.training import loop
from sslx import measure


def make_groups(preset: str, params: PyTree[Array]) -> sslx.Groups:
    """What each table penalises.

    table1: filters of both convolutions, and the second one's input channels;
    table2: shapes (h, w, input) of both convolutions;
    mlp: all out-connections of an input, all in- and out-connections of a hidden
    neuron.
    """
    if preset == "table1":
        rules = {
            "conv1/kernel": sslx.FILTER,
            "conv2/kernel": sslx.FILTER | sslx.CHANNEL,
        }
        return sslx.groups(params, rules)
    if preset == "table2":
        return sslx.groups(params, {"conv[12]/kernel": sslx.SHAPE})
    inputs = sslx.coupled(params, {"dense1/kernel": sslx.CHANNEL}, name="inputs")
    hidden = (
        sslx.coupled(
            params,
            {f"dense{k}/kernel": sslx.FILTER, f"dense{k + 1}/kernel": sslx.CHANNEL},
            name=f"hidden{k}",
        )
        for k in (1, 2)
    )
    return sum(hidden, inputs)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is left of a network, in the paper's words; one entry per layer."""

    filters: tuple[int, ...]
    """Live filters (table1), filter sizes (table2) or neurons (mlp)."""
    channels: tuple[int, ...]
    """Live input channels; empty for the MLP."""
    flops: tuple[float, ...]
    """Share of the layer's multiply-accumulates, 0..1."""


def counts(preset: str, alive: Mapping[str, np.ndarray]) -> Counts:
    """Live groups as the paper counts them; FLOP shares follow from the counts.

    table1: `f1/F1`, `f2*c2 / (F2*C2)`; table2: `s1/S1 * c2/C2` (filters whose channel
    is gone do not count), `s2/S2`; mlp: the product of the shares on both sides.

    Args:
        preset: the table.
        alive: class of groups -> whether each is alive, as of `sslx.alive`.
    """
    live = {name: np.asarray(mask) for name, mask in alive.items()}
    if preset == "mlp":
        parts = [live["inputs"], live["hidden1"], live["hidden2"]]
        share = [part.mean() for part in parts] + [1.0]
        flops = tuple(float(a * b) for a, b in itertools.pairwise(share))
        return Counts(tuple(int(part.sum()) for part in parts), (), flops)
    if preset == "table1":
        first, second = live["conv1/kernel:FILTER"], live["conv2/kernel:FILTER"]
        channel = live["conv2/kernel:CHANNEL"]
        flops = (first.mean(), second.mean() * channel.mean())
        sizes = (int(first.sum()), int(second.sum()))
        channels = (int(first.any()), int(channel.sum()))
    else:
        first, second = live["conv1/kernel:SHAPE"], live["conv2/kernel:SHAPE"]
        channel = second.any((0, 1))
        flops = (first.mean() * channel.mean(), second.mean())
        sizes = (int(first.sum()), int(second.sum()))
        channels = (int(first.any((0, 1)).sum()), int(channel.sum()))
    return Counts(sizes, channels, tuple(map(float, flops)))


def dense_counts(preset: str) -> Counts:
    """Those of the whole network."""
    model = models.create("mlp" if preset == "mlp" else "lenet")
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    groups = make_groups(preset, params)
    return counts(preset, {c.name: np.ones(c.shape, bool) for c in groups.classes})


class Context(ssl_stages.Context):
    """What the stages share; networks are numbered as in the paper, from 2."""

    @functools.cached_property
    def groups(self) -> sslx.Groups:
        """What SSL penalises."""
        return make_groups(self.config.preset, self.trained["params"])

    @functools.cached_property
    def names(self) -> dict[str, float]:
        """Network -> strength."""
        first = 4 if self.config.preset == "table2" else 2
        return {
            f"{self.config.model}{first + place}": strength
            for place, strength in enumerate(self.config.strengths)
        }

    @functools.cached_property
    def zeroed(self) -> dict[str, dict[str, Any]]:
        """Network -> variables after SSL."""
        epochs = self.config.ssl_epochs
        return {
            name: ssl_stages.fit(self, ssl_stage(self, name), epochs)
            for name in self.names
        }

    @functools.cached_property
    def kept(self) -> dict[str, dict[str, Any]]:
        """Network -> variables after fine-tuning, of the dense shapes."""
        epochs = self.config.finetune_epochs
        return {
            name: ssl_stages.fit(self, finetune_stage(self, name), epochs)
            for name in self.names
        }

    def counts(self, params: PyTree[Array]) -> Counts:
        """Live groups of `params`."""
        return counts(self.config.preset, sslx.alive(self.groups, params))


def ssl_stage(context: Context, name: str) -> loop.Stage:
    """Group lasso of one fixed strength, from the trained baseline."""
    config, groups = context.config, context.groups
    schedule = context.schedule(config.ssl_learning_rate, config.ssl_epochs)
    penalty = sslx.GroupLasso(context.names[name])
    regularised = tuple({m.path for c in groups.classes for m in c.members})
    cost = measure.cost(context.model.apply, context.trained, context.images(1))
    return loop.Stage(
        f"ssl/{name}",
        context.model.apply,
        context.trained,
        optax.chain(
            ssl_stages.sgd(schedule, config.weight_decay, regularised),
            sslx.proximal(penalty, groups, schedule),
        ),
        schedule,
        sparsity.observe(penalty, groups, sparsity.group_macs(groups, cost)),
    )


def finetune_stage(context: Context, name: str) -> loop.Stage:
    """No penalty; what SSL brought to zero stays zero."""
    config = context.config
    schedule = context.schedule(config.finetune_learning_rate, config.finetune_epochs)
    return loop.Stage(
        f"finetune/{name}",
        context.model.apply,
        context.zeroed[name],
        optax.chain(
            ssl_stages.sgd(schedule, config.weight_decay),
            sslx.keep_zeros(context.groups),
        ),
        schedule,
    )


def ssl(context: Context) -> dict[str, Any]:
    """Network -> error and what is left, before fine-tuning."""
    return {"networks": _results(context, "ssl", context.zeroed)}


def finetune(context: Context) -> dict[str, Any]:
    """Network -> error and what is left, after fine-tuning."""
    return {"networks": _results(context, "finetune", context.kept)}


def _results(
    context: Context, stage: str, found: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    results = {}
    for name, variables in found.items():
        result = ssl_stages.trained_result(
            context, f"{stage}/{name}", context.model.apply, variables
        )
        left = dataclasses.asdict(context.counts(variables["params"]))
        results[name] = {**result, "strength": context.names[name], "left": left}
    return results


def compact(context: Context) -> dict[str, Any]:
    """Cut every network, compare with the zeroed one, time it against the dense one.

    Raises:
        train.TrainingError: a compact network computes something else.
    """
    config = context.config
    images = context.images(config.benchmark_batch)
    dense = jax.jit(context.model.apply)
    before = measure.cost(context.model.apply, context.trained, images[:1])
    calls = {"dense": functools.partial(dense, context.trained, images)}
    results = {}
    for name, variables in context.kept.items():
        small = sslx.compact(context.model.apply)(variables, images[:1])
        apply = jax.jit(small.apply)
        wanted, got = dense(variables, images), apply(small.variables, images)
        error = float(jnp.max(jnp.abs(got - wanted)) / jnp.max(jnp.abs(wanted)))
        if not error < 1e-4:
            raise loop.TrainingError(
                f"compact {name}: its outputs differ from the zeroed network's by "
                f"{error:.2g} of the largest one, expected rounding (below 1e-4)"
            )
        sslx.save(context.run.fresh("compact", name), small)
        after = measure.cost(small.apply, small.variables, images[:1])
        results[name] = {
            "relative_error": error,
            "macs": after.macs,
            "weights": after.weights,
            "layers": ssl_stages.layers(before, after),
        }
        calls[name] = functools.partial(apply, small.variables, images)
    timed = measure.latency(calls, repeats=config.benchmark_repeats, control=True)
    return {"networks": results, "latency": timed.as_dict()}
