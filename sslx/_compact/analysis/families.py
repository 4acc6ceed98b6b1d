"""Which slices of which values have to be removed together.

A *family* numbers the slices of some axes: slices with one number, a *unit*, go
together. It starts from the axis of a parameter and spreads along the links of the
equations; slices that meet get one number. Where one axis is a product of two (a
reshape, the parts of a grouped convolution), slices may be removed by either factor,
never one by one: then the family starts again from each factor.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from sslx._compact.analysis.kinds import Roles, Uses, uses
from sslx._compact.analysis.liveness import Body, Liveness
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.relation import Labels, Relation

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
    """Units of one kind: per axis, the unit of every slice, -1 for none.

    `uses` are the products they take part in; `roles` say of an axis which.
    """

    count: int
    labels: Mapping[Node, Labels]
    uses: Uses
    roles: Mapping[Node, str]

    def without(self, units: Collection[int]) -> "Family | None":
        """The other units, numbered anew; None if there are none."""
        left = np.setdiff1d(np.arange(self.count), list(units))
        number = np.full(self.count + 1, -1)
        number[left] = np.arange(left.size)
        labels = {node: number[mine] for node, mine in self.labels.items()}
        rows = {node: mine for node, mine in labels.items() if (mine >= 0).any()}
        if not left.size:
            return None
        return dataclasses.replace(self, count=left.size, labels=rows)


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


def _hanging(mine: Labels | None, theirs: Labels | None, size: int) -> int:
    """How many slices of another axis belong to the only one of an axis."""
    theirs = np.arange(size) if theirs is None else theirs
    return int((theirs == (0 if mine is None else mine[0])).sum())


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
        self._add_program(liveness)

    def freeze(self, value: Value, reason: str, skip: Sequence[int] = ()) -> None:
        """Nothing may be removed from a value, some axes apart."""
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

    def _add_body(self, eqn: Equation, body: Body) -> None:
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
    """The ports of one equation; `spread` are single slices that several hang on."""

    def __init__(self) -> None:
        self.ports: dict[Node, _Port] = {}
        self.spread: list[Node] = []

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
        if 0 in sizes:
            return
        for one, mine, size, theirs in (
            (a, a_label, sizes[1], b_label),
            (b, b_label, sizes[0], a_label),
        ):
            if one[0].shape[one[1]] == 1 and _hanging(mine, theirs, size) != 1:
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
    graph, roles = _Graph(liveness), Roles(liveness)
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
        family = _accepted(grown, liveness, set(params), roles, reasons)
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
    grown: _Spreading,
    live: Liveness,
    params: set[Value],
    roles: Roles,
    reasons: dict[Node, str],
) -> Family | None:
    """The family without its frozen units."""
    frozen = grown.graph.frozen
    rows = sorted((frozen[n], n) for n in grown.labels if n in frozen)
    stops = [(n, reason) for (_, reason), n in rows]
    why = {}
    for node, reason in stops:
        for unit in np.unique(grown.of(node)):
            why.setdefault(int(unit), reason)
    numbers = {
        (v, axis): np.where(live.alive(v)[axis], grown.of((v, axis)), -1)
        for v, axis in grown.labels
        if v in params and all(m.any() for m in live.alive(v))
    }
    for labels in numbers.values():
        if (labels == labels[0]).all():
            why.setdefault(int(labels[0]), "having nothing else")
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
    mine = {node: roles.plain(node) for node in labels}
    outs = {labels[node].size for node, role in mine.items() if role == "out"}
    return Family(units.size, labels, uses(roles, grown.labels, len(outs) > 1), mine)
