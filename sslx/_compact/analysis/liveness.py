"""Which slices of every value are zero, constant, needed: forward, then backward.

All facts are per axis: `masks[axis][i]` speaks of the hyperplane of index `i`. A value
without axes has one mask of length one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sslx._compact.analysis.copies import Copies
from sslx._compact.analysis.thin_arrays import evaluate, thin_zeros
from sslx._compact.jaxpr.masks import (
    Mask,
    Masks,
    both,
    either,
    every,
    is_region,
    same,
    some,
    uniform,
    within,
    without,
)
from sslx._compact.jaxpr.program import Equation, Program, Value
from sslx._compact.rules.relation import Link, Relation, Summed, relation

_LITERAL_LIMIT = 1 << 20


def full(value: Value, state: bool) -> Masks:
    """The same fact for every slice of a value; the vectors are read-only."""
    return uniform(value.shape, state)


def _normal(masks: Masks) -> Masks:
    """If one axis is covered, all of the value is."""
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
    def settled(self) -> bool:
        """Whether nothing of it depends on the inputs."""
        return self.static or all(map(every, self.constant))

    def of(self, change: Callable[[Masks], Masks]) -> "Facts":
        """The same of other slices."""
        masks = map(change, (self.zero, self.constant, self.known))
        zero, constant, known = masks
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
    return _noted(dataclasses.replace(facts, known=full(value, True)), value.array)


def _noted(facts: Facts, numbers: Any) -> Facts:
    """Facts with the numbers of their known slices, of which some may be zero."""
    numbers = np.asarray(numbers)
    nonzero, axes = numbers != 0, range(numbers.ndim)
    zero = [~nonzero.any(tuple(b for b in axes if b != a)) for a in axes]
    zero = both(facts.known, zero or [~nonzero.reshape(1)])
    zero = _normal(either(facts.zero, zero))
    return dataclasses.replace(facts, zero=zero, numbers=numbers)


class Liveness:
    """Facts and needs of every value of a program, and of the bodies nested in it.

    Usage: `forward(facts of the inputs)`, then `backward(needs of the outputs)`; both
    may be repeated. `force` takes slices out of the facts, so that they stay computed.
    """

    def __init__(self, program: Program, *, fold: bool):
        self.program = program
        self.fold = fold
        self.facts: dict[Value, Facts] = {}
        self.need: dict[Value, Masks] = {}
        self.constant_need: dict[Value, Masks] = {}
        self.copied: dict[Value, Masks] = {}
        self.forced: dict[Value, Masks] = {}
        self.forced_by: dict[Value, Equation | None] = {}
        self.unread: dict[Value, Masks] = {}
        self.relations: dict[Equation, Relation] = {}
        self.inner: dict[Equation, Body] = {}
        self._alive: dict[Value, Masks] = {}
        self._computed: dict[Value, bool] = {}
        self._seen: dict[Equation, list[Facts]] = {}
        self._stale: set[Value] = set()
        self._targets: dict[Equation, list[Masks]] = {}
        self.producer: dict[Value, Equation] = {}
        self.copies = Copies(self)
        for eqn in program.equations:
            self.producer.update((v, eqn) for v in eqn.outputs)
            body = make_body(eqn, fold)
            if body is None:
                self.relations[eqn] = relation(eqn)
            else:
                self.inner[eqn] = body

    def of(self, value: Value) -> Facts:
        """The facts of a value."""
        if value.literal is not None and value not in self.facts:
            self.facts[value] = literal_facts(value)
        return self.facts[value]

    def absent(self, value: Value) -> Masks:
        """Slices the rewritten program has no use for computing: zero or folded."""
        facts = self.of(value)
        if self.fold and not facts.static:
            return facts.constant
        return facts.zero

    def alive(self, value: Value) -> Masks:
        """Slices that are computed: needed, and neither zero nor a folded constant."""
        masks = self._alive.get(value)
        if masks is None:
            need = self.need.get(value)
            if need is None:
                masks = full(value, False)
            else:
                masks = without(need, self.absent(value))
            self._alive[value] = masks
        return masks

    def computed(self, value: Value) -> bool:
        """Whether any entry of a value is computed."""
        if value not in self._computed:
            self._computed[value] = is_region(self.alive(value))
        return self._computed[value]

    def runs(self, equation: Equation) -> bool:
        """Whether anything of an equation's outputs is computed."""
        return equation.acts or any(map(self.computed, equation.outputs))

    def _forget(self) -> None:
        self._alive, self._computed, self._targets = {}, {}, {}
        self.copies.forget()

    # Forward.

    def forward(self, inputs: Sequence[Facts]) -> list[Facts]:
        """Propagate facts from the inputs; returns those of the outputs."""
        self._forget()
        for value, facts in zip(self.program.inputs, inputs, strict=True):
            self._set(value, facts)
        for eqn in self.program.equations:
            ins = [self.of(v) for v in eqn.inputs]
            if eqn in self.inner:
                outs = self.inner[eqn].forward(ins)
            elif self._is_known(eqn, ins):
                continue
            else:
                refine = self.relations[eqn].refine
                if refine is not None:
                    self.relations[eqn] = refine(ins)
                outs = _forward(eqn, self.relations[eqn], ins)
                outs = self._with_numbers(eqn, ins, outs)
            self._seen[eqn] = ins
            for value, facts in zip(eqn.outputs, outs, strict=True):
                self._set(value, facts)
        self._stale = set()
        return [self.of(v) for v in self.program.outputs]

    def _is_known(self, eqn: Equation, ins: list[Facts]) -> bool:
        """Whether nothing changed that the facts of the outputs follow from."""
        before = self._seen.get(eqn)
        return (
            before is not None
            and all(a is b for a, b in zip(before, ins, strict=True))
            and self._stale.isdisjoint(eqn.outputs)
        )

    def _with_numbers(
        self, eqn: Equation, ins: list[Facts], outs: list[Facts]
    ) -> list[Facts]:
        """Facts of the outputs, those that are known evaluated."""
        if all(facts.known is facts.zero for facts in outs):
            return outs
        operands = [
            thin_zeros(v) if f.numbers is None else f.numbers
            for v, f in zip(eqn.inputs, ins, strict=True)
        ]
        sure = [self.read(v, f.known) for v, f in zip(eqn.inputs, ins, strict=True)]
        zero = [facts.zero for facts in outs]
        made = evaluate(eqn, self.relations[eqn], operands, sure, zero)
        return [
            facts if facts.known is facts.zero else _noted(facts, numbers)
            for facts, numbers in zip(outs, made, strict=True)
        ]

    def read(self, value: Value, masks: Masks) -> Masks:
        """Without slices that count as zero because nothing reads them."""
        unread = self.unread.get(value)
        return masks if unread is None else without(masks, unread)

    def _set(self, value: Value, facts: Facts) -> None:
        unread = self.unread.get(value)
        if unread is not None:
            zero = _normal(either(facts.zero, unread))
            facts = facts.of(lambda masks: either(masks, zero))
        forced = self.forced.get(value)
        if forced is not None:
            facts = facts.of(lambda masks: without(masks, forced))
        before = self.facts.get(value)
        if before is None or not before.agrees(facts):
            self.facts[value] = facts

    # Backward.

    def backward(self, outputs: Sequence[Masks]) -> list[Masks]:
        """Propagate needs from the outputs; returns those of the inputs."""
        self._forget()
        self.need, self.copied = {}, {}
        for value, masks in zip(self.program.outputs, outputs, strict=True):
            self.require(value, masks)
        for eqn in reversed(self.program.equations):
            if not self.runs(eqn):
                continue
            for value, masks in zip(eqn.inputs, self.targets(eqn), strict=True):
                self.require(value, masks)
            self._read_copies(eqn)
        return [self.need.get(v, full(v, False)) for v in self.program.inputs]

    def require(self, value: Value, masks: Masks) -> None:
        """Add to what is needed of a value."""
        add(self.need, value, masks)

    def _read_copies(self, equation: Equation) -> None:
        """Require what stands behind the equal terms of a sum."""
        for equal, _, steps in self.copies.chains(equation):
            for piece, _, operands in steps:
                region = [
                    equal if a == piece.axis else m for a, m in enumerate(piece.region)
                ]
                add(self.copied, piece.value, region)
                for operand in operands:
                    if operand.axis is None:
                        self.require(operand.value, list(operand.region))

    def terms(self, equation: Equation, members: Sequence[Summed]) -> Mask:
        """Which terms of a sum are computed, by label."""
        rows = []
        for member in members:
            facts = self.of(equation.inputs[member.operand])
            gone = facts.zero[member.axis]
            if self.folds(equation, member):
                gone = facts.constant[member.axis]
            if equation.name == "reduce_sum":
                gone = gone | self.copies.terms(equation, member.axis)
            rows.append(gone)
        return _terms(equation, members, rows)

    def nonzero_terms(self, equation: Equation, members: Sequence[Summed]) -> Mask:
        """Which terms of a sum are not zero, by label."""
        return _nonzero(equation, members, [self.of(v) for v in equation.inputs])

    def folds(self, equation: Equation, member: Summed) -> bool:
        """Whether constant terms of a product are added as one constant instead."""
        others = [v for k, v in enumerate(equation.inputs) if k != member.operand]
        operand = self.of(equation.inputs[member.operand])
        return (
            self.fold
            and bool(others)
            and not operand.static
            and self.relations[equation].constant
            and all(self.of(v).static for v in others)
        )

    def wanted(self, equation: Equation) -> list[Masks]:
        """What is asked of the outputs of an equation, as it can be produced."""
        masks = [self.alive(v) for v in equation.outputs]
        widen = self.relations[equation].widen
        return widen(masks) if widen else masks

    def targets(self, equation: Equation) -> list[Masks]:
        """The slices each operand must deliver."""
        if equation not in self._targets:
            if equation in self.inner:
                alive = [self.alive(v) for v in equation.outputs]
                needs = self.inner[equation].backward(alive)
            else:
                needs = self.behind(equation, self.wanted(equation))
            self._targets[equation] = needs
        return self._targets[equation]

    def behind(self, equation: Equation, wanted: list[Masks]) -> list[Masks]:
        """The slices of each operand that given slices of the outputs come from."""
        rel = self.relations[equation]
        return pull(equation, rel, wanted, [self.terms(equation, s) for s in rel.sums])

    # Forcing.

    def narrow(self) -> bool:
        """Count slices that nothing reads as zero from now on; False if none is new.

        What is computed from them is not read either, so nothing that is changes; but a
        slice of which only such parts are not zero is now zero. Forced slices stay.
        """
        changed = False
        stores = (self.need, self.constant_need, self.copied, self.forced)
        for value, facts in self.facts.items():
            if value.literal is not None:
                continue
            masks = full(value, True)
            for store in stores:
                if value in store:
                    masks = without(masks, store[value])
            if not any(map(some, masks)):
                continue
            new = not within(masks, facts.zero)
            changed |= new and not all(map(every, masks))
            before = self.unread.get(value)
            if new or (before is not None and not within(before, masks)):
                self._stale.add(value)
            self.unread[value] = masks
        for inside in self._insides():
            changed |= inside.narrow()
        return changed

    def widen(self) -> None:
        """Forget what `narrow` found, here and in all bodies."""
        self._stale.update(self.unread)
        self.unread = {}
        for inside in self._insides():
            inside.widen()

    def forces(self) -> bool:
        """Whether slices were forced, here or in any body."""
        return bool(self.forced) or any(inside.forces() for inside in self._insides())

    def _insides(self) -> "Iterable[Liveness]":
        return (inside for body in self.inner.values() for inside in body.insides)

    def force(self, value: Value, masks: Masks, by: Equation | None = None) -> bool:
        """Keep slices computed though they are zero or constant; False if they were.

        `by` is the equation that wants them, None for an output of the program.
        """
        work, changed = [(value, masks)], False
        while work:
            value, masks = work.pop()
            if value.literal is not None:
                continue
            old = self.forced.get(value, full(value, False))
            new = without(masks, old)
            if not any(map(some, new)):
                continue
            changed = True
            self.forced_by.setdefault(value, by)
            self.forced[value] = either(masks, old)
            self._stale.add(value)
            eqn = self.producer.get(value)
            if eqn is not None:
                work += self._behind(eqn, value, new)
        return changed

    def revives(self, value: Value, masks: Masks) -> bool:
        """Whether forcing these slices would bring back a value that is wholly zero.

        Nothing is left of such a value's other axes, so it could not be computed.
        """
        work, seen = [(value, masks)], set()
        while work:
            value, masks = work.pop()
            if value.literal is not None or value in seen:
                continue
            seen.add(value)
            facts = self.of(value)
            if value.shape and all(z.all() for z in facts.zero):
                return True
            eqn = self.producer.get(value)
            absent = self.absent(value)
            if eqn and any((m & a).any() for m, a in zip(masks, absent, strict=True)):
                work += self._behind(eqn, value, masks)
        return False

    def _behind(
        self, eqn: Equation, value: Value, masks: Masks
    ) -> Iterable[tuple[Value, Masks]]:
        position = eqn.outputs.index(value)
        if eqn in self.inner:
            for k, needed in self.inner[eqn].force(position, masks):
                yield eqn.inputs[k], needed
            return
        relation = self.relations[eqn]
        for link in relation.links:
            if link.output != position:
                continue
            operand = eqn.inputs[link.operand]
            size = operand.shape[link.in_axis]
            if size == 1:
                continue
            axes = full(operand, False)
            mask = link.to_operand_any(masks[link.out_axis], size)
            for other in relation.between(link.operand, position):
                if other.in_axis == link.in_axis and other.out_axis != link.out_axis:
                    stand = self.standing(value)[other.out_axis]
                    if some(stand):
                        mask = mask & other.to_operand_any(stand, size)
            axes[link.in_axis] = mask
            yield operand, axes

    def standing(self, value: Value) -> Masks:
        """The slices that are computed, or will be."""
        masks = self.alive(value) if self.computed(value) else full(value, False)
        forced = self.forced.get(value)
        return masks if forced is None else either(masks, forced)


