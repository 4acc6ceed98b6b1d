"""Which slices of every value are zero, constant, needed: forward, then backward.

All facts are per axis: `masks[axis][i]` speaks of the hyperplane of index `i`. A value
without axes has one mask of length one.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from sslx.graph._program import Equation, Program, Value
from sslx.graph._relation import Mask, Masks, Relation, Summed, relation

_LITERAL_LIMIT = 1 << 20


def _sizes(value: Value) -> tuple[int, ...]:
    return value.shape or (1,)


def full(value: Value, state: bool) -> Masks:
    """The same fact for every slice of a value."""
    return [np.full(n, state) for n in _sizes(value)]


def _whole(masks: Masks) -> bool:
    return bool(masks[0].all())


def _normal(masks: Masks) -> Masks:
    """If one axis is covered, all of the value is."""
    if any(m.all() for m in masks):
        return [np.ones_like(m) for m in masks]
    return masks


@dataclasses.dataclass
class Facts:
    """What is known of one value.

    Attributes:
      zero: slices that are zero.
      constant: slices that do not depend on the inputs; includes the zero ones.
      static: the value is computed from parameters and literals alone.
      weight: it is static, and not from literals only.
    """

    zero: Masks
    constant: Masks
    static: bool = False
    weight: bool = False


def literal_facts(value: Value) -> Facts:
    """Facts of a literal or of a constant baked into the program."""
    zero = full(value, False)
    array = value.literal
    if np.size(array) <= _LITERAL_LIMIT and jnp.issubdtype(value.dtype, np.number):
        array = np.asarray(array)
        nonzero = array != 0
        axes = range(array.ndim)
        zero = [~nonzero.any(tuple(b for b in axes if b != a)) for a in axes]
        zero = _normal(zero or [~nonzero.reshape(1)])
    return Facts(zero, full(value, True), static=True)


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
        self._targets: dict[Equation, list[Masks]] = {}
        self._uniform: dict[tuple[Value, int], Mask] = {}
        self.producer: dict[Value, Equation] = {}
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
                absent = self.absent(value)
                masks = [n & ~z for n, z in zip(need, absent, strict=True)]
            self._alive[value] = masks
        return masks

    def runs(self, equation: Equation) -> bool:
        """Whether anything of an equation's outputs is computed."""
        return equation.acts or any(
            all(m.any() for m in self.alive(v)) for v in equation.outputs
        )

    def _forget(self) -> None:
        self._alive, self._targets, self._uniform = {}, {}, {}

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
            else:
                outs = _forward(eqn, self.relations[eqn], ins)
            for value, facts in zip(eqn.outputs, outs, strict=True):
                self._set(value, facts)
        return [self.of(v) for v in self.program.outputs]

    def _set(self, value: Value, facts: Facts) -> None:
        unread = self.unread.get(value)
        if unread is not None:
            zero = _normal([m | u for m, u in zip(facts.zero, unread, strict=True)])
            constant = [m | z for m, z in zip(facts.constant, zero, strict=True)]
            facts = Facts(zero, constant, facts.static, facts.weight)
        forced = self.forced.get(value)
        if forced is not None:
            zero = [m & ~f for m, f in zip(facts.zero, forced, strict=True)]
            constant = [m & ~f for m, f in zip(facts.constant, forced, strict=True)]
            facts = Facts(zero, constant, facts.static, facts.weight)
        self.facts[value] = facts

    # Backward.

    def backward(self, outputs: Sequence[Masks]) -> list[Masks]:
        """Propagate needs from the outputs; returns those of the inputs."""
        self._forget()
        self.need = {}
        for value, masks in zip(self.program.outputs, outputs, strict=True):
            self.require(value, masks)
        for eqn in reversed(self.program.equations):
            if not self.runs(eqn):
                continue
            for value, masks in zip(eqn.inputs, self.targets(eqn), strict=True):
                self.require(value, masks)
        self.copied = {}
        for eqn in self.program.equations:
            if eqn.name == "reduce_sum" and self.runs(eqn):
                self._read_copies(eqn)
        return [self.need.get(v, full(v, False)) for v in self.program.inputs]

    def require(self, value: Value, masks: Masks) -> None:
        """Add to what is needed of a value."""
        add(self.need, value, masks)

    def _read_copies(self, equation: Equation) -> None:
        """Record what stands behind the equal terms of a sum."""
        for (member,) in self.relations[equation].sums:
            same = self.repeated(equation, member)
            if not same.any():
                continue
            (target,) = self.targets(equation)
            region = [same if a == member.axis else m for a, m in enumerate(target)]
            work = [(equation.inputs[0], region)]
            while work:
                value, region = work.pop()
                eqn, need = self.producer.get(value), self.need.get(value)
                zero = self.of(value).zero
                if eqn is None or any((z | ~r).all() for z, r in _rows(zero, region)):
                    continue
                if need is not None and all(
                    (n | ~r).all() for n, r in _rows(need, region)
                ):
                    continue
                add(self.copied, value, region)
                wanted = [region if v is value else full(v, True) for v in eqn.outputs]
                work += zip(eqn.inputs, self.behind(eqn, wanted), strict=True)

    def terms(self, equation: Equation, members: Sequence[Summed]) -> Mask:
        """Which terms of a sum are computed, by label."""
        size = max(label_of(equation, m).max(initial=-1) for m in members) + 1
        alive = np.ones(size, bool)
        for member in members:
            facts = self.of(equation.inputs[member.operand])
            gone = facts.zero[member.axis]
            if self.folds(equation, member):
                gone = facts.constant[member.axis]
            gone = gone | self.repeated(equation, member)
            some = np.zeros(size, bool)
            some[label_of(equation, member)[~gone]] = True
            alive &= some
        return alive

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

    def repeated(self, equation: Equation, member: Summed) -> Mask:
        """Terms of a plain sum that equal one another, and need one evaluation only.

        Such are the removed channels after `x - mean(x)`: each is `-mean(x)`.
        """
        value = equation.inputs[member.operand]
        none = np.zeros(value.shape[member.axis], bool)
        if equation.name != "reduce_sum":
            return none
        for axis in sorted(m.axis for (m,) in self.relations[equation].sums):
            same = self.uniform(value, axis) & ~self.of(value).zero[axis]
            if same.any() and not same.all():
                return same if axis == member.axis else none
        return none

    def uniform(self, value: Value, axis: int) -> Mask:
        """Slices of an axis that are equal to one another."""
        stack = [(value, axis)]
        while stack:
            key = stack[-1]
            if key not in self._uniform:
                found = self._copies(*key)
                if isinstance(found, tuple):
                    stack.append(found)
                    continue
                self._uniform[key] = found
            stack.pop()
        return self._uniform[value, axis]

    def _copies(self, value: Value, axis: int) -> "Mask | tuple[Value, int]":
        """The answer of `uniform`, or the question to answer before."""
        zero = self.of(value).zero[axis]
        eqn = self.producer.get(value)
        if zero.any() or eqn is None or eqn in self.inner:
            return zero
        position = eqn.outputs.index(value)
        links = [
            x
            for x in self.relations[eqn].links
            if x.output == position and x.out_axis == axis
        ]
        if not links:
            return ~zero if eqn.name == "broadcast_in_dim" else zero
        same = ~zero
        for link in links:
            operand = eqn.inputs[link.operand]
            if operand.shape[link.in_axis] == 1:
                continue
            if link.in_label is not None or link.out_label is not None:
                return zero
            if (operand, link.in_axis) not in self._uniform:
                return operand, link.in_axis
            same = same & self._uniform[operand, link.in_axis]
            if not same.any():
                break
        return same

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
            reads = [store.get(value) for store in stores]
            masks = full(value, True)
            for read in reads:
                if read is not None:
                    masks = [m & ~r for m, r in zip(masks, read, strict=True)]
            if value.literal is not None or not any(m.any() for m in masks):
                continue
            new = any((m & ~z).any() for m, z in zip(masks, facts.zero, strict=True))
            changed |= new and any(not m.all() for m in masks)
            self.unread[value] = masks
        for inside in self._insides():
            changed |= inside.narrow()
        return changed

    def widen(self) -> None:
        """Forget what `narrow` found, here and in all bodies."""
        self.unread = {}
        for inside in self._insides():
            inside.widen()

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
            new = [m & ~o for m, o in zip(masks, old, strict=True)]
            if not any(m.any() for m in new):
                continue
            changed = True
            self.forced_by.setdefault(value, by)
            self.forced[value] = [m | o for m, o in zip(masks, old, strict=True)]
            eqn = self.producer.get(value)
            if eqn is not None:
                work += self._behind(eqn, value, new)
        return changed

    def _behind(
        self, eqn: Equation, value: Value, masks: Masks
    ) -> Iterable[tuple[Value, Masks]]:
        position = eqn.outputs.index(value)
        if eqn in self.inner:
            for k, needed in self.inner[eqn].force(position, masks):
                yield eqn.inputs[k], needed
            return
        for link in self.relations[eqn].links:
            if link.output != position:
                continue
            operand = eqn.inputs[link.operand]
            size = operand.shape[link.in_axis]
            if size == 1:
                continue
            axes = full(operand, False)
            axes[link.in_axis] = link.to_operand_any(masks[link.out_axis], size)
            yield operand, axes


