"""How near the rule for dense convolutions comes to the fastest form of each.

    python -m experiments.bench lowerings --out FOLDER        20 minutes on 2 calm cores

Convolutions of networks that the rule was not written from, at several batch sizes,
drawn evenly from each. Per convolution, fresh timings side by side of XLA as it comes,
the rule's form with the rule's compiler options, and the form and options that were
fastest in an earlier timing. The score is the geometric mean of rule / fastest.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sslx
from experiments.bench import networks as bench_networks
from experiments.bench import timing
from experiments.reports import lowerings
from sslx import lowering
from sslx.lowering import Conv, Form


@dataclasses.dataclass(frozen=True)
class Config:
    """Score the rule for dense convolutions."""

    networks: tuple[str, ...] = ("googlenet", "densenet121", "mobilenet", "convnet")
    """Where the convolutions are from; names as for `bench networks`."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Images per call."""
    count: int = 4
    """Convolutions per network and batch size, drawn at random."""
    rounds: int = 15
    """Rounds of the timing that is reported."""
    cache: pathlib.Path | None = None
    """Folder of the timings that choices are made on [~/.cache/sslx]."""
    out: pathlib.Path | None = None
    """Folder for record.json and lowerings.png."""


def convolutions(config: Config) -> Iterator[tuple[str, int, Conv]]:
    """Network, batch size and convolution, each convolution once."""
    rng = np.random.default_rng(0)
    for name in config.networks:
        network = bench_networks.create(name)
        for batch in config.batches:
            x = jax.ShapeDtypeStruct((batch, *network.shape), "float32")
            tuned = sslx.tune(network.apply)
            convs = [choice.conv for choice in tuned.choices(network.variables, x)]
            for place in np.sort(rng.permutation(len(convs))[: config.count]):
                yield name, batch, convs[place]


def time_conv(conv: Conv, config: Config) -> dict[str, Any]:
    """Three ways to compute one convolution, side by side."""
    cache = lowering.Cache(config.cache)
    found = {
        (form, tuple(options.items())): seconds
        for options in lowering.option_sets()
        for form, seconds in cache.timings(conv, options).items()
    }
    ways: dict[str, tuple[Form, Any]] = {
        "rule": (lowering.rule(conv), tuple(lowering.option_sets()[-1].items())),
        "XLA": (lowering.XLA, ()),
        "fastest": min(found, key=found.__getitem__),
    }
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(conv.lhs, np.float32))
    w = jnp.asarray(rng.standard_normal(conv.rhs, np.float32))
    calls = {}
    expected = conv.run(x, w)
    for name, (form, options) in ways.items():
        run = functools.partial(lowering.run, form, conv)
        program, _ = timing.compiled(run, x, w, **dict(options))
        calls[name] = functools.partial(program, x, w)
        timing.check(name, calls[name](), expected)
    timed = timing.interleaved(calls, config.rounds)
    return {
        "image": conv.lhs,
        "kernel": conv.rhs,
        "stride": conv.strides,
        "groups": conv.groups,
        "forms": {name: str(form) for name, (form, _) in ways.items()},
        "options": {name: dict(options) for name, (_, options) in ways.items()},
        "rule_over_fastest": timed.speedup("fastest", "rule").as_dict(),
        "xla_over_fastest": timed.speedup("fastest", "XLA").as_dict(),
        "calls": timed.as_dict(),
    }


def main(config: Config) -> dict[str, Any]:
    """Time all, print a table, write record and picture where asked."""
    cases = []
    for name, batch, conv in convolutions(config):
        cases.append({"network": name, "batch": batch, **time_conv(conv, config)})
        jax.clear_caches()
    print(text(cases))
    means = {
        kind: statistics.geometric_mean(c[kind]["median"] for c in cases)
        for kind in ("rule_over_fastest", "xla_over_fastest")
    }
    print(
        f"{len(cases)} convolutions, geometric means of time over the fastest form's: "
        f"rule {means['rule_over_fastest']:.3f}, XLA {means['xla_over_fastest']:.2f}"
    )
    record = {"geometric_means": means, "cases": cases}
    return timing.finish(record, config.out, lowerings.REPORT)


def text(cases: list[dict[str, Any]]) -> str:
    """One convolution a line."""
    rows = [
        [
            f"{c['network']} b{c['batch']}",
            "x".join(map(str, c["image"][1:])),
            "x".join(map(str, c["kernel"])),
            c["forms"]["rule"],
            c["forms"]["fastest"],
            timing.cell(c["rule_over_fastest"]),
            timing.cell(c["xla_over_fastest"]),
        ]
        for c in cases
    ]
    head = ("network", "image", "kernel", "rule", "fastest", "rule/fast", "XLA/fast")
    return timing.table(head, rows)