def add(store: dict[Value, Masks], value: Value, masks: Masks) -> None:
    """Add to the slices recorded of a value; an empty region adds nothing."""
    if not is_region(masks):
        return
    old = store.get(value)
    store[value] = masks if old is None else either(masks, old)


def label_of(equation: Equation, member: Summed) -> np.ndarray:
    """The index of the sum that each slice of a member belongs to."""
    size = equation.inputs[member.operand].shape[member.axis]
    return np.arange(size) if member.label is None else member.label


def _forward(eqn: Equation, rel: Relation, ins: list[Facts]) -> list[Facts]:
    outs = []
    for o, value in enumerate(eqn.outputs):
        sources = rel.made_of(o, len(ins))
        static = rel.constant and all(ins[k].static for k in sources)
        weight = static and any(ins[k].weight for k in sources)
        zero, constant = full(value, False), full(value, static)
        for group in rel.zero_groups(o):
            parts = [_carried(eqn, rel, ins[k].zero, k, o) for k in group]
            zero = either(zero, functools.reduce(both, parts, full(value, True)))
        if any(_empty(eqn, members, ins) for members in rel.sums):
            zero = full(value, True)
        zero = _normal(zero)
        if rel.constant and not static:
            moving = [k for k in sources if not ins[k].static]
            parts = [_carried(eqn, rel, ins[k].constant, k, o) for k in moving]
            constant = functools.reduce(both, parts)
            if rel.covers:
                constant = both(constant, _covered(rel, moving, value, o))
        constant = zero if within(constant, zero) else _normal(either(constant, zero))
        known = zero
        if constant is not zero and math.prod(value.shape) <= _LITERAL_LIMIT:
            parts = [_carried(eqn, rel, ins[k].known, k, o) for k in sources]
            known = _normal(both(functools.reduce(both, parts), constant))
            known = zero if within(known, zero) else either(known, zero)
        outs.append(Facts(zero, constant, static, weight, known))
    return outs


