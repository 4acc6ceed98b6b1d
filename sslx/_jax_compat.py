"""The only file that imports `jax.extend` or unstable JAX names."""

import contextlib
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that only name a piece of a program, and the parameter that holds it."""


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """The jaxpr and the values of its constants, whether given open or closed."""
    if isinstance(jaxpr, ClosedJaxpr):
        return getattr(jaxpr, "jaxpr", jaxpr), list(jaxpr.consts)
    return jaxpr, []


def is_traced(array: Any) -> bool:
    """Whether the value of an array is not known yet."""
    return isinstance(array, jax.core.Tracer)


def is_tracing() -> bool:
    """Whether the code that runs is being traced by a transformation of JAX."""
    from jax._src import core

    return not core.trace_state_clean()


def is_jaxpr(value: Any) -> bool:
    """Whether an equation parameter holds a nested program."""
    return isinstance(value, (ClosedJaxpr, Jaxpr))


def custom_jvp_jaxpr(
    params: dict[str, Any], zeros: list[bool]
) -> tuple[Any, list[Any], list[bool]]:
    """A call's derivative rule as a jaxpr, for inputs with the given zero tangents.

    Its inputs are all primals, then the tangents that are not zero; its outputs all
    primal outputs, then the tangents that are not zero, as the last list says.
    """
    rule = params["jvp_jaxpr_fun"]
    jaxpr, consts, out_zeros = rule.call_wrapped(*zeros[params["num_consts"] :])
    return jaxpr, list(consts), list(out_zeros)


def source_line(eqn: Any) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    from jax._src import source_info_util

    return source_info_util.summarize(eqn.source_info)


def scope(eqn: Any) -> str:
    """The name stack of an equation, such as `ResNet/block1/conv1`."""
    return str(eqn.source_info.name_stack)


def in_scope(name: str) -> contextlib.AbstractContextManager:
    """Context whose operations stand in a name scope; the empty name adds none."""
    return jax.named_scope(name) if name else contextlib.nullcontext()


def acts(eqn: Any) -> bool:
    """Whether an equation does something besides computing its results."""
    from jax._src import core

    return any(not isinstance(e, core.NamedAxisEffect) for e in eqn.effects)


def compile_time() -> Any:
    """Context in which operations on concrete arrays run now, under any trace."""
    return jax.ensure_compile_time_eval()
