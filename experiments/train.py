"""One training loop for every experiment: resumable to the bit, written for a mesh.

The state is a NamedTuple of arrays. Order and augmentation come from (seed, step), so
a run that was killed and started again ends with the parameters of one that was not.
Data stay on the device; a step gathers, augments and updates inside one jit.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt8

from experiments import checkpoints, data
from experiments.progress import Progress

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
        observe: params -> named scalars for the log (penalty, zero groups ...).
    """

    name: str
    apply: Apply
    variables: Variables
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    observe: Callable[[PyTree[Array]], dict[str, Array]] = lambda params: {}


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


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """On CPU, convolutions through Eigen (6-30% faster steps here); else None."""
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


def preprocess(
    arrays: data.Arrays,
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
    stage: Stage, options: Options, arrays: data.Arrays, mesh: Mesh
) -> Callable[[State, Array, Array, Array], State]:
    """The unjitted step: (state, images, labels, order of the epoch) -> state."""
    normal = preprocess(arrays)
    root = jax.random.key(options.seed)
    split = NamedSharding(mesh, PartitionSpec("data"))

    def loss_of(params: Any, rest: dict, x: Array, y: Array) -> tuple[Array, tuple]:
        mutable = [name for name in ("batch_stats",) if name in rest]
        variables = {"params": params, **rest}
        logits, updated = stage.apply(variables, x, train=True, mutable=mutable)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        correct = jnp.sum(logits.argmax(-1) == y)
        return losses.mean(), ({**rest, **updated}, correct)

    def step(state: State, images: Array, labels: Array, order: Array) -> State:
        row = order[state.step % order.shape[0]]
        row = jax.lax.with_sharding_constraint(row, split)
        key = jax.random.fold_in(root, state.step)
        moved = data.augment(key, images[row], options.pad, flip=options.flip)
        x = normal(moved)
        params, rest = _split(state.variables)
        grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (rest, correct)), grads = grad(params, rest, x, labels[row])
        updates, opt_state = stage.optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        sums = Sums(
            state.sums.loss + loss, state.sums.correct + correct, state.sums.steps + 1
        )
        return State(state.step + 1, {"params": params, **rest}, opt_state, sums)

    return step


