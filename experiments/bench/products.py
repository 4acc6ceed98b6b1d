"""A convolution's product, patches for free: dense, compact and by sparse kernels.

`Y_g = W_g P_g` per group of filters g, with `W_g` of shape (filters, columns) and `P_g`
of shape (columns, positions), both made before the clock starts, as in SSL's Table 4.
"""

import functools
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import sslx
from experiments.bench import timing
from experiments.bench.alexnet_cases import Case
from experiments.bench.timing import Call
from sslx.lowering import Conv

Pairs = list[tuple[np.ndarray, np.ndarray]]
_LONGEST = 0.5


def patches(conv: Conv, x: Float[np.ndarray, "N H W C"]) -> list[np.ndarray]:
    """Per group: `(columns, positions)`, columns in the order (channel, tap)."""
    padded = np.pad(x, ((0, 0), *conv.padding, (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, conv.window, axis=(1, 2))
    view = view[:, :: conv.strides[0], :: conv.strides[1]]
    flat = view.reshape(-1, conv.groups, int(np.prod(conv.rhs[:-1])))
    return [np.ascontiguousarray(flat[:, g].T) for g in range(conv.groups)]


def matrices(conv: Conv, w: Float[np.ndarray, "H W I O"]) -> list[np.ndarray]:
    """Per group: `(filters, columns)`, columns as in `patches`."""
    rows = w.transpose(3, 2, 0, 1).reshape(conv.groups, conv.rhs[-1] // conv.groups, -1)
    return list(rows)


def calls(case: Case, x: Float[np.ndarray, "N H W C"]) -> tuple[dict[str, Call], dict]:
    """Calls to time, checked; those too slow to repeat, in seconds.

    The first call is the dense product; dense and compact ones are in the layout and
    form that was fastest in a timing of its own.
    """
    columns = patches(case.dense, x)
    full = list(zip(matrices(case.dense, case.kernel), columns, strict=True))
    pairs = list(zip(matrices(case.dense, case.masked), columns, strict=True))
    expected = [w @ p for w, p in pairs]
    found = {"gemm, dense": _faster(full, [w @ p for w, p in full])}
    if case.small is not case.dense:
        small, rows = [], []
        for w, p in pairs:
            alive = w != 0
            rows.append(alive.any(1))
            used = alive.any(0)
            small.append((w[rows[-1]][:, used], p[used]))
        wanted = [y[kept] for y, kept in zip(expected, rows, strict=True)]
        found["gemm, compact"] = _faster(small, wanted)
        return found, {}
    slow = {}
    for name, make in _KERNELS.items():
        call = make(pairs)
        if call is None:
            continue
        _check(name, call(), expected)
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds = time.perf_counter() - start
        if seconds > _LONGEST:
            slow[name] = seconds
        else:
            found[name] = call
    return found, slow


def _check(name: str, outs: Any, expected: list[np.ndarray]) -> None:
    for found, wanted in zip(outs, expected, strict=True):
        timing.check(name, found, wanted)


@jax.jit
def _products(pairs: Any) -> list[Any]:
    return [a @ b for a, b in pairs]


@jax.jit
def _convolutions(pairs: Any) -> list[Any]:
    """`P' W'` as a convolution of one tap, in the form of the rule."""

    def products(pairs: Any) -> list[Any]:
        numbers = ("NWC", "WIO", "NWC")
        run = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=numbers,
        )
        return [run(p[None], w[None])[0] for p, w in pairs]

    return sslx.tune(products).apply(pairs)


def _faster(pairs: Pairs, expected: list[np.ndarray]) -> Call:
    """`W P`, or `P' W'` as a product or in the form of a convolution."""
    ways = {
        "W P": [tuple(map(jnp.asarray, pair)) for pair in pairs],
        "P' W'": [(jnp.asarray(p.T.copy()), jnp.asarray(w.T.copy())) for w, p in pairs],
    }
    _check("W P", _products(ways["W P"]), expected)
    _check("P' W'", _products(ways["P' W'"]), [y.T for y in expected])
    _check("convolution", _convolutions(ways["P' W'"]), [y.T for y in expected])
    calls = {name: functools.partial(_products, way) for name, way in ways.items()}
    calls["convolution"] = functools.partial(_convolutions, ways["P' W'"])
    return calls[timing.fastest(calls)]


# Sparse kernels: no claim of ours, but what anybody would try first.


def _jax_kernel(kind: str, pairs: Pairs) -> Call:
    from jax.experimental import sparse

    make = getattr(sparse, kind).fromdense
    made = [(make(jnp.asarray(w)), jnp.asarray(p)) for w, p in pairs]
    return functools.partial(_products, made)


def _scipy_kernel(pairs: Pairs) -> Call:
    import scipy.sparse

    made = [(scipy.sparse.csr_array(w), p) for w, p in pairs]
    return lambda: [w @ p for w, p in made]


def _torch_kernel(pairs: Pairs) -> Call | None:
    """None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layout is called beta
        made = [
            (torch.from_numpy(w.copy()).to_sparse_csr(), torch.from_numpy(p))
            for w, p in pairs
        ]
    return lambda: [(w @ p).numpy() for w, p in made]


_KERNELS: dict[str, Callable[[Pairs], Call | None]] = {
    "BCOO": functools.partial(_jax_kernel, "BCOO"),
    "BCSR": functools.partial(_jax_kernel, "BCSR"),
    "scipy CSR": _scipy_kernel,
    "torch CSR": _torch_kernel,
}
