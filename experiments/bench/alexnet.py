"""Layer by layer speed of AlexNet's convolutions at the sparsities of SSL's Table 4.

    python -m experiments.bench alexnet_speed --out FOLDER      an hour on 2 calm cores
    python -m experiments.bench alexnet_speed --batches 1 --seeds 0 --layers conv3

Timed side by side, with zeros at random (`--pattern`: in ways that are fast by design):

    dense, XLA   the convolution with all its weights, by XLA as it comes
    dense        the same in the form and options that were fastest in an earlier timing
    compact      zero rows and dead channels gone, in the form chosen in the same way;
                 `dense` again where nothing was faster in that timing
    gemm         the product alone, patches for free, dense and compact, as in the paper
    BCOO, BCSR, scipy CSR, torch CSR    the same for the l1 rows, by sparse kernels

and the five layers with ReLU and pooling as one program. Every output is compared with
the dense one before it is timed. Choices are taken from timings on disk (`--cache`),
figures from fresh ones: medians over rounds of the ratio within a round, then over
seeds. `=` marks those within the spread of the reference against itself.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sslx
from experiments.bench import products as bench_products
from experiments.bench import timing
from experiments.bench.alexnet_cases import (
    POOLED,
    SHAPES,
    TABLE,
    Case,
    Pattern,
    convolution,
    draw,
)
from experiments.bench.timing import Call
from experiments.reports import alexnet
from sslx import lowering
from sslx.lowering import Conv


@dataclasses.dataclass(frozen=True)
class Config:
    """Time AlexNet's convolutions, dense, compact and with unstructured zeros."""

    batches: tuple[int, ...] = (1, 32)
    """Images per call."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of patterns and values."""
    layers: tuple[str, ...] = tuple(SHAPES)
    """Convolutions; the whole program is timed where all are."""
    rows: tuple[str, ...] = tuple(TABLE)
    """Rows of Table 4, and "half the filters"."""
    pattern: Pattern = "random"
    """Which columns of the SSL rows are zero."""
    rounds: int = 21
    """Rounds of the timing that is reported."""
    cache: pathlib.Path | None = None
    """Folder of the timings that choices are made on [~/.cache/sslx]."""
    out: pathlib.Path | None = None
    """Folder for record.json and speedup.png."""


Chosen = dict[str, str]


def time_layer(layer: str, name: str, batch: int, seed: int, config: Config) -> dict:
    """One layer at the sparsities of one row, on one set of zeros."""
    row = TABLE[name]
    case = draw(layer, row, batch, seed, config.pattern)
    x = np.random.default_rng([seed, 9]).standard_normal(case.dense.lhs, np.float32)
    products, slow = bench_products.calls(case, x)
    alone = timing.interleaved(products, config.rounds)
    figures = {k: alone.speedup(k, "gemm, dense").as_dict() for k in products}
    for kernel, seconds in slow.items():
        once = alone.median("gemm, dense") / seconds
        figures[kernel] = timing.Ratio(once, once, once, False).as_dict()
    del products
    record = {
        "layer": layer,
        "row": name,
        "batch": batch,
        "seed": seed,
        "mac_ratio": case.mac_ratio,
        "paper": row.cpu[list(SHAPES).index(layer)],
        "products": alone.as_dict(),
        "called_once": slow,
    }
    if not row.entries:
        calls, record["chosen"] = executors(case, x, lowering.Cache(config.cache))
        whole = timing.interleaved(calls, config.rounds)
        figures |= _end_to_end(whole)
        record["calls"] = whole.as_dict()
    return record | {"speedups": figures}


def _end_to_end(found: timing.Rounds) -> dict[str, Any]:
    return {
        "compact over dense": found.speedup("compact", "dense").as_dict(),
        "compact over XLA": found.speedup("compact", "dense, XLA").as_dict(),
        "dense over XLA": found.speedup("dense", "dense, XLA").as_dict(),
    }


