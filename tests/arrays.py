"""Random arrays and variables that several test files start from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def normals(seed: int = 0) -> Callable[..., jax.Array]:
    """A source of float32 arrays of any shape, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    return lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)


def sparse_variables(model, image, dead: float, dtype, sparse: Callable[..., bool]):
    """Variables of a Flax model, a share of some kernels' outputs zero, and an image.

    `sparse` says of a path and a leaf whether outputs of it are to be zero.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image, dtype))
    rng = np.random.default_rng(0)

    def fill(keys, leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        fan_in = max(1, int(np.prod(leaf.shape[:-1]))) if leaf.ndim > 1 else 10
        value = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        if path.endswith(("var", "scale")):
            value = np.abs(value) + 0.5
        if leaf.ndim > 1 and sparse(path, leaf):
            value *= rng.random(leaf.shape[-1]) >= dead
        return jnp.asarray(value, dtype)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    return variables, jnp.asarray(rng.normal(size=image), dtype)


def relative_error(got, want) -> float:
    """The largest difference in units of the largest entry."""
    return float(jnp.abs(got - want).max() / jnp.abs(want).max())
