"""Which slices of which values have to be removed together.

A *family* numbers the slices of some axes: slices with one number, a *unit*, go
together. It starts from the axis of a parameter and spreads along the edges of the axis
graph; slices that meet get one number (union-find, `_Spreading`). Where one axis is a
product of two (a reshape, the parts of a grouped convolution), slices may be removed by
either factor, never one by one: if the numbers do not respect a factor, the family is
dropped and starts again from each factor.

A family is complete when nothing changes any more. Units that reach a frozen axis, or
that are all there is of a parameter, are taken out (`_accepted`). The next family
starts from the parameter slices that none has covered yet, in the order in which the
program uses the parameters.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from sslx._compact.analysis.axis_graph import AxisGraph, Node, Port
from sslx._compact.analysis.kinds import Roles, Uses, uses
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.program import Value
from sslx._compact.rules.relation import Labels


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
        """The other units, renumbered; None if there are none."""
        left = np.setdiff1d(np.arange(self.count), list(units))
        number = np.full(self.count + 1, -1)
        number[left] = np.arange(left.size)
        labels = {node: number[mine] for node, mine in self.labels.items()}
        rows = {node: mine for node, mine in labels.items() if (mine >= 0).any()}
        if not left.size:
            return None
        return dataclasses.replace(self, count=left.size, labels=rows)


class _Conflict(Exception):
    def __init__(self, node: Node, port: Port):
        self.node, self.port = node, port


class _Spreading:
    """One family while it grows."""

    def __init__(self, graph: AxisGraph, node: Node, labels: Labels):
        self.graph = graph
        self.parent = np.arange(int(labels.max()) + 1)
        self.labels: dict[Node, Labels] = {node: labels}
        self.chosen: dict[Port, tuple[Node, int]] = {}
        work = {node: None}
        while work:
            node = next(iter(work))
            del work[node]
            for port in graph.ports.get(node, ()):
                for changed in self._through(node, port):
                    work[changed] = None

    def of(self, node: Node) -> Labels:
        """Numbers of the slices of an axis, one for all that have met."""
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

    def _through(self, node: Node, port: Port) -> Iterable[Node]:
        along = self._coordinate(node, port)
        if along is not None and self._gather(node, port.coordinates[along]):
            yield node
        labels = self.of(node)
        for coordinate, mine, other, theirs in port.edges:
            if coordinate is None or coordinate == along:
                size = other[0].shape[other[1]]
                if self._merge(other, _relabelled(labels, mine, theirs, size)):
                    yield other

    def _coordinate(self, node: Node, port: Port) -> int | None:
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


def _relabelled(
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
    graph, roles = AxisGraph(liveness), Roles(liveness)
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
    """Equal for labels that tell the same slices apart."""
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
