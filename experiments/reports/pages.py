"""The generated parts of docs/results and docs/papers, from the records in results/.

    python -m experiments.reports.pages

Pages are written by hand but for what stands between `<!-- table: NAME -->`, or
`<!-- record: FOLDER ... -->`, and `<!-- end -->`: a table of `TABLES`, or where
the records are and how they were made.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.reports import speed_tables, study_tables

ROOT = pathlib.Path(__file__).parents[2]
_BLOCK = re.compile(r"(<!-- (table|record): (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write every page of docs/ whose generated parts have changed."""
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


def pages() -> list[pathlib.Path]:
    """The pages with generated parts."""
    found = [
        p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts
    ]
    return [p for p in found if _BLOCK.search(p.read_text(encoding="utf-8"))]


def filled(text: str) -> str:
    """A page with its generated parts made anew."""

    def block(match: re.Match[str]) -> str:
        start, kind, names, end = match.groups()
        return f"{start}\n{_MADE[kind](names)}\n\n{end}"

    return _BLOCK.sub(block, text)


def record(folder: str) -> Any:
    """The record in a folder of results/."""
    path = ROOT / "results" / folder / "record.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _table(name: str) -> str:
    """A table as markdown, the first column to the left."""
    make, *folders = TABLES[name]
    rows: Sequence[Mapping[str, str]] = make(*map(record, folders))
    head = list(rows[0])
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *(r.values() for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _record(names: str) -> str:
    """Where records are, and what made them: commands, dates, commits, versions."""
    lines = []
    for folder in names.split():
        found = record(folder)
        runs = sorted(_provenances(found), key=lambda run: run["date"])
        days = [run["date"][:16].replace("T", " ") for run in runs]
        first, last = min(days), max(days)
        commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
        when = f"{first} UTC" if first == last else f"{first} to {last} UTC"
        seed = _seeds(found)
        lines += [
            f"- {_links(folder)}: {when}{seed}, at {commits}",
            *(f"  - `{c}`" for c in dict.fromkeys(run["command"] for run in runs)),
        ]
    versions = {k: v for run in runs for k, v in run["versions"].items()}
    shown = ", ".join(f"{k} {v}" for k, v in versions.items())
    return "\n".join([*lines, f"- {runs[-1]['hardware']}, float32; {shown}"])


def _links(folder: str) -> str:
    place = f"../../results/{folder}"
    report = (ROOT / "results" / folder / "report.html").exists()
    end = f", [report]({place}/report.html)" if report else ""
    return f"[{folder}]({place}/record.json){end}"


def _seeds(found: Mapping[str, Any]) -> str:
    options = found.get("options", {})
    seeds = options.get("seeds", [options["seed"]] if "seed" in options else [])
    return f", seed {', '.join(map(str, seeds))}" if seeds else ""


def _provenances(node: Any) -> Iterator[dict[str, Any]]:
    """What made a record and its parts."""
    if isinstance(node, dict):
        if "commit" in node and "command" in node:
            yield node
        for child in node.values():
            yield from _provenances(child)
    elif isinstance(node, list):
        for child in node:
            yield from _provenances(child)


_SPEED = ("alexnet_speed", "alexnet_speed-noisy")
_NETWORKS = ("networks", "networks-batch256", "networks-resnet50")
_NETWORKS += ("networks-resnet50-batch256",)
_RESNET, _CONVNET = "cifar_ssl-cifar10-resnet20-cpu", "cifar_ssl-cifar10-convnet"
_MNIST = "mnist_ssl-fashion_mnist"

TABLES: dict[str, tuple[Any, ...]] = {
    "resnet20": (study_tables.cifar_ssl, _RESNET),
    "resnet20_latency": (study_tables.latency, _RESNET),
    "convnet": (study_tables.convnet, _CONVNET),
    "convnet_size": (study_tables.cifar_ssl, _CONVNET),
    "convnet_latency": (study_tables.latency, _CONVNET),
    "lenet_filters": (study_tables.mnist, f"{_MNIST}-table1"),
    "lenet_shapes": (study_tables.mnist, f"{_MNIST}-table2", f"{_MNIST}-table2-strong"),
    "mlp": (study_tables.mnist, f"{_MNIST}-mlp"),
    "alexnet": (speed_tables.alexnet, *_SPEED),
    "alexnet_half": (speed_tables.alexnet_half, *_SPEED),
    "alexnet_others": (
        speed_tables.alexnet_others,
        "alexnet_speed-no-loss",
        "alexnet_speed-batch1",
        "alexnet_speed-blocks",
        "alexnet_speed-classes",
    ),
    "alexnet_patterns": (
        speed_tables.alexnet_patterns,
        "alexnet_speed",
        "alexnet_speed-blocks",
        "alexnet_speed-classes",
    ),
    "alexnet_paper": (study_tables.alexnet_paper,),
    "networks": (speed_tables.networks, *_NETWORKS),
    "networks_odd": (speed_tables.networks, "networks-odd"),
    "networks_measure": (speed_tables.networks, "networks-measure"),
    "runtimes": (speed_tables.runtimes, "runtimes"),
    "lowerings": (speed_tables.lowerings, "lowerings"),
    "training": (speed_tables.training, "training"),
    "overhead": (speed_tables.overhead, "overhead"),
    "analysis": (speed_tables.analysis, "analysis"),
    "granularity": (study_tables.granularity, "granularity-cifar10-resnet20-cpu"),
    "grain_costs": (study_tables.grain_costs, "granularity_shapes"),
    "filter_speed": (study_tables.filter_speed, "granularity_shapes"),
    "psp": (study_tables.psp, "psp_sweep-cifar10-resnet20-cpu"),
    "psp_digits": (study_tables.psp, "psp_sweep-digits-resnet8-smoke"),
    "psp_paper": (study_tables.psp_paper,),
    "depth_paper": (study_tables.depth_paper,),
}
"""Name of a table -> its function and the records it takes."""


_MADE: dict[str, Callable[[str], str]] = {"table": _table, "record": _record}

if __name__ == "__main__":
    main()
