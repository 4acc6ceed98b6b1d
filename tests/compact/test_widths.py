"""Widths rounded up by keeping dead channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sslx
from experiments import models
from tests.networks import network


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("alignment", ["auto", "align", "scatter"])
def test_any_network_stays_exact(seed, alignment):
    with jax.numpy_rank_promotion("allow"):
        net = network(seed)
        x = jax.random.normal(jax.random.key(seed), net.image, jnp.float64)
        small = sslx.compact(net.apply, round_to=2, alignment=alignment)(net.params, x)
        dense = jax.jit(net.apply)(net.params, x)
        found = jax.jit(small.apply)(small.variables, x)
        np.testing.assert_allclose(found, dense, 1e-9, 1e-9 * float(abs(dense).max()))
        plain = sslx.compact(net.apply, alignment=alignment)(net.params, x)
        sizes = [
            sum(w.size for w in jax.tree.leaves(c.variables)) for c in (small, plain)
        ]
        assert sizes[0] >= sizes[1]


@pytest.mark.parametrize(
    ("multiple", "names"), [pytest.param(1, False, marks=pytest.mark.slow), (4, True)]
)
def test_widths_of_a_residual_network(multiple, names):
    rng = np.random.default_rng(0)
    model = models.create("resnet8")
    variables, x = models.init(model), jnp.ones((2, 32, 32, 3)) / 3
    units = sslx.units(model.apply)(variables, x)
    kept = {c.name: jnp.asarray(rng.random(c.shape) < 0.5) for c in units.classes}
    variables = sslx.scale(units, variables, kept)
    small = sslx.compact(model.apply, round_to=multiple)(variables, x)
    widths = [
        width
        for row in small.rows()
        for width, whole in zip(row["kernel_after"], row["kernel_before"], strict=True)
        if whole > 10
    ]
    assert all(w % multiple == 0 for w in widths)
    assert any(w % 4 for w in widths) != names
    dense = jax.jit(model.apply)(variables, x)
    found = jax.jit(small.apply)(small.variables, x)
    np.testing.assert_allclose(found, dense, atol=1e-5)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="round_to: got 0"):
        sslx.compact(lambda v, x: v @ x, round_to=0)(jnp.ones((2, 2)), jnp.ones(2))
