"""Which slices of which values have to be removed together.

A *family* numbers the slices of some axes: slices with one number, a *unit*, go
together. It starts from the axis of a parameter and spreads along the links of the
equations; slices that meet get one number. Where one axis is a product of two (a
reshape, the parts of a grouped convolution), slices may be removed by either factor,
never one by one: then the family starts again from each factor.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sslx.graph._liveness import Body, Facts, Liveness, literal_facts
from sslx.graph._program import Equation, Value
from sslx.graph._relation import Labels, Relation

Node = tuple[Value, int]


@dataclasses.dataclass(eq=False)
class _Port:
    """Where an axis takes part in an equation.

    Attributes:
      coordinates: factors the axis is a product of; an edge runs along one, or None.
      edges: coordinate, own label, other axis, its label.
    """

    coordinates: list[Labels]
    edges: list[tuple[int | None, Labels | None, Node, Labels | None]]


@dataclasses.dataclass(frozen=True)
class Family:
    """Units of one kind: per axis, the unit of every slice, -1 for none."""

    count: int
    labels: Mapping[Node, Labels]


class _Conflict(Exception):
    def __init__(self, node: Node, port: _Port):
        self.node, self.port = node, port


class _Spreading:
    """One family while it grows."""

    def __init__(self, graph: "_Graph", node: Node, labels: Labels):
        self.graph = graph
        self.parent = np.arange(int(labels.max()) + 1)
        self.labels: dict[Node, Labels] = {node: labels}
        self.chosen: dict[_Port, tuple[Node, int]] = {}
        work = {node: None}
        while work:
            node = next(iter(work))
            del work[node]
            for port in graph.ports.get(node, ()):
                for changed in self._through(node, port):
                    work[changed] = None

    def of(self, node: Node) -> Labels:
        """Numbers of the slices of an axis, equal for what has met."""
        return self._roots(self.labels[node])

    def _roots(self, labels: Labels) -> Labels:
        return np.where(labels < 0, -1, self.parent[labels])

    def _join(self, a: Labels, b: Labels) -> None:
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        while True:
            a, b = self.parent[a], self.parent[b]
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            np.minimum.at(self.parent, np.maximum(a, b), np.minimum(a, b))
            while (self.parent != self.parent[self.parent]).any():
                self.parent = self.parent[self.parent]

    def _through(self, node: Node, port: _Port) -> Iterable[Node]:
        along = self._coordinate(node, port)
        if along is not None and self._gather(node, port.coordinates[along]):
            yield node
        labels = self.of(node)
        for coordinate, mine, other, theirs in port.edges:
            if coordinate is None or coordinate == along:
                size = other[0].shape[other[1]]
                if self._merge(other, _carried(labels, mine, theirs, size)):
                    yield other

    def _coordinate(self, node: Node, port: _Port) -> int | None:
        """The factor of an axis that the numbers run along."""
        if not port.coordinates:
            return None
        if port not in self.chosen:
            labels, choices = self.of(node), range(len(port.coordinates))
            fits = [k for k in choices if _constant(labels, port.coordinates[k])]
            if not fits and len(choices) > 1:
                raise _Conflict(node, port)
            self.chosen[port] = (node, (fits or [0])[0])
        return self.chosen[port][1]

    def other_factors(self) -> Iterable[tuple[Node, Labels]]:
        """Factors of axes along which the family does not run."""
        for port, (node, along) in self.chosen.items():
            for k, coordinate in enumerate(port.coordinates):
                if k != along:
                    yield node, coordinate

    def _gather(self, node: Node, coordinate: Labels) -> bool:
        """Slices with one coordinate get one number; whether that was new."""
        labels = self.of(node)
        per = np.full(int(coordinate.max()) + 1, -1)
        per[coordinate[labels >= 0]] = labels[labels >= 0]
        whole = per[coordinate]
        self._join(labels, whole)
        grown = (labels < 0) & (whole >= 0)
        self.labels[node] = np.where(grown, whole, labels)
        return bool(grown.any())

    def _merge(self, node: Node, labels: Labels) -> bool:
        old = self.labels.get(node)
        if old is None:
            if (labels < 0).all():
                return False
            self.labels[node] = labels
            return True
        before = self._roots(old)
        self._join(before, labels)
        after = np.where(before < 0, labels, before)
        self.labels[node] = after
        return bool((self._roots(after) != before).any())


def _constant(labels: Labels, coordinate: Labels) -> bool:
    """Whether equal coordinates mean equal numbers."""
    per = np.full(int(coordinate.max()) + 1, -1)
    per[coordinate] = labels
    return bool((per[coordinate] == labels).all())


def _carried(
    labels: Labels, mine: Labels | None, theirs: Labels | None, size: int
) -> Labels:
    """Numbers of the slices of another axis, by what they have in common."""
    if mine is None and theirs is None:
        return labels
    mine = np.arange(labels.size) if mine is None else mine
    theirs = np.arange(size) if theirs is None else theirs
    per = np.full(int(max(mine.max(), theirs.max())) + 1, -1)
    used = labels >= 0
    per[mine[used]] = labels[used]
    return per[theirs]


class _Graph:
    """All axes of a program and of the bodies in it, joined by equations."""

    def __init__(self, liveness: Liveness):
        self.ports: dict[Node, list[_Port]] = {}
        self.frozen: dict[Node, tuple[int, str]] = {}
        self.literals: dict[Value, Facts] = {}
        self.equations: dict[Node, list[tuple[int, Liveness, Equation]]] = {}
        self.order = 0
        self._add_program(liveness)

    def freeze(self, value: Value, reason: str, skip: Sequence[int] = ()) -> None:
        """Nothing may be removed from a value, some axes apart."""
        for axis, size in enumerate(value.shape):
            if size > 1 and axis not in skip:
                self.frozen.setdefault((value, axis), (len(self.frozen), reason))

    def is_zero(self, value: Value) -> bool:
        """Whether a value is a literal with nothing but zeros in it."""
        return value.literal is not None and bool(self.literal(value).zero[0].all())

    def literal(self, value: Value) -> Facts:
        """The facts of a literal, found once."""
        if value not in self.literals:
            self.literals[value] = literal_facts(value)
        return self.literals[value]

    def _take(self, edges: "_Edges") -> None:
        for node, port in edges.ports.items():
            self.ports.setdefault(node, []).append(port)

    def _add_program(self, live: Liveness) -> None:
        used = set(live.program.outputs)
        rows = []
        for eqn in reversed(live.program.equations):
            if eqn.acts or any(v in used for v in eqn.outputs):
                used.update(eqn.inputs)
                rows.append(eqn)
        for eqn in reversed(rows):
            place = (self.order, live, eqn)
            self.order += 1
            for value in (*eqn.inputs, *eqn.outputs):
                for axis in range(len(value.shape)):
                    self.equations.setdefault((value, axis), []).append(place)
            if eqn in live.inner:
                self._add_body(eqn, live.inner[eqn])
            else:
                self._add_equation(eqn, live.relations[eqn])

    def _add_equation(self, eqn: Equation, rel: Relation) -> None:
        edges = _Edges()
        for link in rel.links:
            source = (eqn.inputs[link.operand], link.in_axis)
            target = (eqn.outputs[link.output], link.out_axis)
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
        self._take(edges)
        where = f"{eqn.name} at {eqn.source}"
        for value in eqn.inputs:
            self.freeze(value, where, edges.axes(value))
        if not rel.free_outputs:
            for value in eqn.outputs:
                self.freeze(value, where, edges.axes(value))

    def _add_body(self, eqn: Equation, body: Body) -> None:
        edges = _Edges()
        for source, target in body.flows(eqn):
            edges.along(source, target)
        self._take(edges)
        for value in (*eqn.inputs, *eqn.outputs):
            self.freeze(value, f"{eqn.name} at {eqn.source}", edges.axes(value))
        for inside in body.insides:
            self._add_program(inside)


class _Edges:
    """The ports of one equation."""

    def __init__(self) -> None:
        self.ports: dict[Node, _Port] = {}

    def axes(self, value: Value) -> list[int]:
        return [a for a in range(len(value.shape)) if (value, a) in self.ports]

    def touch(self, node: Node) -> _Port:
        return self.ports.setdefault(node, _Port([], []))

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
        if 1 in sizes:
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


class _Vanishing:
    """Which slices of a family are zero, or equal, when their parameters are zero."""

    def __init__(self, grown: _Spreading):
        self.grown = grown
        self.zero = dict.fromkeys(grown.labels, True)
        self.equal = dict.fromkeys(grown.labels, True)
        equations = grown.graph.equations
        rows = (row for node in grown.labels for row in equations.get(node, ()))
        places = {row[0]: row for row in rows}
        self.places = [places[k] for k in sorted(places)]
        for node in grown.labels:
            if node[0].literal is not None:
                facts = grown.graph.literal(node[0])
                gone = facts.zero[node[1]][grown.labels[node] >= 0].all()
                self.zero[node] = self.equal[node] = bool(gone)
        while self._pass():
            pass

    def frozen(self) -> Iterable[tuple[Node, str]]:
        """Sums that would lose terms which are not zero."""
        for _, live, eqn in self.places:
            rel = live.relations.get(eqn)
            for members in rel.sums if rel else ():
                nodes = [(eqn.inputs[m.operand], m.axis) for m in members]
                inside = [n for n in nodes if n in self.grown.labels]
                fine = any(self.zero[n] for n in inside)
                if eqn.name == "reduce_sum":
                    fine = fine or any(self.equal[n] for n in inside)
                if inside and not fine:
                    yield inside[0], f"{eqn.name} at {eqn.source}"

    def _pass(self) -> bool:
        changed = False
        for _, live, eqn in self.places:
            if eqn in live.inner:
                changed |= self._body(eqn, live.inner[eqn])
                continue
            for o, value in enumerate(eqn.outputs):
                for axis in range(len(value.shape)):
                    node = (value, axis)
                    if node in self.zero:
                        zero, equal = self._output(eqn, live.relations[eqn], o, axis)
                        changed |= self._lower(node, zero, equal)
        return changed

    def _lower(self, node: Node, zero: bool, equal: bool) -> bool:
        changed = (self.zero[node] and not zero) or (self.equal[node] and not equal)
        self.zero[node] &= zero
        self.equal[node] &= equal
        return changed

    def _output(
        self, eqn: Equation, rel: Relation, output: int, axis: int
    ) -> tuple[bool, bool]:
        links = [x for x in rel.links if x.output == output and x.out_axis == axis]
        labels, zero = self.grown.labels, self.zero
        found: dict[int, bool] = {}
        equal = rel.constant and (bool(links) or eqn.name == "broadcast_in_dim")
        for link in links:
            node = (eqn.inputs[link.operand], link.in_axis)
            if node in labels:
                found[link.operand] = found.get(link.operand, False) or zero[node]
                plain = link.in_label is None and link.out_label is None
                equal = equal and plain and (zero[node] or self.equal[node])
        if rel.covers:
            return bool(found) and all(found.values()), False
        is_zero = self.grown.graph.is_zero
        groups = [
            [found.get(k, is_zero(eqn.inputs[k])) for k in group]
            for group in rel.zero_groups(output)
        ]
        return any(map(all, groups)), equal

    def _body(self, eqn: Equation, body: Body) -> bool:
        changed = False
        for source, target in body.flows(eqn):
            shift = len(source.shape) - len(target.shape)
            for axis in range(len(target.shape)):
                node, origin = (target, axis), (source, axis + shift)
                if node in self.zero and axis + shift >= 0:
                    zero = self.zero.get(origin, self.grown.graph.is_zero(source))
                    changed |= self._lower(node, zero, self.equal.get(origin, False))
        return changed


def families(
    liveness: Liveness, params: Sequence[Value], frozen: Sequence[tuple[Value, str]]
) -> tuple[list[Family], dict[Node, str]]:
    """All units of a program, and why other slices of parameters are in none.

    Args:
      liveness: the program, analysed with all parameters alive: slices that nothing
        reads are in no unit.
      params: its inputs that may be reduced.
      frozen: values that have to stay whole, and why.

    Returns:
      Families without frozen units; per axis of a parameter, what froze some of it.
    """
    graph = _Graph(liveness)
    for value, reason in frozen:
        graph.freeze(value, reason)
    used = [*_by_use(liveness, {v: v for v in params}), *params]
    order = {v: k for k, v in reversed(list(enumerate(used)))}
    seeds: list[tuple[Node, Labels | None]] = [
        ((v, axis), None)
        for v in sorted(params, key=lambda v: order[v])
        for axis, size in enumerate(v.shape)
        if size > 1 and all(m.any() for m in liveness.alive(v))
    ]
    covered: dict[Node, np.ndarray] = {}
    seen: set[tuple[Node, bytes]] = set()
    found, reasons = [], {}
    seeds.reverse()
    while seeds:
        node, labels = seeds.pop()
        if labels is None:
            left = ~covered.get(node, np.zeros(node[0].shape[node[1]], bool))
            labels = np.where(left, np.cumsum(left) - 1, -1)
        if (labels < 0).all() or (node, _partition(labels)) in seen:
            continue
        seen.add((node, _partition(labels)))
        try:
            grown = _Spreading(graph, node, labels)
        except _Conflict as conflict:
            factors = reversed(conflict.port.coordinates)
            seeds += [(conflict.node, coordinate) for coordinate in factors]
            continue
        family = _accepted(grown, liveness, set(params), reasons)
        if family is not None:
            found.append(family)
        for at, numbers in grown.labels.items():
            covered[at] = covered.get(at, False) | (numbers >= 0)
            if any(port.coordinates for port in graph.ports.get(at, ())):
                seen.add((at, _partition(grown.of(at))))
        seeds += grown.other_factors()
    return found, reasons


def _partition(labels: Labels) -> bytes:
    """The same for numbers that tell the same slices apart."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.where(labels < 0, -1, first[inverse]).tobytes()


