"""`compact`: dead-code elimination, one channel at a time, on the jaxpr.

The call is traced (`jaxpr.tracing`), analysed until nothing more is found dead
(`analysis.fixed_point`), and what is left of the variables is the plan. Then the
reduced program is evaluated on shapes: if an equation fails, it is treated as one
without a rule, and the analysis starts over.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._calls import (
    Call,
    require_count,
    require_function,
    require_two_steps,
    require_word,
    struct,
    take_apart,
)
from sslx._compact.analysis.alignment import Alignment
from sslx._compact.analysis.fixed_point import Keep, Look, fixed_point, planned
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.analysis.report import KeptZeros, held_back, kept_zeros
from sslx._compact.analysis.widths import Widths, pad_widths
from sslx._compact.check import check as compare
from sslx._compact.compacted import Compact
from sslx._compact.jaxpr.arguments import read_variables
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Value
from sslx._compact.jaxpr.state import expressions
from sslx._compact.jaxpr.tracing import Traced, Tracer, whole_leaf
from sslx._compact.jaxpr.zeros import Masked, Zeros
from sslx._compact.plan import Plan
from sslx._compact.rewrite.evaluation import (
    Fault,
    analysed,
    fault,
    kept_masks,
)
from sslx._groups.classes import Groups
from sslx._groups.groups import unflatten
from sslx.lowering import (
    Lowering,
    program_seconds,
)

Constants = Literal["fold", "keep"]


def compact(
    fn: Callable[..., Any],
    *_example: Any,
    state: str | Sequence[str] = (),
    groups: Groups | None = None,
    masks: Mapping[str, Any] | None = None,
    alignment: Alignment = "auto",
    constants: Constants = "fold",
    strict: bool = False,
    check: bool = False,
    round_to: int | None = None,
    lowering: Lowering = "xla",
) -> Callable[..., Compact]:
    r"""Remove what is provably dead from a function and its variables.

    A slice of an axis of an intermediate value is alive if it is not zero, starting
    from the zeros in the variables, and if something alive needs it. The result
    computes `fn` on the alive slices only:

    $$\mathrm{apply}(\mathrm{shrink}(v), x) = \mathrm{fn}(v, x)$$

    up to rounding, for finite values: `0 * x` and `0 / x` count as zero. So does -0.0
    (which `arctan2` and `copysign` tell from 0.0), and so does the NaN that a lookup in
    a parameter gives for an index out of range.

    Like `jax.export.export`, it takes the function and its options first, and then an
    example call: `sslx.compact(fn, **options)(variables, *args, **kwargs)`.

    Args:
      fn: any JAX function of `(variables, *args, **kwargs)`.
      state: regular expressions, searched in the paths of variables; those that match
        are state, such as running statistics. An output whose path ends with the path
        of a state variable is its new value, and comes back in the reduced shape.
        Collections that a call names as Linen's `mutable=` are state in any case.
      groups: the groups that `masks` are about.
      masks: class name -> True where a group is kept (`select.keep`, `sslx.alive`). All
        other groups count as zero, whatever their values. Classes left out are kept.
      alignment: what to do where operands have different alive slices: `"align"` keeps
        the union, `"scatter"` moves data at run time, `"auto"` takes what it estimates
        to cost less.
      constants: what to do with channels that no longer depend on the input. `"fold"`
        computes them apart from the data, once per call, from the variables they are
        made of (a bias, the statistics of a norm, the weights that read them); these
        variables stay, and train and change as before. `"keep"` computes the channels
        like any other.
      strict: raise if a primitive without a rule keeps parameters from being reduced.
      check: run both functions on random inputs of the example's shapes, callbacks
        included, and raise if they differ.
      round_to: keep enough dead channels to make the widths of products of data and
        weights multiples of it; `kept_zeros` lists these channels, and `summary` counts
        them. With None, only `lowering="measure"` rounds, where it measured a gain.
      lowering: how the rest is computed. `"xla"` leaves it to XLA; `"rule"` chooses
        forms and compiler options by a rule for CPUs (`sslx.tune`); `"measure"` times
        forms, and then whole networks of several widths (exact, multiples of 8, dense)
        and alignments, and keeps the fastest. The last two skip zero columns of kernels
        (`Compact.lowered`). To run it:
        `jax.jit(small.apply, compiler_options=small.compiler_options)`.

    Returns:
      A function of an example call, which returns a `Compact`. The call is

      - `variables`: tree of arrays; only these are reduced, scalars not: they stay, and
        count as what they are, not as zero. Or of `jax.ShapeDtypeStruct`, with `masks`;
        then the result holds shapes, and its plan shrinks real arrays.
      - `*args, **kwargs`: the rest of the call; shapes are enough. Arrays, real and
        complex numbers are traced, as by `jax.jit`; integers, booleans, strings and
        other objects are settings, and a call with other settings is traced again.

      Whatever could not be reduced is kept whole, and `held_back` says why.

    Raises:
      TypeError: an argument has the wrong type, such as a module instead of its
        `apply`, or a setting among the variables.
      ValueError: with `strict`, if something was held back; if masks do not fit the
        groups; if an option has an unknown value; if the zeros of the variables cannot
        be read (shapes without `masks`, traced arrays).
      RuntimeError: with `check`, if an output differs by more than rounding. The text
        names the output, the difference, its bound, and the first equation that is off.

    Example:
      >>> small = sslx.compact(model.apply)(variables, x, train=False)
      >>> y = jax.jit(small.apply)(small.variables, x)
    """
    require_word("alignment", alignment, get_args(Alignment))
    require_word("constants", constants, get_args(Constants))
    require_word("lowering", lowering, get_args(Lowering))
    if round_to is not None:
        require_count("round_to", round_to)
    require_function(fn, *_example[:1])
    require_two_steps("sslx.compact(fn, **options)(variables, *args)", _example)

    def of(variables: PyTree, *args: Any, **kwargs: Any) -> Compact:
        require_function(fn, variables)
        leaves, treedef = read_variables(variables, values=masks is None)
        look = Zeros(leaves) if masks is None else Masked(leaves, groups, masks)
        zeros = {path: look(path) for path in leaves}
        call = take_apart(args, kwargs)
        identity = Plan({p: whole_leaf(np.shape(x)) for p, x in leaves.items()})
        dtypes = [x.dtype for x in leaves.values()]
        tracer = Tracer(fn, expressions("state", state, leaves))
        traced = tracer(variables, identity, dtypes, call)
        given = Given(tracer, treedef, traced, leaves, zeros, call)
        reduce = functools.partial(
            reduced, given, look=look, fold_constants=constants == "fold", strict=strict
        )
        if lowering == "measure":
            ways = [reduce(*way) for way in _ways(alignment, round_to)]
            small = _fastest(ways, args, kwargs)
        else:
            small = reduce(alignment, _widths(round_to))
            small = small.lowered(*args, lowering=lowering, **kwargs)
        if check:
            dense = leaves if masks is None else _zeroed(leaves, zeros)
            compare(small, traced, dense, call)
        return small

    return of


class Given(NamedTuple):
    """A call that is compacted, traced; `zeros` are slices of the `leaves`."""

    tracer: Tracer
    treedef: Any
    traced: Traced
    leaves: Mapping[str, Any]
    zeros: dict[str, Masks]
    call: Call

    @property
    def params(self) -> list[Value]:
        """The values of the leaves."""
        return self.traced.program.inputs[: len(self.leaves)]


def reduced(
    given: Given,
    alignment: Alignment,
    keep: Keep | None,
    *,
    look: Look,
    fold_constants: bool,
    strict: bool,
    follow: bool = False,
) -> Compact:
    """The network on its alive slices; equations that cannot be reduced stay whole.

    `look`, `keep` and `follow` are those of the analysis.
    """
    traced, leaves = given.traced, given.leaves
    while True:
        live = Liveness(traced.program, fold_constants=fold_constants)
        zeros = fixed_point(
            *(live, traced, leaves, given.zeros, alignment, look),
            keep=keep,
            follow=follow,
        )
        found = given._replace(zeros=zeros)
        small = _reduced(found, live, strict)
        error = fault(small.reduced, traced, small.variables, given.call)
        while error is None:
            less = _tightened(small, found, live)
            if less is small:
                return small
            small = less
            error = fault(less.reduced, traced, less.variables, given.call)
        _keep_whole(given.tracer, traced, error)


def _zeroed(leaves: Mapping[str, Any], zeros: Mapping[str, Masks]) -> dict[str, Any]:
    """The variables with zeros where masks say so; shapes as they are."""
    out = {}
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            out[path] = leaf
            continue
        for axis, mask in enumerate(zeros[path] if leaf.ndim else ()):
            line = [-1 if a == axis else 1 for a in range(leaf.ndim)]
            leaf = jnp.where(mask.reshape(line), jnp.zeros((), leaf.dtype), leaf)
        out[path] = leaf
    return out


def _keep_whole(tracer: Tracer, traced: Traced, error: Fault) -> None:
    """Keep an equation that could not be reduced as it is; or all, if none is known.

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


