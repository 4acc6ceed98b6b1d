"""Machine code as a JAX primitive, with a plain form wherever code cannot run."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from sslx import _jax_compat
from sslx.lowering._native import llvm

Axes = Sequence[int | None]


@runtime_checkable
class Program(Protocol):
    """What a primitive of machine code computes: hashable, and equal if its code is."""

    def plain(self, *operands: Array) -> Array:
        """The result in operations of JAX."""
        ...

    def code(self, *operands: Array) -> Array:
        """The result by machine code."""
        ...

    def mapped(self, size: int, operands: Sequence[Array], axes: Axes) -> Array:
        """The results of `size` calls, stacked; operands without axis are shared."""
        ...


def machine_code(name: str) -> Callable[..., Array]:
    """A function of a `Program` and its operands that is one equation in a jaxpr.

    | asked for | answer |
    | --- | --- |
    | shape, dtype, sharding, varying axes | those of `plain` |
    | derivatives, also transposed | those of `plain` |
    | `jax.vmap` | `mapped` |
    | code for a CPU | `code`; in `jax.shard_map` on every device's own part |
    | other devices, `jax.export`, work that XLA divides among devices | `plain` |

    Args:
      name: of the primitive.
    """

    def plain(*operands: Any, program: Program) -> Any:
        return program.plain(*operands)

    def code(*operands: Any, program: Program) -> Any:
        return program.code(*operands)

    def abstract(*operands: Any, program: Program) -> Any:
        (result,) = jax.make_jaxpr(program.plain)(*operands).out_avals
        return result

    def mapped(size: int, operands: Any, axes: Axes, *, program: Program) -> Any:
        return program.mapped(size, operands, axes)

    new = _jax_compat.primitive(name, abstract)
    _jax_compat.set_derivatives(new, plain)
    _jax_compat.set_batching(new, mapped)
    _jax_compat.set_lowerings(new, plain, code, _holding)

    def run(program: Program, *operands: Array) -> Array:
        return new.bind(*operands, program=program)

    return run


_MOST_UNUSED = 256
_HELD: contextvars.ContextVar[list[object]] = contextvars.ContextVar("held")


@contextlib.contextmanager
def _holding() -> Iterator[list[object]]:
    """Collects leases of the code that is called meanwhile, for the executable to hold.

    Of the code that no executable holds, only the most recently used is kept.
    """
    held: list[object] = []
    token = _HELD.set(held)
    try:
        yield held
    finally:
        _HELD.reset(token)
    for name in llvm.unused()[:-_MOST_UNUSED]:
        llvm.drop(name)


def call(name: str, results: Any, **layouts: Any) -> Callable[..., Any]:
    """`jax.ffi.ffi_call` of a program, whose code the calling executable then holds."""
    held = _HELD.get(None)
    if held is not None:
        held.append(llvm.lease(name))
    return jax.ffi.ffi_call(name, results, **layouts)
