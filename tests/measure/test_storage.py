"""Storage: decoders restore what encoders wrote, and counts are those of the code."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from sslx import measure
from sslx._groups.structure import (
    BLOCK,
    CHANNEL,
    FILTER,
    KERNEL,
    LAYER,
    SHAPE,
    VECTOR,
    WEIGHT,
)

GRAINS = [WEIGHT, VECTOR, KERNEL, FILTER, CHANNEL, SHAPE, LAYER, BLOCK(1, 1, 2, 2)]
FORMATS = ["dense", "relative", "bitmask", "rows"]
SHAPES = [(3, 3, 4, 2), (1, 1, 2, 6), (4, 6), (2, 5, 2, 2)]
DENSITIES = st.sampled_from([0.0, 0.05, 0.3, 1.0])


@st.composite
def tensors(draw):
    shape = draw(st.sampled_from(SHAPES))
    bits = draw(st.sampled_from([2, 5, 8]))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = draw(hnp.arrays(np.int32, shape, elements=st.integers(low, high)))
    seed, density = draw(st.integers(0, 999)), draw(DENSITIES)
    keep = np.random.default_rng(seed).random(shape) < density
    return codes * keep, bits


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    tensors(),
    st.sampled_from(GRAINS),
    st.sampled_from(FORMATS),
    st.integers(0, 5),
    st.sampled_from(["...IO", "OI..."]),
)
def test_decoders_restore_and_counts_are_of_the_code(
    tensor, structure, format, index_bits, layout
):
    codes, bits = tensor
    if structure.name.startswith("VECTOR") and codes.ndim < 3:
        structure = WEIGHT
    if layout == "OI..." and codes.ndim > 2:
        codes = np.moveaxis(codes, (-1, -2), (0, 1))
    options = {"weight_bits": bits, "index_bits": index_bits, "layout": layout}
    encoded = measure.encode(codes, structure, format, **options)
    np.testing.assert_array_equal(encoded.decode(), codes)
    assert len(encoded.payload) == -(-encoded.bits // 8)
    counted = measure.storage(codes, structure, **options)
    assert getattr(counted, format) == encoded.bits
    assert (counted.stored, counted.nonzero) == (encoded.stored, np.sum(codes != 0))
    if format == "relative":
        assert counted.fillers == encoded.fillers


def test_layouts_of_one_tensor_cost_the_same():
    codes = np.random.default_rng(0).integers(-1, 2, (3, 3, 8, 4))
    other = np.moveaxis(codes, (-1, -2), (0, 1))
    for structure in (WEIGHT, VECTOR, KERNEL, FILTER, BLOCK(1, 1, 2, 2)):
        here = measure.storage(codes, structure)
        assert here == measure.storage(other, structure, layout="OI...")


def test_fillers_bridge_long_gaps():
    """Gaps of 0, 15, 16 and 40 before a weight: 0, 0, 1 and 2 fillers."""
    places = np.cumsum(np.array([0, 15, 16, 40]) + 1) - 1
    codes = np.zeros((1, 100), np.int64)
    codes[0, places] = [1, 2, 3, -4]
    encoded = measure.encode(codes.T, WEIGHT)
    assert (encoded.stored, encoded.fillers, encoded.bits) == (4, 3, 7 * 12)
    np.testing.assert_array_equal(encoded.decode(), codes.T)
    stream = np.unpackbits(np.frombuffer(encoded.payload, np.uint8))[:84].reshape(7, 12)
    indices = stream[:, :4] @ [8, 4, 2, 1]
    assert indices.tolist() == [0, 15, 15, 0, 15, 15, 8]
    weights = (stream[:, 4:] @ (1 << np.arange(8)[::-1])).astype(np.uint8)
    assert weights.view(np.int8).tolist() == [1, 2, 0, 3, 0, 0, -4]


@pytest.mark.parametrize(
    ("structure", "overhead"), [(WEIGHT, 0.5), (VECTOR, 0.5 / 3), (KERNEL, 0.5 / 9)]
)
def test_the_papers_accounting_before_fillers(structure, overhead):
    """8-bit weights and a 4-bit index: 1.5, 1 + 0.5/3 and 1 + 0.5/9 times density."""
    kernel = np.zeros((3, 3, 64, 64))
    kernel[:, :, ::2] = 1.0
    found = measure.storage(kernel, structure)
    assert found.fillers == 0
    ratio = found.ratio("relative") / found.density
    assert ratio == pytest.approx(1 + overhead, rel=1e-12)


def test_the_paper_counts_of_random_patterns_are_met_with_few_fillers():
    """At a density of 27% a gap of 16 is rare: 1.5 times the density and 0.4%."""
    kernel = np.random.default_rng(0).random((3, 3, 128, 128)) < 0.27
    found = measure.storage(kernel, WEIGHT)
    assert found.density == pytest.approx(0.27, abs=0.005)
    expected = found.density * 1.5 * (1 + 0.73**16 / (1 - 0.73**16))
    assert found.ratio("relative") == pytest.approx(expected, rel=2e-3)
    assert 0 < found.fillers < 0.01 * found.stored


def test_hand_counted_formats():
    kernel = np.array([[0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 1]]).T  # 4 in, 3 out
    found = measure.storage(kernel, WEIGHT)
    assert found == measure.Storage(
        entries=12, kept=3, nonzero=3, stored=3, fillers=0, dense=96, relative=36,
        bitmask=12 + 24, rows=4 * 2 + 3 * (2 + 8),
    )  # fmt: skip
    blocks = measure.storage(kernel, BLOCK(2, 1))
    assert (blocks.stored, blocks.kept, blocks.bitmask) == (3, 6, 6 + 48)
    assert blocks.rows == 4 * 2 + 3 * (1 + 16)


def test_tensors_add_up_and_jax_arrays_count_alike():
    kernel = jnp.asarray(np.random.default_rng(0).random((3, 3, 4, 4)) < 0.4, float)
    dense = jnp.ones((10, 4))
    total = measure.storage(kernel, KERNEL) + measure.storage(dense, KERNEL)
    assert total.entries == 184 and total.dense == 184 * 8
    assert total.stored == 40 + measure.storage(kernel, KERNEL).stored
    assert measure.storage(np.asarray(kernel), KERNEL) == measure.storage(
        kernel, KERNEL
    )


def test_codes_that_do_not_fit_are_refused():
    codes = np.array([[127, -128]])
    measure.encode(codes, WEIGHT)
    with pytest.raises(
        ValueError, match=r"from -128 to 127 do not fit 7 bits \(-64 to"
    ):
        measure.encode(codes, WEIGHT, weight_bits=7)
