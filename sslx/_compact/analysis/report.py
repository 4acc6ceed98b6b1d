"""What stays although it is zero: because no rule applies, or to line up."""

import dataclasses
from collections.abc import Mapping, Sequence

from sslx._compact.analysis.body import Body
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.rules.conservative import CONSERVATIVE


@dataclasses.dataclass(frozen=True)
class HeldBack:
    """An equation without a rule for its form, or one that could not be reduced.

    Attributes:
      primitive: its name.
      source: `file:line (function)` of the code that made it.
      paths: parameters whose axes lead to it.
      reason: why it could not be reduced; empty if there is no rule for it.
    """

    primitive: str
    source: str
    paths: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        why = CONSERVATIVE.get(self.primitive, "has no rule for this form")
        paths = ", ".join(self.paths)
        what = f"{self.primitive} at {self.source} holds back {paths}"
        return f"{what}: {self.reason or f'it {why}'}"


@dataclasses.dataclass(frozen=True)
class KeptZeros:
    """Zero slices of a parameter that are computed nevertheless.

    Attributes:
      path: the parameter.
      axis: its axis.
      count: number of zero slices that stay.
      primitive: what they are kept for: an operation whose operands have to line up;
        empty for the output of the function.
      source: `file:line (function)` of the code that made it.
    """

    path: str
    axis: int
    count: int
    primitive: str
    source: str

    def __str__(self) -> str:
        where = f"in {self.primitive} at {self.source}" if self.source else ""
        return (
            f"{self.count} zero slices of {self.path} (axis {self.axis}), to line up "
            f"{where or 'with what the function returns'}"
        )


def kept_zeros(
    liveness: Liveness, params: Sequence[tuple[Value, str, Masks]]
) -> tuple[KeptZeros, ...]:
    """The zero slices of parameters that lining up keeps."""
    found = []
    for value, path, zeros in params:
        if value not in liveness.forced:
            continue
        rows = zip(liveness.alive(value), zeros, strict=True)
        eqn = liveness.forced_by[value]
        name, source = (eqn.name, eqn.source) if eqn else ("", "")
        for axis, (alive, zero) in enumerate(rows):
            count = int((alive & zero).sum())
            if count and value.shape:
                found.append(KeptZeros(path, axis, count, name, source))
    return tuple(found)


def held_back(liveness: Liveness, paths: Mapping[Value, str]) -> tuple[HeldBack, ...]:
    """The equations that keep parameters from being reduced."""
    found = []
    for eqn in liveness.program.equations:
        body = liveness.inner.get(eqn)
        if not liveness.runs(eqn):
            continue
        if body is not None:
            for number, inside in enumerate(body.insides):
                if _has_unknown(inside):
                    found += _inside(liveness, eqn, body, number, inside, paths)
        elif body is None and not liveness.relations[eqn].known:
            roots = {p for v in eqn.inputs for p in _behind(liveness, v, paths)}
            if roots:
                found.append(
                    HeldBack(eqn.name, eqn.source, tuple(sorted(roots)), eqn.opaque)
                )
    return tuple(found)


def _has_unknown(liveness: Liveness) -> bool:
    unknown = any(not rel.known for rel in liveness.relations.values())
    return unknown or any(map(_has_unknown, liveness.insides()))


def _inside(
    liveness: Liveness,
    eqn: Equation,
    body: Body[Liveness],
    number: int,
    inside: Liveness,
    paths: Mapping[Value, str],
) -> list[HeldBack]:
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
    """Parameters that a value is linked to."""
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
