"""Primitives whose results hold no data: counters and random numbers."""

from typing import Any

from sslx._compact.rules.relation import (
    Relation,
    register,
)


@register(
    *"iota rng_bit_generator threefry2x32 random_seed random_wrap".split(),
    *"random_unwrap random_bits random_split random_fold_in random_clone".split(),
    "random_gamma",
)
def _source(equation: Any) -> Relation:
    del equation
    return Relation(constant=False, free_outputs=True)