def _by_use(liveness: Liveness, names: Mapping[Value, Value]) -> Iterable[Value]:
    """The parameters in the order in which equations use them, those in bodies too."""
    for eqn in liveness.program.equations:
        body = liveness.inner.get(eqn)
        if body is None:
            yield from (names[v] for v in eqn.inputs if v in names)
            continue
        for number, inside in enumerate(body.insides):
            inputs = inside.program.inputs
            rows = [
                (inputs[k], eqn.inputs[o]) for n, k, o in body.entries if n == number
            ]
            yield from _by_use(inside, {v: names[o] for v, o in rows if o in names})


def _accepted(
    grown: _Spreading, live: Liveness, params: set[Value], reasons: dict[Node, str]
) -> Family | None:
    """The family without its frozen units."""
    frozen = grown.graph.frozen
    rows = sorted((frozen[n], n) for n in grown.labels if n in frozen)
    stops = [(n, reason) for (_, reason), n in rows]
    stops += _Vanishing(grown).frozen()
    why = {}
    for node, reason in stops:
        for unit in np.unique(grown.of(node)):
            why.setdefault(int(unit), reason)
    numbers = {
        (v, axis): np.where(live.alive(v)[axis], grown.of((v, axis)), -1)
        for v, axis in grown.labels
        if v in params and all(m.any() for m in live.alive(v))
    }
    bad = np.array([u for u in why if u >= 0], int)
    for node, labels in numbers.items():
        hit = labels[np.isin(labels, bad)]
        if hit.size:
            reasons.setdefault(node, why[int(hit[0])])
    good = [np.where(np.isin(x, bad), -1, x) for x in numbers.values()]
    units = np.unique(np.concatenate([g[g >= 0] for g in good] or [np.zeros(0, int)]))
    if not units.size:
        return None
    labels = {
        node: np.where(g < 0, -1, np.searchsorted(units, g))
        for node, g in zip(numbers, good, strict=True)
        if (g >= 0).any()
    }
    return Family(units.size, labels)
