"""Layer by layer speed of AlexNet's convolutions at the sparsities of SSL's Table 4.

    python -m experiments.bench alexnet_speed                   batch 1 and 32, 3 seeds
    python -m experiments.bench alexnet_speed --batches 1 --seeds 0 --layers conv3

Rows and columns of the GEMM are zero at random at the paper's ratios; the channels that
the previous layer's zero rows leave dead are among the zero columns. Timed side by side:

    dense        the same convolution with all its weights, by XLA as it comes
    dense, best  the same by the form and options that were fastest in an earlier timing
    compact      zero rows and dead channels gone, by the form chosen in the same way
    gemm         the product alone, patches for free, dense and compact, as in the paper
    BCSR, CSR    the l1 rows: jax.experimental.sparse and scipy (patches for free)

Every output is compared with that of the dense convolution before it is timed. Speed-ups
are medians over rounds of the ratio to `dense, best` in the same round; those inside the
spread of `dense, best` against itself are ties.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

from experiments import runs
from sslx import lowering, measure
from sslx.lowering import Columns, Conv

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int]] = {
    "conv1": ((227, 227, 3), (11, 11, 3, 96), 4, 0, 1),
    "conv2": ((27, 27, 96), (5, 5, 48, 256), 1, 2, 2),
    "conv3": ((13, 13, 256), (3, 3, 256, 384), 1, 1, 1),
    "conv4": ((13, 13, 384), (3, 3, 192, 384), 1, 1, 2),
    "conv5": ((13, 13, 384), (3, 3, 192, 256), 1, 1, 2),
}
"""Image, kernel, stride, padding, groups."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 4: sparsities and CPU speed-ups of the paper, conv1 to conv5."""

    columns: tuple[float, ...] = ()
    rows: tuple[float, ...] = (0.0,) * 5
    entries: tuple[float, ...] = ()
    cpu: tuple[float, ...] = ()


