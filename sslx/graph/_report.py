"""What was kept whole for want of a rule, and which parameters that holds back."""

import dataclasses
from collections.abc import Mapping

from sslx.graph._liveness import Body, Liveness
from sslx.graph._program import Equation, Value


@dataclasses.dataclass(frozen=True)
class Held:
    """One equation without a rule for its form.

    Attributes:
      primitive: its name.
      source: `file:line (function)` of the code that made it.
      paths: parameters with an axis that runs into it.
    """

    primitive: str
    source: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.primitive} at {self.source} holds back {', '.join(self.paths)}"


def held_back(liveness: Liveness, paths: Mapping[Value, str]) -> tuple[Held, ...]:
    """The equations without a rule behind which parameters lie."""
    found = []
    for eqn in liveness.program.equations:
        body = liveness.inner.get(eqn)
        if not liveness.runs(eqn):
            continue
        if body is not None:
            for number, inside in enumerate(body.insides):
                found += _inside(liveness, eqn, body, number, inside, paths)
        elif body is None and not liveness.relations[eqn].known:
            roots = {p for v in eqn.inputs for p in _behind(liveness, v, paths)}
            if roots:
                found.append(Held(eqn.name, eqn.source, tuple(sorted(roots))))
    return tuple(found)


def _inside(
    liveness: Liveness,
    eqn: Equation,
    body: Body,
    number: int,
    inside: Liveness,
    paths: Mapping[Value, str],
) -> list[Held]:
    """What a body holds back, by the parameters behind its operands."""
    names = {
        inside.program.inputs[k]: "\n".join(
            sorted(_behind(liveness, eqn.inputs[operand], paths))
        )
        for n, k, operand in body.entries
        if n == number
    }
    return [
        dataclasses.replace(held, paths=tuple(sorted(split)))
        for held in held_back(inside, names)
        if (split := {p for joined in held.paths for p in joined.split("\n") if p})
    ]


def _behind(liveness: Liveness, value: Value, paths: Mapping[Value, str]) -> set[str]:
    """Parameters whose slices run along those of a value."""
    seen, work, found = {value}, [value], set()
    while work:
        value = work.pop()
        if value in paths:
            found.add(paths[value])
        eqn = liveness.producer.get(value)
        if eqn is None:
            continue
        if eqn in liveness.inner:
            sources = set(eqn.inputs)
        else:
            links = liveness.relations[eqn].links
            sources = {eqn.inputs[x.operand] for x in links}
        fresh = {v for v in sources if v.literal is None and v not in seen}
        seen |= fresh
        work += fresh
    return found
