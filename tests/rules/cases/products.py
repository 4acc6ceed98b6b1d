"""Forms of the primitives of `rules/products.py`."""

import jax.numpy as jnp
from jax import lax

from tests.rules.cases.forms import Form, X, ints

CASES: dict[str, list[Form]] = {}


def _dot(numbers, **options):
    return lambda x, y: lax.dot_general(x, y, numbers, **options)


CASES["dot_general"] = [
    Form(_dot((((1,), (0,)), ((), ()))), (X, (5, 3)), "fhi"),
    Form(_dot((((2,), (1,)), ((0,), (0,)))), ((2, 4, 5), (2, 5, 3)), "fh"),
    Form(_dot((((1, 2), (2, 0)), ((), ()))), ((3, 4, 5), (5, 2, 4))),
    Form(_dot((((), ()), ((), ()))), ((3,), (2,))),
    Form(_dot((((1,), (0,)), ((), ()))), ((4, 0), (0, 3))),
    Form(_dot((((1,), (1,)), ((0,), (0,)))), (X, X)),
    Form(
        _dot((((1,), (0,)), ((), ())), preferred_element_type=jnp.int32),
        (X, (5, 3)),
        "i",
    ),
]
SIZES = ints(1, 0, 2)
CASES["ragged_dot_general"] = [
    Form(lax.ragged_dot, (X, (3, 5, 2), SIZES), "f"),
    Form(
        lambda x, y, s: lax.ragged_dot_general(
            x,
            y,
            s,
            lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []),
        ),
        (X, (4, 3), SIZES),
        "f",
    ),
]


def _conv(strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lambda x, w: lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


IMAGE = (2, 5, 4, 4)
CASES["conv_general_dilated"] = [
    Form(_conv(), (IMAGE, (3, 3, 4, 3)), "fh"),
    Form(_conv((2, 1), ((1, 0), (-1, 2))), (IMAGE, (2, 3, 4, 3))),
    Form(_conv(feature_group_count=2), (IMAGE, (3, 3, 2, 6))),
    Form(_conv(feature_group_count=4), (IMAGE, (3, 3, 1, 8))),
    Form(
        _conv(padding=((1, 1), (2, 0)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
        (IMAGE, (3, 3, 4, 3)),
    ),
    Form(
        _conv(numbers=("NCHW", "OIHW", "NHWC")),
        ((2, 4, 5, 4), (3, 4, 3, 3)),
    ),
    Form(_conv(batch_group_count=2), (IMAGE, (3, 3, 4, 4))),
    Form(_conv((1,), "VALID", ("NWC", "WIO", "NWC")), ((2, 5, 3), (2, 3, 4))),
    Form(_conv(padding="VALID"), ((0, 5, 4, 4), (3, 3, 4, 3))),
]