def add(store: dict[Value, Masks], value: Value, masks: Masks) -> None:
    """Add to the slices recorded of a value; an empty region adds nothing."""
    if not all(m.any() for m in masks):
        return
    old = store.get(value)
    if old is not None:
        masks = [m | o for m, o in zip(masks, old, strict=True)]
    store[value] = masks


def _rows(a: Masks, b: Masks) -> Iterable[tuple[Mask, Mask]]:
    return zip(a, b, strict=True)


def label_of(equation: Equation, member: Summed) -> np.ndarray:
    """The index of the sum that each slice of a member belongs to."""
    size = equation.inputs[member.operand].shape[member.axis]
    return np.arange(size) if member.label is None else member.label


def _forward(eqn: Equation, rel: Relation, ins: list[Facts]) -> list[Facts]:
    static = rel.constant and all(f.static for f in ins)
    weight = static and any(f.weight for f in ins)
    counting = range(len(ins)) if rel.zero_operands is None else rel.zero_operands
    if rel.zero == "first":
        counting = [0] if ins else []
    outs = []
    for o, value in enumerate(eqn.outputs):
        zero, constant = full(value, False), full(value, static)
        if rel.zero != "never" and ins:
            zeros = [_carried(eqn, rel, ins[k].zero, k, o) for k in counting]
            combine = np.logical_or if rel.zero == "any" else np.logical_and
            zero = [combine.reduce(parts) for parts in zip(*zeros, strict=True)]
        if any(_empty(eqn, members, ins) for members in rel.sums):
            zero = full(value, True)
        if rel.constant and not static and ins:
            parts = [
                full(value, True) if f.static else _carried(eqn, rel, f.constant, k, o)
                for k, f in enumerate(ins)
            ]
            constant = [np.logical_and.reduce(m) for m in zip(*parts, strict=True)]
        zero = _normal(zero)
        constant = _normal([c | z for c, z in zip(constant, zero, strict=True)])
        outs.append(Facts(zero, constant, static, weight))
    return outs


