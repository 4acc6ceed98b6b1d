"""The elementwise operations that follow a convolution: bias, norm, residual, ReLU."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sslx import _jax_compat
from sslx.lowering._conv import channels_are_last, has_sizes
from sslx.lowering._native.schedule import PostOp

_OPS = ("add", "sub", "mul", "div", "max", "min")
_OPENED = _jax_compat.CALLS | {"custom_jvp_call": "call_jaxpr"}


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """Elementwise operations on the result of a convolution, which has no other use.

    Attributes:
      post_ops: the operations, in order.
      operands: what they take, numbers left out: first those with one number per
        filter, then those like the result.
      equations: their places; only the result of the last one is used elsewhere.
    """

    post_ops: tuple[PostOp, ...]
    operands: tuple[Any, ...]
    equations: tuple[int, ...]


def epilogues(jaxpr: Any) -> dict[int, Epilogue]:
    """Per convolution of an open jaxpr, by its place, what follows it.

    A chain goes on as long as each value has one use, the next operation. Operands have
    the dtype of the result and its shape, or hold one number per filter. Channels must
    be the last axis. An operation on the results of two convolutions belongs to the
    later one.
    """
    atoms = [a for eqn in jaxpr.eqns for a in eqn.invars] + list(jaxpr.outvars)
    values = [a for a in atoms if not isinstance(a, _jax_compat.Literal)]
    uses = Counter(values)
    users = {
        a: k
        for k, eqn in enumerate(jaxpr.eqns)
        for a in eqn.invars
        if not isinstance(a, _jax_compat.Literal)
    }
    found: dict[int, Epilogue] = {}
    claimed: set[int] = set()
    for k, eqn in reversed(list(enumerate(jaxpr.eqns))):
        if eqn.primitive.name != "conv_general_dilated" or not has_sizes(eqn):
            continue
        value, taken, places = eqn.outvars[0], [], []
        while channels_are_last(eqn.params) and uses[value] == 1 and value in users:
            follower = jaxpr.eqns[users[value]]
            more = _operations(follower, value, lambda atom: atom)
            if users[value] in claimed or more is None:
                break
            if not _takes_only(follower, value, more):
                break
            taken += more
            places.append(users[value])
            value = follower.outvars[0]
        if places:
            claimed.update(places)
            found[k] = _arranged(taken, places)
    return found


class Number(NamedTuple):
    """A known scalar, in the form of a literal."""

    val: Any
    aval: Any


Operation = tuple[PostOp, Any]


def _arranged(taken: Sequence[Operation], places: Sequence[int]) -> Epilogue:
    kinds = ("filter", "entry")
    operands = {kind: [a for op, a in taken if op.kind == kind] for kind in kinds}
    counted: Counter[str] = Counter()
    post_ops = []
    for op, _ in taken:
        post_ops.append(op._replace(operand=counted[op.kind]))
        counted[op.kind] += op.kind != "number"
    atoms = [a for kind in kinds for a in operands[kind]]
    return Epilogue(tuple(post_ops), tuple(atoms), tuple(places))


def _operations(
    eqn: Any, value: Any, outer: Callable[[Any], Any]
) -> list[Operation] | None:
    """What an equation does to a value; None where that is no chain of operations.

    Args:
      eqn: it takes the value once.
      value: its variable.
      outer: gives the atom outside of all calls that an atom stands for; None where
        there is none, as for what was computed from the value.
    """
    if len(eqn.outvars) != 1:
        return None
    if eqn.primitive.name in _OPENED:
        return _inside(eqn, value, outer)
    if eqn.primitive.name not in _OPS:
        return None
    first, second = eqn.invars
    swapped = second is value
    operand = outer(first if swapped else second)
    result = eqn.outvars[0].aval
    if operand is None or result.shape != value.aval.shape:
        return None
    post = _post_op(eqn.primitive.name, operand, result)
    return None if post is None else [(post._replace(swapped=swapped), operand)]


def _takes_only(eqn: Any, value: Any, taken: Sequence[Operation]) -> bool:
    """Whether an equation has no operands but those of its operations."""
    used = [value, *(operand for _, operand in taken)]
    return all(
        isinstance(atom, _jax_compat.Literal) or any(atom is u for u in used)
        for atom in eqn.invars
    )


def _inside(
    eqn: Any, value: Any, outer: Callable[[Any], Any]
) -> list[Operation] | None:
    body, consts = _jax_compat.open_jaxpr(eqn.params[_OPENED[eqn.primitive.name]])
    if consts or len(body.invars) != len(eqn.invars):
        return None
    given = dict(zip(body.invars, eqn.invars, strict=True))
    current = next(v for v, atom in given.items() if atom is value)
    del given[current]
    converted: dict[Any, Number] = {}

    def read(atom: Any) -> Any:
        if isinstance(atom, _jax_compat.Literal):
            return atom
        if atom in converted:
            return converted[atom]
        return outer(given[atom]) if atom in given else None

    taken: list[Operation] = []
    for inner in body.eqns:
        number = _converted(inner, read)
        if number is not None:
            converted[inner.outvars[0]] = number
            continue
        if sum(atom is current for atom in inner.invars) != 1:
            return None
        more = _operations(inner, current, read)
        if more is None:
            return None
        taken += more
        current = inner.outvars[0]
    return taken if list(body.outvars) == [current] else None


def _converted(eqn: Any, read: Callable[[Any], Any]) -> Number | None:
    """A known number in another dtype, such as a bound of `jnp.clip`."""
    if eqn.primitive.name != "convert_element_type":
        return None
    operand = read(eqn.invars[0])
    if not isinstance(operand, _jax_compat.Literal | Number) or np.ndim(operand.val):
        return None
    return Number(operand.val, eqn.outvars[0].aval)


def _post_op(op: str, operand: Any, result: Any) -> PostOp | None:
    shape = operand.aval.shape
    if operand.aval.dtype != result.dtype:
        return None
    if isinstance(operand, _jax_compat.Literal | Number):
        return PostOp(op, "number", float(operand.val)) if shape == () else None
    if shape == result.shape and math.prod(shape[:-1]) > 1:
        return PostOp(op, "entry")
    ones = shape[:-1] == (1,) * (len(result.shape) - 1)
    return PostOp(op, "filter") if ones and shape[-1] == result.shape[-1] else None


def by_equations(
    jaxpr: Any, place: int, epilogue: Epilogue, y: Any, operands: Any
) -> Any:
    """The result of the epilogue of the convolution at a place, by its equations."""
    env = dict(zip(epilogue.operands, operands, strict=True))
    env[jaxpr.eqns[place].outvars[0]] = y
    for eqn in (jaxpr.eqns[k] for k in epilogue.equations):
        values = [
            a.val if isinstance(a, _jax_compat.Literal) else env[a] for a in eqn.invars
        ]
        params = eqn.primitive.get_bind_params(eqn.params)
        y = eqn.primitive.bind(*values, **params)
        (y,) = y if eqn.primitive.multiple_results else (y,)
        env[eqn.outvars[0]] = y
    return y