def _carried(
    eqn: Equation, rel: Relation, masks: Masks, operand: int, output: int
) -> Masks:
    """Output slices that hold only marked slices of one operand."""
    value = eqn.outputs[output]
    mine = rel.between(operand, output)
    if every(masks[0]) and not (rel.covers and mine):
        return full(value, True)
    carried: dict[int, Mask] = {}
    for link in mine:
        size, axis = value.shape[link.out_axis], link.out_axis
        mask = link.to_output_all(masks[link.in_axis], size)
        carried[axis] = carried[axis] | mask if axis in carried else mask
    return [carried.get(a, m) for a, m in enumerate(full(value, False))]


def _covered(rel: Relation, operands: Sequence[int], value: Value, o: int) -> Masks:
    """Output slices that hold anything of some operands, piece by piece.

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


def _empty(eqn: Equation, members: Sequence[Summed], ins: list[Facts]) -> bool:
    """Whether every term of a sum is zero."""
    return not some(_nonzero(eqn, members, ins))


def _nonzero(eqn: Equation, members: Sequence[Summed], ins: list[Facts]) -> Mask:
    """The terms of a sum that are not zero, by label."""
    return _terms(eqn, members, [ins[m.operand].zero[m.axis] for m in members])


def _terms(eqn: Equation, members: Sequence[Summed], gone: Sequence[Mask]) -> Mask:
    """The terms of a sum, by label, that are left by what is gone of every member."""
    if all(m.label is None for m in members):
        return ~functools.reduce(np.logical_or, gone)
    labels = [label_of(eqn, m) for m in members]
    alive = np.ones(max(label.max(initial=-1) for label in labels) + 1, bool)
    for label, mask in zip(labels, gone, strict=True):
        there = np.zeros(alive.size, bool)
        there[label[~mask]] = True
        alive &= there
    return alive


def pull(
    eqn: Equation, rel: Relation, wanted: list[Masks], terms: list[Mask]
) -> list[Masks]:
    """Operand slices behind the wanted output slices and the computed terms."""
    needs = []
    asked = [is_region(masks) for masks in wanted]
    for k, value in enumerate(eqn.inputs):
        masks: dict[int, Mask] = {}
        for o in range(len(eqn.outputs)):
            axes: dict[int, Mask] = {}
            for link in rel.between(k, o):
                a, size = link.in_axis, value.shape[link.in_axis]
                if asked[o]:
                    mask = link.to_operand_any(wanted[o][link.out_axis], size)
                    axes[a] = axes[a] & mask if a in axes else mask
                elif a not in masks:
                    masks[a] = np.zeros(size, bool)
            for a, mask in axes.items():
                masks[a] = masks[a] | mask if a in masks else mask
        for members, alive in zip(rel.sums, terms, strict=True):
            for member in members:
                if member.operand == k:
                    a, label = member.axis, member.label
                    mask = alive if label is None else alive[label]
                    masks[a] = masks[a] & mask if a in masks else mask
        needs.append([masks.get(a, m) for a, m in enumerate(full(value, True))])
    return needs


class Body:
    """An equation whose meaning is the programs in it; see `control_flow`.

    Attributes:
      insides: one analysis per program.
      entries: program number, input number there, operand number.
      exits: program number, output number there, output number.
      ties: program number, input number there, output number there: one slice of one
        is one of the other, a step later.
    """

    insides: tuple[Liveness, ...]
    entries: list[tuple[int, int, int]]
    exits: list[tuple[int, int, int]]
    ties: Sequence[tuple[int, int, int]] = ()

    def flows(self, equation: Equation) -> Iterable[tuple[Value, Value]]:
        """Values inside and outside that are each other, in the order of execution."""
        programs = [inside.program for inside in self.insides]
        for n, k, operand in self.entries:
            yield equation.inputs[operand], programs[n].inputs[k]
        for n, k, output in self.exits:
            yield programs[n].outputs[k], equation.outputs[output]
        for n, k, last in self.ties:
            yield programs[n].outputs[last], programs[n].inputs[k]

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """Facts of the outputs."""
        raise NotImplementedError

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """Needs of the inputs."""
        raise NotImplementedError

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Operands, and their slices, that stand behind a forced output."""
        raise NotImplementedError


BODIES: dict[str, Callable[[Equation, bool], Body]] = {}
"""By primitive; `control_flow` fills it."""


def make_body(equation: Equation, fold: bool) -> Body | None:
    """The body of an equation that has one."""
    if equation.opaque or equation.name not in BODIES:
        return None
    return BODIES[equation.name](equation, fold)
