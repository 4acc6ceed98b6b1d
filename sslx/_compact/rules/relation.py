"""How the slices of operands and results are related: one declaration per primitive.

A rule takes an equation and returns its `Relation`. *Links* pair an axis of an operand
with an axis of a result that runs over the same slices. *Sums* are axes over which the
primitive adds up: `dot_general` has one with a member in either operand. `zero` says
which operands have to be zero for a result to be. The rest of the engine knows nothing
of single primitives; it reads off a relation

- forwards, which slices of a result are zero or constant (`analysis.facts`);
- backwards, which slices of an operand are needed (`analysis.needs`);
- in both directions, which slices go together (`analysis.axis_graph`);
- the sizes of the reduced results, for which `emit` then makes the equation.

Axes need not match index by index. Indices that have the same *label* belong together,
which covers broadcasting (all have label 0), slicing and concatenation (labels are
positions), reshaping (labels are coordinates) and grouped convolutions (labels are
parts). An axis in no link and no sum is kept whole, so a rule that leaves something out
is safe; a primitive without a rule has no links at all, and is reported.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sslx._compact.jaxpr.masks import Mask, Masks

Labels = Int[np.ndarray, "_"]

Operands = tuple[int, ...]

NEVER: tuple[Operands, ...] = ()
FIRST: tuple[Operands, ...] = ((0,),)


def together(count: int) -> tuple[Operands, ...]:
    """An output slice is zero if it is in all operands, as in `x + y`."""
    return (tuple(range(count)),)


def each(count: int) -> tuple[Operands, ...]:
    """An output slice is zero if it is in any operand, as in `x * y`."""
    return tuple((k,) for k in range(count))


class Link(NamedTuple):
    """Output axis `out_axis` runs over the slices of operand axis `in_axis`.

    Index `i` of the operand and `j` of the output belong together when
    `in_label[i] == out_label[j]`; None stands for `arange`.
    """

    operand: int
    in_axis: int
    output: int
    out_axis: int
    in_label: Labels | None = None
    out_label: Labels | None = None

    def to_output_all(self, mask: Mask, size: int) -> Mask:
        """Per output index, whether `mask` holds on all operand indices labelled so."""
        if self.in_label is None and self.out_label is None:
            return mask
        return ~self._spread(~mask, self.in_label, self.out_label, size)

    def to_output_any(self, mask: Mask, size: int) -> Mask:
        """Per output index, whether `mask` holds on any operand index of its label."""
        return self._spread(mask, self.in_label, self.out_label, size)

    def to_operand_any(self, mask: Mask, size: int) -> Mask:
        """Per operand index, whether `mask` holds on any output index of its label."""
        return self._spread(mask, self.out_label, self.in_label, size)

    @staticmethod
    def _spread(
        mask: Mask, source: Labels | None, target: Labels | None, size: int
    ) -> Mask:
        if source is None and target is None:
            return mask
        source = np.arange(mask.size) if source is None else source
        target = np.arange(size) if target is None else target
        hit = np.zeros(
            int(max(source.max(initial=-1), target.max(initial=-1))) + 2, bool
        )
        hit[source[mask]] = True
        hit[-1] = False
        return hit[target]


class Summed(NamedTuple):
    """One operand's axis in a sum over a shared index; `label` as in `Link`."""

    operand: int
    axis: int
    label: Labels | None = None

    def labels(self, size: int) -> Labels:
        """The term that each slice of an axis of this size belongs to."""
        return np.arange(size) if self.label is None else self.label


def terms_left(members: Sequence[Summed], gone: Sequence[Mask]) -> Mask:
    """The terms of a sum, by label, for which every member has a slice that is left."""
    if all(m.label is None for m in members):
        return ~functools.reduce(np.logical_or, gone)
    rows = zip(members, gone, strict=True)
    labels = [member.labels(mask.size) for member, mask in rows]
    left = np.ones(max(label.max(initial=-1) for label in labels) + 1, bool)
    for label, mask in zip(labels, gone, strict=True):
        there = np.zeros(left.size, bool)
        there[label[~mask]] = True
        left &= there
    return left


class Shapes(NamedTuple):
    """The sizes of the outputs that `emit` has to produce."""

    outputs: list[tuple[int, ...]]


Emit = Callable[[Any, list[Any], Shapes], list[Any]]


@dataclasses.dataclass(frozen=True)
class Relation:
    """How the slices of one equation's operands and outputs depend on each other.

    An operand axis that is in no link and no sum is *kept whole*, and so is an output
    axis in no link: nothing may be removed there.

    Attributes:
      links: axes that run together.
      sums: index sets summed over; a term vanishes if any member's slice is zero.
      zero: groups of operands; an output slice is zero where all of any group are.
      sources: per output, the operands that it is made of; None stands for all.
      refine: the relation that holds given the first facts of the operands; they are
        those of the program itself, before anything is left out of it.
      covers: each operand covers a piece of an output axis (concatenate).
      constant: the output depends on nothing else, so constants stay constants.
      widen: extends the slices wanted of the outputs to some that the primitive can
        produce.
      emit: makes the outputs from reduced operands; None binds the primitive as it is.
      known: False if the primitive has no rule and everything is kept whole.
      factors: output, axis, label: a factor of an output axis besides those in links;
        slices of it are removed with their whole factor.
      free_outputs: output axes in no link may be cut by what reads them.
      pointwise: each output entry comes from the operands' entries at its own place,
        those of axes of size one and of scalars spread over it.
    """

    links: tuple[Link, ...] = ()
    sums: tuple[tuple[Summed, ...], ...] = ()
    zero: tuple[Operands, ...] = NEVER
    sources: tuple[Operands, ...] | None = None
    refine: "Callable[[Sequence[Any]], Relation] | None" = None
    covers: bool = False
    constant: bool = True
    widen: Callable[[list[Masks]], list[Masks]] | None = None
    emit: Emit | None = None
    known: bool = True
    factors: tuple[tuple[int, int, Labels], ...] = ()
    free_outputs: bool = False
    pointwise: bool = False

    @functools.cached_property
    def _by_ends(self) -> dict[tuple[int, int], list[Link]]:
        found: dict[tuple[int, int], list[Link]] = {}
        for link in self.links:
            found.setdefault((link.operand, link.output), []).append(link)
        return found

    def between(self, operand: int, output: int) -> Sequence[Link]:
        """The links from one operand to one output."""
        return self._by_ends.get((operand, output), ())

    def made_of(self, output: int, count: int) -> Sequence[int]:
        """The operands that an output is made of; `count` is how many there are."""
        return range(count) if self.sources is None else self.sources[output]

    def zero_groups(self, output: int) -> Sequence[Operands]:
        """Groups of operands with which an output is zero."""
        if self.sources is None:
            return self.zero
        mine = self.sources[output]
        return [tuple(k for k in group if k in mine) for group in self.zero]


UNKNOWN = Relation(constant=False, known=False)
"""Everything is kept whole, and reported."""

Rule = Callable[[Any], Relation]
_RULES: dict[str, Rule] = {}


def register(*names: str) -> Callable[[Rule], Rule]:
    """Make a function the rule of some primitives; each has at most one."""

    def add(rule: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"primitive {name!r} already has a rule")
            _RULES[name] = rule
        return rule

    return add


def relation(equation: Any) -> Relation:
    """The relation of an equation; `UNKNOWN` where there is no rule."""
    rule = None if equation.opaque else _RULES.get(equation.name)
    return rule(equation) if rule else UNKNOWN
