"""A call of a compact function: the traced program over its alive slices."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from sslx._calls import Call, as_jax, struct
from sslx._compact.analysis.constants import require_constants
from sslx._compact.analysis.facts import Facts, full
from sslx._compact.analysis.fixed_point import needed, pairs
from sslx._compact.analysis.forcing import forces
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks, sizes_of, within
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.jaxpr.tracing import Traced
from sslx._compact.plan import LeafPlan, Plan
from sslx._compact.rewrite.constant_evaluation import PartialLeaf
from sslx._compact.rewrite.rewriter import Rewriter
from sslx._groups.groups import flatten


def checked(plan: Plan, variables: PyTree) -> dict[str, Any]:
    leaves, _ = flatten(variables)
    errors = [
        f"  {path}: got shape {np.shape(leaves[path])}, expected {entry.small_shape}"
        for path, entry in plan.leaves.items()
        if path in leaves and np.shape(leaves[path]) != entry.small_shape
    ]
    errors += [f"  {path}: missing" for path in plan.leaves if path not in leaves]
    errors += [
        f"  {path}: not in the plan" for path in leaves if path not in plan.leaves
    ]
    if errors:
        whole = [p for p, x in plan.leaves.items() if _is_whole(x, leaves.get(p))]
        hint = "".join(
            f"; if a call returned {path}, name it as state: "
            f"compact(..., state=[{path!r}])"
            for path in whole[:1]
        )
        raise ValueError(
            "the variables do not fit the plan:\n"
            + "\n".join(errors)
            + "\nfix: pass Compact.variables, or apply_plan(plan, full variables)"
            + hint
        )
    return {path: as_jax(leaves[path]) for path in plan.leaves}


def _is_whole(entry: LeafPlan, leaf: Any) -> bool:
    """Whether a leaf has the shape from before compaction, and should not."""
    return np.shape(leaf) == entry.shape != entry.small_shape


@dataclasses.dataclass(frozen=True, eq=False)
class ReducedProgram:
    """A program and what of it is alive.

    Attributes:
      traced: the program.
      live: what is alive.
      kept: per variable, the slices that are there.
      wanted: per output, the slices to return.
    """

    traced: Traced
    live: Liveness
    kept: list[Masks]
    wanted: list[Masks]

    def run(self, leaves: list[Any], call: Call) -> PyTree:
        """What the function returns, computed on the alive slices."""
        rewriter, inputs = self.prepared(leaves, call)
        outs = rewriter.run(inputs, self.wanted)
        return jax.tree_util.tree_unflatten(self.traced.treedef, outs)

    def prepared(
        self, leaves: list[Any], call: Call
    ) -> tuple[Rewriter, list[tuple[Any, Masks]]]:
        """An interpreter of the program, and the inputs to run it on."""
        program = self.traced.program
        rows = zip(leaves, self.kept, strict=True)
        constants = [PartialLeaf(x, masks) for x, masks in rows]
        rest = program.inputs[len(leaves) :]
        inputs = [
            *zip(leaves, self.kept, strict=True),
            *((x, full(v, True)) for x, v in zip(call.arrays, rest, strict=True)),
        ]
        return Rewriter(self.live, [*constants, *(None for _ in rest)]), inputs

    def intermediates(
        self, leaves: list[Any], arrays: list[Any]
    ) -> tuple[dict[Value, tuple[Any, Masks]], Callable[[Value], Masks]]:
        """All intermediate values, over which slices; and which of these are alive."""
        call = Call(None, (), tuple(arrays))
        rewriter, inputs = self.prepared(leaves, call)
        rewriter.run(inputs, self.wanted)
        return rewriter.held, self.live.alive


class Fault(NamedTuple):
    """Where and why a program cannot be computed on its alive slices alone."""

    equation: Equation | None
    reason: str


def fault(
    reduced: Callable[[Traced], ReducedProgram],
    traced: Traced,
    variables: PyTree,
    call: Call,
) -> Fault | None:
    """Evaluate a reduced program on shapes alone; None if it gives the dense shapes."""
    structs = [struct(x) for x in flatten(variables)[0].values()]
    last: list[Rewriter] = []

    def run(leaves: list[Any], arrays: list[Any]) -> list[Any]:
        given = call._replace(arrays=tuple(arrays))
        rewriter, inputs = reduced(traced).prepared(leaves, given)
        last.append(rewriter)
        return rewriter.run(inputs, reduced(traced).wanted)

    try:
        found = reduced(traced)
        outs = jax.eval_shape(run, structs, [struct(x) for x in call.arrays])
    except Exception as error:
        where = last[0].at if last else None
        return Fault(where, f"{type(error).__name__}: {error}".split("\n")[0])
    for value, masks, out in zip(
        traced.program.outputs, found.wanted, outs, strict=True
    ):
        shape = sizes_of(masks) if value.shape else ()
        if (out.shape, out.dtype) != (shape, value.dtype):
            reason = f"gives {out.dtype}{out.shape}, expected {value.dtype}{shape}"
            return Fault(found.live.producer.get(value), reason)
    return None


def analysed(traced: Traced, live: Liveness, plan: Plan) -> ReducedProgram | None:
    """The reduced program, as the analysis of `compact` has already found it.

    None if the program returns new state, of which only the kept slices are wanted, or
    if slices were forced: then the plan alone decides what is alive.
    """
    if forces(live) or any(name is not None for name in traced.state):
        return None
    kept = [_masks(leaf, "kept") for leaf in plan.leaves.values()]
    wanted = [full(v, True) for v in traced.program.outputs]
    return ReducedProgram(traced, live, kept, wanted)


def reduce_program(traced: Traced, plan: Plan, fold_constants: bool) -> ReducedProgram:
    """A program, reduced to what is alive when its variables are as the plan says.

    Raises:
      ValueError: the program needs what the plan removed.
    """
    program = traced.program
    live = Liveness(program, fold_constants=fold_constants)
    zeros, kept = {}, []
    for path, leaf in plan.leaves.items():
        zeros[path] = _masks(leaf, "zero")
        kept.append(_masks(leaf, "kept"))
    facts = [Facts(z, full(v, True), True, True) for z, v in pairs(zeros, program)]
    rest = program.inputs[len(facts) :]
    facts += [Facts(full(v, False), full(v, False)) for v in rest]
    wanted = [
        full(v, True) if name is None else _masks(plan.leaves[name], "kept")
        for v, name in zip(program.outputs, traced.state, strict=True)
    ]
    pruned = True
    while pruned:
        live.forward(facts)
        live.backward(wanted)
        require_constants(live, wanted)
        pruned = live.prune()
    _check_coverage(plan, live, kept)
    return ReducedProgram(traced, live, kept, wanted)


def kept_masks(leaf: LeafPlan) -> Masks:
    """The kept indices as masks."""
    return _masks(leaf, "kept")


def _masks(leaf: LeafPlan, what: Literal["kept", "zero"]) -> Masks:
    """The kept, or the removed zero, indices as masks."""
    axes = leaf.kept if what == "kept" else leaf.zero
    masks = []
    for n, indices in zip(leaf.shape or (1,), axes or (None,), strict=True):
        mask = np.full(n, what == "kept" and indices is None)
        if indices is not None:
            mask[list(indices)] = True
        masks.append(mask)
    return masks


def _check_coverage(plan: Plan, live: Liveness, kept: list[Masks]) -> None:
    errors = []
    params = live.program.inputs[: len(kept)]
    for (path, leaf), have, value in zip(
        plan.leaves.items(), kept, params, strict=True
    ):
        wanted = needed(live, value)
        if leaf.shape and not within(wanted, have):
            lacking = [int((w & ~h).sum()) for w, h in zip(wanted, have, strict=True)]
            errors.append(f"  {path}: {lacking} removed slices per axis are needed")
    if errors:
        raise ValueError(
            "this call needs more than the call given to compact:\n"
            + "\n".join(errors)
            + "\nfix: compact with this call (its method, mode and outputs)"
        )
