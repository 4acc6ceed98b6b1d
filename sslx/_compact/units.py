"""`units`: what has to be removed together, by the rules that compaction uses.

Families of slices that go together are found in the axis graph (`analysis.families`).
That a unit can be removed is then tried: with half of the units zero at a time, the
analysis of `compact` has to find all their slices dead, or the unit is left out.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from sslx._calls import require_function, require_two_steps, take_apart
from sslx._compact.analysis.axis_graph import Node
from sslx._compact.analysis.facts import full
from sslx._compact.analysis.families import Family, families
from sslx._compact.analysis.fixed_point import fixed_point
from sslx._compact.analysis.kinds import is_stream, kind_of
from sslx._compact.analysis.liveness import Liveness
from sslx._compact.jaxpr.arguments import read_variables
from sslx._compact.jaxpr.masks import is_region
from sslx._compact.jaxpr.program import Equation, Value
from sslx._compact.jaxpr.state import expressions
from sslx._compact.jaxpr.tracing import Traced, Tracer, whole_leaf
from sslx._compact.plan import Plan
from sslx._groups.classes import GroupClass, Groups, Member


def units(
    fn: Callable[..., Any],
    *_example: Any,
    pin: str | Sequence[str] = (),
    state: str | Sequence[str] = (),
) -> Callable[..., Groups]:
    """Find the slices of the variables that can only be removed together.

    A unit is a channel with everything it consists of: the filters that produce it, the
    scales and biases of its norms, and the input channels of every layer that reads it,
    through residual additions, concatenations, attention heads and shared weights.
    Where all entries of a unit are zero, `compact` removes exactly its slices; no
    consistent program has only a part of them.

    Where an axis is a product (heads times their width, channels times positions of a
    flattened image), there are units for every factor whose slices can be removed.

    Args:
      fn: any JAX function of `(variables, *args, **kwargs)`.
      pin: regular expressions; leaves whose path matches one of them stay whole.
      state: as for `sslx.compact`: returning the new value of such a variable does not
        keep it whole.

    Returns:
      A function of an example call, `(variables, *args, **kwargs)` as for
      `sslx.compact`, all of which may be shapes. It returns groups with one class per
      channel axis of the network, named after the leaf and axis that come first in the
      program, such as `"params/conv1/kernel[3]"`; `describe()` prints them, and what
      keeps other axes whole. Slices that reach the inputs or outputs of `fn` are in no
      unit. An entry that lies in two slices of one unit (the diagonal of a recurrent
      kernel) counts twice in `norms`.

    Raises:
      ValueError: an expression of `pin` or `state` matches no path.

    Example:
      >>> units = sslx.units(model.apply, pin=["stem"])(variables, x)
      >>> penalty = sslx.penalty_value(sslx.GroupLasso(1e-4), units, variables)
    """
    require_function(fn, *_example[:1])
    require_two_steps("sslx.units(fn, **options)(variables, *args)", _example)

    def of(variables: PyTree, *args: Any, **kwargs: Any) -> Groups:
        require_function(fn, variables)
        leaves, _ = read_variables(variables, values=False)
        pins = expressions("pin", pin, leaves)
        plan = Plan({p: whole_leaf(np.shape(x)) for p, x in leaves.items()})
        dtypes = [x.dtype for x in leaves.values()]
        tracer = Tracer(fn, expressions("state", state, leaves))
        traced = tracer(variables, plan, dtypes, take_apart(args, kwargs))
        return _units(traced, leaves, pins)

    return of


def _units(traced: Traced, leaves: Mapping[str, Any], pin: Sequence[str]) -> Groups:
    paths = dict(zip(traced.program.inputs, leaves, strict=False))
    live = Liveness(traced.program, fold_constants=False)
    none = {p: [np.zeros(n, bool) for n in x.shape or (1,)] for p, x in leaves.items()}
    fixed_point(live, traced, leaves, none, alignment="align", look=None)
    found, reasons = families(live, list(paths), _frozen(traced, paths, pin))
    trial = _Trial(traced, leaves)
    found = trial.removable(found)
    return Groups(_classes(found, paths), _notes(trial.reasons | reasons, paths))


class _Trial:
    """Compaction of a program with the slices of some units zero."""

    def __init__(self, traced: Traced, leaves: Mapping[str, Any]):
        self.traced, self.leaves = traced, leaves
        self.params = dict(zip(traced.program.inputs, leaves, strict=False))
        self.reasons: dict[Node, str] = {}

    def removable(self, found: Sequence[Family]) -> list[Family]:
        """The families without the units that stay when they are zero.

        All families are tried at once. Where units stay, families that share an axis
        (heads and their width) are tried apart, since one may keep the other.
        """
        stay = self.staying(found)
        parts = _apart(found)
        if any(stay) and len(parts) > 1:
            rows = [(part, self.staying([found[k] for k in part])) for part in parts]
            stay = [dict(zip(*row, strict=True)) for row in rows]
            stay = [next(r[k] for r in stay if k in r) for k in range(len(found))]
        left = [f.without(units) for f, units in zip(found, stay, strict=True)]
        return [f for f in left if f is not None]

    def staying(self, found: Sequence[Family]) -> list[set[int]]:
        """Per family, the units of which something stays when half of all are zero."""
        stay: list[set[int]] = [set() for _ in found]
        for parity in (0, 1):
            dead = [
                {n: (x >= 0) & (x % 2 == parity) for n, x in f.labels.items()}
                if f.count > 1
                else {}
                for f in found
            ]
            live = self._compacted(dead)
            for family, units, nodes in zip(found, stay, dead, strict=True):
                for (value, axis), mask in nodes.items():
                    alive = live.alive(value)
                    kept = mask & alive[axis] & is_region(alive)
                    if kept.any():
                        units.update(family.labels[value, axis][kept].tolist())
                        self.reasons.setdefault((value, axis), _why(live, value))
        return stay

    def _compacted(self, dead: Sequence[Mapping[Node, np.ndarray]]) -> Liveness:
        zeros = {p: [*full(v, False)] for v, p in self.params.items()}
        for nodes in dead:
            for (value, axis), mask in nodes.items():
                masks = zeros[self.params[value]]
                masks[axis] = masks[axis] | mask
        live = Liveness(self.traced.program, fold_constants=True)
        fixed_point(live, self.traced, self.leaves, zeros, "align", look=None)
        return live


def _apart(found: Sequence[Family]) -> list[list[int]]:
    """The families, in parts within which no two share an axis."""
    parts: list[tuple[list[int], set[Node]]] = []
    for k, family in enumerate(found):
        nodes = set(family.labels)
        part = next((p for p in parts if p[1].isdisjoint(nodes)), None)
        if part is None:
            part = ([], set())
            parts.append(part)
        part[0].append(k)
        part[1].update(nodes)
    return [numbers for numbers, _ in parts]


def _why(live: Liveness, value: Value) -> str:
    """What a parameter's slices stay for though they are zero."""
    eqn = live.forced_by.get(value)
    return f"{eqn.name} at {eqn.source}" if eqn else "the output"


