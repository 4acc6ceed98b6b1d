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
from sslx._compact.analysis.report import Held, KeptZeros
from sslx._compact.jaxpr.tracing import Traced, Tracer
from sslx._compact.plan import Plan, expand_plan
from sslx._compact.rewrite.evaluation import (
    Reduction,
    checked,
    reduction,
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

    Compared and hashed as an object; it is not pickled, as it holds a function:
    `sslx.save` and `sslx.load` keep it.

    Attributes:
      tracer: traces the original function.
      variables: the reduced variables; same structure as the original ones.
      plan: the kept indices of every leaf.
      folded: how many entries of the variables, by path, are kept only because constant
        channels are made of them.
      held_back: what could not be analysed, and which parameters that keeps whole.
      kept_zeros: zero slices that stay, so that operands line up.
      example: the call the function was compacted with, as shapes; None if it was
        loaded from a file that could not hold it.
      fold: whether constant channels are computed apart from the data.
      tuned: how `apply` computes its convolutions; None leaves them to XLA.
      reductions: what is alive in the program that was traced last.
    """

    tracer: Tracer
    variables: PyTree
    plan: Plan
    folded: Mapping[str, int]
    held_back: tuple[Held, ...]
    kept_zeros: tuple[KeptZeros, ...]
    example: Call | None
    fold: bool
    tuned: Tuned | None = None
    reductions: dict[Traced, Reduction] = dataclasses.field(default_factory=dict)

    def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        """What `fn(full variables, *args, **kwargs)` returns.

        The function is traced for every new shape or setting, so wrap it in
        `jax.jit`. An output leaf whose path ends with the path of a *state* variable
        of the same shape is its new value, and comes back in the reduced shape; all
        else comes back whole. State is what `compact` was told, and the collections
        that the call names as Linen's `mutable`.

        Args:
          variables: `self.variables`, or anything of the same shapes.
          *args: as for `fn`; any batch size.
          **kwargs: as for `fn`.

        Raises:
          ValueError: if the variables do not fit the plan, or if this call needs slices
            that the call given to `compact` did not.
        """
        if self.tuned is not None:
            return self.tuned.apply(variables, *args, **kwargs)
        leaves = checked(self.plan, variables)
        call = take_apart(args, kwargs)
        dtypes = [x.dtype for x in leaves.values()]
        traced = self.tracer(variables, self.plan, dtypes, call)
        return self.reduced(traced).run(list(leaves.values()), call)

    def reduced(self, traced: Traced) -> Reduction:
        """What is alive in a traced call; kept for the newest one."""
        if traced not in self.reductions:
            self.reductions.clear()
            self.reductions[traced] = reduction(traced, self.plan, self.fold)
        return self.reductions[traced]

    @property
    def fn(self) -> Callable[..., Any]:
        """The original function."""
        return self.tracer.fn

    @property
    def state(self) -> tuple[str, ...]:
        """The regular expressions that name state variables."""
        return self.tracer.state

    @property
    def compiler_options(self) -> dict[str, str]:
        """What belongs to the chosen lowering; for `jax.jit`."""
        return {} if self.tuned is None else self.tuned.compiler_options

    def lowered(
        self,
        *args: Any,
        lowering: Lowering,
        cache: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> "Compact":
        """The same network, its convolutions computed in other exact forms.

        Columns of kernels that are zero in `self.variables` (`sslx.SHAPE` groups) are
        not multiplied where a form gains by that, so they must stay zero: train on
        with `sslx.keep_zeros`.

        Args:
          *args: an example call without the variables, such as a batch of the size
            that matters; shapes are enough.
          lowering: as for `sslx.tune`.
          cache: as for `sslx.tune`.
          **kwargs: more of the call.
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
          variables: of the structure and shapes of `self.variables`.

        Raises:
          ValueError: they do not fit the plan.
        """
        checked(self.plan, variables)
        return dataclasses.replace(self, variables=variables)

    def expand(self, variables: PyTree | None = None) -> PyTree:
        """Full-size variables with which `fn` gives the same output.

        Removed slices are zero.
        """
        variables = self.variables if variables is None else variables
        return expand_plan(self.plan, variables)

    def rows(self) -> list[dict[str, Any]]:
        """Per product: kernel shape, multiply-adds and bytes, before and after."""
        return summary.rows(self)

    def summary(self) -> str:
        """The rows as text, with totals and what was held back."""
        return summary.text(self)

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
        return summary.html(self)
