"""What units are: filters, heads, the residual stream; and what a leaf is to them.

Products decide: an axis of weights that a product sums over is an *input* of that
layer, one that it keeps is an *output*. An axis that two operands of data share is a
head, one that a product of data sums over is the width of heads. Where data of several
layers is added, the slices are those of a residual stream.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from sslx._compact.analysis.axis_graph import Node
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.products import PRODUCTS
from sslx._compact.rules.relation import Relation

Role = Literal["in", "out", "expert", "head", "width", "sum"]
_SUMS = ("add", "add_any")


class Roles:
    """What every axis of a program, and of the bodies in it, is to its products."""

    def __init__(self, live: Liveness):
        self.of: dict[Node, set[tuple[Role, Equation]]] = {}
        self._add(live)

    def plain(self, node: Node) -> str:
        """Whether slices of a weight go in or come out; empty if neither, or both."""
        found = {
            "out" if role == "expert" else role for role, _ in self.of.get(node, ())
        }
        only = found & {"in", "out"}
        return only.pop() if len(only) == 1 else ""

    def _add(self, live: Liveness) -> None:
        for eqn in reversed(live.program.equations):
            body = live.inner.get(eqn)
            if body is not None:
                for inside in body.insides:
                    self._add(inside)
                for source, target in body.flows(eqn):
                    self._back(source, target)
                continue
            rel = live.relations[eqn]
            static = [live.of(v).static for v in eqn.inputs]
            if eqn.name in PRODUCTS:
                self._product(eqn, rel, static)
            elif eqn.name in _SUMS and not any(static):
                self._sum(eqn)
            elif static and all(static):
                for link in rel.links:
                    made = (eqn.outputs[link.output], int(link.out_axis))
                    self._copy(made, (eqn.inputs[link.operand], int(link.in_axis)))

    def _back(self, source: Value, target: Value) -> None:
        """Weights that a body gets are what they are to the body."""
        for axis in range(-min(len(source.shape), len(target.shape)), 0):
            mine = (source, axis + len(source.shape))
            self._copy((target, axis + len(target.shape)), mine)

    def _copy(self, known: Node, node: Node) -> None:
        if known in self.of:
            self.of.setdefault(node, set()).update(self.of[known])

    def _note(self, node: Node, role: Role, eqn: Equation) -> None:
        self.of.setdefault(node, set()).add((role, eqn))

    def _sum(self, eqn: Equation) -> None:
        shapes = [v.shape for v in eqn.inputs]
        for axis in range(len(eqn.outputs[0].shape)):
            if all(len(s) > axis and s[axis] > 1 for s in shapes):
                self._note((eqn.outputs[0], axis), "sum", eqn)

    def _product(self, eqn: Equation, rel: Relation, static: list[bool]) -> None:
        data = not any(static)
        meets: dict[int, set[int]] = {}
        for link in rel.links:
            meets.setdefault(int(link.out_axis), set()).add(link.operand)
        for link in rel.links:
            node = (eqn.inputs[link.operand], int(link.in_axis))
            shared = len(meets[int(link.out_axis)]) > 1
            if data:
                self._note(node, "head" if shared else "width", eqn)
            elif static[link.operand]:
                depthwise = eqn.name == "conv_general_dilated"
                kind: Role = "expert" if shared and not depthwise else "out"
                self._note(node, kind, eqn)
        for members in rel.sums:
            for member in members:
                node = (eqn.inputs[member.operand], member.axis)
                if data:
                    self._note(node, "width", eqn)
                elif static[member.operand]:
                    self._note(node, "in", eqn)


@dataclasses.dataclass(frozen=True)
class Uses:
    """The products that the slices of a family take part in, by role."""

    by_role: Mapping[Role, frozenset[Equation]]
    spread: bool

    def __getitem__(self, role: Role) -> frozenset[Equation]:
        return self.by_role.get(role, frozenset())


def uses(roles: Roles, labels: Mapping[Node, object], spread: bool) -> Uses:
    """Those of the axes of one family; `spread` if one unit is several heads."""
    found: dict[Role, set[Equation]] = {}
    for node in labels:
        for role, eqn in roles.of.get(node, ()):
            found.setdefault(role, set()).add(eqn)
    return Uses({role: frozenset(eqns) for role, eqns in found.items()}, spread)


def kind_of(use: Uses, streams: frozenset[Equation]) -> str:
    """What the units of a family are; `streams` are products that write a stream.

    Read off the products: `head`, `KV group`, `head width`, `expert`, `residual
    stream`, `recurrent unit`, `filter`, `FFN unit` (of a layer between two that a
    stream joins), `unit` (of another dense layer), `channel` (of none).
    """
    if use["head"]:
        return "KV group" if use.spread else "head"
    if use["expert"]:
        return "expert"
    if use["in"] & use["out"]:
        return "recurrent unit"
    if is_stream(use):
        return "residual stream"
    if use["width"]:
        return "head width"
    if any(eqn.name == "conv_general_dilated" for eqn in use["out"]):
        return "filter"
    if use["out"]:
        return "FFN unit" if use["in"] & streams else "unit"
    return "channel"


def is_stream(use: Uses) -> bool:
    """Whether what several layers write is added up."""
    return bool(use["sum"]) and not use["in"] & use["out"] and len(use["out"]) != 1
