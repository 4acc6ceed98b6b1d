"""References to memory: cases counted by hand, and a plain simulator step by step."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from sslx import measure
from sslx.measure import Dataflow, References, references


def row(*taps):
    """A kernel of one row, one channel, one filter."""
    return np.array(taps).reshape(1, -1, 1, 1)


def line(*values):
    return np.array(values).reshape(1, 1, -1, 1)


def test_a_full_row_adds_up_neighbouring_products():
    """3 weights x 4 inputs: 12 products, 6 outputs, the tile's four and two beside."""
    found = references(row(1, 1, 1), line(1, 1, 1, 1))
    assert found == References(
        weights=3, inputs=4, partial_sums=6, products=12, steps=1
    )


def test_single_weights_reference_an_output_per_product():
    found = references(row(0, 1, 0), line(1, 1, 1, 1))
    assert found == References(1, 4, 4, 4, 1)


def test_zero_inputs_are_skipped():
    """Inputs at 0 and 3, weights at 0 and 1: outputs 0, -1, 3, 2."""
    assert references(row(1, 1, 0), line(3, 0, 0, 2)) == References(2, 2, 4, 4, 1)
    assert references(row(1, 1), line(0, 0)) == References(0, 0, 0, 0, 0)
    assert references(row(0, 0), line(1, 1)) == References(0, 0, 0, 0, 0)


def test_vectors_cross_filters_but_sums_do_not():
    """Two full rows are vectors of 4 and 2: sets of 3, 1 and 2 weights."""
    kernel = np.ones((1, 3, 1, 2))
    found = references(kernel, line(1, 1, 1, 1))
    assert found == References(
        weights=6, inputs=4, partial_sums=6 + 4 + 5, products=24, steps=2
    )


def test_inputs_stay_while_weights_stream():
    """6 inputs are vectors of 4 and 2: every weight is read twice, inputs once."""
    found = references(row(1, 1, 1), line(1, 1, 1, 1, 1, 1))
    assert found == References(3 * 2, 6, 6 + 4, 18, 2)


def test_small_buffers_read_inputs_again():
    """Room for 6 partial sums holds one filter: two blocks read the inputs twice."""
    kernel = np.ones((1, 3, 1, 2))
    found = references(kernel, line(1, 1, 1, 1), dataflow=Dataflow(accumulators=6))
    assert found == References(6, 8, 6 + 6, 24, 2)


def test_tiles_read_weights_again():
    found = references(row(1, 1, 1), line(1, 1, 1, 1), dataflow=Dataflow(tile=(1, 2)))
    assert found == References(6, 4, 4 + 4, 12, 2)


def test_strides_multiply_wanted_pairs_only():
    """Stride 2, 3 taps, 5 inputs: taps 0, 2 meet inputs 0, 2, 4; tap 1 meets 1, 3."""
    found = references(row(1, 1, 1), line(1, 1, 1, 1, 1), strides=(1, 2))
    assert found.products == 2 * 3 + 2
    assert found == References(3, 5, 4 + 2, 8, 2)


def test_matrix_products_reference_a_sum_per_product():
    found = references(np.ones((2, 3)), np.array([[1, 0], [1, 1]]))
    assert found == References(weights=9, inputs=3, partial_sums=9, products=9, steps=3)


def simulate(w, x, strides, padding, flow, filters):
    """The loops of the docstring, one step after the other."""
    groups = x.shape[3] // w.shape[2]
    each, total = w.shape[3] // groups, np.zeros(5, int)
    cut = lambda items, n: [items[i : i + n] for i in range(0, len(items), n)]
    for image in x:
        for phase in np.ndindex(*strides):
            home = [(phase[a] - padding[a]) % strides[a] for a in (0, 1)]
            part = image[home[0] :: strides[0], home[1] :: strides[1]]
            taps = w[phase[0] :: strides[0], phase[1] :: strides[1]]
            tall, wide = flow.tile
            for top in range(0, part.shape[0], tall):
                for left in range(0, part.shape[1], wide):
                    tile = part[top : top + tall, left : left + wide]
                    for c in range(x.shape[3]):
                        group, slot = divmod(c, w.shape[2])
                        a = cut(np.argwhere(tile[..., c]).tolist(), flow.inputs)
                        for start in range(0, each, filters):
                            own = [
                                (f, r, s)
                                for f in range(start, min(start + filters, each))
                                for r, s in np.ndindex(*taps.shape[:2])
                                if taps[r, s, slot, group * each + f]
                            ]
                            b = cut(own, flow.weights)
                            for inputs in a:
                                total[1] += len(inputs) if b else 0
                                for weights in b:
                                    outs = {
                                        (f, y - r, z - s)
                                        for f, r, s in weights
                                        for y, z in inputs
                                    }
                                    many = len(weights) * len(inputs)
                                    total += [len(weights), 0, len(outs), many, 1]
    return References(*map(int, total))


@st.composite
def layers(draw):
    size = lambda top: draw(st.integers(1, top))
    groups, inside, each = size(2), size(2), size(3)
    taps, image = (size(3), size(3)), (size(2), size(6), size(6))
    bits = lambda *shape: draw(hnp.arrays(bool, shape))
    w = bits(*taps, inside, groups * each)
    x = bits(*image, groups * inside)
    strides = (size(2), size(2))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    flow = Dataflow(size(4), size(4), (size(4), size(4)), size(60))
    return w, x, strides, padding, flow


@hypothesis.settings(max_examples=150)
@hypothesis.given(layers())
def test_counts_are_those_of_the_loops(layer):
    w, x, strides, padding, flow = layer
    room = 1
    for a in (0, 1):
        span = min(flow.tile[a], -(-x.shape[a + 1] // strides[a]))
        room *= span + -(-w.shape[a] // strides[a]) - 1
    filters = max(1, flow.accumulators // room)
    found = references(w, x, strides=strides, padding=padding, dataflow=flow)
    assert found == simulate(w, x, strides, padding, flow, filters)


def test_products_are_the_multiply_accumulates_of_a_strided_convolution():
    """All products land somewhere in the plane when the padding takes every halo."""
    kernel, images = np.ones((3, 3, 2, 4)), np.ones((1, 8, 8, 2))
    found = references(kernel, images, strides=(2, 2), padding=(1, 1))
    assert found.products == 9 * 2 * 4 * 64 // 4


@pytest.mark.parametrize("density", [0.2, 0.4])
def test_coarser_grains_of_equal_density_need_fewer_partial_sums(density):
    random = np.random.default_rng(0)
    images = random.random((1, 16, 16, 8)) < 0.5
    pick = lambda *shape: random.random(shape) < density
    spread = lambda mask: np.broadcast_to(mask, (3, 3, 8, 32))
    fine, vector = pick(3, 3, 8, 32), spread(pick(3, 1, 8, 32))
    kernel = spread(pick(1, 1, 8, 32))
    per = lambda w: (lambda r: r.partial_sums / r.products)(references(w, images))
    assert per(kernel) < per(vector) < per(fine)


def test_layers_add_up_and_wrong_sizes_are_told():
    found = references(row(1), line(1)) + references(row(1, 1), line(1, 1))
    assert found == References(3, 3, 1 + 3, 5, 2)
    with pytest.raises(ValueError, match=r"kernel \(1, 2, 1, 1\) does not fit inputs"):
        references(row(1, 1), np.ones((1, 2)))
    with pytest.raises(ValueError, match="sizes must be >= 1"):
        Dataflow(weights=0)
    assert measure.Dataflow is Dataflow
