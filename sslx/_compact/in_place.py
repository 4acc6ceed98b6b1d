"""Compaction for code that is not rewritten, such as the methods of a module."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._calls import take_apart
from sslx._compact.analysis.line_up import line_up
from sslx._compact.compact import Given, reduced
from sslx._compact.compacted import Compact
from sslx._compact.jaxpr.arguments import read_variables
from sslx._compact.jaxpr.tracing import Tracer, whole_leaf
from sslx._compact.jaxpr.zeros import Zeros
from sslx._compact.plan import Plan


def compact_in_place(
    fns: Sequence[Callable[..., Any]],
    variables: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    state: Collection[str],
    whole: Collection[str],
    some: Collection[str],
    strict: bool,
) -> Compact:
    """`compact` for code that is to run as it is on the reduced variables.

    Operands are aligned, constants kept, nothing is cut on the way from one operation
    to the next, and means keep the zero terms that they count.

    Args:
      fns: functions of the variables that will run; the result is the first, reduced
        to what any of them needs.
      variables: tree of arrays.
      args: of an example call of each.
      kwargs: of the call.
      state: paths of the variables that calls change. Their zeros do not count, and of
        their new values nothing is needed but what the rest reads.
      whole: paths of the variables of which all slices stay.
      some: paths of the variables of which one slice stays if all are zero.
      strict: as for `compact`; and means keep no zero terms.
    """
    leaves, treedef = read_variables(variables, values=True)
    call = take_apart(args, kwargs)
    identity = Plan({p: whole_leaf(np.shape(x)) for p, x in leaves.items()})
    dtypes = [x.dtype for x in leaves.values()]
    patterns = [f"^{re.escape(path)}$" for path in state]
    tracer = Tracer(functools.partial(_results, fns), patterns)
    traced = tracer(variables, identity, dtypes, call)
    filled = {
        p: _filled(x, first=p in some) if p in {*state, *whole, *some} else x
        for p, x in leaves.items()
    }
    look = Zeros(filled)
    zeros = {path: look(path) for path in leaves}
    given = Given(tracer, treedef, traced, leaves, zeros, call)
    values = [v for p, v in zip(leaves, given.params, strict=True) if p in whole]
    keep = functools.partial(line_up, whole=values, means=not strict)
    options = {"look": look, "fold_constants": False, "strict": strict, "follow": True}
    small = reduced(given, "align", keep, **options)
    first = Tracer(fns[0], patterns, tracer.opaque)
    return dataclasses.replace(small, _tracer=first, _programs={})


def _filled(leaf: Any, first: bool) -> Any:
    """An array without zeros; or with its first entry alone in the place of zeros."""
    if not jnp.issubdtype(leaf.dtype, jnp.number):
        return leaf
    one = jnp.ones((), leaf.dtype)
    return (
        leaf.at[(0,) * leaf.ndim].set(one) if first else jnp.where(leaf == 0, one, leaf)
    )


def _results(fns: Sequence[Callable[..., Any]], *args: Any, **kwargs: Any) -> Any:
    return [fn(*args, **kwargs) for fn in fns]