def _frozen(
    traced: Traced, paths: Mapping[Value, str], pin: Sequence[str]
) -> list[tuple[Value, str]]:
    rows = [
        (v, "a pin")
        for v, path in paths.items()
        if any(re.search(p, path) for p in pin)
    ]
    rows += [(v, "the input") for v in traced.program.inputs if v not in paths]
    outputs = zip(traced.program.outputs, traced.state, strict=True)
    return rows + [(v, "the output") for v, name in outputs if name is None]


def _classes(
    found: Sequence[Family], paths: Mapping[Value, str]
) -> tuple[GroupClass, ...]:
    classes: dict[str, GroupClass] = {}
    written = [f.uses["out"] for f in found if is_stream(f.uses)]
    streams = frozenset[Equation]().union(*written)
    for family in found:
        members = []
        for (value, axis), labels in family.labels.items():
            plain = np.array_equal(labels, np.arange(family.count))
            ids = None if plain else tuple(labels.tolist())
            role = family.roles[value, axis]
            shape = value.shape
            members.append(Member(paths[value], shape, shape, (axis,), ids, role))
        first = members[0]
        kind = kind_of(family.uses, streams)
        name = f"{first.path}[{first.kept[0]}]"
        if name in classes:
            name = f"{name}/{family.count}"
        while name in classes:
            name += "'"
        classes[name] = GroupClass(name, (family.count,), tuple(members), kind=kind)
    return tuple(classes.values())


def _notes(reasons: Mapping[Node, str], paths: Mapping[Value, str]) -> tuple[str, ...]:
    """One line per reason, with all the axes it keeps whole."""
    axes: dict[str, list[str]] = {}
    for (value, axis), reason in reasons.items():
        axes.setdefault(reason, []).append(f"{paths[value]}[{axis}]")
    rows = (
        (re.sub(r"(?<= at )\S*/", "", reason), ", ".join(sorted(names)))
        for reason, names in axes.items()
    )
    return tuple(f"kept whole by {reason}: {names}" for reason, names in rows)