def _reduced(given: Given, live: Liveness, strict: bool) -> Compact:
    held = held_back(live, dict(zip(given.params, given.leaves, strict=True)))
    if strict and held:
        raise ValueError(
            "some primitives have no rule, and keep parameters whole:\n"
            + "\n".join(f"  {h}" for h in held)
            + "\nfix: leave out strict=True to keep them, or rewrite that line"
        )
    plan, folded = planned(live, given.params, given.leaves, given.zeros)
    arrays = tuple(struct(x) for x in given.call.arrays)
    reduced = analysed(given.traced, live, plan)
    return Compact(
        given.tracer,
        _shrunk(plan, given.treedef, given.leaves),
        plan,
        folded,
        held,
        _lined_up(given, live, given.zeros),
        given.call._replace(arrays=arrays),
        live.fold_constants,
        _programs={} if reduced is None else {given.traced: reduced},
    )


def _tightened(small: Compact, given: Given, live: Liveness) -> Compact:
    """Without slices that line up with what is dead by the plan alone.

    To line up, the analysis keeps slices of parameters and of what is made of them; a
    slice that is zero by a literal is zero again where the plan is all that is known.
    """
    planning = small.reduced(given.traced).live
    plan, folded = planned(planning, given.params, given.leaves, given.zeros)
    if plan == small.plan:
        return small
    left = {
        path: [z & k for z, k in zip(given.zeros[path], kept_masks(leaf), strict=True)]
        for path, leaf in plan.leaves.items()
    }
    return dataclasses.replace(
        small,
        plan=plan,
        folded=folded,
        variables=_shrunk(plan, given.treedef, given.leaves),
        kept_zeros=_lined_up(given, live, left),
        _programs={},
    )


