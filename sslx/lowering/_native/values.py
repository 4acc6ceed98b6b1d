"""Types and values of LLVM's language, as text."""

import struct
from typing import NamedTuple

import numpy as np


class Vector(NamedTuple):
    """A vector type of floats.

    Attributes:
      lanes: how many.
      bits: of each.
    """

    lanes: int
    bits: int

    def __str__(self) -> str:
        return f"<{self.lanes} x {self.scalar}>"

    @property
    def scalar(self) -> str:
        """The type of one lane."""
        return {32: "float", 64: "double"}[self.bits]

    @property
    def bytes(self) -> int:
        """Of one lane, which is also how vectors are aligned."""
        return self.bits // 8

    @property
    def suffix(self) -> str:
        """The suffix of LLVM's intrinsics for this type."""
        return f"v{self.lanes}f{self.bits}"

    def zeros(self) -> "Value":
        """The constant 0 in every lane."""
        return Value(self, "zeroinitializer")

    def filled(self, number: float) -> "Value":
        """A constant, rounded to this type, in every lane."""
        exact = float(np.float32(number)) if self.bits == 32 else number
        one = f"{self.scalar} 0x{struct.pack('>d', exact).hex().upper()}"
        return Value(self, f"<{', '.join([one] * self.lanes)}>")


class Value(NamedTuple):
    """A register, a parameter or a constant.

    Attributes:
      type: as LLVM writes it.
      name: with its `%` or `@`; the number itself of a constant.
    """

    type: "str | Vector"
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


Index = Value | int
"""A 64-bit integer, in a register or known."""

NULL = Value("ptr", "null")


def address(number: int) -> Value:
    """The constant pointer to an address."""
    return Value("ptr", f"inttoptr (i64 {number} to ptr)")


def i64(a: Index) -> Value:
    """The integer as a value."""
    return a if isinstance(a, Value) else Value("i64", str(a))


def vector_of(a: Value) -> Vector:
    """The type of a vector."""
    assert isinstance(a.type, Vector), a
    return a.type


def phi(name: Value, *incoming: tuple[Value, str]) -> str:
    """An instruction that takes the value of the block that control came from."""
    text = ", ".join(f"[ {value.name}, %{block} ]" for value, block in incoming)
    return f"{name.name} = phi {name.type} {text}"


def lane_mask(kind: Vector, lanes: int) -> Value:
    """A constant mask of the first lanes."""
    bits = ", ".join(f"i1 {int(k < lanes)}" for k in range(kind.lanes))
    return Value(f"<{kind.lanes} x i1>", f"<{bits}>")
