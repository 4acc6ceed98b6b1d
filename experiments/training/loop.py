"""One training loop for every experiment: resumable to the bit, written for a mesh.

The state is a NamedTuple of arrays. Order and augmentation come from (seed, step), so
a run that was killed and started again ends with the parameters of one that was not.
Arrays stay on the device; a step gathers, augments and updates inside one jit. A
`Source` of another kind, such as a stream from disk, gives its own batches instead.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

import sslx
from experiments.data import image_sets
from experiments.training import checkpoints
from experiments.training.metrics import Clock, Events
from experiments.training.metrics import MetricsLog as MetricsLog
from experiments.training.metrics import last_check as last_check
from experiments.training.metrics import read_metrics as read_metrics
from experiments.training.progress import Progress
from experiments.training.steps import Apply as Apply
from experiments.training.steps import Batches as Batches
from experiments.training.steps import Options as Options
from experiments.training.steps import Source as Source
from experiments.training.steps import Stage as Stage
from experiments.training.steps import State as State
from experiments.training.steps import TrainingError as TrainingError
from experiments.training.steps import Variables as Variables
from experiments.training.steps import make_update as make_update
from experiments.training.steps import no_sums


def preprocess(
    arrays: image_sets.Arrays,
) -> Callable[[UInt8[Array, "N H W C"]], Float[Array, "N H W C"]]:
    """(pixel / 255 - mean) / deviation per colour, with the training set's moments."""
    mean, deviation = (row.reshape(1, 1, 1, -1) for row in arrays.moments())
    scale = np.float32(1) / (np.float32(255) * deviation)
    shift = mean / deviation
    return lambda images: images.astype(jnp.float32) * scale - shift


def epoch_order(seed: int, epoch: int, count: int, batch: int) -> np.ndarray:
    """Indices (steps, batch) of one epoch; what does not fill a batch is left out."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    steps = count // batch
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)


def make_step(
    stage: Stage, options: Options, arrays: image_sets.Arrays, mesh: Mesh
) -> Callable[[State, Array, Array, Array], State]:
    """The unjitted step: (state, images, labels, order of the epoch) -> state."""
    update = make_update(stage, options, preprocess(arrays))
    root = jax.random.key(options.seed)
    split = NamedSharding(mesh, PartitionSpec("data"))

    def step(state: State, images: Array, labels: Array, order: Array) -> State:
        row = order[state.step % order.shape[0]]
        row = jax.lax.with_sharding_constraint(row, split)
        key = jax.random.fold_in(root, state.step)
        moved = image_sets.augment(key, images[row], options.pad, flip=options.flip)
        return update(state, moved, labels[row])

    return step


def device_mesh() -> Mesh:
    """All devices in one axis, "data"."""
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)


def initial_state(stage: Stage, options: Options, mesh: Mesh) -> State:
    """Step 0, placed on `mesh`."""
    parts = mesh.devices.size

    def place(leaf: Array) -> Array:
        whole = not (options.shard_params and leaf.ndim and leaf.shape[-1] % parts == 0)
        axes = () if whole else (*(None,) * (leaf.ndim - 1), "data")
        # A copy: the step donates its state, the caller keeps the start values.
        return jax.device_put(
            jnp.array(leaf, copy=True), NamedSharding(mesh, PartitionSpec(*axes))
        )

    variables = dict(stage.variables)
    opt_state = stage.optimizer.init(variables["params"])
    state = State(jnp.zeros((), jnp.int32), variables, opt_state, no_sums())
    return jax.tree.map(place, state)


def evaluate(
    apply: Apply, variables: Variables, arrays: image_sets.Arrays, batch: int = 500
) -> float:
    """Share of the test images classified right, 0..1."""
    return make_evaluate(apply, arrays, batch)(variables)


def make_evaluate(
    apply: Apply, arrays: image_sets.Arrays, batch: int = 500
) -> Callable[[Variables], float]:
    """A compiled `evaluate` for one function, to be called often."""
    normal = preprocess(arrays)
    images, labels = arrays.test_images, arrays.test_labels

    @sslx.tune
    def correct(variables: Variables, x: Array, y: Array) -> Array:
        logits = apply(variables, normal(x), train=False)
        return jnp.sum(logits.argmax(-1) == y)

    def accuracy(variables: Variables) -> float:
        total = 0
        for start in range(0, len(labels), batch):
            x, y = images[start : start + batch], labels[start : start + batch]
            fill = batch - len(y)
            x = np.pad(x, ((0, fill), (0, 0), (0, 0), (0, 0)))
            total += int(
                correct(variables, x, np.pad(y, (0, fill), constant_values=-1))
            )
        return total / len(labels)

    return accuracy


@dataclasses.dataclass(frozen=True)
class Resident:
    """A `Source` of whole arrays that stay on every device."""

    arrays: image_sets.Arrays

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.arrays.train_labels)

    def batches(self, options: Options, per_epoch: int, mesh: Mesh) -> Batches:
        """All images, all labels and the order of the epoch, for every step."""
        return _Orders(self.arrays, options, per_epoch, mesh)

    def make_step(
        self, stage: Stage, options: Options, mesh: Mesh
    ) -> Callable[..., State]:
        """`make_step` on these arrays."""
        return make_step(stage, options, self.arrays, mesh)

    def make_scores(self, apply: Apply) -> Callable[[Variables], dict[str, float]]:
        """`test_accuracy`, 0..1."""
        accuracy = make_evaluate(apply, self.arrays)
        return lambda variables: {"test_accuracy": accuracy(variables)}


class _Orders:
    """`Batches` of a `Resident`: a function of seed and step, nothing to remember."""

    position = None

    def __init__(
        self, arrays: image_sets.Arrays, options: Options, per_epoch: int, mesh: Mesh
    ) -> None:
        self.options, self.per_epoch = options, per_epoch
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.images = jax.device_put(arrays.train_images, self.everywhere)
        self.labels = jax.device_put(arrays.train_labels, self.everywhere)
        self.epoch, self.order = -1, self.labels

    def at(self, step: int) -> tuple[Array, ...]:
        if step // self.per_epoch != self.epoch:
            self.epoch = step // self.per_epoch
            seed, batch = self.options.seed, self.options.batch
            order = epoch_order(seed, self.epoch, len(self.labels), batch)
            self.order = jax.device_put(order[: self.per_epoch], self.everywhere)
        return self.images, self.labels, self.order

    def close(self) -> None:
        pass


def fit(
    stage: Stage,
    source: image_sets.Arrays | Source,
    options: Options,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Train `stage`, going on from `folder` if a run was cut there; its variables.

    `folder/checkpoints` and `folder/metrics.jsonl` are written, and on request
    `folder/tensorboard`.

    Raises:
        TrainingError: NaN or infinite loss or parameters, no batch in the data.
        checkpoints.CheckpointError: a damaged checkpoint or a full disk.
        records.DamageError: a damaged log of what was trained before.
    """
    if isinstance(source, image_sets.Arrays):
        source = Resident(source)
    per_epoch = source.count // options.batch
    if per_epoch < 1:
        raise TrainingError(
            f"batch: got {options.batch}, expected at most the "
            f"{source.count} training images"
        )
    folder.mkdir(parents=True, exist_ok=True)
    per_epoch = min(per_epoch, options.epoch_steps or per_epoch)
    mesh = device_mesh()
    batches = source.batches(options, per_epoch, mesh)
    store = checkpoints.Checkpoints(folder / "checkpoints")
    try:
        run = _Run(stage, source, options, folder, store, batches, mesh, per_epoch)
        return run.to_end()
    finally:
        batches.close()
        store.close()


