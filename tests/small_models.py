"""Networks as people publish them, a few channels wide, in plain JAX.

Each entry of `MODELS` takes a random generator and gives a function, its parameters
and an input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]


class Model(NamedTuple):
    """A function of parameters and an input."""

    fn: Callable[[Params, jax.Array], jax.Array]
    params: Params
    x: jax.Array


class Maker:
    """Random parameters, by name."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.params: Params = {}

    def array(self, *shape: int) -> jax.Array:
        return jnp.asarray(self.rng.normal(size=shape))

    def weights(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            fan_in = max(1, int(np.prod(shape[:-1])))
            self.params[name] = self.array(*shape) / np.sqrt(fan_in)

    def vectors(self, size: int, *names: str) -> None:
        for name in names:
            self.params[name] = 1 + 0.3 * self.array(size)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """SAME; depthwise or grouped as the kernel's input channels say."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def standardised(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = x.mean(axes, keepdims=True)
    square = jnp.square(x).mean(axes, keepdims=True) - jnp.square(mean)
    return (x - mean) * jax.lax.rsqrt(square + 1e-3)


def layer_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
    return standardised(x, (-1,)) * p[f"{name}_scale"] + p[f"{name}_bias"]


def group_norm(p: Params, name: str, x: jax.Array, groups: int) -> jax.Array:
    y = x.reshape(*x.shape[:-1], groups, -1)
    y = standardised(y, (1, 2, 4)).reshape(x.shape)
    return y * p[f"{name}_scale"] + p[f"{name}_bias"]


def batch_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
    inverse = jax.lax.rsqrt(p[f"{name}_var"] ** 2 + 1e-3) * p[f"{name}_scale"]
    return (x - p[f"{name}_mean"]) * inverse + p[f"{name}_bias"]


def _norms(make: Maker, size: int, *names: str) -> None:
    for name in names:
        make.vectors(size, f"{name}_scale", f"{name}_bias")


def _batch_norms(make: Maker, size: int, *names: str) -> None:
    _norms(make, size, *names)
    for name in names:
        make.vectors(size, f"{name}_mean", f"{name}_var")


def mixer(make: Maker) -> Model:
    """MLP-Mixer: dense over positions with a bias, dense over channels."""
    make.weights(embed=(4, 6), a=(5, 7), b=(7, 5), c=(6, 8), d=(8, 6), head=(6, 3))
    make.vectors(7, "a_bias"), make.vectors(5, "b_bias")
    make.vectors(8, "c_bias"), make.vectors(6, "d_bias", "embed_bias")
    _norms(make, 6, "norm1", "norm2", "norm3")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = x @ p["embed"] + p["embed_bias"]
        y = layer_norm(p, "norm1", x).swapaxes(1, 2)
        y = jax.nn.gelu(y @ p["a"] + p["a_bias"]) @ p["b"] + p["b_bias"]
        x = x + y.swapaxes(1, 2)
        y = jax.nn.gelu(layer_norm(p, "norm2", x) @ p["c"] + p["c_bias"])
        x = x + y @ p["d"] + p["d_bias"]
        return layer_norm(p, "norm3", x).mean(1) @ p["head"]

    return Model(fn, make.params, make.array(2, 5, 4))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Tokens, heads, width; several queries may share a key."""
    several = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(y, several, 2) for y in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v)


