"""ImageNet as a stream: Grain's worker processes decode and crop, devices normalise.

`ImageNet` is a `train.Source` on a set that `tfds.data_source` can read. The order of
an epoch and every crop come from (seed, index), so that a batch is a function of seed
and step, whatever the number of workers.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import absl.flags
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

import sslx
from experiments.data import crops, imagenet_sets
from experiments.training import loop

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
_AHEAD = 2  # batches that a worker, or a thread without workers, has ready
_WORTH_A_WORKER = 4  # test batches for which one more process is started


def normalise(images: UInt8[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """(pixel / 255 - mean) / deviation per colour, with ImageNet's usual moments."""
    mean, deviation = (
        np.asarray(row, np.float32).reshape(1, 1, 1, 3) for row in (MEAN, DEVIATION)
    )
    return images.astype(jnp.float32) / (255 * deviation) - mean / deviation


class Loader:
    """The batches of a Grain data set in order, read ahead by worker processes.

    Its state, as Grain's checkpoints keep it, is how many batches it has given: that
    is all a position is where batches are functions of their number.

    Args:
        batches: Grain's batches, addressed by number.
        workers: processes; 0: threads of this one.
    """

    def __init__(self, batches: Any, workers: int) -> None:
        self.batches, self.workers, self.given = batches, workers, 0
        self._ahead: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._ahead is None:
            self._ahead = iter(_read_ahead(self.batches[self.given :], self.workers))
        batch = next(self._ahead)
        self.given += 1
        return batch

    def get_state(self) -> bytes:
        """For `grain.checkpoint.CheckpointSave`."""
        return json.dumps({"given": self.given}).encode()

    def set_state(self, state: bytes) -> None:
        """For `grain.checkpoint.CheckpointRestore`."""
        self.close()
        self.given = json.loads(state)["given"]

    def start_prefetch(self) -> None:
        """Nothing yet: workers start at the first batch."""

    def close(self) -> None:
        """End the workers; the next batch starts new ones."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None


def _end_with_parent(worker: int, workers: int) -> None:
    """Let this worker end when the training is killed: Grain's would wait for ever."""
    del worker, workers
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _read_ahead(batches: Any, workers: int) -> Any:
    import grain

    if not absl.flags.FLAGS.is_parsed():  # Grain asks flags that it defines.
        absl.flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else _AHEAD
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD)
    many = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_AHEAD)
    return batches.to_iter_dataset(read).mp_prefetch(many, _end_with_parent)


class Stream:
    """`train.Batches` of a `Loader`, spread over the devices of a mesh."""

    def __init__(self, loader: Loader, mesh: Mesh) -> None:
        self.position = loader
        self.split = NamedSharding(mesh, PartitionSpec("data"))

    def at(self, step: int) -> tuple[Array, ...]:
        """Images and labels of that step.

        Raises:
            train.TrainingError: it is not the next one.
        """
        if step != self.position.given:
            raise loop.TrainingError(
                f"the loader is at batch {self.position.given}, training at {step}: "
                "the checkpoint is of another run; redo this stage"
            )
        return place(next(self.position), self.split)

    def close(self) -> None:
        """End the workers."""
        self.position.close()


def place(batch: dict[str, np.ndarray], sharding: NamedSharding) -> tuple[Array, Array]:
    """Images and labels on the devices."""
    return (
        jax.device_put(np.asarray(batch["image"]), sharding),
        jax.device_put(np.asarray(batch["label"]), sharding),
    )


