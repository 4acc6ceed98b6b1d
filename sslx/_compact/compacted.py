"""A function and its variables, reduced."""

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, get_args

from jaxtyping import PyTree

from sslx._calls import Call, require_word, take_apart
from sslx._compact import summary
from sslx._compact.analysis.report import HeldBack, KeptZeros
from sslx._compact.jaxpr.tracing import Traced, Tracer
from sslx._compact.plan import Plan, expand_plan
from sslx._compact.rewrite.evaluation import (
    ReducedProgram,
    checked,
    reduce_program,
)
from sslx._groups.groups import flatten
from sslx.lowering import (
    Lowering,
    Tuned,
    nonzero_of,
)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Compact:
    """A function and its variables, reduced to what is alive.

    Compared and hashed by identity. It is not pickled, since it holds a function; use
    `sslx.save` and `sslx.load`.

    Attributes:
      variables: the reduced variables, in the structure of the original ones.
      plan: the kept indices of every leaf.
      folded: path -> number of entries that stay only because constant channels are
        made of them.
      held_back: equations that could not be analysed, each with its source line and the
        parameters that it keeps whole.
      kept_zeros: zero slices that stay so that operands line up, each with its reason.
      example: the example call as shapes; None if the network was loaded from a file
        that could not hold it.
      tuned: how `apply` computes its convolutions; None leaves them to XLA.
    """

    _tracer: Tracer
    variables: PyTree
    plan: Plan
    folded: Mapping[str, int]
    held_back: tuple[HeldBack, ...]
    kept_zeros: tuple[KeptZeros, ...]
    example: Call | None
    _fold_constants: bool
    tuned: Tuned | None = None
    _programs: dict[Traced, ReducedProgram] = dataclasses.field(default_factory=dict)

    def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        """What `fn(full variables, *args, **kwargs)` returns.

        The function is traced for every new shape or setting, so wrap it in `jax.jit`.
        An output leaf whose path ends with the path of a *state* variable of the same
        shape is its new value, and comes back in the reduced shape; all other outputs
        have the shapes that `fn` gives them. State is what `compact(state=...)` named,
        and the collections that the call names as Linen's `mutable=`.

        Args:
          variables: `self.variables`, or others of the same structure and shapes.
          *args: as for `fn`; any batch size.
          **kwargs: as for `fn`.

        Raises:
          ValueError: if the variables do not fit the plan, or if this call needs slices
            that the example call did not.
        """
        if self.tuned is not None:
            return self.tuned.apply(variables, *args, **kwargs)
        leaves = checked(self.plan, variables)
        call = take_apart(args, kwargs)
        dtypes = [x.dtype for x in leaves.values()]
        traced = self._tracer(variables, self.plan, dtypes, call)
        return self.reduced(traced).run(list(leaves.values()), call)

    def reduced(self, traced: Traced) -> ReducedProgram:
        """A traced call and what is alive in it; kept for the newest one."""
        if traced not in self._programs:
            self._programs.clear()
            program = reduce_program(traced, self.plan, self._fold_constants)
            self._programs[traced] = program
        return self._programs[traced]

    @property
    def fn(self) -> Callable[..., Any]:
        """The original function."""
        return self._tracer.fn

    @property
    def state(self) -> tuple[str, ...]:
        """The regular expressions that name state variables."""
        return self._tracer.state

    @property
    def compiler_options(self) -> dict[str, str]:
        """Compiler options of the chosen lowering, for `jax.jit`."""
        return {} if self.tuned is None else self.tuned.compiler_options

    def lowered(
        self,
        *args: Any,
        lowering: Lowering,
        cache: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> "Compact":
        """The same network, with its convolutions computed in other exact forms.

        Columns of kernels that are zero in `self.variables` (`sslx.SHAPE` groups) are
        skipped where a form gains by that, so they must stay zero: train on with
        `sslx.keep_zeros`.

        Args:
          *args: an example call without the variables, at the batch size that matters;
            shapes are enough.
          lowering: as for `sslx.tune`.
          cache: as for `sslx.tune`.
          **kwargs: keyword arguments of the call.
        """
        require_word("lowering", lowering, get_args(Lowering))
        plain = dataclasses.replace(self, tuned=None)
        if lowering == "xla":
            return plain
        leaves, _ = flatten(self.variables)
        nonzero = nonzero_of(list(leaves.values()))
        tuned = Tuned(plain.apply, lowering, cache, nonzero=nonzero)
        tuned.choices(self.variables, *args, **kwargs)
        return dataclasses.replace(plain, tuned=tuned)

    def with_variables(self, variables: PyTree) -> "Compact":
        """The same network with other values, such as trained ones, to save or expand.

        Args:
          variables: values in the structure and shapes of `self.variables`.

        Raises:
          ValueError: if they do not fit the plan.
        """
        checked(self.plan, variables)
        return dataclasses.replace(self, variables=variables)

    def expand(self, variables: PyTree | None = None) -> PyTree:
        """Full-size variables with zeros where slices were removed, for `fn`.

        Args:
          variables: values in the shapes of `self.variables`, which None stands for.
        """
        variables = self.variables if variables is None else variables
        return expand_plan(self.plan, variables)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per convolution or product: kernel, MACs, bytes, before, after."""
        return summary.rows(self)

    def summary(self) -> str:
        """The rows as text, with totals and what was held back."""
        return str(summary.table(self))

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Compact is not pickled, as it holds a function; "
            "fix: sslx.save(path, small), then sslx.load(path, fn)"
        )

    def __copy__(self) -> "Compact":
        return dataclasses.replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Compact":
        variables = copy.deepcopy(self.variables, memo)
        return dataclasses.replace(self, variables=variables)

    def __repr__(self) -> str:
        leaves = self.plan.leaves.values()
        before = sum(math.prod(leaf.shape) for leaf in leaves)
        after = sum(math.prod(leaf.small_shape) for leaf in leaves)
        name = getattr(self.fn, "__qualname__", repr(self.fn))
        return f"Compact({name}: {before:,} -> {after:,} entries, {len(leaves)} leaves)"

    def _repr_html_(self) -> str:
        return summary.table(self)._repr_html_()
