"""What the README shows is what happens."""

import importlib.util
import json
import pathlib
import re

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The names that the README's Python leaves behind, run in order of appearance."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for number, block in enumerate(_blocks("python"), start=1):
            exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    return names


def test_first_example_is_short():
    lines = [line for line in _blocks("python")[0].splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith(("import ", "from "))]
    assert len(code) <= 15
    assert max(map(len, lines)) <= 88


def test_python_runs_and_the_network_shrinks(shown):
    small, net, params, x = (shown[name] for name in ("small", "net", "params", "x"))
    kept = small.variables["hidden"].shape[1]
    said = int(re.search(r"hidden: 64x256 -> 64x(\d+)", TEXT)[1])
    assert abs(kept - said) <= 4, "rounding differs between machines, but not by much"
    np.testing.assert_allclose(
        small.apply(small.variables, x), net(params, x), atol=1e-4
    )
    assert (net(params, x).argmax(-1) == shown["y"]).mean() > 0.95
    momentum = jax.tree.leaves(shown["small_state"])
    assert (64, kept) in {leaf.shape for leaf in momentum}


def test_commands_exist():
    shell = "\n".join(_blocks("sh")) + " ".join(re.findall(r"`(make [\w-]+)`", TEXT))
    targets = re.findall(r"make ([\w-]+)", shell)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.M)] == []
    modules = re.findall(r"python -m ([\w.]+)", TEXT)
    assert modules
    assert [m for m in modules if importlib.util.find_spec(m) is None] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def _result_lines(record: dict) -> list[str]:
    """The README's table for one committed run of `experiments.cifar_ssl`."""
    timed = record["benchmark"]["latency"]
    speed = {
        batch: {row["name"]: row for row in found["rows"]}
        for batch, found in timed.items()
    }
    batches = sorted(timed, key=int)
    head = ["", "accuracy", "MACs", "weights", *(f"batch {b}" for b in batches)]
    lines = [head, ["---"] * len(head)]
    for name, stage in (("dense", "baseline"), ("compact", "finetune")):
        result, cells = record[stage], []
        for batch in batches:
            row = speed[batch][name]
            ratio = f" ({row['speedup']:.2f}x)" if name == "compact" else ""
            cells.append(f"{1e3 * row['median']:.2f} ms{ratio}")
        accuracy = f"{100 * result['test_accuracy']:.2f}%"
        counts = f"{result['macs'] / 1e6:.2f}M", f"{result['weights']:,}"
        lines.append([name, accuracy, *counts, *cells])
    return ["| " + " | ".join(line) + " |" for line in lines]


def test_results_are_those_of_the_committed_runs():
    records = sorted((ROOT / "results").glob("cifar_ssl-*/record.json"))
    assert records
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        table = "\n".join(_result_lines(record))
        assert table in TEXT, f"{path}: put into README.md\n{table}"
