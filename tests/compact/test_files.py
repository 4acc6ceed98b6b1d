"""Compact networks on disk: nothing damaged is accepted, nothing half-written seen."""

import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from sslx._compact import files

ROOT = pathlib.Path(__file__).parents[2]


def net(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


def small_net():
    r = np.random.default_rng(0)
    p = {"w": r.normal(size=(8, 6)), "b": r.normal(size=6), "v": r.normal(size=(6, 3))}
    p = {k: jnp.asarray(x, jnp.float32) for k, x in p.items()}
    p["w"], p["b"] = p["w"].at[:, 2:4].set(0), p["b"].at[2:4].set(0)
    return sslx.compact(net)(p, jnp.ones((2, 8)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved") / "net"
    sslx.save(place, small_net())
    return place


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def bits(small: sslx.Compact) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(small.variables)
    return small.plan, [(str(k), np.asarray(x).tobytes()) for k, x in leaves]


def outcome(folder: pathlib.Path, wanted: Any) -> str:
    """What comes of loading damaged files; any other exception leaves."""
    try:
        found = bits(sslx.load(folder, net))
    except ValueError as error:
        assert str(folder) in str(error)
        return "refused"
    assert found == wanted
    return "harmless"


def test_any_damage_to_a_saved_network_is_refused_and_named(saved, copy):
    wanted, draw = bits(sslx.load(saved, net)), random.Random(0)
    files = [f for f in sorted(saved.rglob("*")) if f.is_file()]
    outcomes = collections.Counter()
    for file in files:
        there, content = copy / file.relative_to(saved), file.read_bytes()
        flipped = []
        for _ in range(8 if content else 0):
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            flipped.append(bytes(changed))
        others = [f.read_bytes() for f in draw.sample(files, 3)]
        halves = [content[: len(content) // 2], content[:-1], content + b"0"]
        for damaged in (*flipped, *halves, *others, b"", b"\xff\xfe{"):
            there.write_bytes(damaged)
            outcomes[outcome(copy, wanted)] += 1
        there.unlink()
        outcomes[outcome(copy, wanted)] += 1
        there.mkdir()
        outcomes[outcome(copy, wanted)] += 1
        there.rmdir()
        there.write_bytes(content)
    assert outcome(copy, wanted) == "harmless"
    assert outcomes["refused"] > 10 * len(files)


def test_files_of_two_networks_are_not_mixed(copy, tmp_path):
    small = small_net()
    other = jax.tree.map(lambda x: x + 1, small.variables)
    sslx.save(tmp_path / "other", sslx.compact(net)(other, jnp.ones((2, 8))))
    shutil.rmtree(copy / "arrays")
    shutil.copytree(tmp_path / "other" / "arrays", copy / "arrays")
    with pytest.raises(ValueError, match=r"copy/arrays/.* is damaged"):
        sslx.load(copy, net)


def rewritten(folder: pathlib.Path, change: Any) -> None:
    """As a program with a mistake would have saved it: the digest is right."""
    file = folder / "compact.json"
    whole = json.loads(file.read_text())
    change(whole["content"])
    whole["digest"] = files._digest(whole["content"])
    file.write_text(json.dumps(whole))


def no_bias(content):
    del content["plan"]["b"]


WRONG = {
    "descending": lambda c: c["plan"]["w"]["kept"].__setitem__(1, [3, 1, 4, 5]),
    "repeated": lambda c: c["plan"]["w"]["kept"].__setitem__(1, [1, 1, 4, 5]),
    "negative": lambda c: c["plan"]["w"]["kept"].__setitem__(1, [-1, 1, 4, 5]),
    "outside": lambda c: c["plan"]["w"]["kept"].__setitem__(1, [0, 1, 4, 6]),
    "axes": lambda c: c["plan"]["w"]["kept"].append(None),
    "zero outside": lambda c: c["plan"]["w"]["zero"].__setitem__(1, [6]),
    "terabytes": lambda c: c["plan"]["w"].update(shape=[10**13, 6]),
    "terabytes stored": lambda c: c["arrays"]["variables:w"].__setitem__(0, [10**13]),
    "fewer": lambda c: c["plan"]["w"]["kept"].__setitem__(1, [0, 1, 4]),
    "type": lambda c: c["dtypes"].update(w="int32"),
    "no type": lambda c: c["dtypes"].update(w="nonsense"),
    "no leaf": no_bias,
    "no list": lambda c: c.update(plan=[]),
    "structure": lambda c: c.update(structure=["dict", [["w", "q"]]]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_allocated(name, copy):
    rewritten(copy, WRONG[name])
    with pytest.raises(ValueError, match=r"copy holds what no compact network has"):
        sslx.load(copy, net)


def test_another_format_is_named_and_what_to_do(copy):
    file = copy / "compact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    with pytest.raises(ValueError, match=r"compact.json is of format 2.*reads format"):
        sslx.load(copy, net)


class Pair(NamedTuple):
    w: Any
    b: Any


def test_plain_containers_come_back_as_they_were_and_others_ask_for_like(tmp_path):
    w, x = jnp.eye(3), jnp.ones((2, 3))
    tree = {
        "in/out": [w, (w, None)],
        "ordered": collections.OrderedDict([("z", w), ("a", {7: w})]),
        "none": {},
    }

    def fn(p, x):
        values = jax.tree.leaves(list(p["ordered"].values()))
        return x @ p["in/out"][0] @ p["in/out"][1][0] @ values[0]

    small = sslx.compact(fn)(tree, x)
    sslx.save(tmp_path / "plain", small)
    loaded = sslx.load(tmp_path / "plain", fn)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(tree)
    assert list(loaded.variables["ordered"]) == ["z", "a"]
    np.testing.assert_array_equal(loaded.apply(loaded.variables, x), fn(tree, x))

    for foreign in (Pair(w, w), {"a": Pair(w, w)}, {("a", 1): w}):
        fn = lambda p, x: x @ jax.tree.leaves(p)[0]
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        sslx.save(place, sslx.compact(fn)(foreign, x))
        with pytest.raises(ValueError, match=rf"{place.name}: its variables .* like="):
            sslx.load(place, fn)
        loaded = sslx.load(place, fn, like=foreign)
        assert jax.tree.structure(loaded.variables) == jax.tree.structure(foreign)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "int4", "uint8", "complex64", "bool"]
)
def test_every_type_comes_back_to_the_bit(dtype, tmp_path):
    w = jnp.asarray(np.arange(6).reshape(3, 2) - 2).astype(dtype)
    fn = lambda p, x: (
        x @ jnp.real(p["w"]).astype(jnp.float32) + jax.random.normal(p["k"])
    )
    small = sslx.compact(fn)({"w": w, "k": jax.random.key(1)}, jnp.ones((1, 3)))
    sslx.save(tmp_path / "net", small)
    loaded = sslx.load(tmp_path / "net", fn).variables
    assert loaded["w"].dtype == dtype
    assert loaded["w"].tobytes() == small.variables["w"].tobytes()
    assert (loaded["k"] == small.variables["k"]).all()


def test_double_precision_is_not_cut_short_in_silence(x64, tmp_path):
    fn = lambda p, x: x @ p["w"]
    small = sslx.compact(fn)({"w": jnp.ones((3, 2))}, jnp.ones((1, 3)))
    sslx.save(tmp_path / "net", small)
    assert sslx.load(tmp_path / "net", fn).variables["w"].dtype == "float64"
    with jax.enable_x64(False), pytest.raises(ValueError, match="set jax_enable_x64"):
        sslx.load(tmp_path / "net", fn)


def test_a_network_of_which_nothing_is_left_is_saved_too(tmp_path):
    fn = lambda p, x: x @ p["w"] * 0 + 1
    small = sslx.compact(fn)({"w": jnp.zeros((3, 2))}, jnp.ones((1, 3)))
    sslx.save(tmp_path / "net", small)
    assert bits(sslx.load(tmp_path / "net", fn)) == bits(small)


KILLED = """
import os, pathlib, sys, warnings
sys.path.insert(0, {root!r})
import jax, jax.numpy as jnp, orbax.checkpoint
import sslx
from tests.experiments import kills
warnings.filterwarnings("ignore", message=".*os.fork.*")
root, numbers = pathlib.Path(sys.argv[1]), map(int, sys.argv[2:])
fn = lambda p, x: x @ p["w"]

def save(place, number=0):
    small = sslx.compact(fn)({{"w": jnp.ones((3, 4))}}, jnp.ones((2, 3)))
    if number:
        kills.arm(place, kills.nth(number))
    try:
        sslx.save(place / "net", small)
    except FileExistsError:
        assert sslx.load(place / "net", fn).plan == small.plan
        sslx.save(place / "again", small)
    if number:
        print("ended before", number)

for number in numbers:
    place = root / str(number)
    place.mkdir()
    assert kills.fork(save, place, number) in (9, None)
    left = sorted(os.listdir(place))
    assert "net" not in left or left == ["net"], left
    assert kills.fork(save, place) is None
    print(number, *sorted(os.listdir(place)))
"""


def killed(tmp_path: pathlib.Path, numbers: list[int]) -> list[str]:
    script = KILLED.format(root=str(ROOT))
    words = [sys.executable, "-c", script, str(tmp_path), *map(str, numbers)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_killed_save_leaves_nothing_and_never_half_a_network(tmp_path):
    """Before the first file, between files, before and after the last step."""
    lines = killed(tmp_path, [2, 8, 15, 16])
    assert lines == ["2 net", "8 net", "15 net", "16 net"]


@pytest.mark.slow
def test_a_save_killed_at_any_change_of_a_file_leaves_nothing(tmp_path):
    lines = killed(tmp_path, list(range(1, 25)))
    assert lines[-2] == "ended before 24"
    assert {tuple(line.split()[1:]) for line in lines[:15]} == {("net",)}


def test_folders_with_other_letters_work_in_the_c_locale(tmp_path):
    script = "import sys; from tests.compact import test_files as t\n"
    script += "import sslx; place = sys.argv[1] + '/net'\n"
    script += "sslx.save(place, t.small_net()); sslx.load(place, t.net)\n"
    place = tmp_path / "Prüfung 試験"
    words = [sys.executable, "-c", script, str(place)]
    path = os.pathsep.join([str(ROOT), *sys.path])
    env = {**os.environ, "LC_ALL": "C", "PYTHONPATH": path}
    subprocess.run(words, env=env, check=True)


def test_a_path_that_the_locale_cannot_name_is_not_called_damaged(saved):
    """As Python hands over a name with other letters in an ASCII locale."""
    path = os.fsencode(saved / "ü").decode("ascii", "surrogateescape")
    for act in (lambda: sslx.save(path, small_net()), lambda: sslx.load(path, net)):
        with pytest.raises(ValueError, match="cannot name this path; set PYTHONUTF8"):
            act()