def vision_transformer(make: Maker) -> Model:
    """A class token, position embeddings, one fused projection to heads."""
    make.weights(embed=(4, 6), qkv=(6, 18), out=(6, 6), up=(6, 8), down=(8, 6))
    make.weights(token=(1, 1, 6), position=(1, 5, 6), head=(6, 3))
    make.vectors(18, "qkv_bias"), make.vectors(6, "out_bias", "down_bias")
    make.vectors(8, "up_bias")
    _norms(make, 6, "norm1", "norm2", "norm3")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = x @ p["embed"]
        token = jnp.broadcast_to(p["token"], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([token, x], 1) + p["position"]
        y = layer_norm(p, "norm1", x) @ p["qkv"] + p["qkv_bias"]
        parts = [z.reshape(*z.shape[:2], 2, 3) for z in jnp.split(y, 3, -1)]
        x = x + attend(*parts).reshape(x.shape) @ p["out"] + p["out_bias"]
        y = jax.nn.gelu(layer_norm(p, "norm2", x) @ p["up"] + p["up_bias"])
        x = x + y @ p["down"] + p["down_bias"]
        return layer_norm(p, "norm3", x)[:, 0] @ p["head"]

    return Model(fn, make.params, make.array(2, 4, 4))


def mobilenet_v2(make: Maker) -> Model:
    """Inverted residuals: ReLU6 before and after a depthwise convolution."""
    make.weights(stem=(3, 3, 2, 4), up=(1, 1, 4, 8), deep=(3, 3, 1, 8))
    make.weights(down=(1, 1, 8, 4), last=(1, 1, 4, 6), head=(6, 3))
    _batch_norms(make, 4, "norm1", "norm4")
    _batch_norms(make, 8, "norm2", "norm3")
    _batch_norms(make, 6, "norm5")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(batch_norm(p, "norm1", conv(x, p["stem"])))
        y = jax.nn.relu6(batch_norm(p, "norm2", conv(x, p["up"])))
        y = jax.nn.relu6(batch_norm(p, "norm3", conv(y, p["deep"], 2)))
        y = batch_norm(p, "norm4", conv(y, p["down"]))
        y = y + x[:, ::2, ::2]
        y = jax.nn.relu6(batch_norm(p, "norm5", conv(y, p["last"])))
        return y.mean((1, 2)) @ p["head"]

    return Model(fn, make.params, make.array(2, 4, 4, 2))


def efficientnet(make: Maker) -> Model:
    """Squeeze and excite between a depthwise convolution and the projection."""
    make.weights(up=(1, 1, 4, 8), deep=(3, 3, 1, 8), squeeze=(8, 3), excite=(3, 8))
    make.weights(down=(1, 1, 8, 5), head=(5, 3))
    make.vectors(3, "squeeze_bias"), make.vectors(8, "excite_bias")
    _batch_norms(make, 8, "norm1", "norm2")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.silu(batch_norm(p, "norm1", conv(x, p["up"])))
        x = jax.nn.silu(batch_norm(p, "norm2", conv(x, p["deep"])))
        s = x.mean((1, 2), keepdims=True) @ p["squeeze"] + p["squeeze_bias"]
        s = jax.nn.sigmoid(jax.nn.silu(s) @ p["excite"] + p["excite_bias"])
        return conv(x * s, p["down"]).mean((1, 2)) @ p["head"]

    return Model(fn, make.params, make.array(2, 4, 4, 4))


def convnext(make: Maker) -> Model:
    """A depthwise convolution, a norm, a wide middle, a scale per channel."""
    make.weights(stem=(2, 2, 3, 4), deep=(3, 3, 1, 4), up=(4, 8), down=(8, 4))
    make.weights(head=(4, 3))
    make.vectors(4, "gamma", "deep_bias", "down_bias"), make.vectors(8, "up_bias")
    _norms(make, 4, "norm1", "norm2", "norm3")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = layer_norm(p, "norm1", conv(x, p["stem"], 2))
        y = layer_norm(p, "norm2", conv(x, p["deep"]) + p["deep_bias"])
        y = jax.nn.gelu(y @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]
        x = x + p["gamma"] * y
        return layer_norm(p, "norm3", x.mean((1, 2))) @ p["head"]

    return Model(fn, make.params, make.array(2, 4, 4, 3))


def split_of_nothing(make: Maker) -> Model:
    """Parts of an attention's channels by window; one part has no channels."""
    make.weights(embed=(4, 8), near=(3, 3, 1, 4), far=(5, 5, 1, 4), head=(8, 3))
    make.vectors(8, "embed_bias")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = jax.nn.hard_swish(x @ p["embed"] + p["embed_bias"])
        near, far, none = jnp.split(x, [4, 8], -1)
        near, far = conv(near, p["near"]), conv(far, p["far"])
        y = jnp.concatenate([near, far, jax.nn.sigmoid(none)], -1)
        x = x * jnp.roll(y, (0, 1), (1, 2))
        return x.mean((1, 2)) @ p["head"]

    return Model(fn, make.params, make.array(2, 4, 4, 4))


def gated_recurrent_unit(make: Maker) -> Model:
    """As in Keras: three gates in one kernel, both biases in one array."""
    make.weights(kernel=(3, 12), recurrent=(4, 12), head=(4, 2))
    make.params["bias"] = make.array(2, 12)

    def fn(p: Params, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            z, r, c = jnp.split(x @ p["kernel"] + p["bias"][0], 3, -1)
            hz, hr, hc = jnp.split(h @ p["recurrent"] + p["bias"][1], 3, -1)
            z, r = jax.nn.sigmoid(z + hz), jax.nn.sigmoid(r + hr)
            return z * h + (1 - z) * jnp.tanh(c + r * hc), None

        start = jnp.zeros((x.shape[0], p["recurrent"].shape[0]), x.dtype)
        return jax.lax.scan(step, start, x.swapaxes(0, 1))[0] @ p["head"]

    return Model(fn, make.params, make.array(2, 5, 3))


def u_net(make: Maker) -> Model:
    """Down, up, the skip concatenated, GroupNorm and SiLU; time added to channels."""
    make.weights(stem=(3, 3, 2, 4), down=(3, 3, 4, 6), time=(3, 6), middle=(3, 3, 6, 6))
    make.weights(up=(3, 3, 10, 4), last=(1, 1, 4, 2))
    _norms(make, 4, "norm1", "norm3")
    _norms(make, 6, "norm2")

    def fn(p: Params, x: jax.Array) -> jax.Array:
        x = conv(x, p["stem"])
        y = conv(jax.nn.silu(group_norm(p, "norm1", x, 2)), p["down"], 2)
        time = jax.nn.silu(jnp.linspace(-1, 1, 3)) @ p["time"]
        y = conv(jax.nn.silu(group_norm(p, "norm2", y + time, 3)), p["middle"])
        y = jax.image.resize(y, (*x.shape[:3], y.shape[3]), "nearest")
        y = conv(jnp.concatenate([x, y], -1), p["up"])
        return conv(jax.nn.silu(group_norm(p, "norm3", y, 2)), p["last"])

    return Model(fn, make.params, make.array(2, 4, 4, 2))


def grouped_queries(make: Maker) -> Model:
    """A decoder of today: queries in groups, a causal mask, SwiGLU, RMS norms."""
    make.weights(embed=(11, 6), q=(6, 4, 3), k=(6, 2, 3), v=(6, 2, 3), o=(4, 3, 6))
    make.weights(gate=(6, 5), up=(6, 5), down=(5, 6), head=(6, 11))
    make.vectors(6, "norm1", "norm2", "norm3")
    rms = lambda x: x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3)

    def fn(p: Params, tokens: jax.Array) -> jax.Array:
        x = p["embed"][tokens]
        y = rms(x) * p["norm1"]
        q, k, v = (jnp.einsum("btc,chd->bthd", y, p[n]) for n in "qkv")
        k = jnp.repeat(k, 2, 2)
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)
        y = jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(v, 2, 2))
        x = x + jnp.einsum("bthd,hdc->btc", y, p["o"])
        y = rms(x) * p["norm2"]
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return (rms(x) * p["norm3"]) @ p["head"]

    return Model(fn, make.params, jnp.array([[1, 4, 2, 9], [3, 3, 0, 7]]))


MODELS: dict[str, Callable[[Maker], Model]] = {
    f.__name__: f
    for f in (
        mixer,
        vision_transformer,
        mobilenet_v2,
        efficientnet,
        convnext,
        split_of_nothing,
        gated_recurrent_unit,
        u_net,
        grouped_queries,
    )
}


def model(name: str, seed: int = 0) -> Model:
    """The model of that name."""
    return MODELS[name](Maker(seed))
