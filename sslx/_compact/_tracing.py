"""A function with its variables and a call, as a program."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from sslx._calls import Call, struct
from sslx._compact._plan import LeafPlan, Plan, named
from sslx._groups import flatten
from sslx.graph import Program, trace


@dataclasses.dataclass(frozen=True)
class Traced:
    """A traced call.

    Attributes:
      program: its inputs are the variables' leaves, then the arrays of the call.
      treedef: the structure of what the function returns.
      state: per output, the variable it is the new value of, or None.
    """

    program: Program
    treedef: Any
    state: tuple[str | None, ...]


def trace_call(
    fn: Callable[..., Any], variables: PyTree, plan: Plan, dtypes: list[Any], call: Call
) -> Traced:
    """Trace `fn(variables, ...)` with variables of the sizes before compaction."""
    _, treedef = flatten(variables)
    wide = [
        jax.ShapeDtypeStruct(leaf.shape, dtype)
        for leaf, dtype in zip(plan.leaves.values(), dtypes, strict=True)
    ]

    def flat(leaves: list[Any], arrays: list[Any]) -> PyTree:
        args, kwargs = call.rebuild(arrays)
        return fn(jax.tree_util.tree_unflatten(treedef, leaves), *args, **kwargs)

    program, out, paths = trace(flat, wide, [struct(x) for x in call.arrays])
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
    state = tuple(
        name if name and plan.leaves[name].shape == value.shape else None
        for name, value in zip(
            (named(plan, n) for n in names), program.outputs, strict=True
        )
    )
    return Traced(program, out, state)


def whole_leaf(shape: tuple[int, ...]) -> LeafPlan:
    """The plan of a leaf of which all is kept."""
    return LeafPlan(shape, (None,) * len(shape), (None,) * len(shape))