def executors(
    case: Case, x: np.ndarray, cache: lowering.Cache
) -> tuple[dict[str, Call], Chosen]:
    """The convolutions to time, each checked, and the forms chosen for them."""
    dense, how_dense, dense_seconds = _best(case.dense, cache)
    small, how_small, small_seconds = _best(case.small, cache)
    full, image = jnp.asarray(case.kernel), jnp.asarray(x)
    default = jax.jit(case.dense.run)
    timing.check("dense", dense(image, full), default(image, full))
    calls = {
        "dense": functools.partial(dense, image, full),
        "dense, XLA": functools.partial(default, image, full),
        "compact": functools.partial(dense, image, full),
    }
    if small_seconds < dense_seconds:
        xs = jnp.asarray(x[..., case.channels])
        ws = jnp.asarray(case.small_kernel)
        expected = default(image, jnp.asarray(case.masked))[..., case.filters]
        timing.check("compact", small(xs, ws), expected)
        calls["compact"] = functools.partial(small, xs, ws)
    else:
        how_small = f"kept dense: {how_dense}"
    return calls, {"dense": how_dense, "compact": how_small}


def _best(conv: Conv, cache: lowering.Cache) -> tuple[Any, str, float]:
    """The fastest form and options of an earlier timing, and its seconds there."""
    found = {
        (form, tuple(options.items())): seconds
        for options in lowering.option_sets()
        for form, seconds in cache.timings(conv, options).items()
    }
    form, options = min(found, key=found.__getitem__)
    run = functools.partial(lowering.run, form, conv)
    label = f"{form}{', without YNN' if options else ''}"
    return jax.jit(run, compiler_options=dict(options)), label, found[form, options]


# The five layers as one program.


def stack(kernels: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """conv1 to conv5, each with ReLU, pooled after the first two."""
    for layer, w in kernels.items():
        x = jax.nn.relu(convolution(layer, x.shape[0]).run(x, w))
        if layer in POOLED:
            window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
            x = jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, window, strides, "VALID"
            )
    return x


def time_stack(name: str, batch: int, seed: int, config: Config) -> dict[str, Any]:
    """All layers of one row as one program, dense and compact."""
    row = TABLE[name]
    cases = {k: draw(k, row, batch, seed, config.pattern) for k in SHAPES}
    full = {k: jnp.asarray(c.kernel) for k, c in cases.items()}
    masked = {k: jnp.asarray(c.masked) for k, c in cases.items()}
    shape = cases["conv1"].dense.lhs
    x = jax.random.normal(jax.random.key(seed), shape)
    tuned = sslx.tune(stack, lowering="measure", cache=config.cache)
    small = sslx.compact(stack)(masked, x)
    small = small.lowered(x, lowering="measure", cache=config.cache)
    dense = tuned.lower(full, x).compile()
    compact, _ = timing.compiled(
        small.apply, small.variables, x, **small.compiler_options
    )
    default, _ = timing.compiled(stack, full, x)
    expected = default(masked, x)
    timing.check("dense", dense(masked, x), expected)
    timing.check("compact", compact(small.variables, x), expected)
    calls: dict[str, Call] = {
        "dense": functools.partial(dense, full, x),
        "dense, XLA": functools.partial(default, full, x),
        "compact": functools.partial(compact, small.variables, x),
    }
    found = timing.interleaved(calls, config.rounds)
    before = sum(c.dense.macs for c in cases.values())
    after = sum(c.dense.macs / c.mac_ratio for c in cases.values())
    return {
        "layer": "one program",
        "row": name,
        "batch": batch,
        "seed": seed,
        "mac_ratio": before / after,
        "chosen": {
            "dense": timing.chosen(tuned, full, x),
            "compact": timing.chosen(small.tuned, small.variables, x),
        },
        "calls": found.as_dict(),
        "speedups": _end_to_end(found),
    }


