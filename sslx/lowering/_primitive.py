"""Machine code as a JAX primitive, in XLA's own form where it cannot be called."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from sslx import _jax_compat

Axes = Sequence[int | None]


@runtime_checkable
class Program(Protocol):
    """What such a primitive computes: hashable, equal where the code is equal."""

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
    _jax_compat.set_lowerings(new, plain, code)

    def run(program: Program, *operands: Array) -> Array:
        return new.bind(*operands, program=program)

    return run
