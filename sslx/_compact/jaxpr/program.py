"""A traced JAX function as a flat list of equations.

Calls that only name a piece of a program (`jit`, `closed_call`) are inlined. Calls that
mean more (custom derivatives, `checkpoint`, `scan`, `cond`, `while`) stay equations,
which hold the programs of their bodies.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat

_CUSTOM = ("custom_jvp_call", "custom_vjp_call")
_BODIES = {
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "checkpoint": ("jaxpr",),
    "remat": ("jaxpr",),
    "remat2": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
}


_FILLING = ("convert_element_type", "broadcast_in_dim")


class Value:
    """One intermediate value of a program, compared by identity.

    `literal` is the constant it holds, or None. `fill`, an array without axes, is the
    number that all entries of a converted or broadcast literal are; or None.
    """

    __slots__ = ("dtype", "fill", "literal", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any, literal: Any = None):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.literal = literal
        numeric = isinstance(dtype, np.dtype) and not self.shape
        self.fill = self.array if numeric and literal is not None else None

    @property
    def array(self) -> Any:
        """The literal as an array; keys of random numbers stay what they are."""
        if jnp.issubdtype(self.dtype, jax.dtypes.extended):
            return self.literal
        return np.asarray(self.literal, self.dtype)


@dataclasses.dataclass(eq=False)
class Equation:
    """One application of a primitive.

    Attributes:
      primitive: what JAX calls it.
      inputs: operands.
      outputs: results.
      params: parameters of the primitive.
      source: `file:line (function)` of the code that made it.
      scope: the name stack.
      bodies: the programs nested in it.
      acts: it, or an equation of its bodies, has effects (prints, calls back, checks):
        it runs whether or not anything reads its results.
      opaque: why it is treated as a primitive without a rule; empty if it is not.
    """

    primitive: Any
    inputs: list[Value]
    outputs: list[Value]
    params: dict[str, Any]
    source: str
    scope: str
    bodies: "tuple[Program, ...]" = ()
    acts: bool = False
    opaque: str = ""

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name

    def bind(self, operands: Sequence[Any], **changes: Any) -> list[Any]:
        """Apply the primitive to other operands, some parameters replaced.

        As in JAX's own functions, operands are first made to vary over the same manual
        mesh axes, and to be sharded alike where they have one shape.
        """
        if len(operands) > 1:
            operands = _jax_compat.varying_alike(operands)
            entrywise = "dimension_numbers" not in self.params
            if entrywise and len({np.shape(x) for x in operands}) == 1:
                operands = _jax_compat.sharded_alike(operands)
        params = self.primitive.get_bind_params(self.params | changes)
        out = self.primitive.bind(*operands, **params)
        return list(out) if self.primitive.multiple_results else [out]


@dataclasses.dataclass(eq=False)
class Program:
    """Equations in order of execution, with their inputs and outputs."""

    inputs: list[Value]
    outputs: list[Value]
    equations: list[Equation]


def trace(fn: Callable[..., Any], *args: Any) -> tuple[Program, Any, list[Any]]:
    """Trace `fn(*args)`; also the structure and the paths of its output."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    paths, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    return build(closed), treedef, [path for path, _ in paths]


def evaluate_dense(program: Program, arrays: Sequence[Any]) -> dict[Value, Any]:
    """Every value of a program, computed from its inputs as they are."""
    found: dict[Value, Any] = dict(zip(program.inputs, arrays, strict=True))
    for eqn in program.equations:
        operands = [
            jnp.asarray(v.array) if v.literal is not None else found[v]
            for v in eqn.inputs
        ]
        found.update(zip(eqn.outputs, eqn.bind(operands), strict=True))
    return found


def build(jaxpr: Any, consts: list[Any] | None = None) -> Program:
    """The program of a jaxpr, open or closed."""
    opened, own = _jax_compat.open_jaxpr(jaxpr)
    consts = own if consts is None else consts
    equations: list[Equation] = []
    inputs = [Value(v.aval.shape, v.aval.dtype) for v in opened.invars]
    outputs = _inline(opened, consts, inputs, equations)
    return Program(inputs, outputs, equations)


def _constant(value: Any) -> Value:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        value = np.asarray(value)
        dtype = value.dtype
    return Value(np.shape(value), dtype, literal=value)


def _converted(fill: np.ndarray, dtype: Any) -> np.ndarray | None:
    """A number in another dtype; None if its value changes."""
    with np.errstate(all="ignore"):
        made = fill.astype(dtype) if isinstance(dtype, np.dtype) else None
    return made if made is not None and made == fill else None


def _inline(
    jaxpr: Any,
    consts: list[Any],
    inputs: list[Value],
    equations: list[Equation],
    caller: str = "",
    outer: str = "",
) -> list[Value]:
    env: dict[Any, Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    env.update((v, _constant(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, _jax_compat.Literal):
            aval: Any = atom.aval
            return Value(aval.shape, aval.dtype, literal=atom.val)
        return env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        source = _jax_compat.source_line(eqn) or caller
        scope = "/".join(filter(None, (outer, _jax_compat.scope(eqn))))
        inner = _jax_compat.named_program(eqn)
        if inner is not None:
            body, body_consts = _jax_compat.open_jaxpr(inner)
            results = _inline(body, body_consts, operands, equations, source, scope)
        else:
            results = [Value(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
            if name in _FILLING and operands[0].fill is not None:
                results[0].fill = _converted(operands[0].fill, results[0].dtype)
            bodies = tuple(build(eqn.params[key]) for key in _BODIES.get(name, ()))
            if name == "cond":
                bodies = tuple(build(branch) for branch in eqn.params["branches"])
            acts = _jax_compat.acts(eqn) or any(
                inside.acts for body in bodies for inside in body.equations
            )
            equations.append(
                Equation(
                    eqn.primitive,
                    operands,
                    results,
                    dict(eqn.params),
                    source,
                    scope,
                    bodies,
                    acts,
                    "it has effects" if acts and name in _CUSTOM else "",
                )
            )
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
