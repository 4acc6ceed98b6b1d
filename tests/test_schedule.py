"""Plans of direct convolutions, without machine code."""

import math
import time
from typing import Any

import numpy as np
import pytest

from sslx.lowering import Conv
from sslx.lowering._limits import too_large
from sslx.lowering._llvm import Machine
from sslx.lowering._sweep import Sweep, plan

MACHINE = Machine(64, 32, 2)


def conv(lhs: tuple[int, ...], rhs: tuple[int, ...], **fields: Any) -> Conv:
    ones = (1,) * (len(lhs) - 2)
    plain: dict[str, Any] = dict(
        strides=ones,
        padding=((0, 0),) * len(ones),
        lhs_dilation=ones,
        rhs_dilation=ones,
        groups=1,
        batch_groups=1,
        dtype="float32",
        result="float32",
        precision=None,
    )
    return Conv(lhs, rhs, **plain | fields)


def offsets(sweep: Sweep) -> tuple[int, int]:
    """The least and the greatest offset of positions and columns."""
    tables = [
        visit.runs.astype(np.int64) + visit.kernel.places[k]
        for visit in sweep.visits
        for k in (0, -1)
    ]
    tables += [
        columns
        for visit in sweep.visits
        for sections in visit.columns
        for columns in sections
        if len(columns)
    ]
    return min(int(t.min()) for t in tables), max(int(t.max()) for t in tables)


HALF = 1 << 15
WIDE = 1 << 19


@pytest.mark.parametrize(
    ("fits", "beyond", "last"),
    [
        (  # entries of the result
            conv((1, HALF, 1, 1), (1, 1, 1, 2 * HALF)),
            conv((1, HALF, 1, 1), (1, 1, 1, 2 * HALF + 1)),
            2 * HALF * (HALF - 1),
        ),
        (  # strides times positions
            conv((1, 2 * HALF, HALF), (1, HALF, 1), strides=(HALF,)),
            conv((1, 2 * HALF + 1, HALF), (1, HALF, 1), strides=(2 * HALF,)),
            HALF * HALF,
        ),
        (  # what is read from positions far outside of the image
            conv((1, 1, WIDE), (1, WIDE, 1), padding=((4095, 0),)),
            conv((1, 1, WIDE), (1, WIDE, 1), padding=((4096, 0),)),
            4095 * WIDE,
        ),
        (  # rows of the kernel
            conv((1, 1, HALF), (2, HALF // 2, 4), groups=2, padding=((1, 0),)),
            conv((1, 1, HALF), (4 * HALF, HALF, 4), padding=((4 * HALF - 1, 0),)),
            None,
        ),
        (  # positions of one image
            conv((1, 8192, 8192, 1), (8, 8, 1, 1), strides=(8, 8)),
            conv((1, 8193, 8192, 1), (1, 1, 1, 1)),
            None,
        ),
        (  # lists of columns
            conv((1, 256, 256), (256, 256, 1)),
            conv((1, 1023, 64), (1023, 64, 1), padding=((511, 511),)),
            None,
        ),
        (  # kinds of positions
            conv((1, 1023, 1), (1023, 1, 1), padding=((511, 511),)),
            conv((1, 1025, 1), (1025, 1, 1), padding=((512, 512),)),
            None,
        ),
    ],
)
def test_what_32_bits_hold_is_planned(fits: Conv, beyond: Conv, last: int) -> None:
    assert too_large(fits) is None
    low, high = offsets(plan(fits, MACHINE))
    assert -(1 << 31) <= low <= 0 <= high < 1 << 31
    assert last is None or high == last
    assert too_large(beyond)
    with pytest.raises(ValueError, match="cannot be planned"):
        plan(beyond, MACHINE)


def test_planning_takes_no_time_per_position() -> None:
    """Long signals and large images: a loop over positions takes seconds."""
    start = time.perf_counter()
    for case in (
        conv((1, 1_000_000, 4), (9, 4, 8), padding=((4, 4),)),
        conv((8, 160_000, 1), (25, 1, 32), padding=((12, 12),), lhs_dilation=(2,)),
        conv((1, 2048, 2048, 3), (3, 3, 3, 16), padding=((1, 1), (1, 1))),
    ):
        sweep = plan(case, MACHINE)
        covered = sum(len(v.runs) * len(v.kernel.places) for v in sweep.visits)
        assert covered == math.prod(case.out) * (case.lhs[0] // sweep.blocks)
    assert time.perf_counter() - start < 2


def test_positions_in_padding_are_few_kinds() -> None:
    """However wide the padding is."""
    wide = conv((1, 9, 9, 4), (3, 3, 4, 8), padding=((500, 500), (40, 500)))
    assert len(plan(wide, MACHINE).visits) < 100
    assert np.prod(wide.out) > 300_000
