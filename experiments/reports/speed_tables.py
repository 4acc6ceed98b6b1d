"""Tables of docs/results that show times, from the records of `experiments.bench`."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reports.cells import NAMES, Record, Rows, ratio

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "mean", "one program")


def alexnet(calm: Record, noisy: Record) -> Rows:
    """SSL's and l1's rows of Table 4 at 2% loss beside ours, layer by layer."""
    ssl, other = _figures(calm, "ssl, 2% loss"), _figures(noisy, "ssl, 2% loss")
    l1 = _figures(calm, "l1, 2% loss")
    rows = []
    for layer in (name for name in _LAYERS if name in ssl):
        mine = ssl[layer]
        rows.append(
            {
                "": layer,
                "MACs": f"{mine['mac_ratio']:.2f}",
                "paper": "" if mine["paper"] is None else f"{mine['paper']:.2f}",
                "product": _speedup(mine, "gemm, compact"),
                "product, noisy": _speedup(other[layer], "gemm, compact"),
                "whole layer": _speedup(mine, "compact over dense"),
                "whole layer, noisy": _speedup(other[layer], "compact over dense"),
                "over XLA alone": _speedup(mine, "compact over XLA"),
                **_unstructured(l1.get(layer)),
            }
        )
    return rows


def _unstructured(found: Mapping[str, Any] | None) -> dict[str, str]:
    kinds = {"BCOO": "BCOO", "BCSR": "BCSR", "scipy CSR": "scipy", "torch CSR": "torch"}
    paper = "" if found is None else f"{found['paper']:.2f}"
    cells = {f"l1: {name}": _speedup(found, kind) for kind, name in kinds.items()}
    macs = "" if found is None else f"{found['mac_ratio']:.2f}"
    return {"l1: MACs": macs, "l1: paper": paper, **cells}


def alexnet_half(calm: Record, noisy: Record) -> Rows:
    """Half of the filters of conv1 to conv4."""
    found, other = (
        _figures(calm, "half the filters"),
        _figures(noisy, "half the filters"),
    )
    rows = []
    for layer in (name for name in _LAYERS if name in found and name != "mean"):
        mine = found[layer]
        whole = mine["speedups"]["compact over dense"]["median"]
        late = other[layer]["speedups"]["compact over dense"]["median"]
        rows.append(
            {
                "": layer,
                "MACs": f"{mine['mac_ratio']:.2f}",
                "product": _speedup(mine, "gemm, compact"),
                "whole layer": _speedup(mine, "compact over dense"),
                "of the MAC ratio": f"{whole / mine['mac_ratio']:.2f}",
                "noisy": f"{late / other[layer]['mac_ratio']:.2f}",
                "over XLA alone": _speedup(mine, "compact over XLA"),
            }
        )
    return rows


def alexnet_others(*records: Record) -> Rows:
    """Means over the layers of the other conditions."""
    labels = ("no loss, batch 32", "batch 1", "blocks, batch 32", "classes, batch 32")
    rows = []
    for label, record in zip(labels, records, strict=True):
        for name in dict.fromkeys(f["row"] for f in record["figures"]):
            found = _figures(record, name)
            mean = found["mean"]
            rows.append(
                {
                    "": f"{label}: {name}",
                    "MACs": f"{mean['mac_ratio']:.2f}",
                    "paper": "" if mean["paper"] is None else f"{mean['paper']:.2f}",
                    "product": _speedup(mean, "gemm, compact"),
                    "whole layer": _speedup(mean, "compact over dense"),
                    "over XLA alone": _speedup(mean, "compact over XLA"),
                    "one program": _speedup(
                        found.get("one program"), "compact over dense"
                    ),
                    "torch CSR": _speedup(mean, "torch CSR"),
                }
            )
    return rows


def alexnet_patterns(*records: Record) -> Rows:
    """Share of the MAC ratio that becomes time, by pattern of the zeros."""
    labels = ("random", "blocks of 16", "classes")
    rows = []
    for layer in ("conv3", "conv4", "conv5"):
        row = {"": layer}
        for label, record in zip(labels, records, strict=True):
            found = _figures(record, "ssl, 2% loss")[layer]
            whole = found["speedups"]["compact over dense"]["median"]
            row[label] = f"{whole / found['mac_ratio']:.2f}"
        rows.append(row)
    return rows


def _figures(record: Record, row: str) -> dict[str, Any]:
    """Layer -> what was found for one row of Table 4."""
    return {f["layer"]: f for f in record["figures"] if f["row"] == row}


def _speedup(found: Mapping[str, Any] | None, kind: str) -> str:
    return ratio(found["speedups"].get(kind)) if found else ""


def networks(*records: Record) -> Rows:
    """Whole networks with a part of their widths, by network, widths and batch."""
    cases = [case for record in records for case in record["cases"]]
    names = list(NAMES)
    order = lambda c: (names.index(c["network"]), c["width"], c["batch"])
    rows = []
    for case in sorted(cases, key=order):
        speedups, seconds = case["speedups"], case["compile"]
        whole = speedups["compact over dense"]
        rows.append(
            {
                "": f"{NAMES[case['network']]}, {case['width']}",
                "batch": str(case["batch"]),
                "MACs": f"{case['mac_ratio']:.2f}",
                "compact over dense (quartiles)": ratio(whole, spread=True),
                "of the MAC ratio": f"{whole['median'] / case['mac_ratio']:.2f}",
                "by XLA alone": ratio(speedups["compact, XLA over dense, XLA"]),
                "dense, tuned over XLA": ratio(speedups["dense over dense, XLA"]),
                "compile time": f"{seconds['compact'] / seconds['dense']:.2f}",
            }
        )
    return rows


def runtimes(record: Record) -> Rows:
    """Images per second of one network in several engines."""
    names = {
        "XLA": "XLA, tuned",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "torch eager": "PyTorch",
        "torch channels-last": "channels-last",
        "torch compile": "`torch.compile`",
    }
    return [
        {
            "": NAMES[case["network"]],
            "batch": str(case["batch"]),
            **{n: f"{case['images_per_second'][k]:,.0f}" for k, n in names.items()},
            "exported over PyTorch": ratio(case["exported_over_torch"], spread=True),
        }
        for case in record["cases"]
    ]


def lowerings(record: Record) -> Rows:
    """Geometric means over the convolutions of each network."""
    cases = record["cases"]
    groups = {name: [c for c in cases if c["network"] == name] for name in _of(cases)}
    return [
        {
            "": NAMES.get(name, name),
            "convolutions": str(len(found)),
            "rule over fastest": f"{_geometric(found, 'rule_over_fastest'):.3f}",
            "XLA over fastest": f"{_geometric(found, 'xla_over_fastest'):.2f}",
        }
        for name, found in {**groups, "all": cases}.items()
    ]


def _of(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(case["network"] for case in cases))


def _geometric(cases: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.geometric_mean(case[key]["median"] for case in cases)


def training(record: Record) -> Rows:
    """One training step, by who computes it."""
    (case,) = record["cases"]
    names = {"sslx": "tuned by the rule", "XLA alone": "XLA alone"}
    names |= {"torch eager": "PyTorch", "torch channels-last": "PyTorch, channels-last"}
    return [
        {
            "": name,
            "step": f"{1e3 * case['calls']['median'][key]:.0f} ms",
            "images/s": f"{case['images_per_second'][key]:.0f}",
            "tuned over it (quartiles)": ""
            if key == "sslx"
            else ratio(case["sslx_over"][key], spread=True),
        }
        for key, name in names.items()
    ]


def overhead(record: Record) -> Rows:
    """Training steps with a part, over the plain step."""
    steps = record["steps"]
    return [
        {
            "": "the plain step against itself" if "control" in name else name,
            "median": f"{ratio:.3f}",
            "best calls": f"{steps['best'][name]:.3f}",
        }
        for name, ratio in steps["ratios"].items()
        if name != "step"
    ]


def analysis(record: Record) -> Rows:
    """Seconds of tracing, analysis and rewriting."""
    rows = []
    for case in record["cases"]:
        name = case["name"].removesuffix("-jax")
        if name not in NAMES:
            continue
        plain = ", without Flax" if case["name"].endswith("-jax") else ""
        seconds = case["seconds"]
        rows.append(
            {
                "": NAMES[name] + plain,
                "equations": f"{case['equations']:,}",
                **{step: f"{seconds[step]:.2f} s" for step in seconds},
                "all": f"{sum(seconds.values()):.2f} s",
                "units": f"{case['units_seconds']:.2f} s",
                "peak memory": f"{case['peak_megabytes']:.0f} MB",
            }
        )
    return rows
