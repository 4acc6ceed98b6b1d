"""Checks of arguments, with one wording."""

import math
import re
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from sslx._jax_compat import is_traced

__all__ = ["expect", "expect_number", "expect_pattern", "expect_word"]


def expect(what: str, value: Any, kind: type | tuple[type, ...], fix: str) -> None:
    """Raise unless a value is of a kind.

    Raises:
        TypeError: Says what it is, what was expected, and the fix.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        is_class = isinstance(value, type)
        got = f"the class {value.__name__}" if is_class else type(value).__name__
        raise TypeError(f"{what} must be a {names}, got {got}; {fix}")


def expect_number(
    what: str,
    value: Any,
    low: float | int = 0,
    high: float | int = math.inf,
    *,
    whole: bool = False,
) -> None:
    """Raise unless a number, or all of an array, is in a range; traced values pass.

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside the range, NaN, or not whole where it must be.
    """
    if is_traced(value):
        return
    is_array = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))
    numbers = np.asarray(value) if is_array else np.asarray(None)
    kind = "a whole number" if whole else "a number"
    if not is_array or not np.issubdtype(numbers.dtype, np.number):
        if not (is_array and hasattr(value, "dtype") and numbers.dtype.kind == "V"):
            raise TypeError(f"{what} must be {kind}, got {value!r}")
        numbers = numbers.astype(np.float32)
    inside = ((numbers >= low) & (numbers <= high)).all()
    parts = np.isinf(numbers) | (numbers != np.floor(numbers))
    if not inside or (whole and parts.any()):
        limits = "whole and " * whole + (
            f">= {low}" if high == math.inf else f"from {low} to {high}"
        )
        raise ValueError(f"{what} must be {limits}, got {value}")


def expect_word(what: str, value: Any, words: Iterable[str]) -> None:
    """Raise unless a value is one of some words."""
    words = list(words)
    if not isinstance(value, str) or value not in words:
        allowed = " or ".join(map(repr, words))
        raise ValueError(f"{what} must be {allowed}, got {value!r}")


def expect_pattern(what: str, value: Any) -> None:
    """Raise unless a value is a regular expression."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a regular expression, got {value!r}")
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{what}: {value!r} is no regular expression: {error}"
        ) from None
