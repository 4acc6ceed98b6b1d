"""The stage of `experiments.cifar_psp` that makes zeros; the others are cifar_ssl's."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import sslx
from experiments.cifar_ssl import sparsity
from experiments.cifar_ssl import stages as ssl_stages
from experiments.data import image_sets
from experiments.training import loop
from sslx import measure, psp, select

Method = Literal["decay", "l1", "sss", "fixed", "prune"]
Stage = Literal["baseline", "sparse", "compact", "finetune", "benchmark", "report"]
STAGES: tuple[Stage, ...] = (
    "baseline",
    "sparse",
    "compact",
    "finetune",
    "benchmark",
    "report",
)
TITLES = {
    "decay": "PSP, weight decay",
    "l1": "PSP, l1",
    "sss": "SSS",
    "fixed": "PSP, fixed sparsity",
    "prune": "l1-norm pruning",
}


@dataclasses.dataclass(frozen=True)
class Config(ssl_stages.Config):
    """Train a network, learn which groups it can do without, compact it, measure it."""

    run: pathlib.Path | None = None
    """Run folder [runs/cifar_psp-METHOD-DATA-MODEL-PRESET]."""
    stages: tuple[Stage, ...] = STAGES
    """Stages to do; those before them must be done, those done are kept."""
    redo: tuple[Stage, ...] = ()
    """Stages to throw away and do again, with all that follow."""
    method: Method = "decay"
    """PSP with weight decay (the paper's) or l1 on its factors, by proximal steps
    (sss), or at a fixed sparsity; or pruning of the groups with the smallest sum |w|.
    """
    structure: sparsity.Structure = "shape"
    """What a group is; shape: a column (height, width, input) of a kernel."""
    block: int = 1
    """Filters and channels in one group."""
    sparse_epochs: int = 4
    """Epochs with factors, or of pruning and retraining, from the trained baseline."""
    sparse_learning_rate: float = 0.1
    """The weights' in these epochs: peak of warm-up and cosine."""
    alpha_learning_rate: float = 0.3
    """The factors': peak of the same schedule. decay, l1, sss, fixed."""
    alpha_part: float = 0.75
    """Share of these steps in which the factors learn; then the weights settle."""
    strength: float = 5e-4
    """lambda of the factors' penalty, per unit factor. decay, l1, sss."""
    threshold: float = 0.5
    """Factors below it count as 0. decay, l1."""
    sparsity: float = 0.6
    """Share of the groups at zero. fixed, prune."""
    scope: Literal["class", "global"] = "class"
    """Whether every kernel has this share, or all together. fixed, prune."""
    gradient: Literal["sum", "chain"] = "chain"
    """The factors' gradient, for dL/dq = G: sum of G, or of G * w. decay, l1, fixed."""
    start: Literal["ones", "norms"] = "norms"
    """The factors at first: 1, or the groups' norms relative to the kernel's mean."""
    prune_rounds: int = 1
    """1: all at once, then retrain; more: step by step, over the first half. prune."""
    sparse_steps: int = 0
    """Steps that make an epoch of these; 0: as many as the images fill."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Option -> smallest and largest value."""
        rates = ("sparse_learning_rate", "alpha_learning_rate")
        return super().ranges() | {
            **dict.fromkeys(("sparse_epochs", "prune_rounds"), (1, 1 << 20)),
            **dict.fromkeys(rates, (0.0, 1e3)),
            "sparse_steps": (0, 1 << 20),
            "strength": (0.0, 1e6),
            "threshold": (0.0, 1e3),
            "sparsity": (0.0, 1.0),
            "alpha_part": (0.0, 1.0),
        }


_EVERY = ("method", "structure", "block", "sparse_epochs", "sparse_learning_rate")
_EVERY += ("sparse_steps",)
_ALPHA = ("alpha_learning_rate", "alpha_part", "start")
_OWN = {
    "decay": (*_ALPHA, "strength", "threshold", "gradient"),
    "l1": (*_ALPHA, "strength", "threshold", "gradient"),
    "sss": (*_ALPHA, "strength"),
    "fixed": (*_ALPHA, "sparsity", "scope", "gradient"),
    "prune": ("sparsity", "scope", "prune_rounds"),
}


def fields(method: Method) -> tuple[str, ...]:
    """The options that the stage depends on."""
    return _EVERY + _OWN[method]


@dataclasses.dataclass(frozen=True)
class Context(ssl_stages.Context):
    """Of `ssl_stages`, with zeros made in another way, in the folder `stage`."""

    stage: str = "sparse"

    @property
    def method(self) -> str:
        """How groups become zero, in the report."""
        return TITLES[self.config.method]

    @functools.cached_property
    def sparse(self) -> dict[str, Any]:
        """Variables with zero groups, of the dense shapes; factors folded in."""
        config, stage = self.config, sparse_stage(self)
        variables = ssl_stages.fit(
            self, stage, config.sparse_epochs, config.sparse_steps
        )
        if isinstance(variables["params"], psp.Parameters):
            folded = jax.jit(psp.fold, static_argnums=(0, 2))(
                self.groups, variables["params"], gate(config)
            )
            variables = {**variables, "params": folded}
        return with_new_statistics(self, variables)


def with_new_statistics(
    context: Context, variables: dict[str, Any], batches: int = 40
) -> dict[str, Any]:
    """BatchNorm's running moments from training batches, after the weights are final.

    Factors change the scale of what BatchNorm sees faster than its moments follow. The
    images are augmented as in training: moments of others cost a point of accuracy.
    """
    if "batch_stats" not in variables:
        return variables
    arrays, batch = context.arrays, context.config.batch
    normal = loop.preprocess(arrays)
    order = loop.epoch_order(context.config.seed, 0, len(arrays.train_labels), batch)

    root = jax.random.key(context.config.seed)

    @sslx.tune
    def follow(statistics: PyTree[Array], images: Array, step: Array) -> PyTree[Array]:
        now = {**variables, "batch_stats": statistics}
        mutable = ["batch_stats"]
        key = jax.random.fold_in(root, step)
        moved = normal(image_sets.augment(key, images, **context.training))
        _, new = context.model.apply(now, moved, train=True, mutable=mutable)
        return new["batch_stats"]

    statistics = variables["batch_stats"]
    for step in range(batches):
        images = arrays.train_images[order[step % len(order)]]
        statistics = follow(statistics, images, np.int32(step))
    return {**variables, "batch_stats": statistics}


def gate(config: Config) -> psp.Gate:
    """Which factors count."""
    if config.method == "fixed":
        return psp.FixedSparsity(config.sparsity, config.scope)
    return psp.Threshold(0.0 if config.method == "sss" else config.threshold)


def sparse_stage(context: Context) -> loop.Stage:
    """Factors or pruning, from the trained network."""
    config, groups, model = context.config, context.groups, context.model
    length = config.sparse_epochs, config.sparse_steps
    steps = length[0] * (length[1] or context.per_epoch)
    schedule = context.schedule(config.sparse_learning_rate, *length)
    weights = ssl_stages.sgd(schedule, config.weight_decay)
    watch = watcher(context)
    if config.method == "prune":
        optimizer = optax.chain(weights, pruning(groups, config, steps))
        return loop.Stage(
            context.stage,
            model.apply,
            context.trained,
            optimizer,
            schedule,
            lambda params: watch(sslx.alive(groups, params)),
        )
    rate = context.schedule(
        config.alpha_learning_rate, 1, max(1, round(config.alpha_part * steps))
    )
    start = first_parameters(groups, context.trained["params"], config.start)
    return loop.Stage(
        context.stage,
        parameterized(model.apply, groups, config),
        {**context.trained, "params": start},
        psp.optimizer(weights, optimizer_of_alphas(config, rate)),
        schedule,
        lambda params: watch(gate(config).open(params.alphas)),
    )


def parameterized(apply: loop.Apply, groups: sslx.Groups, config: Config) -> loop.Apply:
    """`apply` on weights and factors in the place of "params"."""
    gradient = "chain" if config.method == "sss" else config.gradient

    def apply_factors(variables: loop.Variables, *args: Any, **options: Any) -> Any:
        params = psp.materialize(
            groups, variables["params"], gate(config), gradient=gradient
        )
        return apply({**variables, "params": params}, *args, **options)

    return apply_factors


def optimizer_of_alphas(
    config: Config, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Momentum 0.9, with the penalty of the method."""
    if config.method == "sss":
        return psp.sss(schedule, strength=config.strength)
    penalty = {config.method: config.strength} if config.method != "fixed" else {}
    return psp.sgd(schedule, momentum=0.9, **penalty)


def first_parameters(
    groups: sslx.Groups, params: PyTree[Array], start: Literal["ones", "norms"]
) -> psp.Parameters:
    """Factors that leave the network as it is: 1, or `norm_g / mean norm`."""
    parameters = psp.init(groups, params)
    if start == "ones":
        return parameters
    norms = sslx.norms(groups, params)
    alphas = {k: jnp.where(n > 0, n / jnp.mean(n), 1) for k, n in norms.items()}
    inverse = {name: 1 / alpha for name, alpha in alphas.items()}
    return psp.Parameters(sslx.scale(groups, params, inverse), alphas)


def pruning(
    groups: sslx.Groups, config: Config, steps: int
) -> optax.GradientTransformation:
    """Groups with the smallest sum |w| go, in equal parts over the first half."""
    rounds = config.prune_rounds
    every = max(1, steps // (2 * rounds))
    ones = {c.name: np.ones(c.shape) for c in groups.classes}

    def density(step: Array) -> Array:
        return 1 - config.sparsity * jnp.minimum(step // every + 1, rounds) / rounds

    return select.prune(
        groups,
        density,
        choose=functools.partial(select.keep, scope=config.scope, costs=ones),
        every=every,
        until=(rounds - 1) * every,
    )


def watcher(context: Context) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Masks -> groups at zero, all groups, share of MACs in zero groups."""
    cost = measure.cost(context.model.apply, context.trained, context.images(1))
    macs = sparsity.group_macs(context.groups, cost)

    def shares(alive: dict[str, Array]) -> dict[str, Array]:
        return {
            "zero_groups": jnp.sum(jnp.stack([jnp.sum(~m) for m in alive.values()])),
            "groups": jnp.asarray(context.groups.count),
            "removed_macs": sparsity.removed_share(context.groups, alive, macs),
        }

    return shares


def sparse(context: Context) -> dict[str, Any]:
    """Accuracy with zero groups still in place, and how many there are."""
    variables = context.sparse
    apply = context.model.apply
    result = ssl_stages.trained_result(context, context.stage, apply, variables)
    result["accuracy_before_new_statistics"] = result["test_accuracy"]
    result["test_accuracy"] = loop.evaluate(apply, variables, context.arrays)
    alive = sslx.alive(context.groups, variables["params"])
    zeros = {name: int(jnp.sum(~mask)) for name, mask in alive.items()}
    count = context.groups.count
    share = sum(zeros.values()) / count
    return {**result, "zero_groups": zeros, "groups": count, "group_sparsity": share}
