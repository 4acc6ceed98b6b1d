"""Schedules of direct convolutions, without machine code."""

import dataclasses
import functools
import math
import time
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from sslx.lowering import Columns, Conv
from sslx.lowering._native.limits import too_large
from sslx.lowering._native.llvm import Machine
from sslx.lowering._native.schedule import PostOp, Schedule
from sslx.lowering._native.scheduler import schedule
from tests.lowering.native import reference

MACHINE = Machine(64, 32, 2)
MACHINES = (MACHINE, Machine(32, 16, 1), Machine(16, 32, 3))


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


def offsets(made: Schedule) -> tuple[int, int]:
    """The least and the greatest offset of positions and columns."""
    tables = [
        visit.runs.astype(np.int64) + visit.tile.places[k]
        for visit in made.visits
        for k in (0, -1)
    ]
    tables += [
        columns
        for visit in made.visits
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
def test_what_32_bits_hold_is_scheduled(fits: Conv, beyond: Conv, last: int) -> None:
    assert too_large(fits) is None
    low, high = offsets(schedule(fits, MACHINE))
    assert -(1 << 31) <= low <= 0 <= high < 1 << 31
    assert last is None or high == last
    assert too_large(beyond)
    with pytest.raises(ValueError, match="cannot be scheduled"):
        schedule(beyond, MACHINE)


def test_scheduling_takes_no_time_per_position() -> None:
    """Long signals and large images: a loop over positions takes seconds."""
    start = time.process_time()
    for case in (
        conv((1, 1_000_000, 4), (9, 4, 8), padding=((4, 4),)),
        conv((8, 160_000, 1), (25, 1, 32), padding=((12, 12),), lhs_dilation=(2,)),
        conv((1, 2048, 2048, 3), (3, 3, 3, 16), padding=((1, 1), (1, 1))),
    ):
        made = schedule(case, MACHINE)
        covered = sum(len(v.runs) * len(v.tile.places) for v in made.visits)
        assert covered == math.prod(case.out) * (case.lhs[0] // made.tasks.blocks)
    assert time.process_time() - start < 3


def test_positions_in_padding_are_few_kinds() -> None:
    """However wide the padding is."""
    wide = conv((1, 9, 9, 4), (3, 3, 4, 8), padding=((500, 500), (40, 500)))
    assert len(schedule(wide, MACHINE).visits) < 100
    assert np.prod(wide.out) > 300_000


few = functools.partial(st.integers, 1)


@st.composite
def shapes(draw: st.DrawFn, large: bool) -> dict[str, Any]:
    """Any strides, dilations, groups, pads and columns; a kernel may be large."""
    ndim = draw(few(3))
    image = tuple(draw(few(12 // ndim)) for _ in range(ndim))
    window = tuple(draw(few(4)) for _ in range(ndim))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    each, filters = draw(few(4)), draw(st.sampled_from([1, 2, 3, 9, 17, 40]))
    if draw(st.booleans()) and not large:
        groups, each, filters = draw(st.sampled_from([3, 19])), 1, 1
    if large:
        filters, each = 40, -(-20_000 // (math.prod(window) * 40 * groups))
    return dict(
        lhs=(draw(st.sampled_from([1, 2, 6])), *image, each * groups),
        rhs=(*window, each, filters * groups),
        strides=tuple(draw(few(3)) for _ in image),
        padding=tuple((draw(few(5)) - 2, draw(few(5)) - 2) for _ in image),
        lhs_dilation=tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in image),
        rhs_dilation=tuple(draw(st.sampled_from([1, 1, 2])) for _ in image),
        groups=groups,
        dtype="float64",
    )


@st.composite
def steps(draw: st.DrawFn) -> tuple[tuple[Any, ...], ...]:
    counted = {"filter": 0, "entry": 0, "number": 0}
    found = []
    for _ in range(draw(st.integers(0, 3))):
        op = draw(st.sampled_from([*reference.OPS]))
        kind: Any = draw(st.sampled_from([*counted]))
        swapped = op != "div" and draw(st.booleans())
        found.append((op, kind, 0.7, counted[kind], swapped))
        counted[kind] += kind != "number"
    return tuple(found)


def check(
    case: Conv, machine: Machine, gradient: bool, epilogue: tuple[PostOp, ...]
) -> Schedule:
    """The schedule of a convolution writes all of it once, and what it has to be."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.5, 1.5, case.lhs), rng.uniform(0.5, 1.5, case.rhs)
    made = schedule(case, machine, gradient, epilogue)
    shape = (case.lhs[0], *case.out, case.rhs[-1])
    operands = {
        kind: [rng.uniform(0.5, 1.5, size) for step in epilogue if step.kind == kind]
        for kind, size in (("filter", shape[-1]), ("entry", math.prod(shape)))
    }
    shares = made.tasks.shares if gradient else 1
    memory = reference.laid_out(case, made, gradient, x, w)
    run = reference.Executor(made, *memory, shares * math.prod(shape), operands)
    found = run.run().reshape(shares, *shape).sum(0)
    by_entry = [a.reshape(shape) for a in operands["entry"]]
    expected = reference.followed(
        reference.convolution(case, x, w), epilogue, operands | {"entry": by_entry}
    )
    np.testing.assert_allclose(found, expected, 1e-11, 1e-11)
    times = made.tasks.blocks // made.tasks.shares if gradient else 1
    np.testing.assert_array_equal(run.written, times)
    return made


def any_schedule(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["small", "large", "gradient"]))
    case = conv(**data.draw(shapes(kind == "large")))
    hypothesis.assume(min(case.out) > 0)
    density = data.draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    rng = np.random.default_rng(data.draw(few(99)))
    mask = rng.random((*case.rhs[:-1], case.groups)) < density
    case = dataclasses.replace(case, columns=Columns.of(mask))
    if kind == "gradient":
        hypothesis.assume(case.groups == max(case.lhs_dilation) == 1)
    drawn = () if kind == "gradient" else data.draw(steps())
    epilogue = tuple(PostOp(*step) for step in drawn)
    machine = data.draw(st.sampled_from(MACHINES))
    check(case, machine, kind == "gradient", epilogue)


@hypothesis.given(st.data())
def test_schedules_are_exact(data: st.DataObject) -> None:
    """In NumPy: every output once, no read outside of an array, the right sums."""
    any_schedule(data)


@pytest.mark.slow
@hypothesis.settings(max_examples=3000)
@hypothesis.given(st.data())
def test_thousands_of_schedules_are_exact(data: st.DataObject) -> None:
    any_schedule(data)


def test_schedules_of_every_shape_are_among_those() -> None:
    """Packed rows, parts, interleaved channels, kernels read once, sums of shares."""
    whole = functools.partial(conv, dtype="float64", padding=((1, 1), (1, 1)))
    packed = check(whole((2, 12, 12, 8), (3, 3, 8, 120)), MACHINE, False, ())
    assert (
        packed.rows.packed is not None
        and packed.tasks.parts > 1
        and packed.tasks.tiles > 1
    )
    interleaved = check(whole((2, 9, 9, 4), (3, 3, 4, 2)), MACHINE, False, ())
    assert interleaved.vectors.interleave == 4
    once = check(whole((1, 3, 3, 64), (3, 3, 64, 64)), MACHINE, False, ())
    assert once.rows.ahead and max(len(v.tile.sections) for v in once.visits) > 1
    sums = check(whole((6, 12, 12, 8), (11, 11, 8, 6)), MACHINE, True, ())
    assert sums.tasks.shares > 1 and sums.tasks.blocks >= sums.tasks.shares


def test_a_wrong_schedule_is_noticed() -> None:
    case = conv((2, 9, 9, 4), (3, 3, 4, 20), dtype="float64")
    right = schedule(case, MACHINE)
    visit = right.visits[0]
    moved = dataclasses.replace(visit, runs=np.add(visit.runs, (0, 20)))
    short = dataclasses.replace(visit, runs=visit.runs[: -visit.tile.runs])
    far = dataclasses.replace(visit, runs=np.add(visit.runs, (4, 0)))
    x, w = np.ones(case.lhs), np.ones(case.rhs)
    size = 2 * math.prod(case.out) * 20
    for visits in ((moved, *right.visits[1:]), (short, *right.visits[1:])):
        wrong = dataclasses.replace(right, visits=visits)
        memory = reference.laid_out(case, wrong, False, x, w)
        run = reference.Executor(wrong, *memory, size, {})
        with pytest.raises(AssertionError):
            run.run()
            np.testing.assert_array_equal(run.written, 1)
    last = dataclasses.replace(right, visits=(far, *right.visits[1:]))
    run = reference.Executor(last, x.reshape(-1), w.reshape(-1), size, {})
    with pytest.raises(AssertionError):
        run.run()
