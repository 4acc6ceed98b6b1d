"""The axes of a program as a graph: which slices of which axes belong together.

A node is an axis of a value. Each equation gives the axes of its operands and results a
*port* each, joined by the links and sums of its relation. An edge carries labels where
several slices belong to one, as in a reshape: then the axis is a product, and the edge
runs along one of its factors only.

Nothing may be removed along an axis that takes part in no link and no sum of an
equation: it is frozen, with the equation as the reason.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sslx._compact.analysis.body import Body
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Labels, Relation

Node = tuple[Value, int]


@dataclasses.dataclass(eq=False)
class Port:
    """Where an axis takes part in an equation.

    Attributes:
      coordinates: factors the axis is a product of; an edge runs along one, or None.
      edges: coordinate, own label, other axis, its label.
    """

    coordinates: list[Labels]
    edges: list[tuple[int | None, Labels | None, Node, Labels | None]]


class AxisGraph:
    """All axes of a program and of the bodies in it, joined by equations."""

    def __init__(self, liveness: Liveness):
        self.ports: dict[Node, list[Port]] = {}
        self.frozen: dict[Node, tuple[int, str]] = {}
        self._add_program(liveness)

    def freeze(self, value: Value, reason: str, skip: Sequence[int] = ()) -> None:
        """Keep a value whole, except along some axes."""
        if 0 in value.shape:
            return
        for axis in range(len(value.shape)):
            if axis not in skip:
                self.frozen.setdefault((value, axis), (len(self.frozen), reason))

    def _take(self, edges: "_Edges", where: str) -> None:
        for node, port in edges.ports.items():
            self.ports.setdefault(node, []).append(port)
        for node in edges.spread:
            self.frozen.setdefault(node, (len(self.frozen), where))

    def _add_program(self, live: Liveness) -> None:
        used = set(live.program.outputs)
        rows = []
        for eqn in reversed(live.program.equations):
            if any(v in used for v in eqn.outputs):
                used.update(eqn.inputs)
                rows.append(eqn)
        for eqn in reversed(rows):
            if eqn in live.inner:
                self._add_body(eqn, live.inner[eqn])
            else:
                self._add_equation(eqn, live.relations[eqn])

    def _add_equation(self, eqn: Equation, rel: Relation) -> None:
        edges = _Edges()
        for link in rel.links:
            source = (eqn.inputs[link.operand], int(link.in_axis))
            target = (eqn.outputs[link.output], int(link.out_axis))
            edges.add(source, target, link.in_label, link.out_label)
        for first, *rest in rel.sums:
            mine = (eqn.inputs[first.operand], first.axis)
            edges.touch(mine)
            for member in rest:
                other = (eqn.inputs[member.operand], member.axis)
                edges.add(mine, other, first.label, member.label)
        for output, axis, label in rel.factors:
            if label.any():
                edges.split((eqn.outputs[output], axis), label)
        where = f"{eqn.name} at {eqn.source}"
        self._take(edges, where)
        for value in eqn.inputs:
            self.freeze(value, where, edges.axes(value))
        if not rel.free_outputs:
            for value in eqn.outputs:
                self.freeze(value, where, edges.axes(value))

    def _add_body(self, eqn: Equation, body: Body[Liveness]) -> None:
        edges = _Edges()
        for source, target in body.flows(eqn):
            edges.along(source, target)
        where = f"{eqn.name} at {eqn.source}"
        self._take(edges, where)
        for value in (*eqn.inputs, *eqn.outputs):
            self.freeze(value, where, edges.axes(value))
        for inside in body.insides:
            self._add_program(inside)


class _Edges:
    """The ports of one equation; `spread` are axes whose one slice has several."""

    def __init__(self) -> None:
        self.ports: dict[Node, Port] = {}
        self.spread: list[Node] = []

    def axes(self, value: Value) -> list[int]:
        return [a for a in range(len(value.shape)) if (value, a) in self.ports]

    def touch(self, node: Node) -> Port:
        return self.ports.setdefault(node, Port([], []))

    def split(self, node: Node, label: Labels) -> int:
        """The number of a factor among those of an axis."""
        known = self.touch(node).coordinates
        for k, coordinate in enumerate(known):
            if (coordinate == label).all():
                return k
        known.append(label)
        return len(known) - 1

    def add(
        self, a: Node, b: Node, a_label: Labels | None, b_label: Labels | None
    ) -> None:
        sizes = [value.shape[axis] for value, axis in (a, b)]
        for node in (a, b):
            self.touch(node)
        if 0 in sizes:
            return
        for one, mine, size, theirs in (
            (a, a_label, sizes[1], b_label),
            (b, b_label, sizes[0], a_label),
        ):
            if one[0].shape[one[1]] == 1 and _belonging(mine, theirs, size) != 1:
                self.spread.append(one)
                return
        for node, mine, other, theirs in (
            (a, a_label, b, b_label),
            (b, b_label, a, a_label),
        ):
            coordinate = None
            if mine is not None and np.unique(mine).size < mine.size:
                coordinate = self.split(node, mine)
            self.touch(node).edges.append((coordinate, mine, other, theirs))

    def along(self, a: Value, b: Value) -> None:
        """A value and its copy, or the slices of one along its first axis."""
        rank = min(len(a.shape), len(b.shape))
        for axis in range(-rank, 0):
            first, second = axis + len(a.shape), axis + len(b.shape)
            self.add((a, first), (b, second), None, None)


def _belonging(mine: Labels | None, theirs: Labels | None, size: int) -> int:
    """How many slices of another axis belong to the single slice of an axis."""
    theirs = np.arange(size) if theirs is None else theirs
    return int((theirs == (0 if mine is None else mine[0])).sum())
