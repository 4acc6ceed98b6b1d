"""An equation whose meaning is the programs nested in it, as the analysis sees it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from sslx._compact.analysis.facts import Facts
from sslx._compact.jaxpr.masks import Masks
from sslx._compact.jaxpr.program import Equation, Program, Value


@runtime_checkable
class HasProgram(Protocol):
    """The analysis of one program."""

    program: Program


Inside = TypeVar("Inside", bound=HasProgram)


class Body(Generic[Inside]):
    """An equation with nested programs; see `control_flow` for the kinds there are.

    Attributes:
      insides: one analysis per program.
      entries: program number, input number there, operand number.
      exits: program number, output number there, output number.
      ties: program number, input number there, output number there: one slice of one
        is one of the other, a step later.
    """

    insides: tuple[Inside, ...]
    entries: list[tuple[int, int, int]]
    exits: list[tuple[int, int, int]]
    ties: Sequence[tuple[int, int, int]] = ()

    def flows(self, equation: Equation) -> Iterable[tuple[Value, Value]]:
        """Pairs of values outside and inside that are the same; in execution order."""
        programs = [inside.program for inside in self.insides]
        for n, k, operand in self.entries:
            yield equation.inputs[operand], programs[n].inputs[k]
        for n, k, output in self.exits:
            yield programs[n].outputs[k], equation.outputs[output]
        for n, k, last in self.ties:
            yield programs[n].outputs[last], programs[n].inputs[k]

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """Facts of the outputs."""
        raise NotImplementedError

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """Needs of the inputs."""
        raise NotImplementedError

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Keep slices of an output computed; what that takes of which operands."""
        raise NotImplementedError

    def forced(self) -> list[tuple[int, Masks]]:
        """Operands whose slices the programs were made to keep."""
        raise NotImplementedError


BODIES: dict[str, Callable[[Equation, bool], Body[Any]]] = {}
"""By primitive; `control_flow` fills it."""


def make_body(equation: Equation, fold_constants: bool) -> Body[Any] | None:
    """The body of an equation that has one."""
    if equation.opaque or equation.name not in BODIES:
        return None
    return BODIES[equation.name](equation, fold_constants)