class _Run:
    """One call of `fit`: the compiled step, the current state, the log."""

    def __init__(
        self,
        stage: Stage,
        source: Source,
        options: Options,
        folder: pathlib.Path,
        store: checkpoints.Checkpoints,
        batches: Batches,
        mesh: Mesh,
        per_epoch: int,
    ) -> None:
        self.stage, self.options, self.batches = stage, options, batches
        self.store, self.mesh, self.per_epoch = store, mesh, per_epoch
        self.total = options.epochs * per_epoch
        self.state = initial_state(stage, options, mesh)
        path = folder / "metrics.jsonl"
        if store.latest() is None:
            self.at, self.log = 0, MetricsLog(path)
        else:
            self.state, check = store.restore(self.state, batches.position)
            self.at = int(self.state.step)
            self.log = MetricsLog(path, check)
        self.events = (
            Events(folder / "tensorboard", self.at) if options.tensorboard else None
        )
        step = source.make_step(stage, options, mesh)
        self.step = sslx.tune(step, donate_argnums=0)
        self.observe = jax.jit(stage.observe)
        self.scores = source.make_scores(stage.apply)
        self.clock = Clock(options.checkpoint_every)

    def to_end(self) -> dict[str, Any]:
        with Progress(self.stage.name, self.total, self.at) as bar:
            while self.at < self.total:
                self.state = self.step(self.state, *self.batches.at(self.at))
                self.at += 1
                self._after_step(bar)
        self.store.wait()
        if self.events is not None:
            self.events.close()
        return self.state.variables

    def _after_step(self, bar: Progress) -> None:
        ends_epoch = self.at % self.per_epoch == 0
        if self.at % self.options.log_every == 0 or ends_epoch:
            row = self._row(ends_epoch)
            self.log.write(row)
            if self.events is not None:
                self.events.write(row)
            bar.update(self.at, row)
        if ends_epoch or self.clock.rings():
            self._save()

    def _row(self, ends_epoch: bool) -> dict[str, Any]:
        seen = jax.device_get(self.state.sums)
        steps = int(seen.steps)
        loss = float(seen.loss) / steps
        if not math.isfinite(loss):
            raise self._not_finite(f"mean loss {loss}")
        params = self.state.variables["params"]
        row: dict[str, Any] = {
            "stage": self.stage.name,
            "step": self.at,
            "epoch": round(self.at / self.per_epoch, 4),
            "loss": loss,
            "accuracy": int(seen.correct) / (steps * self.options.batch),
            "learning_rate": float(self.stage.schedule(self.at - 1)),
        }
        row |= jax.tree.map(_figures, jax.device_get(self.observe(params)))
        row["images_per_second"] = self.clock.rate(self.at) * self.options.batch
        if ends_epoch:
            row |= self.scores(self.state.variables)
            self.clock.restart(self.at)
        # Placed like the step's own output: another placement would compile anew.
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        sums = jax.device_put(no_sums(), everywhere)
        self.state = self.state._replace(sums=sums)
        return row

    def _save(self) -> None:
        if not bool(checkpoints.all_finite(self.state.variables)):
            raise self._not_finite("a parameter that is not finite")
        self.store.save(self.at, self.state, self.log.check, self.batches.position)

    def _not_finite(self, what: str) -> TrainingError:
        last = self.store.latest()
        good = f"step {last}" if last is not None else "none"
        return TrainingError(
            f"{self.stage.name}: {what} by step {self.at}; lower the learning rate. "
            f"Last good checkpoint: {good} in {self.store.folder}"
        )


def _figures(values: np.ndarray) -> Any:
    """A number, or a list of numbers with five digits each."""
    if np.ndim(values) == 0:
        return float(values)
    return [float(f"{value:.5g}") for value in values]