def _split(variables: Variables) -> tuple[Any, dict[str, Any]]:
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def _no_sums() -> Sums:
    return Sums(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


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
    state = State(jnp.zeros((), jnp.int32), variables, opt_state, _no_sums())
    return jax.tree.map(place, state)


def evaluate(
    apply: Apply, variables: Variables, arrays: data.Arrays, batch: int = 500
) -> float:
    """Share of the test images classified right, 0..1."""
    return make_evaluate(apply, arrays, batch)(variables)


def make_evaluate(
    apply: Apply, arrays: data.Arrays, batch: int = 500
) -> Callable[[Variables], float]:
    """A compiled `evaluate` for one function, to be called often."""
    normal = preprocess(arrays)
    images, labels = arrays.test_images, arrays.test_labels

    @functools.partial(jax.jit, compiler_options=compiler_options())
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


def fit(
    stage: Stage, arrays: data.Arrays, options: Options, folder: pathlib.Path
) -> dict[str, Any]:
    """Train `stage`, going on from `folder` if a run was cut there; its variables.

    `folder/checkpoints` and `folder/metrics.jsonl` are written.

    Raises:
        TrainingError: NaN or infinite loss or parameters, no batch in the data.
        checkpoints.CheckpointError: a damaged checkpoint or a full disk.
    """
    per_epoch = len(arrays.train_labels) // options.batch
    if per_epoch < 1:
        raise TrainingError(
            f"batch: got {options.batch}, expected at most the "
            f"{len(arrays.train_labels)} training images"
        )
    folder.mkdir(parents=True, exist_ok=True)
    per_epoch = min(per_epoch, options.epoch_steps or per_epoch)
    store = checkpoints.Checkpoints(folder / "checkpoints")
    try:
        run = _Run(stage, arrays, options, folder, store, per_epoch)
        return run.to_end()
    finally:
        store.close()


class _Run:
    """One call of `fit`: the compiled step, the current state, the log."""

    def __init__(
        self,
        stage: Stage,
        arrays: data.Arrays,
        options: Options,
        folder: pathlib.Path,
        store: checkpoints.Checkpoints,
        per_epoch: int,
    ) -> None:
        self.stage, self.arrays, self.options = stage, arrays, options
        self.store, self.per_epoch = store, per_epoch
        self.total = options.epochs * per_epoch
        self.mesh = device_mesh()
        self.state = initial_state(stage, options, self.mesh)
        if store.latest() is not None:
            self.state = store.restore(self.state)
        self.at = int(self.state.step)
        self.log = MetricsLog(folder / "metrics.jsonl", keep_until=self.at)
        step = make_step(stage, options, arrays, self.mesh)
        self.step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
        self.observe = jax.jit(stage.observe)
        self.accuracy = make_evaluate(stage.apply, arrays)
        self.clock = _Clock(options.checkpoint_every)

    def to_end(self) -> dict[str, Any]:
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        images = jax.device_put(self.arrays.train_images, everywhere)
        labels = jax.device_put(self.arrays.train_labels, everywhere)
        with Progress(self.stage.name, self.total, self.at) as bar:
            while self.at < self.total:
                epoch = self.at // self.per_epoch
                order = epoch_order(
                    self.options.seed, epoch, len(labels), self.options.batch
                )
                order = jax.device_put(order[: self.per_epoch], everywhere)
                for _ in range(self.at % self.per_epoch, self.per_epoch):
                    self.state = self.step(self.state, images, labels, order)
                    self.at += 1
                    self._after_step(bar)
        self.store.wait()
        return self.state.variables

    def _after_step(self, bar: Progress) -> None:
        ends_epoch = self.at % self.per_epoch == 0
        if self.at % self.options.log_every == 0 or ends_epoch:
            row = self._row(ends_epoch)
            self.log.write(row)
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
        row |= {k: float(v) for k, v in self.observe(params).items()}
        row["images_per_second"] = self.clock.rate(self.at) * self.options.batch
        if ends_epoch:
            row["test_accuracy"] = self.accuracy(self.state.variables)
            self.clock.restart(self.at)
        # Placed like the step's own output: another placement would compile anew.
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        sums = jax.device_put(_no_sums(), everywhere)
        self.state = self.state._replace(sums=sums)
        return row

    def _save(self) -> None:
        if not bool(checkpoints.all_finite(self.state.variables)):
            raise self._not_finite("a parameter that is not finite")
        self.store.save(self.at, self.state)

    def _not_finite(self, what: str) -> TrainingError:
        last = self.store.latest()
        good = f"step {last}" if last is not None else "none"
        return TrainingError(
            f"{self.stage.name}: {what} by step {self.at}; lower the learning rate. "
            f"Last good checkpoint: {good} in {self.store.folder}"
        )


class MetricsLog:
    """JSON lines; lines after step `keep_until` (of a run that was cut) are dropped."""

    def __init__(self, path: pathlib.Path, keep_until: int = 0) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= keep_until]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a") as out:
            out.write(json.dumps(row) + "\n")


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Every complete line of a metrics file; a last line cut short is left out."""
    return list(_lines(path)) if path.exists() else []


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class _Clock:
    """Steps per second since the last reading, and the time of the next checkpoint."""

    def __init__(self, period: float) -> None:
        self.period = period
        self.saved = self.read = time.monotonic()
        self.read_at: int | None = None

    def rings(self) -> bool:
        if time.monotonic() - self.saved < self.period:
            return False
        self.saved = time.monotonic()
        return True

    def rate(self, at: int) -> float:
        now = time.monotonic()
        steps = at - self.read_at if self.read_at is not None else 0
        rate = steps / (now - self.read)
        self.read, self.read_at = now, at
        return rate

    def restart(self, at: int) -> None:
        self.read, self.read_at = time.monotonic(), at
