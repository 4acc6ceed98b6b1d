"""What is known of the slices of a value, and how one equation passes it on.

A fact is per axis: `masks[axis][i]` speaks of the hyperplane of index `i`, as `zero` of
an image says which channels, rows or columns of it are zero. A value without axes has
one mask of length one.

`propagate` takes the facts of an equation's operands to those of its results, along the
links of its relation. A slice of a result is zero where the slices that it is made of
are, for the groups of operands of which the relation says so (either factor of a
product, both terms of a sum), and everywhere if a sum has no nonzero term left. It is
constant where all operands that depend on the inputs are. It is known where, besides,
all that it is made of is known; its numbers are then evaluated on the spot, which finds
the zeros that follow from literals (`x * 0`, masks, padding).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sslx._compact.jaxpr.masks import (
    Mask,
    Masks,
    both,
    either,
    every,
    same,
    some,
    uniform,
    within,
)
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Link, Relation, Summed, terms_left

_LITERAL_LIMIT = 1 << 20


def full(value: Value, state: bool) -> Masks:
    """The same fact for every slice of a value; the vectors are read-only."""
    return uniform(value.shape, state)


def normal(masks: Masks) -> Masks:
    """The same slices; if those of one axis cover the value, all of every axis."""
    if any(map(every, masks)):
        return uniform(tuple(m.size for m in masks), True)
    return masks


@dataclasses.dataclass
class Facts:
    """What is known of one value.

    Attributes:
      zero: slices that are zero.
      constant: slices that do not depend on the inputs; includes the zero ones.
      static: the value is computed from parameters and literals alone.
      weight: it is static, and not from literals only.
      known: constant slices that literals and zeros alone decide; includes the zero
        ones, and is no more than these by default.
      numbers: an array that holds the known slices, of size one along axes where they
        do not vary; None if they are zero.
    """

    zero: Masks
    constant: Masks
    static: bool = False
    weight: bool = False
    known: Masks = dataclasses.field(default_factory=list)
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.known = self.known or self.zero

    @property
    def all_constant(self) -> bool:
        """Whether nothing of it depends on the inputs."""
        return self.static or all(map(every, self.constant))

    def mapped(self, change: Callable[[Masks], Masks]) -> "Facts":
        """The same facts, of other slices."""
        masks = (self.zero, self.constant, self.known)
        zero, constant, known = map(change, masks)
        return dataclasses.replace(self, zero=zero, constant=constant, known=known)

    def agrees(self, other: "Facts") -> bool:
        """Whether it says the same."""
        flags = (self.static, self.weight) == (other.static, other.weight)
        return (
            flags
            and same(self.zero, other.zero)
            and same(self.constant, other.constant)
            and same(self.known, other.known)
        )


def literal_facts(value: Value) -> Facts:
    """Facts of a literal or of a constant baked into the program."""
    facts = Facts(full(value, False), full(value, True), static=True)
    numeric = jnp.issubdtype(value.dtype, np.number) or value.dtype == bool
    if not numeric or math.prod(value.shape) > _LITERAL_LIMIT:
        return facts
    return with_numbers(
        dataclasses.replace(facts, known=full(value, True)), value.array
    )


def with_numbers(facts: Facts, numbers: Any) -> Facts:
    """Facts with the numbers of their known slices, of which some may be zero."""
    numbers = np.asarray(numbers)
    nonzero, axes = numbers != 0, range(numbers.ndim)
    zero = [~nonzero.any(tuple(b for b in axes if b != a)) for a in axes]
    zero = both(facts.known, zero or [~nonzero.reshape(1)])
    zero = normal(either(facts.zero, zero))
    return dataclasses.replace(facts, zero=zero, numbers=numbers)


def propagate(eqn: Equation, rel: Relation, ins: list[Facts]) -> list[Facts]:
    """Facts of the results of an equation, those of known slices without numbers."""
    outs = []
    for o, value in enumerate(eqn.outputs):
        sources = rel.made_of(o, len(ins))
        static = rel.constant and all(ins[k].static for k in sources)
        weight = static and any(ins[k].weight for k in sources)
        zero, constant = full(value, False), full(value, static)
        for group in rel.zero_groups(o):
            parts = [_passed_on(eqn, rel, ins[k].zero, k, o) for k in group]
            zero = either(zero, functools.reduce(both, parts, full(value, True)))
        if not all(some(nonzero_terms(members, ins)) for members in rel.sums):
            zero = full(value, True)
        zero = normal(zero)
        if rel.constant and not static:
            moving = [k for k in sources if not ins[k].static]
            parts = [_passed_on(eqn, rel, ins[k].constant, k, o) for k in moving]
            constant = functools.reduce(both, parts)
            if rel.covers:
                constant = both(constant, _covered(rel, moving, value, o))
        constant = zero if within(constant, zero) else normal(either(constant, zero))
        known = zero
        if constant is not zero and math.prod(value.shape) <= _LITERAL_LIMIT:
            parts = [_passed_on(eqn, rel, ins[k].known, k, o) for k in sources]
            known = normal(both(functools.reduce(both, parts), constant))
            known = zero if within(known, zero) else either(known, zero)
        outs.append(Facts(zero, constant, static, weight, known))
    return outs


def _passed_on(
    eqn: Equation, rel: Relation, masks: Masks, operand: int, output: int
) -> Masks:
    """Output slices that hold only marked slices of one operand."""
    value = eqn.outputs[output]
    mine = rel.between(operand, output)
    if every(masks[0]) and not (rel.covers and mine):
        return full(value, True)
    found: dict[int, Mask] = {}
    for link in mine:
        size, axis = value.shape[link.out_axis], link.out_axis
        mask = link.to_output_all(masks[link.in_axis], size)
        found[axis] = found[axis] | mask if axis in found else mask
    return [found.get(a, m) for a, m in enumerate(full(value, False))]


def _covered(rel: Relation, operands: Sequence[int], value: Value, o: int) -> Masks:
    """Output slices that some operands reach, piece by piece.

    The other pieces are no removed channels: a class token beside rows of data costs
    less as a row among the others than as a constant.
    """
    covered = uniform(value.shape, True)
    pieces: dict[int, Mask] = {}
    for link in (x for k in operands for x in rel.between(k, o)):
        axis = link.out_axis
        if link.in_label is not None or link.out_label is not None:
            there = np.ones(_sources(link, value), bool)
            mask = link.to_output_any(there, value.shape[axis])
            pieces[axis] = pieces[axis] | mask if axis in pieces else mask
    return [pieces.get(a, m) for a, m in enumerate(covered)]


def _sources(link: Link, value: Value) -> int:
    return value.shape[link.out_axis] if link.in_label is None else link.in_label.size


def nonzero_terms(members: Sequence[Summed], ins: Sequence[Facts]) -> Mask:
    """Which terms of a sum are not zero, by label."""
    return terms_left(members, [ins[m.operand].zero[m.axis] for m in members])