@dataclasses.dataclass(frozen=True)
class ImageNet:
    """A `train.Source` on a prepared set.

    Args:
        name: of the data, in reports.
        folder: of the set, such as `DATA_DIR/imagenet2012/5.1.0`.
        size: width and height of all images, unit: pixels.
        smallest: share of a training image that is in its smallest crop.
        workers: processes that decode; 0: threads of this one.
        test_batch: test images at once.
    """

    name: str
    folder: pathlib.Path
    size: int = 224
    smallest: float = 0.08
    workers: int = 0
    test_batch: int = 256

    @functools.cached_property
    def _builder(self) -> Any:
        return imagenet_sets.tfds().builder_from_directory(self.folder)

    def records(self, split: str) -> Sequence[dict[str, Any]]:
        """Random access to the split: the file's bytes as image, label, file_name."""
        undecoded = {"image": imagenet_sets.tfds().decode.SkipDecoding()}
        return self._builder.as_data_source(split=split, decoders=undecoded)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order: synsets."""
        return tuple(self._builder.info.features["label"].names)

    @functools.cached_property
    def count(self) -> int:
        """Training images."""
        return self._builder.info.splits["train"].num_examples

    @functools.cached_property
    def test_count(self) -> int:
        """Test images: the validation split."""
        return self._builder.info.splits["validation"].num_examples

    def train_batches(self, seed: int, batch: int) -> Any:
        """Grain's batches of an endless training; what does not fill one is left out.

        Each epoch is shuffled as a whole, and every image cropped anew.
        """
        import grain

        crop = crops.TrainCrop(self.size, self.smallest)
        images = grain.MapDataset.source(self.records("train")).seed(seed)
        images = images.shuffle().random_map(crop)
        return images.batch(batch, drop_remainder=True).repeat()

    def test_batches(self) -> Any:
        """Grain's batches of the test images, the last one smaller."""
        import grain

        crop = crops.TestCrop(self.size)
        images = grain.MapDataset.source(self.records("validation")).map(crop)
        return images.batch(self.test_batch, drop_remainder=False)

    def batches(
        self, options: loop.Options, per_epoch: int, mesh: Mesh
    ) -> loop.Batches:
        """Batches from the first one on; epochs are of all images, or run on.

        Raises:
            train.TrainingError: the devices cannot share a batch evenly.
        """
        del per_epoch
        if options.batch % mesh.devices.size:
            raise loop.TrainingError(
                f"batch: got {options.batch}, expected a multiple of the "
                f"{mesh.devices.size} devices"
            )
        batches = self.train_batches(options.seed, options.batch)
        return Stream(Loader(batches, self.workers), mesh)

    def make_step(
        self, stage: loop.Stage, options: loop.Options, mesh: Mesh
    ) -> Callable[..., loop.State]:
        """The unjitted step: (state, images, labels) -> state."""
        del mesh
        return loop.make_update(stage, options, normalise)

    def make_scores(
        self, apply: loop.Apply
    ) -> Callable[[loop.Variables], dict[str, float]]:
        """`test_accuracy` and `test_top5`, 0..1, over all devices where they divide."""
        mesh = loop.device_mesh()
        even = self.test_batch % mesh.devices.size == 0
        split = NamedSharding(mesh, PartitionSpec("data") if even else PartitionSpec())
        batches = self.test_batches()
        workers = min(self.workers, len(batches) // _WORTH_A_WORKER)

        @sslx.tune
        def hits(
            variables: loop.Variables, images: Array, labels: Array
        ) -> Int[Array, " 2"]:
            return top_hits(apply(variables, normalise(images), train=False), labels)

        def scores(variables: loop.Variables) -> dict[str, float]:
            total, loader = np.zeros(2, int), Loader(batches, workers)
            for _ in range(len(batches)):
                batch = place(_full(next(loader), self.test_batch), split)
                total += np.asarray(hits(variables, *batch))
            loader.close()
            first, five = (total / self.test_count).tolist()
            return {"test_accuracy": first, "test_top5": five}

        return scores

    def test_images(self, count: int) -> UInt8[np.ndarray, "N S S 3"]:
        """The first test images, cropped; repeated where there are not as many."""
        records = self.records("validation")
        crop = functools.partial(crops.centre_crop, size=self.size)
        return np.stack(
            [crop(records[k % self.test_count]["image"]) for k in range(count)]
        )


def top_hits(logits: Float[Array, "N K"], labels: Int[Array, " N"]) -> Int[Array, " 2"]:
    """How many labels have the largest logit, and how many one of the five largest."""
    _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    right = best == labels[:, None]
    return jnp.stack([right[:, 0].sum(), right.sum()])


def _full(batch: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The batch filled up to `count` with images of no class (-1)."""
    fill = count - len(batch["label"])
    return {
        "image": np.pad(batch["image"], ((0, fill), (0, 0), (0, 0), (0, 0))),
        "label": np.pad(batch["label"], (0, fill), constant_values=-1),
    }
