"""Which slices of every value are zero, constant, needed: forward, then backward.

`forward` propagates facts in the order of execution (`facts`). `backward`
propagates needs in reverse (`needs`): from the alive slices of its results, an equation
derives which slices of its operands it reads; a slice is alive if something needs it
and it is neither zero nor, with constants folded, constant. `prune` makes what nothing
needs count as zero, which may make more zero in the next forward pass: dead filters
make their readers' input channels dead, and these the filters before.

Equations that hold programs (`body`, `control_flow`) have an analysis for each of them.
"""

from collections.abc import Iterable, Sequence

from sslx._compact.analysis.body import Body, make_body
from sslx._compact.analysis.copies import Copies
from sslx._compact.analysis.facts import (
    Facts,
    full,
    literal_facts,
    nonzero_terms,
    normal,
    propagate,
    with_numbers,
)
from sslx._compact.analysis.needs import add, pull
from sslx._compact.analysis.thin_arrays import evaluate, thin_zeros
from sslx._compact.jaxpr.masks import (
    Mask,
    Masks,
    either,
    every,
    is_region,
    some,
    within,
    without,
)
from sslx._compact.jaxpr.program import Equation, Program, Value
from sslx._compact.rules.relation import Relation, Summed, relation, terms_left


class Liveness:
    """Facts and needs of every value of a program, and of the bodies nested in it.

    Usage: `forward(facts of the inputs)`, then `backward(needs of the outputs)`, then
    `prune()`; all may be repeated until nothing new is found.

    Attributes:
      program: what is analysed.
      fold_constants: whether constant slices are left out of the computation on data.
      facts: what is known of every value.
      need: slices that something computed reads.
      constant_need: slices that constants are made of; see `constants`.
      copied: slices that equal one that is evaluated for all; see `copies`.
      forced: slices that stay computed, whatever the facts; see `forcing`.
      forced_by: the equation they stay for; None for an output.
      dead: slices that nothing reads, and that therefore count as zero.
      stale: values whose facts have to be found again.
      relations: of every equation without a body.
      inner: the bodies of the others.
      producer: the equation that makes a value.
      copies: equal slices of the values.
    """

    def __init__(self, program: Program, *, fold_constants: bool):
        self.program = program
        self.fold_constants = fold_constants
        self.facts: dict[Value, Facts] = {}
        self.need: dict[Value, Masks] = {}
        self.constant_need: dict[Value, Masks] = {}
        self.copied: dict[Value, Masks] = {}
        self.forced: dict[Value, Masks] = {}
        self.forced_by: dict[Value, Equation | None] = {}
        self.dead: dict[Value, Masks] = {}
        self.stale: set[Value] = set()
        self.relations: dict[Equation, Relation] = {}
        self.inner: dict[Equation, Body[Liveness]] = {}
        self.producer: dict[Value, Equation] = {}
        self._alive: dict[Value, Masks] = {}
        self._computed: dict[Value, bool] = {}
        self._seen: dict[Equation, list[Facts]] = {}
        self._targets: dict[Equation, list[Masks]] = {}
        self.copies = Copies(self)
        for eqn in program.equations:
            self.producer.update((v, eqn) for v in eqn.outputs)
            body = make_body(eqn, fold_constants)
            if body is None:
                self.relations[eqn] = relation(eqn)
            else:
                self.inner[eqn] = body

    def insides(self) -> "Iterable[Liveness]":
        """The analyses of the programs nested in equations."""
        return (inside for body in self.inner.values() for inside in body.insides)

    def of(self, value: Value) -> Facts:
        """The facts of a value."""
        if value.literal is not None and value not in self.facts:
            self.facts[value] = literal_facts(value)
        return self.facts[value]

    def absent(self, value: Value) -> Masks:
        """Slices the rewritten program has no use for computing: zero or folded."""
        facts = self.of(value)
        if self.fold_constants and not facts.static:
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
            elif self._is_unchanged(eqn, ins):
                continue
            else:
                refine = self.relations[eqn].refine
                if refine is not None:
                    self.relations[eqn] = refine(ins)
                outs = propagate(eqn, self.relations[eqn], ins)
                outs = self._evaluated(eqn, ins, outs)
            self._seen[eqn] = ins
            for value, facts in zip(eqn.outputs, outs, strict=True):
                self._set(value, facts)
        self.stale = set()
        return [self.of(v) for v in self.program.outputs]

    def _is_unchanged(self, eqn: Equation, ins: list[Facts]) -> bool:
        """Whether nothing changed that the facts of the outputs follow from."""
        before = self._seen.get(eqn)
        return (
            before is not None
            and all(a is b for a, b in zip(before, ins, strict=True))
            and self.stale.isdisjoint(eqn.outputs)
        )

    def _evaluated(
        self, eqn: Equation, ins: list[Facts], outs: list[Facts]
    ) -> list[Facts]:
        """Facts of the outputs, with the numbers of their known slices."""
        if all(facts.known is facts.zero for facts in outs):
            return outs
        operands = [
            thin_zeros(v) if f.numbers is None else f.numbers
            for v, f in zip(eqn.inputs, ins, strict=True)
        ]
        sure = [self.certain(v, f.known) for v, f in zip(eqn.inputs, ins, strict=True)]
        zero = [facts.zero for facts in outs]
        made = evaluate(eqn, self.relations[eqn], operands, sure, zero)
        return [
            facts if facts.known is facts.zero else with_numbers(facts, numbers)
            for facts, numbers in zip(outs, made, strict=True)
        ]

    def certain(self, value: Value, masks: Masks) -> Masks:
        """Without dead slices, which count as zero but may hold anything."""
        dead = self.dead.get(value)
        return masks if dead is None else without(masks, dead)

    def _set(self, value: Value, facts: Facts) -> None:
        dead = self.dead.get(value)
        if dead is not None:
            zero = normal(either(facts.zero, dead))
            facts = facts.mapped(lambda masks: either(masks, zero))
        forced = self.forced.get(value)
        if forced is not None:
            facts = facts.mapped(lambda masks: without(masks, forced))
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
        """Require what one of the equal terms of a sum is made of."""
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
        removed = []
        for member in members:
            facts = self.of(equation.inputs[member.operand])
            gone = facts.zero[member.axis]
            if self.folds_terms(equation, member):
                gone = facts.constant[member.axis]
            if equation.name == "reduce_sum":
                gone = gone | self.copies.terms(equation, member.axis)
            removed.append(gone)
        return terms_left(members, removed)

    def nonzero_terms(self, equation: Equation, members: Sequence[Summed]) -> Mask:
        """Which terms of a sum are not zero, by label."""
        return nonzero_terms(members, [self.of(v) for v in equation.inputs])

    def folds_terms(self, equation: Equation, member: Summed) -> bool:
        """Whether constant terms of a product are added as one constant instead."""
        others = [v for k, v in enumerate(equation.inputs) if k != member.operand]
        operand = self.of(equation.inputs[member.operand])
        return (
            self.fold_constants
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
        """The slices of each operand that given slices of the outputs are made of."""
        rel = self.relations[equation]
        return pull(equation, rel, wanted, [self.terms(equation, s) for s in rel.sums])

    # Pruning.

    def prune(self) -> bool:
        """Count slices that nothing reads as zero from now on; False if none is new.

        What is made of them is not read either, so no result changes. But a slice that
        is zero wherever something reads it is now zero. Forced slices stay.
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
            before = self.dead.get(value)
            if new or (before is not None and not within(before, masks)):
                self.stale.add(value)
            self.dead[value] = masks
        for inside in self.insides():
            changed |= inside.prune()
        return changed

    def restore(self) -> None:
        """Forget what `prune` found, here and in all bodies."""
        self.stale.update(self.dead)
        self.dead = {}
        for inside in self.insides():
            inside.restore()
