"""The stages of `experiments.cifar_ssl`: each takes the context, gives its result."""

import dataclasses
import functools
import statistics
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

import sslx
from experiments import models
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl.config import Config as Config
from experiments.cifar_ssl.config import fields as fields
from experiments.training import loop, runs
from sslx import measure


@dataclasses.dataclass(frozen=True)
class Context:
    """What all stages share; what a stage trained is read from its checkpoint."""

    config: Any
    run: runs.Run
    arrays: Any  # data.Arrays, or a `train.Source` that has `classes` too

    @property
    def method(self) -> str:
        """How groups become zero, in the report."""
        return "SSL"

    @functools.cached_property
    def source(self) -> loop.Source:
        """What trainings read."""
        return loop.Resident(self.arrays)

    @property
    def training(self) -> dict[str, Any]:
        """Options of every training that follow from the data."""
        name = self.arrays.name
        return {"flip": name.startswith("cifar"), "pad": 0 if "mnist" in name else 4}

    @functools.cached_property
    def model(self) -> nn.Module:
        """The dense network."""
        return models.create(self.config.model, len(self.arrays.classes))

    @property
    def exact(self) -> nn.Module:
        """The dense network computing in float32, to compare with."""
        return self.model

    @functools.cached_property
    def trained(self) -> dict[str, Any]:
        """Variables of the baseline; trains it where it is not complete."""
        return fit(self, baseline_stage(self), self.config.baseline_epochs)

    @functools.cached_property
    def sparse(self) -> dict[str, Any]:
        """Variables with zero groups, of the dense shapes."""
        return fit(self, ssl_stage(self), self.config.ssl_epochs)

    @functools.cached_property
    def groups(self) -> sslx.Groups:
        """What SSL penalises."""
        params = self.trained["params"]
        return sparsity.make_groups(self.config.structure, params, self.config.block)

    @functools.cached_property
    def penalised(self) -> sslx.Groups:
        """The groups, with the factors of lambda."""
        if self.config.multipliers == "authors":
            return self.groups.weighted(sparsity.AUTHORS_MULTIPLIERS)
        return self.groups

    @functools.cached_property
    def group_macs(self) -> dict[str, float]:
        """Share of the multiply-accumulates in one group of each class."""
        cost = measure.cost(self.model.apply, self.trained, self.images(1))
        return sparsity.group_macs(self.groups, cost)

    @functools.cached_property
    def small(self) -> Any:
        """The compact network as SSL left it."""
        folder = self.run.path("compact") / "model"
        return sslx.load(folder, self.model.apply)

    @functools.cached_property
    def tuned(self) -> dict[str, Any]:
        """Variables of the compact network after fine-tuning."""
        return fit(self, finetune_stage(self), self.config.finetune_epochs)

    def images(self, count: int) -> Float[Array, "N H W C"]:
        """The first test images, normalised."""
        return loop.preprocess(self.arrays)(
            jnp.asarray(self.arrays.test_images[:count])
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and colours."""
        return self.arrays.train_images.shape[1:]

    @property
    def checked(self) -> int:
        """How many images the compact network is compared on."""
        return min(1000, len(self.arrays.test_labels))

    def schedule(
        self, peak: float, epochs: int, epoch_steps: int = 0
    ) -> optax.Schedule:
        """Linear from peak/20 up to `peak` in a fifth of the steps, cosine to zero."""
        steps = epochs * (epoch_steps or self.per_epoch)
        return optax.warmup_cosine_decay_schedule(
            peak / 20, peak, max(1, steps // 5), steps, 0.0
        )

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return self.source.count // self.config.batch


def fit(
    context: Context, stage: loop.Stage, epochs: int, epoch_steps: int = 0
) -> dict[str, Any]:
    """Variables after the stage, trained as far as it is not yet."""
    config = context.config
    options = loop.Options(
        epochs,
        config.batch,
        config.seed,
        epoch_steps=epoch_steps,
        log_every=max(1, min(50, (epoch_steps or context.per_epoch) // 4)),
        tensorboard=config.tensorboard,
        **context.training,
    )
    return loop.fit(stage, context.source, options, context.run.path(stage.name))


def sgd(
    schedule: optax.Schedule, decay: float, skip: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """Nesterov SGD, momentum 0.9; L2 decay of kernels other than `skip`."""

    def decayed(params: PyTree[Array]) -> PyTree[bool]:
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: (
                leaf.ndim > 1
                and jax.tree_util.keystr(keys, simple=True, separator="/") not in skip
            ),
            params,
        )

    return optax.chain(
        optax.add_decayed_weights(decay, decayed),
        optax.sgd(schedule, momentum=0.9, nesterov=True),
    )


def baseline_stage(context: Context) -> loop.Stage:
    """The dense network from scratch."""
    config = context.config
    schedule = context.schedule(config.learning_rate, config.baseline_epochs)
    return loop.Stage(
        "baseline",
        context.model.apply,
        models.init(context.model, context.image_shape, config.seed),
        sgd(schedule, config.weight_decay),
        schedule,
    )


def ssl_stage(context: Context) -> loop.Stage:
    """Group lasso from the trained network, stronger until the target is met."""
    config, groups, macs = context.config, context.penalised, context.group_macs
    schedule = context.schedule(config.ssl_learning_rate, config.ssl_epochs)
    strength = sparsity.growing(config.strength, config.growth, context.per_epoch)
    regularised = tuple(m.path for c in groups.classes for m in c.members)
    proximal = sparsity.proximal_to_target(
        groups, schedule, strength, macs, config.target
    )
    if config.structure == "layer":
        regularised = ()
    return loop.Stage(
        "ssl",
        context.model.apply,
        context.trained,
        optax.chain(sgd(schedule, config.weight_decay, regularised), proximal),
        schedule,
        sparsity.observe(sslx.GroupLasso(config.strength), groups, macs),
    )


def finetune_stage(context: Context) -> loop.Stage:
    """The compact network, without any penalty; columns that are zero stay so."""
    config = context.config
    schedule = context.schedule(config.finetune_learning_rate, config.finetune_epochs)
    optimizer = sgd(schedule, config.weight_decay)
    if "shape" in config.structure:
        kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
        optimizer = optax.chain(optimizer, optax.masked(sslx.keep_zeros(), kernels))
    return loop.Stage(
        "finetune",
        context.small.apply,
        context.small.variables,
        optimizer,
        schedule,
    )


def baseline(context: Context) -> dict[str, Any]:
    """Accuracy and cost of the dense network."""
    variables = context.trained
    return trained_result(context, "baseline", context.model.apply, variables)


def ssl(context: Context) -> dict[str, Any]:
    """Accuracy with zero groups still in place, and how many there are."""
    variables = context.sparse
    result = trained_result(context, "ssl", context.model.apply, variables)
    alive = sslx.alive(context.groups, variables["params"])
    zeros = {name: int(jnp.sum(~mask)) for name, mask in alive.items()}
    return {**result, "zero_groups": zeros, "groups": context.groups.count}


def compact(context: Context) -> dict[str, Any]:
    """Remove what is zero, and compare with the zeroed dense network on real images.

    Raises:
        train.TrainingError: the compact network computes something else.
    """
    images, apply = context.images(context.checked), context.exact.apply
    small = sslx.compact(apply)(context.sparse, images[:1])
    wanted = jax.jit(apply)(context.sparse, images)
    got = jax.jit(small.apply)(small.variables, images)
    error = float(jnp.max(jnp.abs(got - wanted)) / jnp.max(jnp.abs(wanted)))
    if not error < 1e-4:
        raise loop.TrainingError(
            f"compact: its outputs differ from the zeroed network's by {error:.2g} "
            "of the largest one, expected rounding (below 1e-4)"
        )
    sslx.save(context.run.fresh("compact", "model"), small)
    print(small.summary())
    print(f"compact and zeroed outputs agree to {error:.1e} on {len(images)} images")
    before = measure.cost(apply, context.sparse, images[:1])
    after = measure.cost(small.apply, small.variables, images[:1])
    return {
        "relative_error": error,
        "images": len(images),
        "macs": after.macs,
        "parameters": after.parameters,
        "layers": layers(before, after),
    }


def finetune(context: Context) -> dict[str, Any]:
    """Train the compact network and save it, ready for `sslx.load`."""
    tuned = context.tuned
    result = trained_result(context, "finetune", context.small.apply, tuned)
    model = dataclasses.replace(context.small, variables=tuned)
    sslx.save(context.run.fresh("finetune", "model"), model)
    return result


def benchmark(context: Context) -> dict[str, Any]:
    """Dense against compact, interleaved, several batches.

    Both are lowered in the same way, the compact network's widths with it; both are
    timed as XLA takes them by itself too.
    """
    timings = {}
    apply, lowering = context.model.apply, context.config.benchmark_lowering
    whole = context.small.expand(context.tuned)
    for batch in context.config.benchmark_batches:
        images = context.images(batch)
        dense = sslx.tune(apply, lowering=lowering)
        options = dense.choices(context.trained, images).compiler_options
        small = sslx.compact(apply, lowering=lowering)(whole, images)
        calls = {
            "dense": (dense.apply, context.trained, options),
            "compact": (small.apply, small.variables, small.compiler_options),
            "dense, XLA alone": (apply, context.trained, {}),
            "compact, XLA alone": (context.small.apply, context.tuned, {}),
        }
        found = measure.latency(
            {
                name: functools.partial(
                    jax.jit(fn, compiler_options=dict(options)), variables, images
                )
                for name, (fn, variables, options) in calls.items()
            },
            repeats=context.config.benchmark_repeats,
            control=True,
        )
        timings[str(batch)] = found.as_dict()
        print(f"batch {batch}\n{found}")
    return {"latency": timings, "lowering": lowering}


def trained_result(
    context: Context, stage: str, apply: loop.Apply, variables: dict[str, Any]
) -> dict[str, Any]:
    """Test figures after the last epoch, cost, and how long the stage trained."""
    log = context.run.path(stage) / "metrics.jsonl"
    rows = loop.read_metrics(log)
    cost = measure.cost(apply, variables, context.images(1))
    return {
        **{name: x for name, x in rows[-1].items() if name.startswith("test_")},
        "macs": cost.macs,
        "parameters": cost.parameters,
        "weights": cost.weights,
        "training_seconds": round(training_seconds(rows, context.config.batch), 1),
        "metrics_check": loop.last_check(log),
    }


def training_seconds(rows: list[dict[str, Any]], batch: int) -> float:
    """Time in training steps, from the logged rates: sum of images / (images/s)."""
    rates = [row["images_per_second"] for row in rows if row["images_per_second"] > 0]
    usual = statistics.median(rates) if rates else float("nan")
    steps = np.diff([0, *(row["step"] for row in rows)])
    seconds = (
        step * batch / (row["images_per_second"] or usual)
        for step, row in zip(steps.tolist(), rows, strict=True)
    )
    return sum(seconds)


def layers(before: measure.Cost, after: measure.Cost) -> list[dict[str, Any]]:
    """Kernel shape and MACs of every layer, dense and compact; () where it is gone."""
    kept = {layer.name: layer for layer in after.layers}
    rows = []
    for layer in before.layers:
        now = kept.get(layer.name)
        rows.append(
            {
                "name": layer.name.removeprefix("params/").removesuffix("/kernel"),
                "kernel": list(layer.kernel),
                "kernel_after": list(now.kernel) if now else [],
                "macs": layer.macs,
                "macs_after": now.macs if now else 0,
            }
        )
    return rows