def _lined_up(
    given: Given, live: Liveness, zeros: Mapping[str, Masks]
) -> tuple[KeptZeros, ...]:
    """Zero slices of the leaves that stay."""
    rows = zip(given.params, given.leaves, zeros.values(), strict=True)
    return kept_zeros(live, list(rows))


def _shrunk(plan: Plan, treedef: Any, leaves: Mapping[str, Any]) -> PyTree:
    """The kept parts of the variables."""
    rows = {p: _own(plan.leaves[p].shrink(x), x) for p, x in leaves.items()}
    return unflatten(treedef, rows)


def _own(small: Any, leaf: Any) -> Any:
    """A copy of what is shared with the dense variables: either may be donated."""
    return jnp.copy(small) if small is leaf and isinstance(leaf, jax.Array) else small


# Lowering.


def _widths(round_to: int | None) -> Keep | None:
    if round_to in (None, 1):
        return None
    return _rounding(lambda kept: -(-kept // round_to) * round_to)


def _rounding(widths: Widths) -> Keep:
    return functools.partial(pad_widths, widths=widths)


def _ways(
    alignment: Alignment, round_to: int | None
) -> list[tuple[Alignment, Keep | None]]:
    """Alignments and widths that a measurement compares."""
    widths = [None, _widths(8), _rounding(lambda kept: sys.maxsize)]
    if round_to is not None:
        widths = [_widths(round_to)]
    others: tuple[Alignment, ...] = ("align", "scatter") if alignment == "auto" else ()
    ways: list[tuple[Alignment, Keep | None]] = [(alignment, w) for w in widths]
    for other in others:
        ways.append((other, widths[0]))
    return ways


def _fastest(ways: list[Compact], args: Any, kwargs: Any) -> Compact:
    distinct = list({repr(w.plan): w for w in reversed(ways)}.values())
    tuned = [way.lowered(*args, lowering="measure", **kwargs) for way in distinct]
    if len(tuned) == 1:
        return tuned[0]
    calls = {
        str(k): (way.tuned, (way.variables, *args), kwargs)
        for k, way in enumerate(tuned)
        if way.tuned is not None
    }
    seconds = program_seconds(calls)
    return tuned[int(min(seconds, key=seconds.__getitem__))]
