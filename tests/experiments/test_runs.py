"""Run folders: damage is named, one process at a time, kills change nothing."""

import json
import pathlib
import platform
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import checkpoints, metrics, records, runs

ROOT = pathlib.Path(__file__).parents[2]


def config(**options):
    whole = {"stages": ("a", "b", "c"), "redo": (), "x": 1, "y": 2, **options}
    return types.SimpleNamespace(**whole)


FIELDS = {"a": ("x",), "b": ("x", "y"), "c": ()}


def study(folder, **options):
    """Stages a, b, c; the names of those that were done now."""
    run, done = runs.Run(folder, ("a", "b", "c")), []

    def act(stage):
        done.append(stage)
        run.fresh(stage, "model").mkdir()
        return {"figure": 0.25, "of": stage}

    run.do(config(**options), FIELDS, act)
    return done


def test_stages_are_done_once_and_the_last_one_always(tmp_path):
    assert study(tmp_path) == ["a", "b", "c"]
    assert study(tmp_path) == ["c"]
    assert study(tmp_path, redo=("b",)) == ["b", "c"]
    assert not list(tmp_path.glob("*.forgotten"))


def test_a_result_that_changed_is_refused_and_its_file_named(tmp_path):
    study(tmp_path)
    path = tmp_path / "a" / "result.json"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    lost = [line for line in lines if "figure" not in line]
    for damaged in (text.replace("0.25", "0.75"), "".join(lost), text[:-9], "", "[]"):
        path.write_text(damaged)
        with pytest.raises(records.DamageError, match=r"a/result.json .*delete it and"):
            study(tmp_path)
    path.unlink()
    assert study(tmp_path) == ["a", "c"]
    assert (
        records.read_json(path)["figure"] == json.loads(text)["figure"]
    ) and text.count("digest") == 1


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_a_record_is_harmless_or_refused(bit, tmp_path):
    path, content = tmp_path / "record.json", {"a": [0.1, -3], "b": {"c": "ü", "d": 1}}
    records.write_json(path, content)
    good = path.read_bytes()
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            assert records.read_json(path) == content
        except records.DamageError as error:
            assert str(path) in str(error)


def test_lost_or_changed_options_are_refused(tmp_path):
    study(tmp_path)
    path = tmp_path / "b" / "options.json"
    text = path.read_text()
    path.write_text(text.replace("2", "3"))
    with pytest.raises(records.DamageError, match=r"b/options.json is damaged"):
        study(tmp_path, y=3)
    path.unlink()
    with pytest.raises(records.DamageError, match=r"b/options.json is missing"):
        study(tmp_path, y=3)


def test_bad_input_forgets_nothing(tmp_path):
    study(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    for wrong in ({"x": 5}, {"x": 5, "stages": ("a", "b")}):
        with pytest.raises(runs.RunError, match="x was 1, now 5"):
            study(tmp_path, redo=("b",), **wrong)
    with pytest.raises(runs.RunError, match="needs stage b"):
        study(tmp_path, redo=("b",), stages=("c",))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*.json")}


def test_the_committed_records_are_as_they_were_written():
    found = sorted((ROOT / "results").glob("*/record.json"))
    assert len(found) > 20
    assert all(records.read_json(path) for path in found)


# Metrics.

ROWS = [{"step": step, "loss": 1 / step} for step in range(1, 6)]


@pytest.fixture
def log(tmp_path):
    log = metrics.MetricsLog(tmp_path / "metrics.jsonl")
    for row in ROWS:
        log.write(row)
    return log


def change(path, edit):
    lines = path.read_text().splitlines(keepends=True)
    edit(lines)
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda x: x.__setitem__(2, x[2].replace("0.3", "0.4")), 3),
        (lambda x: x.__setitem__(2, x[2].replace("3,", "7,")), 3),
        (lambda x: x.__setitem__(2, "\n"), 3),
        (lambda x: x.__setitem__(2, "null\n"), 3),
        (lambda x: x.pop(0), 1),
        (lambda x: x.pop(2), 3),
        (lambda x: x.reverse(), 1),
        (lambda x: x.insert(1, x[1]), 3),
        (lambda x: x.pop(), 5),
        (lambda x: x.__setitem__(4, x[4][:-4]), 5),
        (lambda x: x.clear(), 1),
    ],
)
def test_a_changed_or_lost_line_of_metrics_is_named(edit, line, log):
    assert metrics.read_metrics(log.path, log.check) == ROWS
    change(log.path, edit)
    text = rf"metrics.jsonl, line {line} is .*delete .* and run the same command again"
    with pytest.raises(records.DamageError, match=text):
        metrics.read_metrics(log.path, log.check)
    with pytest.raises(records.DamageError, match=text):
        metrics.MetricsLog(log.path, log.check)


