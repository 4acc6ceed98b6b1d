"""Equations that hold programs: `custom_jvp_call`, `checkpoint`."""

from sslx.graph._liveness import Body, Facts, Liveness, full
from sslx.graph._program import Equation
from sslx.graph._relation import Masks


class Call(Body):
    """One body, run once on the operands."""

    def __init__(self, equation: Equation, fold: bool):
        self.inside = Liveness(equation.bodies[0], fold=fold)

    def forward(self, ins: list[Facts]) -> list[Facts]:
        """Facts of the outputs are those of the body's outputs."""
        return self.inside.forward(ins)

    def backward(self, alive: list[Masks]) -> list[Masks]:
        """Needs of the inputs are those of the body's inputs."""
        return self.inside.backward(alive)

    def force(self, output: int, masks: Masks) -> list[tuple[int, Masks]]:
        """Force inside; what that forces of the body's inputs is the answer."""
        program = self.inside.program
        self.inside.force(program.outputs[output], masks)
        return [
            (k, self.inside.forced.get(v, full(v, False)))
            for k, v in enumerate(program.inputs)
            if v in self.inside.forced
        ]


BODIES = {"custom_jvp_call": Call, "checkpoint": Call, "remat": Call, "remat2": Call}
