"""A call of a function as a program, with the variables as inputs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from sslx._calls import Call, struct
from sslx._compact.jaxpr.arguments import refuse_captured
from sslx._compact.jaxpr.program import Program, build
from sslx._compact.jaxpr.state import state_of, stated
from sslx._compact.plan import LeafPlan, Plan
from sslx._groups.groups import flatten
from sslx._groups.paths import leaves_by_path


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A traced call.

    Attributes:
      program: its inputs are the variables' leaves, then the arrays of the call.
      treedef: the structure of what the function returns.
      state: per output, the state variable it is the new value of, or None.
    """

    program: Program
    treedef: Any
    state: tuple[str | None, ...]


class Tracer:
    """Traces calls of one function of `(variables, ...)`, each of them once.

    `state` are regular expressions for the paths of variables whose new values calls
    return; `opaque` says of equations, by primitive and source, why they are not
    reduced.

    JAX caches the jaxprs, by shapes and by its own settings; here the newest program of
    every setting of the call is kept.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        state: Sequence[str] = (),
        opaque: Mapping[tuple[str, str], str] | None = None,
    ):
        self.fn, self.state, self.opaque = fn, tuple(state), dict(opaque or {})
        self._jitted: dict[Any, Any] = {}
        self._newest: dict[Any, tuple[Any, Traced]] = {}

    def __call__(
        self, variables: PyTree, plan: Plan, dtypes: list[Any], call: Call
    ) -> Traced:
        """The program of a call, with variables of the sizes before compaction."""
        leaves, treedef = flatten(variables)
        places = {path: place for place, path in enumerate(plan.leaves)}
        order = [places[path] for path in leaves]
        wide = [
            jax.ShapeDtypeStruct(leaf.shape, dtype)
            for leaf, dtype in zip(plan.leaves.values(), dtypes, strict=True)
        ]
        key = (treedef, call.treedef, call.fixed, tuple(map(type, call.fixed)))
        try:
            flat = self._jitted.get(key)
        except TypeError:  # a setting without a hash
            staged = self._flat(treedef, order, call).trace(wide, _structs(call))
            return self._traced(staged, plan, call)
        if flat is None:
            flat = self._jitted[key] = self._flat(treedef, order, call)
        staged = flat.trace(wide, _structs(call))
        newest = self._newest.get(key)
        if newest is None or newest[0] is not staged.jaxpr.jaxpr:
            traced = self._traced(staged, plan, call)
            newest = self._newest[key] = staged.jaxpr.jaxpr, traced
        return newest[1]

    def _flat(self, treedef: Any, order: list[int], call: Call) -> Any:
        """The function of the leaves in the plan's order."""
        call = call._replace(arrays=())

        def flat(leaves: list[Any], arrays: list[Any]) -> PyTree:
            own = [leaves[place] for place in order]
            variables = jax.tree_util.tree_unflatten(treedef, own)
            return call.run(self.fn, arrays, variables)

        return jax.jit(flat)

    def _traced(self, staged: Any, plan: Plan, call: Call) -> Traced:
        count = len(plan.leaves) + len(call.arrays)
        refuse_captured(self.fn, staged.jaxpr, count)
        program = build(staged.jaxpr)
        self.hide(program, {})
        outputs, treedef = leaves_by_path(staged.out_info)
        _, kwargs = call.rebuild(call.arrays)
        known = state_of(self.fn, kwargs, self.state, plan.leaves)
        state = tuple(
            name if name and plan.leaves[name].shape == value.shape else None
            for name, value in zip(
                (stated(n, known) for n, _ in outputs), program.outputs, strict=True
            )
        )
        return Traced(program, treedef, state)

    def hide(self, program: Program, reasons: Mapping[tuple[str, str], str]) -> None:
        """Stop reducing some equations, here and in what is traced from now on."""
        self.opaque.update(reasons)
        for eqn in program.equations:
            eqn.opaque = self.opaque.get((eqn.name, eqn.source), eqn.opaque)


def _structs(call: Call) -> list[jax.ShapeDtypeStruct]:
    return [struct(x) for x in call.arrays]


def whole_leaf(shape: tuple[int, ...]) -> LeafPlan:
    """The plan of a leaf that is kept whole."""
    return LeafPlan(shape, (None,) * len(shape), (None,) * len(shape))