TABLE = {
    "ssl, 2% loss": Row(
        columns=(0.0, 0.632, 0.769, 0.847, 0.807),
        rows=(0.094, 0.129, 0.406, 0.469, 0.0),
        cpu=(1.05, 3.37, 6.27, 9.73, 4.93),
    ),
    "ssl, no loss": Row(
        columns=(0.0, 0.209, 0.397, 0.397, 0.246), cpu=(1.00, 1.27, 1.64, 1.68, 1.32)
    ),
    "l1, 2% loss": Row(
        entries=(0.676, 0.924, 0.972, 0.966, 0.943), cpu=(0.80, 2.91, 4.84, 3.83, 2.76)
    ),
    "l1, no loss": Row(
        entries=(0.147, 0.762, 0.853, 0.815, 0.763), cpu=(0.34, 0.99, 1.30, 1.10, 0.93)
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Time AlexNet's convolutions, dense, compact and with unstructured zeros."""

    batches: tuple[int, ...] = (1, 32)
    """Images per call."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of patterns and values."""
    layers: tuple[str, ...] = tuple(SHAPES)
    """Convolutions."""
    rows: tuple[str, ...] = tuple(TABLE)
    """Rows of Table 4."""
    rounds: int = 15
    """Rounds of the timing that is reported."""
    cache: pathlib.Path | None = None
    """Folder of the timings that choices are made on [~/.cache/sslx]."""
    out: pathlib.Path | None = None
    """Write the figures to this JSON file."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer: dense, its zeros, and what is left of it.

    Attributes:
        dense: all of it.
        small: without zero rows and dead channels, with the zero columns marked.
        alive: entries of the dense kernel that are not zero.
        channels: of the input that are alive.
        filters: that are alive.
    """

    dense: Conv
    small: Conv
    alive: np.ndarray
    channels: np.ndarray
    filters: np.ndarray


def convolution(layer: str, batch: int) -> Conv:
    """A layer of AlexNet, all of it."""
    image, kernel, stride, pad, groups = SHAPES[layer]
    return Conv(
        lhs=(batch, *image),
        rhs=kernel,
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        groups=groups,
        batch_groups=1,
        dtype="float32",
        result="float32",
        precision=None,
    )


def draw(layer: str, row: Row, batch: int, seed: int) -> Case:
    """A layer with zeros at random, at the ratios of a row of Table 4."""
    conv = convolution(layer, batch)
    at = list(SHAPES).index(layer)
    if row.entries:
        rng = np.random.default_rng([seed, at, 2])
        alive = rng.random(conv.rhs) >= row.entries[at]
        every = np.ones(conv.lhs[-1], bool), np.ones(conv.rhs[-1], bool)
        return Case(conv, conv, alive, *every)
    filters = _halves(conv.rhs[-1], row.rows[at], seed, at)
    channels = np.ones(conv.lhs[-1], bool)
    if at:
        channels = _halves(conv.lhs[-1], row.rows[at - 1], seed, at - 1)
    read = channels.reshape(conv.groups, conv.rhs[-2]).T
    columns = np.broadcast_to(read, (*conv.rhs[:-1], conv.groups)).copy()
    rng = np.random.default_rng([seed, at, 1])
    for g in range(conv.groups):
        part = columns[..., g]
        wanted = round((1 - row.columns[at]) * part.size)
        places = rng.permutation(np.flatnonzero(part))[wanted:]
        flat = part.reshape(-1)
        flat[places] = False
        columns[..., g] = flat.reshape(part.shape)
    alive = np.repeat(columns, conv.rhs[-1] // conv.groups, axis=-1)
    alive = alive.reshape(conv.rhs) & filters
    kept = columns[:, :, read[:, 0]]
    small = dataclasses.replace(
        conv,
        lhs=(*conv.lhs[:-1], int(channels.sum())),
        rhs=(*conv.window, kept.shape[-2], int(filters.sum())),
        columns=Columns.of(_per_group(columns, read, kept.shape)),
    )
    return Case(conv, small, alive, channels, filters)


def _per_group(
    columns: np.ndarray, read: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    parts = [columns[:, :, read[:, g], g] for g in range(read.shape[1])]
    return np.stack(parts, axis=-1).reshape(shape)


def _halves(count: int, sparsity: float, seed: int, layer: int) -> np.ndarray:
    """Which of a layer's filters stay; as many in both halves, as groups need it."""
    rng = np.random.default_rng([seed, layer, 0])
    alive = np.ones((2, count // 2), bool)
    for half in alive:
        half[rng.permutation(half.size)[: round(sparsity * half.size)]] = False
    return alive.reshape(-1)


Calls = dict[str, Callable[[], Any]]


def executors(case: Case, cache: lowering.Cache, row: Row) -> tuple[Calls, dict]:
    """The calls to time, each checked against the dense convolution."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(case.dense.lhs), jnp.float32)
    full = rng.standard_normal(case.dense.rhs).astype(np.float32)
    full /= np.sqrt(np.prod(case.dense.rhs[:-1]))
    masked = jnp.asarray(full * case.alive)
    dense_best, how_dense = _best(case.dense, cache)
    small_best, how_small = _best(case.small, cache)
    calls: Calls = {
        "dense, best": functools.partial(dense_best, x, jnp.asarray(full)),
        "dense": functools.partial(jax.jit(case.dense.run), x, jnp.asarray(full)),
    }
    reference = case.dense.run(x, masked)
    _check("dense, best", dense_best(x, masked), reference)
    chosen = {"dense, best": how_dense}
    if not row.entries:
        xs = x[..., case.channels]
        ws = _kernel_of(case, masked)
        _check("compact", small_best(xs, ws), reference[..., case.filters])
        calls["compact"] = functools.partial(small_best, xs, ws)
        chosen["compact"] = how_small
    calls |= _products(case, x, masked, reference, unstructured=bool(row.entries))
    return calls, chosen


def _kernel_of(case: Case, masked: jax.Array) -> jax.Array:
    groups = case.dense.groups
    read = case.channels.reshape(groups, -1)
    parts = []
    for g, w in enumerate(jnp.split(masked, groups, axis=-1)):
        mine = np.split(case.filters, groups)[g]
        parts.append(w[:, :, read[g]][..., mine])
    return jnp.concatenate(parts, axis=-1)


def _best(conv: Conv, cache: lowering.Cache) -> tuple[Callable[..., Any], str]:
    """The fastest form and options of an earlier timing."""
    found = {
        (form, tuple(options.items())): seconds
        for options in lowering.option_sets()
        for form, seconds in cache.timings(conv, options).items()
    }
    form, options = min(found, key=found.__getitem__)
    run = functools.partial(lowering.run, form, conv)
    label = f"{form}; {'without YNN' if options else 'default options'}"
    return jax.jit(run, compiler_options=dict(options)), label


def _products(
    case: Case, x: jax.Array, masked: jax.Array, reference: Any, unstructured: bool
) -> Calls:
    """The products alone, per group, patches `(columns, positions)` for free."""
    patches = lowering.patches(case.dense, x)
    weights = lowering.matrices(case.dense, masked)
    dense = [(w, p) for w, p in zip(weights, patches, strict=True)]
    run = jax.jit(lambda pairs: [w @ p for w, p in pairs])
    calls: Calls = {"gemm, dense": functools.partial(run, dense)}
    expected = [np.asarray(y) for y in run(dense)]
    if not unstructured:
        small = []
        for w, p in dense:
            rows = np.flatnonzero(np.asarray((w != 0).any(1)))
            columns = np.flatnonzero(np.asarray((w != 0).any(0)))
            small.append((w[rows][:, columns], p[columns]))
        found = run(small)
        rows = [np.asarray((w != 0).any(1)) for w in weights]
        for y, whole, kept in zip(found, expected, rows, strict=True):
            _check("gemm", y, whole[kept])
        return calls | {"gemm, compact": functools.partial(run, small)}
    bcsr = [(sparse.BCSR.fromdense(w), p) for w, p in dense]
    csr = [(scipy.sparse.csr_matrix(np.asarray(w)), np.asarray(p)) for w, p in dense]
    calls["BCSR"] = functools.partial(run, bcsr)
    calls["scipy CSR"] = lambda: [w @ p for w, p in csr]
    for name in ("BCSR", "scipy CSR"):
        for y, whole in zip(calls[name](), expected, strict=True):
            _check(name, y, whole)
    return calls


def _check(name: str, found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if found.shape != expected.shape or not error < 1e-4:
        raise RuntimeError(
            f"{name}: differs from the dense convolution by {error:.1e} of its largest "
            f"output (shapes {found.shape} and {expected.shape})"
        )


def time_case(layer: str, name: str, batch: int, seed: int, config: Config) -> dict:
    """One line of the table."""
    row = TABLE[name]
    case = draw(layer, row, batch, seed)
    calls, chosen = executors(case, lowering.Cache(config.cache), row)
    found = measure.latency(calls, repeats=config.rounds, control=True)
    products = {k: v for k, v in calls.items() if k not in ("dense, best", "dense")}
    products = {k: v for k, v in products.items() if k != "compact"}
    alone = measure.latency(products, repeats=config.rounds, control=True)
    at = list(SHAPES).index(layer)
    return {
        "layer": layer,
        "row": name,
        "batch": batch,
        "seed": seed,
        "mac_ratio": case.dense.macs / max(1, int(case.alive.sum()) * _positions(case)),
        "chosen": chosen,
        "paper_cpu": row.cpu[at],
        "calls": found.as_dict(),
        "products": alone.as_dict(),
    }


def _positions(case: Case) -> int:
    return int(np.prod(case.dense.out)) * case.dense.lhs[0]


def main(config: Config) -> dict[str, Any]:
    """Time all, print a table per batch size, write JSON where asked."""
    cases = [
        time_case(layer, name, batch, seed, config)
        for batch in config.batches
        for name in config.rows
        for layer in config.layers
        for seed in config.seeds
    ]
    record = {"cases": cases, "provenance": runs.provenance()}
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(cases))
    return record


def table(cases: list[Mapping[str, Any]]) -> str:
    """Per row, batch and layer: medians over the seeds."""
    raise NotImplementedError
