import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.data import imagenet as imagenet_data
from experiments.data import imagenet_sets
from experiments.imagenet_ssl import __main__ as imagenet_ssl
from experiments.imagenet_ssl import stages as imagenet_stages
from experiments.training import checkpoints, loop, runs, steps
from tests.experiments.imagenet_tars import (
    assert_same_batches,
    stream,
    take,
    write_tars,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a prepared `imagenet2012` of three of its classes."""
    folder = tmp_path_factory.mktemp("tfds")
    write_tars(folder / "downloads" / "manual")
    imagenet_sets.prepare("imagenet2012", folder)
    return folder


# Training.


class Tiny(nn.Module):
    """A convolution, BatchNorm, dropout and a dense layer."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(4, (3, 3), 4, use_bias=False, dtype=self.dtype)(images)
        norm = nn.BatchNorm(use_running_average=not train, dtype=self.dtype)
        x = nn.relu(norm(x)).mean(axis=(1, 2))
        x = nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(3, dtype=self.dtype)(x).astype(jnp.float32)


def tiny_stage() -> loop.Stage:
    model = Tiny()
    variables = model.init(jax.random.key(1), jnp.zeros((1, 16, 16, 3)))
    schedule = optax.constant_schedule(0.05)
    optimizer = optax.sgd(schedule, momentum=0.9)
    return loop.Stage("tiny", model.apply, variables, optimizer, schedule)


OPTIONS = loop.Options(
    epochs=3, batch=4, log_every=1, smoothing=0.1, dropout=True, checkpoint_every=0.0
)
KILLED = """
import pathlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
import numpy as np
import test_imagenet_ssl as tests
from experiments.data import imagenet as imagenet_data
from experiments.training import loop

def main():
    folder = pathlib.Path(sys.argv[2])
    source = tests.stream(pathlib.Path(sys.argv[1]), workers=1)
    stop = int(sys.argv[3])

    class Stream(imagenet_data.Stream):
        def at(self, step):
            if step == stop:
                (folder / "reached").touch()
                import time
                time.sleep(1000)
            return super().at(step)

    imagenet_data.Stream = Stream
    loop.fit(tests.tiny_stage(), source, tests.OPTIONS, folder)

if __name__ == "__main__":
    main()
"""


def assert_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_batches_it_had_not_seen(
    root, tmp_path, monkeypatch
):
    rarely = dataclasses.replace(OPTIONS, checkpoint_every=1e9)
    whole = loop.fit(tiny_stage(), stream(root), rarely, tmp_path / "whole")
    cut, script = tmp_path / "cut", tmp_path / "killed.py"
    tests = str(pathlib.Path(__file__).parent)
    script.write_text(KILLED.format(root=str(ROOT), tests=tests))
    command = [sys.executable, str(script), str(root), str(cut), "8"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (cut / "reached").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    store = checkpoints.Checkpoints(cut / "checkpoints")
    start = store.latest()
    store.close()
    assert 0 < start <= 8
    kept = cut / "checkpoints" / str(start) / "position"
    (position,) = kept.glob("process_*.json")
    assert json.loads(position.read_text()) == {"given": start}
    seen = []
    monkeypatch.setattr(imagenet_data, "place", spy(seen, imagenet_data.place))
    rest = loop.fit(tiny_stage(), stream(root), rarely, cut)
    assert_bits(whole, rest)
    expected = take(imagenet_data.Loader(stream(root).train_batches(0, 4), 0), 15)
    given = [batch for batch in seen if len(batch["label"]) == 4]
    assert_same_batches(given, expected[start:])


def children(pid: int) -> list[str]:
    """Processes that a process started."""
    threads = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [child for thread in threads for child in thread.read_text().split()]


def spy(seen: list, place):
    def spied(batch, sharding):
        seen.append({k: np.array(v) for k, v in batch.items()})
        return place(batch, sharding)

    return spied


def test_a_stream_at_another_step_is_refused(root):
    mesh = loop.device_mesh()
    batches = stream(root).batches(OPTIONS, 5, mesh)
    batches.at(0)
    with pytest.raises(loop.TrainingError, match="is at batch 1, training at 0"):
        batches.at(0)
    batches.close()


def test_grain_keeps_the_loader_as_one_of_its_iterators(root, tmp_path):
    loader = imagenet_data.Loader(stream(root).train_batches(0, 4), 0)
    expected = take(loader, 3)
    handler = grain.checkpoint.CheckpointHandler()
    handler.save(tmp_path, loader)
    new = imagenet_data.Loader(stream(root).train_batches(0, 4), 0)
    handler.restore(tmp_path, new)
    assert new.given == 3
    new.set_state(b'{"given": 0}')
    assert_same_batches(take(new, 3), expected)


def test_label_smoothing_and_dropout_reach_the_step(root):
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    labels = jnp.arange(4) % 3
    logs = jax.nn.log_softmax(logits)
    targets = 0.9 * jax.nn.one_hot(labels, 3) + 0.1 / 3
    found = steps.cross_entropy(logits, labels, 0.1)
    np.testing.assert_allclose(found, -(targets * logs).sum(-1), rtol=1e-5)
    plain = steps.cross_entropy(logits, labels)
    np.testing.assert_allclose(plain, -logs[np.arange(4), labels], rtol=1e-5)
    mesh = loop.device_mesh()
    batch = stream(root).batches(OPTIONS, 5, mesh).at(0)
    losses = []
    for dropout in (True, False):
        options = dataclasses.replace(OPTIONS, dropout=dropout)
        step = stream(root).make_step(tiny_stage(), options, mesh)
        state = loop.initial_state(tiny_stage(), options, mesh)
        losses.append(float(jax.jit(step)(state, *batch).sums.loss))
    assert losses[0] != losses[1]


SHARDED = """
import pathlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_imagenet_ssl as tests
print(*tests.three_steps(pathlib.Path(sys.argv[1])))
"""


def three_steps(root) -> tuple[int, int, float, float]:
    """Devices, images on one of them, loss and accuracy after three steps."""
    source, mesh = stream(root), loop.device_mesh()
    batches = source.batches(OPTIONS, 5, mesh)
    state = loop.initial_state(tiny_stage(), OPTIONS, mesh)
    step = jax.jit(source.make_step(tiny_stage(), OPTIONS, mesh))
    for number in range(3):
        batch = batches.at(number)
        state = step(state, *batch)
    batches.close()
    scores = source.make_scores(tiny_stage().apply)(state.variables)
    images = batch[0]
    per_device = images.addressable_shards[0].data.shape[0]
    devices = len(images.sharding.device_set)
    return devices, per_device, float(state.sums.loss), scores["test_accuracy"]


def test_two_devices_compute_what_one_does(root, tmp_path):
    script = tmp_path / "sharded.py"
    tests = str(pathlib.Path(__file__).parent)
    script.write_text(SHARDED.format(root=str(ROOT), tests=tests))
    done = subprocess.run(
        [sys.executable, str(script), str(root)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    two = [float(x) for x in done.stdout.strip().splitlines()[-1].split()]
    assert two[:2] == [2, 2]
    np.testing.assert_allclose(two[2:], three_steps(root)[2:], rtol=1e-4)


def test_batches_must_divide_among_devices(root):
    class Mesh:
        devices = np.zeros(3)

    with pytest.raises(loop.TrainingError, match="batch: got 4, expected a multiple"):
        stream(root).batches(OPTIONS, 5, Mesh())


# The command.


def context_of(root, tmp_path, *arguments) -> imagenet_stages.Context:
    options = ["--preset", "smoke", "--data", "imagenet2012", "--data-dir", str(root)]
    options += ["--workers", "0", "--batch", "4", *arguments]
    config = imagenet_ssl.parse(options)
    run = runs.Run(tmp_path, imagenet_ssl.cifar_ssl.STAGES)
    return imagenet_stages.Context(config, run, imagenet_ssl.open_data(config))


def test_parameters_are_float32_and_the_computation_is_bfloat16(root, tmp_path):
    context = context_of(root, tmp_path)
    model = context.model
    image = jnp.zeros((2, *context.image_shape))
    state = jax.eval_shape(model.init, jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    stage = loop.Stage(
        "x", model.apply, state, optax.sgd(0.1, momentum=0.9), lambda step: 0.1
    )
    options = loop.Options(epochs=1, batch=2, **context.training)
    step = context.source.make_step(stage, options, loop.device_mesh())
    momentum = jax.eval_shape(stage.optimizer.init, state["params"])
    begin = steps.State(
        jnp.zeros((), jnp.int32), dict(state), momentum, steps.no_sums()
    )
    pixels = jax.ShapeDtypeStruct(image.shape, jnp.uint8)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    traced = jax.make_jaxpr(step)(begin, pixels, labels)
    convolutions = [
        line for line in str(traced).splitlines() if "= conv_general_dilated" in line
    ]
    assert len(convolutions) > 30
    assert all(":bf16[" in line for line in convolutions)
    new = jax.eval_shape(step, begin, pixels, labels)
    for leaf in jax.tree.leaves((new.variables, new.opt_state)):
        assert leaf.dtype == jnp.float32
    assert context.exact.dtype == jnp.float32


def test_the_rate_warms_up_scales_with_the_batch_and_falls():
    arguments = ["--data-dir", "/nowhere"]
    standard = imagenet_ssl.parse([*arguments, "--batch", "512"])
    paper = imagenet_ssl.parse([*arguments, "--preset", "paper"])

    def rates(config, epochs, peak, places):
        context = imagenet_stages.Context(config, None, None)
        context.__dict__["source"] = Count(100 * config.batch)
        schedule = context.schedule(peak, epochs)
        return [float(schedule(int(100 * place))) for place in places]

    found = rates(standard, 90, standard.learning_rate, (0, 5, 47.5, 90))
    assert found == pytest.approx([0.01, 0.2, 0.1, 0.0], abs=1e-6)
    found = rates(paper, 90, paper.ssl_learning_rate, (0, 49, 51, 69, 71, 79, 81))
    expected = [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6]
    assert found == pytest.approx(expected, rel=1e-4)


@dataclasses.dataclass
class Count:
    count: int


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--smoothing", "2"], "--smoothing: got 2"),
        (["--drops", "0.5", "1.5"], "--drops: got 1.5"),
        (["--multipliers", "alexnet"], "for --model alexnet --structure filter+shape"),
        (["--model", "resnet20"], "resnet20"),
    ],
)
def test_wrong_options_are_refused(arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        imagenet_ssl.parse(arguments)
    assert error.value.code != 0
    assert text in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
def test_the_whole_road_on_a_small_set(root, tmp_path):
    options = ["--preset", "smoke", "--data", "imagenet2012", "--data-dir", str(root)]
    options += ["--image-size", "32", "--batch", "4", "--workers", "1"]
    options += ["--run", str(tmp_path), "--strength", "80", "--benchmark-repeats", "2"]
    command = [sys.executable, "-m", "experiments.imagenet_ssl", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    for stage in ("baseline", "ssl", "finetune"):
        assert 0 <= record[stage]["test_accuracy"] <= record[stage]["test_top5"] == 1
    assert record["finetune"]["macs"] < 0.95 * record["baseline"]["macs"]
    assert record["compact"]["relative_error"] < 1e-4
    assert "top-5" in (tmp_path / "report" / "report.html").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "baseline " not in again.stdout.split("before and after")[0]