# Results.


def main(config: Config) -> dict[str, Any]:
    """Time all, print a table per batch size, write record and picture where asked."""
    cases = [
        time_layer(layer, name, batch, seed, config)
        for batch in config.batches
        for name in config.rows
        for layer in config.layers
        for seed in config.seeds
    ]
    if config.layers == tuple(SHAPES):
        cases += [
            time_stack(name, batch, seed, config)
            for batch in config.batches
            for name in config.rows
            for seed in config.seeds
            if not TABLE[name].entries
        ]
    figures = summary(cases)
    record = {"pattern": config.pattern, "figures": figures, "cases": cases}
    for batch in config.batches:
        print(text(figures, batch))
    return timing.finish(record, config.out, alexnet.REPORT)


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per batch, row and layer: medians over seeds; and their means over layers."""
    keys = dict.fromkeys((c["batch"], c["row"], c["layer"]) for c in cases)
    rows = []
    for batch, name, layer in keys:
        mine = [
            c
            for c in cases
            if (c["batch"], c["row"], c["layer"]) == (batch, name, layer)
        ]
        fields: dict[str, Any] = {"batch": batch, "row": name, "layer": layer}
        fields["paper"] = mine[0].get("paper")
        fields["mac_ratio"] = statistics.median(c["mac_ratio"] for c in mine)
        fields["speedups"] = {
            kind: _over_seeds([c["speedups"][kind] for c in mine])
            for kind in mine[0]["speedups"]
        }
        rows.append(fields)
    groups = dict.fromkeys((r["batch"], r["row"]) for r in rows)
    return rows + [_mean(batch, name, rows) for batch, name in groups]


def _over_seeds(ratios: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [r["median"] for r in ratios]
    ties = sum(r["tie"] for r in ratios)
    return {
        "median": statistics.median(medians),
        "low": min(medians),
        "high": max(medians),
        "tie": 2 * ties > len(ratios),
    }


def _mean(batch: int, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the speed-ups of the layers, as in the paper."""
    mine = [r for r in rows if (r["batch"], r["row"]) == (batch, name)]
    mine = [r for r in mine if r["layer"] in SHAPES]
    papers = [r["paper"] for r in mine]
    kinds = set.intersection(*(set(r["speedups"]) for r in mine))
    speedups = {
        kind: {
            bound: statistics.fmean(r["speedups"][kind][bound] for r in mine)
            for bound in ("median", "low", "high")
        }
        | {"tie": all(r["speedups"][kind]["tie"] for r in mine)}
        for kind in mine[0]["speedups"]
        if kind in kinds
    }
    return {
        "batch": batch,
        "row": name,
        "layer": "mean",
        "paper": None if None in papers else statistics.fmean(papers),
        "mac_ratio": statistics.fmean(r["mac_ratio"] for r in mine),
        "speedups": speedups,
    }


_COLUMNS = {
    "gemm, compact": "GEMM",
    "compact over dense": "whole/best",
    "compact over XLA": "whole/XLA",
    "BCOO": "BCOO",
    "BCSR": "BCSR",
    "scipy CSR": "scipy",
    "torch CSR": "torch",
}


def text(figures: list[dict[str, Any]], batch: int) -> str:
    """A table of the figures at one batch size."""
    head = ["row", "layer", "MACs", "paper", *_COLUMNS.values()]
    rows = []
    for name in dict.fromkeys(f["row"] for f in figures):
        for f in figures:
            if (f["batch"], f["row"]) == (batch, name):
                paper = "" if f["paper"] is None else f"{f['paper']:.2f}"
                cells = [timing.cell(f["speedups"].get(kind)) for kind in _COLUMNS]
                rows.append([name, f["layer"], f"{f['mac_ratio']:.2f}", paper, *cells])
    table = timing.table(head, rows)
    return f"\nSpeed-ups at batch {batch}; '=' is a tie\n{table}"