def test_a_log_goes_on_after_the_line_of_the_checkpoint(log):
    third = json.loads(log.path.read_text().splitlines()[2])["check"]
    change(log.path, lambda lines: lines.__setitem__(4, '{"cut'))
    again = metrics.MetricsLog(log.path, third)
    assert metrics.read_metrics(log.path) == ROWS[:3]
    again.write(ROWS[3])
    again.write(ROWS[4])
    assert again.check == log.check
    log.path.unlink()
    with pytest.raises(records.DamageError, match="line 1 is missing"):
        metrics.MetricsLog(log.path, third)


# Checkpoints.


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64", "bool"])
def test_the_digest_sees_every_bit_and_every_place(x64, dtype):
    words = np.random.default_rng(0).integers(0, 2, (4, 3))
    leaf = jnp.asarray(words).astype(dtype)
    digest = lambda x: int(checkpoints._digest({"w": x, "v": leaf}))
    size = leaf.dtype.itemsize
    for bit in range(8 * size if dtype != "bool" else 1):
        content = bytearray(leaf.tobytes())
        content[5 * size + bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(bytes(content), leaf.dtype).reshape(4, 3)
        assert digest(jnp.asarray(other)) != digest(leaf)
    assert (leaf[0] != leaf[1]).any()
    assert digest(leaf[jnp.array([1, 0, 2, 3])]) != digest(leaf)


# Locks.

HOLD = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from experiments.training import runs
with runs.taken(pathlib.Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path), str(ROOT)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        text = rf"{tmp_path.name} is in use by process {process.pid}, started at .* on "
        with pytest.raises(runs.RunError, match=text + ".*or give another --run"):
            study(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "lock").read_text()
    assert study(tmp_path) == ["a", "b", "c"]
    assert not (tmp_path / "lock").read_text()


def test_a_lock_that_another_host_left_says_how_to_remove_it(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("process 7, started at noon on elsewhere")
    with pytest.raises(runs.RunError, match=rf"7, .* elsewhere.* delete {lock}"):
        study(tmp_path)
    lock.write_text(f"process 7, started at noon on {platform.node()}")
    assert study(tmp_path) == ["a", "b", "c"]


def test_a_folder_that_the_locale_cannot_name_is_not_called_damaged():
    path = pathlib.Path("ü".encode().decode("ascii", "surrogateescape"))
    with pytest.raises(ValueError, match="cannot name this folder; set PYTHONUTF8=1"):
        study(path)


# Kills.

KILLED = """
import os, pathlib, sys, warnings
sys.path.insert(0, sys.argv[1])
from tests.experiments import kills, test_runs
warnings.filterwarnings("ignore", message=".*os.fork.*")
root = pathlib.Path(sys.argv[2])
options = {"redo": ("b",)} if sys.argv[3] == "redo" else {}
test_runs.runs.provenance = lambda: {}
test_runs.runs.jax.process_index = lambda: 0  # Starts a backend, in every child.

def act(place, number, options):
    seen = kills.arm(place, kills.nth(number))
    test_runs.study(place, **options)

for number in range(1, 200, int(sys.argv[4])):
    place = root / str(number)
    if options:
        assert kills.fork(act, place, 0, {}) is None
    if kills.fork(act, place, number, options) is None:
        print(number)
        break
    assert kills.fork(act, place, 0, {}) is None
    if options:
        assert kills.fork(act, place, 0, options) is None
"""


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("once", 6),
        ("redo", 8),
        pytest.param("once", 1, marks=pytest.mark.slow),
        pytest.param("redo", 1, marks=pytest.mark.slow),
    ],
)
def test_stages_killed_at_any_change_of_a_file_end_as_if_they_were_not(
    command, step, tmp_path
):
    words = [sys.executable, "-c", KILLED, str(ROOT)]
    words += [str(tmp_path / "runs"), command, str(step)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 20
    trees = [
        {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
        for run in sorted((tmp_path / "runs").iterdir())
    ]
    assert all(tree == trees[0] for tree in trees)
