"""`compact`: dead-code elimination, one channel at a time, on the jaxpr."""

import copy
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._calls import Call, require_count, require_word, struct, take_apart
from sslx._compact import _summary
from sslx._compact._analysis import fixed_point, planned
from sslx._compact._arguments import read_variables, require_function
from sslx._compact._check import check as compare
from sslx._compact._evaluation import (
    Fault,
    Reduction,
    analysed,
    checked,
    fault,
    kept_masks,
    reduction,
)
from sslx._compact._plan import Plan, expand_plan
from sslx._compact._state import expressions
from sslx._compact._tracing import Traced, Tracer, whole_leaf
from sslx._compact._zeros import given_zeros, zeros_of
from sslx._groups import flatten, unflatten
from sslx.graph import (
    Alignment,
    Held,
    KeptZeros,
    Liveness,
    Masks,
    Widths,
    held_back,
    kept_zeros,
)
from sslx.lowering import (
    Lowering,
    Tuned,
    nonzero_of,
    program_seconds,
    tune_sparse,
)

Constants = Literal["fold", "keep"]


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
        if traced not in self.reductions:
            self.reductions.clear()
            self.reductions[traced] = reduction(self, traced)
        return self.reductions[traced].run(list(leaves.values()), call)

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
        return dict(self.tuned.compiler_options) if self.tuned is not None else {}

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
        call = take_apart((self.variables, *args), kwargs)
        nonzero = nonzero_of(list(leaves.values()))
        tuned = tune_sparse(plain.apply, call, nonzero, lowering, cache)
        return dataclasses.replace(plain, tuned=tuned)

    def expand(self, variables: PyTree | None = None) -> PyTree:
        """Full-size variables with which `fn` gives the same output.

        Removed slices are zero.
        """
        variables = self.variables if variables is None else variables
        return expand_plan(self.plan, variables)

    def rows(self) -> list[dict[str, Any]]:
        """Per product: kernel shape, multiply-adds and bytes, before and after."""
        return _summary.rows(self)

    def summary(self) -> str:
        """The rows as text, with totals and what was held back."""
        return str(_summary.table(self))

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
        return _summary.table(self)._repr_html_()


