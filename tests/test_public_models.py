"""Models nobody here wrote: half of the filters of every layer are zeroed and cut out.

`pip install --group public` brings the libraries; without one, its models are skipped.
"""

import jax
import pytest

from tests.public.harness import Outcome, Variant, examine, units_of
from tests.public.models import MODELS, build

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("haiku.DeepRNN",)
CASES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in MODELS
]


def outcome(name: str, variant: Variant, alignment: str) -> Outcome:
    with jax.numpy_rank_promotion("allow"):
        return examine(build(name), variant, alignment=alignment)


@pytest.mark.parametrize("variant", ["kernels", "channels"])
@pytest.mark.parametrize("name", CASES)
def test_zeroed_filters_are_cut_out_and_nothing_else_changes(
    name: str, variant: Variant
) -> None:
    found = outcome(name, variant, "scatter")
    assert found.change > 1e-3, "zeroing changed nothing: the case is vacuous"
    assert found.error < 1e-4
    before, after = found.size
    assert after < 0.6 * before
    assert found.unexplained == {}


CLASSES = {"keras.MobileNetV2": 25, "haiku.DeepRNN": 2, "nnx.MultiHeadAttention": 9}


@pytest.mark.parametrize("name", CASES)
def test_zeroed_units_are_just_what_is_cut_out(name: str) -> None:
    with jax.numpy_rank_promotion("allow"):
        found, classes = units_of(build(name))
    assert found.error < 1e-4
    assert found.unexplained == {}
    assert classes == CLASSES.get(name, classes)
    before, after = found.size
    assert after < 0.9 * before


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_what_the_default_alignment_keeps_is_accounted_for(name: str) -> None:
    found = outcome(name, "kernels", "auto")
    assert found.error < 1e-4
    assert found.unexplained == {}


@pytest.mark.slow
def test_slices_forced_that_nothing_reads_end_the_search_for_a_fixed_point() -> None:
    found = outcome("equimo.mobilenetv3_small", "channels", "align")
    assert found.error < 1e-4
    assert found.unexplained == {}
