"""What a training is made of: its state, its options, and the update of one step."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8

Apply = Callable[..., Any]  # (variables, images, train=..., mutable=...) as in Linen
Variables = Mapping[str, Any]


class TrainingError(RuntimeError):
    """Training cannot go on; the text says where and what is still good."""


class Sums(NamedTuple):
    """Totals since the last log line."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    steps: Int[Array, ""]


class State(NamedTuple):
    """Everything a step changes and a checkpoint holds."""

    step: Int[Array, ""]
    variables: dict[str, Any]
    opt_state: PyTree[Array]
    sums: Sums


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is trained: a function, its variables, an optimiser, what to watch.

    Args:
        name: used in metrics and error texts.
        apply: `apply(variables, images, train=True, mutable=[...])`, as in Linen.
        variables: start values; "params" is trained, "batch_stats" follows.
        optimizer: an optax transformation of the parameters.
        schedule: the optimiser's learning rate by step, for the log.
        observe: params -> what the log names (penalty, zero groups ...): numbers, or
            vectors in dictionaries.
    """

    name: str
    apply: Apply
    variables: Variables
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    observe: Callable[[PyTree[Array]], dict[str, Any]] = lambda params: {}


@dataclasses.dataclass(frozen=True)
class Options:
    """How long and how.

    Args:
        epochs: passes over the training images.
        batch: images per step, over all devices.
        seed: of order and augmentation.
        log_every: steps between metrics lines.
        checkpoint_every: seconds between checkpoints; each epoch's end has one too.
        flip: mirror images at random.
        pad: pixels an image may move by when it is cropped at random; 0: none.
        shard_params: split the parameters over the mesh where their last axis allows.
        epoch_steps: end an epoch after so many steps; 0: when all images were seen.
        smoothing: probability that the targets spread evenly over all classes.
        dropout: give the function a key for its dropout in every step.
        tensorboard: write metrics as TensorBoard events too.
    """

    epochs: int
    batch: int = 128
    seed: int = 0
    log_every: int = 50
    checkpoint_every: float = 120.0
    flip: bool = True
    pad: int = 4
    shard_params: bool = False
    epoch_steps: int = 0
    smoothing: float = 0.0
    dropout: bool = False
    tensorboard: bool = False


class Batches(Protocol):
    """The batches of one training, from where it goes on."""

    @property
    def position(self) -> Any:
        """What a checkpoint keeps and restores: a Grain iterator, or None."""

    def at(self, step: int) -> tuple[Array, ...]:
        """The step function's arguments after the state; steps are asked in order."""

    def close(self) -> None:
        """End what reads ahead."""


class Source(Protocol):
    """Images to train and test on: `Resident`, or a stream from disk."""

    @property
    def count(self) -> int:
        """Training images."""

    def batches(self, options: Options, per_epoch: int, mesh: Mesh) -> Batches:
        """Batches of a training from its first step on."""

    def make_step(
        self, stage: Stage, options: Options, mesh: Mesh
    ) -> Callable[..., State]:
        """The unjitted step: (state, *one of the batches) -> state."""

    def make_scores(self, apply: Apply) -> Callable[[Variables], dict[str, float]]:
        """A function from variables to `test_...` figures of all test images."""


def make_update(
    stage: Stage,
    options: Options,
    normal: Callable[[UInt8[Array, "N H W C"]], Float[Array, "N H W C"]],
) -> Callable[[State, Array, Array], State]:
    """The part of a step after the batch is there: (state, images, labels) -> state."""
    root = jax.random.key(options.seed)

    def loss_of(
        params: Any, rest: dict, x: Array, y: Array, more: dict
    ) -> tuple[Array, tuple]:
        mutable = [name for name in ("batch_stats",) if name in rest]
        variables = {"params": params, **rest}
        logits, updated = stage.apply(variables, x, train=True, mutable=mutable, **more)
        correct = jnp.sum(logits.argmax(-1) == y)
        losses = cross_entropy(logits, y, options.smoothing)
        return losses.mean(), ({**rest, **updated}, correct)

    def update(state: State, images: Array, labels: Array) -> State:
        more = {}
        if options.dropout:
            key = jax.random.fold_in(jax.random.fold_in(root, state.step), 1)
            more["rngs"] = {"dropout": key}
        params, rest = _split(state.variables)
        grad = jax.value_and_grad(loss_of, has_aux=True)
        x = normal(images)
        (loss, (rest, correct)), grads = grad(params, rest, x, labels, more)
        updates, opt_state = stage.optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        sums = Sums(
            state.sums.loss + loss, state.sums.correct + correct, state.sums.steps + 1
        )
        return State(state.step + 1, {"params": params, **rest}, opt_state, sums)

    return update


def cross_entropy(
    logits: Float[Array, "N K"], labels: Int[Array, " N"], smoothing: float = 0.0
) -> Float[Array, " N"]:
    """-sum_k t_k log softmax(logits)_k, t = (1 - smoothing) onehot + smoothing / K."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing))


def _split(variables: Variables) -> tuple[Any, dict[str, Any]]:
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def no_sums() -> Sums:
    """Totals of no step."""
    return Sums(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