def compact(
    fn: Callable[..., Any],
    variables: PyTree,
    *args: Any,
    state: str | Sequence[str] = (),
    masks: Mapping[str, Mapping[int, Any]] | None = None,
    alignment: Alignment = "auto",
    constants: Constants = "fold",
    strict: bool = False,
    check: bool = False,
    round_to: int | None = None,
    lowering: Lowering = "xla",
    **kwargs: Any,
) -> Compact:
    r"""Remove what is provably dead from a function and its variables.

    For every axis of every intermediate value, a slice is alive if it is not zero,
    starting from the zeros in `variables`, and if something alive needs it. The result
    computes `fn` on the alive slices only:

    $$\mathrm{apply}(\mathrm{shrink}(v), x) = \mathrm{fn}(v, x)$$

    up to rounding, for finite values: `0 * x` and `0 / x` count as zero, and so do -0.0
    (`arctan2` and `copysign` tell it from 0.0) and the NaN that a lookup in a parameter
    gives for an index out of range.

    Args:
      fn: any JAX function of `(variables, *args, **kwargs)`.
      variables: tree of arrays; only these are reduced. Or of `jax.ShapeDtypeStruct`,
        with `masks`; then the result holds shapes, and its plan shrinks real arrays.
      *args: an example call; shapes are enough. Arrays, real and complex numbers are
        traced, as by `jax.jit`; integers, booleans, strings and other objects are
        settings, and a call with another one is traced anew.
      state: regular expressions; variables whose path one of them is found in are
        state, such as running statistics: where an output's path ends with theirs, it
        is their new value and comes back in the reduced shape. The collections that
        Linen's `mutable=` names in a call are state without being named here.
      masks: per path, per axis, a boolean vector of the slices that are zero, instead
        of looking at the values.
      alignment: where operands disagree about their alive slices, `"align"` keeps what
        lines up, `"scatter"` moves data at run time, `"auto"` estimates which costs
        less (`sslx.graph.MACS_PER_MOVE`).
      constants: `"fold"` computes channels that no longer depend on the input apart
        from the data, once per call, from the variables they are made of (a bias, the
        statistics of a norm, the weights that read them), which therefore stay, train
        and change as before; `"keep"` goes on computing them beside the others.
      strict: raise if a primitive without a rule keeps parameters from being reduced.
      check: run both functions on random inputs of the example's shapes (and what they
        call back), and raise where they differ.
      round_to: keep so many dead channels that the widths of products of data and
        weights are multiples of it; `kept_zeros` lists them, and `summary` counts them.
        None leaves that to `lowering`, which rounds where it has measured a gain.
      lowering: how what is left is computed. `"xla"` leaves it to XLA. `"rule"` takes
        forms and compiler options by rules for CPUs (`sslx.tune`). `"measure"` times
        forms, and then whole networks with several widths (exact, multiples of 8, as
        they were) and alignments, and keeps the fastest. Both leave out zero columns
        of kernels (`Compact.lowered`).
        `jax.jit(small.apply, compiler_options=small.compiler_options)` runs it.
      **kwargs: more of the call.

    Returns:
      A `Compact`. What could not be reduced is kept as it is, and `held_back` says why.

    Raises:
      TypeError: an argument is not of its kind, such as a module instead of its
        `apply`, or a setting among the variables.
      ValueError: with `strict`, if something was held back; for masks that do not fit;
        for an option that is none of its words; for variables whose zeros cannot be
        read (shapes without `masks`, traced arrays).
      RuntimeError: with `check`, if an output differs by more than rounding; it names
        the output, both bounds, and the first equation that is off.

    Example:
      >>> small = sslx.compact(model.apply, variables, x, train=False)
      >>> y = jax.jit(small.apply)(small.variables, x)
    """
    require_word("alignment", alignment, get_args(Alignment))
    require_word("constants", constants, get_args(Constants))
    require_word("lowering", lowering, get_args(Lowering))
    if round_to is not None:
        require_count("round_to", round_to)
    require_function(fn, variables)
    leaves, treedef = read_variables(variables, values=masks is None)
    call = take_apart(args, kwargs)
    identity = Plan({p: whole_leaf(np.shape(x)) for p, x in leaves.items()})
    dtypes = [x.dtype for x in leaves.values()]
    tracer = Tracer(fn, expressions("state", state, leaves))
    traced = tracer(variables, identity, dtypes, call)
    zeros = given_zeros(leaves, masks) if masks is not None else zeros_of(leaves)

    def reduced(alignment: Alignment, widths: Widths | None) -> Compact:
        while True:
            live = Liveness(traced.program, fold=constants == "fold")
            look = masks is None
            found = fixed_point(live, traced, leaves, zeros, alignment, look, widths)
            small = _reduced(tracer, treedef, traced, live, leaves, found, call, strict)
            error = fault(small, traced, call)
            while error is None:
                less = _tightened(small, traced, live, leaves, found)
                if less is small:
                    return small
                small, error = less, fault(less, traced, call)
            _keep_whole(tracer, traced, error)

    if lowering == "measure":
        ways = [reduced(*way) for way in _ways(alignment, round_to)]
        small = _fastest(ways, args, kwargs)
    else:
        small = reduced(alignment, _widths(round_to))
        small = small.lowered(*args, lowering=lowering, **kwargs)
    if check:
        compare(small, traced, _zeroed(leaves, zeros) if masks else leaves, call)
    return small


def _zeroed(leaves: Mapping[str, Any], zeros: Mapping[str, Masks]) -> dict[str, Any]:
    """The variables with zeros where masks say so."""
    out = {}
    for path, leaf in leaves.items():
        for axis, mask in enumerate(zeros[path] if leaf.ndim else ()):
            line = [-1 if a == axis else 1 for a in range(leaf.ndim)]
            leaf = jnp.where(mask.reshape(line), jnp.zeros((), leaf.dtype), leaf)
        out[path] = leaf
    return out


def _keep_whole(tracer: Tracer, traced: Traced, error: Fault) -> None:
    """Take an equation that could not be reduced as it is; or all, if none is known.

    Raises:
      RuntimeError: all are.
    """
    equations = traced.program.equations
    if error.equation is not None and not error.equation.opaque:
        equations = [error.equation]
    if all(eqn.opaque for eqn in equations):
        raise RuntimeError(f"the function cannot be evaluated again: {error.reason}")
    tracer.hide(
        traced.program, {(eqn.name, eqn.source): error.reason for eqn in equations}
    )


