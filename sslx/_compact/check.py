"""Compare a compact function with the dense one, on random inputs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx._calls import Call
from sslx._compact.compacted import Compact
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Value, evaluate_dense
from sslx._compact.jaxpr.tracing import Traced
from sslx._groups.paths import leaves_by_path


def check(
    small: Compact, traced: Traced, leaves: Mapping[str, Any], call: Call
) -> None:
    """Run both functions on inputs of the call's shapes, drawn at random.

    Numbers are normal, integers are below the largest one of the example (below 2 where
    it gives shapes only); keys and Python numbers are what they were.

    Args:
      small: the compact network.
      traced: the call it was made with.
      leaves: the dense variables, by path.
      call: the example.

    Raises:
      ValueError: the variables are shapes.
      RuntimeError: an output differs by more than `eps**0.6` of its largest entry.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves.values()):
        raise ValueError("check: got shapes of variables, expected arrays to run with")
    rng = np.random.default_rng(0)
    arrays = [_drawn(x, rng) for x in call.arrays]
    treedef = jax.tree_util.tree_structure(small.variables)
    dense = jax.tree_util.tree_unflatten(treedef, list(leaves.values()))
    wants, _ = leaves_by_path(call.run(small.fn, arrays, dense))
    gots = jax.tree_util.tree_leaves(call.run(small.apply, arrays, small.variables))
    for (output, want), got, name in zip(wants, gots, traced.state, strict=True):
        want = want if name is None else small.plan.leaves[name].shrink(want)
        error, allowed = difference(got, want)
        if not error <= allowed:
            raise RuntimeError(
                f"check: output {output or 'of the function'} of the compact function "
                f"is off by {error:.3g}, expected at most {allowed:.3g} "
                f"({want.dtype})\nit starts {_start(small, traced, leaves, arrays)}"
            )


def _drawn(array: Any, rng: np.random.Generator) -> Any:
    shape, dtype = array.shape, array.dtype
    known = not isinstance(array, jax.ShapeDtypeStruct)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return array if known else jnp.broadcast_to(jax.random.key(0), shape)
    if known and array.weak_type and not shape:
        return array
    if jnp.issubdtype(dtype, np.bool_):
        return jnp.asarray(rng.random(shape) < 0.5)
    if jnp.issubdtype(dtype, jnp.integer):
        top = int(array.max()) if known and array.size else 1
        return jnp.asarray(rng.integers(0, max(top, 0) + 1, shape), dtype)
    made = rng.standard_normal(shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        made = made + 1j * rng.standard_normal(shape)
    return jnp.asarray(made, dtype)


def difference(got: Any, want: Any) -> tuple[float, float]:
    """The largest difference, and the largest that rounding explains."""
    if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
        got, want = jax.random.key_data(got), jax.random.key_data(want)
    if not jnp.issubdtype(want.dtype, jnp.inexact):
        return float(jnp.any(got != want)), 0.0
    eps = float(jnp.finfo(want.dtype).eps)
    wide = np.complex128 if jnp.issubdtype(want.dtype, np.complexfloating) else float
    got, want = np.asarray(got).astype(wide), np.asarray(want).astype(wide)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        errors = np.where(same, 0, abs(got - want))
    errors = np.where(np.isnan(errors), np.inf, errors)
    finite = abs(want[np.isfinite(want)])
    return float(errors.max(initial=0)), eps**0.6 * float(finite.max(initial=0))


def _start(
    small: Compact, traced: Traced, leaves: Mapping[str, Any], arrays: list[Any]
) -> str:
    """The first equation whose computed slices differ from the dense program's."""
    kept = jax.tree_util.tree_leaves(small.variables)
    held, alive = small.reduced(traced).intermediates(kept, arrays)
    dense = evaluate_dense(traced.program, [*leaves.values(), *arrays])
    for eqn in traced.program.equations:
        for value in eqn.outputs:
            if value in held:
                got, want = _alike(*held[value], alive(value), dense[value], value)
                error, allowed = difference(got, want)
                if not error <= allowed:
                    return f"in {eqn.name} at {eqn.source}, off by {error:.3g}"
    return "where convolutions are lowered: there is no difference without that"


def _alike(
    array: Any, have: Masks, alive: Masks, dense: Any, value: Value
) -> tuple[Any, Any]:
    """The computed slices that matter, of both."""
    if not value.shape:
        return array, dense
    there = [h & a for h, a in zip(have, alive, strict=True)]
    places = [np.flatnonzero(t[h]) for t, h in zip(there, have, strict=True)]
    return array[np.ix_(*places)], dense[np.ix_(*map(np.flatnonzero, there))]