def _carried(
    eqn: Equation, rel: Relation, masks: Masks, operand: int, output: int
) -> Masks:
    """Output slices that hold only marked slices of one operand."""
    value = eqn.outputs[output]
    mine = [x for x in rel.links if x.operand == operand and x.output == output]
    if _whole(masks) and not (rel.covers and mine):
        return full(value, True)
    result = full(value, False)
    carried: dict[int, list[Mask]] = {}
    for link in mine:
        size = value.shape[link.out_axis]
        mask = link.to_output_all(masks[link.in_axis], size)
        carried.setdefault(link.out_axis, []).append(mask)
    for axis, found in carried.items():
        result[axis] = result[axis] | np.logical_or.reduce(found)
    return result


def _empty(eqn: Equation, members: Sequence[Summed], ins: list[Facts]) -> bool:
    """Whether every term of a sum is zero."""
    size = max(label_of(eqn, m).max(initial=-1) for m in members) + 1
    alive = np.ones(size, bool)
    for member in members:
        some = np.zeros(size, bool)
        some[label_of(eqn, member)[~ins[member.operand].zero[member.axis]]] = True
        alive &= some
    return not alive.any()


def pull(
    eqn: Equation, rel: Relation, wanted: list[Masks], terms: list[Mask]
) -> list[Masks]:
    """Operand slices behind the wanted output slices and the computed terms."""
    needs = []
    for k, value in enumerate(eqn.inputs):
        masks: list[Mask | None] = [None] * len(_sizes(value))
        for o in range(len(eqn.outputs)):
            mine = [x for x in rel.links if x.operand == k and x.output == o]
            if not all(m.any() for m in wanted[o]):
                for link in mine:
                    if masks[link.in_axis] is None:
                        masks[link.in_axis] = np.zeros(value.shape[link.in_axis], bool)
                continue
            axes: dict[int, Mask] = {}
            for link in mine:
                size = value.shape[link.in_axis]
                mask = link.to_operand_any(wanted[o][link.out_axis], size)
                axes[link.in_axis] = axes.get(link.in_axis, True) & mask
            for a, mask in axes.items():
                old = masks[a]
                masks[a] = mask if old is None else old | mask
        for members, alive in zip(rel.sums, terms, strict=True):
            for member in members:
                if member.operand == k:
                    mask = alive[label_of(eqn, member)]
                    old = masks[member.axis]
                    masks[member.axis] = mask if old is None else old & mask
        needs.append(
            [
                np.ones(n, bool) if m is None else m
                for m, n in zip(masks, _sizes(value), strict=True)
            ]
        )
    return needs


class Body:
    """An equation whose meaning is the programs in it; see `sslx.graph._bodies`.

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


def make_body(equation: Equation, fold: bool) -> Body | None:
    """The body of an equation that has one."""
    from sslx.graph._bodies import BODIES

    return BODIES[equation.name](equation, fold) if equation.name in BODIES else None
