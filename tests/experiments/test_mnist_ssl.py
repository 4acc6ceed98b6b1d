import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from experiments import models
from experiments.mnist_ssl import __main__ as mnist_ssl
from experiments.mnist_ssl import report as mnist_report
from experiments.mnist_ssl import stages as mnist_stages


def params_of(name):
    model = models.create(name)
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)


def first_alive(groups, params, left):
    """Only the first so many groups of each class."""
    masks = {c.name: np.zeros(c.shape, bool) for c in groups.classes}
    for name, count in left.items():
        masks[name].reshape(-1)[:count] = True
    return sslx.alive(groups, sslx.scale(groups, params, masks))


FILTERS = ("conv1/kernel:FILTER", "conv2/kernel:FILTER", "conv2/kernel:CHANNEL")
NEURONS = ("inputs", "hidden1", "hidden2")


@pytest.mark.parametrize(
    ("preset", "row", "classes", "left"),
    [
        ("table1", 0, FILTERS, (20, 50, 20)),
        ("table1", 1, FILTERS, (5, 19, 4)),
        ("table1", 2, FILTERS, (3, 12, 3)),
        ("mlp", 0, NEURONS, (784, 500, 300)),
        ("mlp", 1, NEURONS, (469, 294, 166)),
        ("mlp", 2, NEURONS, (434, 174, 78)),
    ],
)
def test_the_papers_counts_give_the_papers_flops(preset, row, classes, left):
    params = params_of("mlp" if preset == "mlp" else "lenet")
    groups = mnist_stages.make_groups(preset, params)
    alive = {
        c: np.arange(groups[c].count) < k for c, k in zip(classes, left, strict=True)
    }
    check_row(mnist_stages.counts(preset, alive), mnist_report.PAPER[preset][row])


@pytest.mark.parametrize(("row", "left"), [(0, (25, 500)), (1, (21, 41)), (2, (7, 14))])
def test_the_papers_filter_sizes_give_the_papers_flops(row, left):
    paper = mnist_report.PAPER["table2"][row]
    channels = int(paper.channels.split("-")[1])
    first = (np.arange(25) < left[0]).reshape(5, 5, 1)
    second = np.zeros((25, 20), bool)
    second[:, :channels] = np.arange(25 * channels).reshape(25, -1) < left[1]
    alive = {
        "conv1/kernel:SHAPE": first,
        "conv2/kernel:SHAPE": second.reshape(5, 5, 20),
    }
    check_row(mnist_stages.counts("table2", alive), paper)


def check_row(found, paper):
    assert "-".join(map(str, found.filters)) == paper.filters
    assert "-".join(map(str, found.channels)) == paper.channels
    printed = [float(part) for part in paper.flops.rstrip("%").split("-")]
    shares = [100 * share for share in found.flops]
    np.testing.assert_allclose(shares, printed, atol=0.1)


def test_a_neuron_is_in_one_group_with_all_its_connections():
    params = params_of("mlp")
    groups = mnist_stages.make_groups("mlp", params)
    left = {"inputs": 469, "hidden1": 294, "hidden2": 166}
    alive = first_alive(groups, params, left)
    assert {name: int(mask.sum()) for name, mask in alive.items()} == left
    sizes = {name: set(size.tolist()) for name, size in groups.sizes.items()}
    assert sizes == {"inputs": {500}, "hidden1": {784 + 300}, "hidden2": {500 + 10}}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--strengths", "-1"], "--strengths: got (-1.0,)"),
        (["--batch", "0"], "--batch: got 0"),
        (["--data", "cifar10"], "cifar10"),
    ],
)
def test_wrong_options_are_refused(arguments, text, capsys):
    with pytest.raises(SystemExit) as error:
        mnist_ssl.parse(arguments)
    assert error.value.code != 0
    assert text in "".join(capsys.readouterr())


def test_a_preset_names_network_groups_and_strengths():
    assert mnist_ssl.parse([]) == mnist_ssl.PRESETS["table1"]
    mlp = mnist_ssl.parse(["--preset", "mlp", "--seed", "2"])
    assert (mlp.preset, mlp.model, mlp.seed) == ("mlp", "mlp", 2)
    assert mlp.strengths == mnist_ssl.PRESETS["mlp"].strengths


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["table1", "table2", "mlp"])
def test_the_whole_road_on_digits(preset, tmp_path):
    options = ["--preset", preset, "--data", "digits", "--run", str(tmp_path)]
    options += ["--batch", "32", "--baseline-epochs", "3", "--ssl-epochs", "3"]
    strengths = ("0.17", "0.2") if preset == "mlp" else ("0.7", "1.5")
    options += ["--finetune-epochs", "1", "--strengths", *strengths]
    command = [sys.executable, "-m", "experiments.mnist_ssl", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    networks = record["finetune"]["networks"]
    assert record["baseline"]["test_accuracy"] > 0.8
    weak, strong = networks.values()
    # Zeros that SSL made are kept by fine-tuning; the stronger penalty leaves less.
    for name, network in networks.items():
        before = record["ssl"]["networks"][name]["left"]
        assert network["left"] == before
        assert record["compact"]["networks"][name]["relative_error"] < 1e-4
    dense = mnist_stages.dense_counts(preset).flops
    assert dense == (1.0,) * len(dense)
    assert sum(strong["left"]["flops"]) < sum(weak["left"]["flops"]) < sum(dense)
    table = mnist_report.table(record)
    assert [row["from"] for row in table] == ["paper"] * 3 + ["here"] * 3