def _reduced(
    tracer: Tracer,
    treedef: Any,
    traced: Traced,
    live: Liveness,
    leaves: Mapping[str, Any],
    zeros: Mapping[str, Masks],
    call: Call,
    strict: bool,
) -> Compact:
    params = live.program.inputs[: len(leaves)]
    held = held_back(live, dict(zip(params, leaves, strict=True)))
    if strict and held:
        raise ValueError(
            "some primitives have no rule, and keep parameters whole:\n"
            + "\n".join(f"  {h}" for h in held)
            + "\nfix: leave out strict=True to keep them, or rewrite that line"
        )
    plan, folded = planned(live, params, leaves, zeros)
    example = call._replace(arrays=tuple(struct(x) for x in call.arrays))
    kept = kept_zeros(live, list(zip(params, leaves, zeros.values(), strict=True)))
    reduced = analysed(traced, live, plan)
    return Compact(
        tracer,
        _shrunk(plan, treedef, leaves),
        plan,
        folded,
        held,
        kept,
        example,
        live.fold,
        reductions={} if reduced is None else {traced: reduced},
    )


def _tightened(
    small: Compact,
    traced: Traced,
    live: Liveness,
    leaves: Mapping[str, Any],
    zeros: Mapping[str, Masks],
) -> Compact:
    """Without slices that line up with what is dead by the plan alone.

    To line up, the analysis keeps slices of parameters and of what is made of them; a
    slice that is zero by a literal is zero again where the plan is all that is known.
    """
    params = traced.program.inputs[: len(leaves)]
    plan, folded = planned(small.reductions[traced].live, params, leaves, zeros)
    if plan == small.plan:
        return small
    left = {
        path: [z & k for z, k in zip(zeros[path], kept_masks(leaf), strict=True)]
        for path, leaf in plan.leaves.items()
    }
    _, treedef = flatten(small.variables)
    return dataclasses.replace(
        small,
        plan=plan,
        folded=folded,
        variables=_shrunk(plan, treedef, leaves),
        kept_zeros=kept_zeros(
            live, list(zip(params, left, left.values(), strict=True))
        ),
        reductions={},
    )


def _shrunk(plan: Plan, treedef: Any, leaves: Mapping[str, Any]) -> PyTree:
    """The kept parts of the variables."""
    rows = {p: _own(plan.leaves[p].shrink(x), x) for p, x in leaves.items()}
    return unflatten(treedef, rows)


def _own(small: Any, leaf: Any) -> Any:
    """A copy of what is shared with the dense variables: either may be donated."""
    return jnp.copy(small) if small is leaf and isinstance(leaf, jax.Array) else small


# Lowering.


def _widths(round_to: int | None) -> Widths | None:
    if round_to in (None, 1):
        return None
    return lambda kept: -(-kept // round_to) * round_to


def _ways(
    alignment: Alignment, round_to: int | None
) -> list[tuple[Alignment, Widths | None]]:
    """Alignments and widths that a measurement compares."""
    widths = [None, _widths(8), lambda kept: sys.maxsize]
    if round_to is not None:
        widths = [_widths(round_to)]
    others: tuple[Alignment, ...] = ("align", "scatter") if alignment == "auto" else ()
    ways: list[tuple[Alignment, Widths | None]] = [(alignment, w) for w in widths]
    for other in others:
        ways.append((other, widths[0]))
    return ways


def _fastest(ways: list[Compact], args: Any, kwargs: Any) -> Compact:
    distinct = list({repr(w.plan): w for w in reversed(ways)}.values())
    tuned = [way.lowered(*args, lowering="measure", **kwargs) for way in distinct]
    if len(tuned) == 1:
        return tuned[0]
    programs = {
        str(k): (way.tuned, take_apart((way.variables, *args), kwargs))
        for k, way in enumerate(tuned)
        if way.tuned is not None
    }
    seconds = program_seconds(programs)
    return tuned[int(min(seconds, key=seconds.__getitem__))]
