"""Modules of NNX and Equinox with parts that are zero, and the sizes that must follow.

Layers of the libraries, and layers as users write them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DEAD = np.array([1, 2, 5])


class Case(NamedTuple):
    """A module, the slices of its arrays that are zero, and what follows.

    Attributes:
      make: the module.
      zero: indices, by paths of arrays.
      shape: of the input, or of more than one.
      sizes: attributes of the smaller module, by path.
      call: how the module is called.
      compiled: whether it can be compiled as it is, which is quicker.
    """

    make: Callable[[], Any]
    zero: Mapping[str, Any]
    shape: tuple[int, ...]
    sizes: Mapping[str, Any]
    call: Callable[..., Any] = lambda module, x: module(x)
    compiled: bool = True


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def key() -> jax.Array:
    return jax.random.key(0)


class Chain(nnx.Module):
    """Layers, one after the other, in a list."""

    def __init__(self, *layers: Any):
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(nnx.Module):
    def __init__(self, inner: nnx.Module):
        self.inner = inner

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.inner(x)


def relu() -> Any:
    return Function(nnx.relu)


class Function(nnx.Module):
    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fn(x)


def pool(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


class Attention(nnx.Module):
    """Fused, with a reshape by its own sizes."""

    def __init__(self, dim: int, heads: int, recorded: bool = True):
        if recorded:
            self.dim = dim
            self.inner = np.int64(heads * 6)
        self.heads, self.hd = heads, 6
        self.qkv = nnx.Linear(dim, 3 * heads * 6, rngs=rngs())
        self.proj = nnx.Linear(heads * 6, dim, rngs=rngs())

    def shape(self, x: jax.Array) -> tuple[int, ...]:
        return (*x.shape[:2], 3, self.heads, self.hd)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(self.shape(x)), 2, 0)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / self.hd**0.5
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
        return self.proj(mixed.reshape(*x.shape[:2], -1))


class Inferred(Attention):
    """The number of heads is left to `reshape`."""

    def shape(self, x: jax.Array) -> tuple[int, ...]:
        return (*x.shape[:2], 3, -1, self.hd)


@dataclasses.dataclass(frozen=True)
class Config:
    n_head: int
    n_layer: int
    bias: bool = True


class Configured(Attention):
    """Sizes stand in a configuration that other modules share."""

    def __init__(self, dim: int, config: Config):
        super().__init__(dim, config.n_head, recorded=False)
        del self.heads
        self.config = config

    def shape(self, x: jax.Array) -> tuple[int, ...]:
        return (*x.shape[:2], 3, self.config.n_head, self.hd)


class Grouped(nnx.Module):
    """Queries share keys and values: sizes that are quotients of others."""

    def __init__(self, dim: int, heads: int, kv: int, hd: int):
        self.heads, self.kv, self.rep, self.hd = heads, kv, heads // kv, hd
        self.q = nnx.Linear(dim, heads * hd, use_bias=False, rngs=rngs())
        self.k = nnx.Linear(dim, kv * hd, use_bias=False, rngs=rngs())
        self.v = nnx.Linear(dim, kv * hd, use_bias=False, rngs=rngs())
        self.o = nnx.Linear(heads * hd, dim, use_bias=False, rngs=rngs())

    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, _ = x.shape
        q = self.q(x).reshape(b, t, self.kv, self.rep, self.hd)
        k = self.k(x).reshape(b, t, self.kv, self.hd)
        v = self.v(x).reshape(b, t, self.kv, self.hd)
        scores = jax.nn.softmax(jnp.einsum("btgrd,bsgd->bgrts", q, k))
        mixed = jnp.einsum("bgrts,bsgd->btgrd", scores, v)
        return self.o(mixed.reshape(b, t, self.heads * self.hd))


class Split(nnx.Module):
    """It has sizes, and no arrays."""

    def __init__(self, parts: int, size: int):
        self.shape = (parts, size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(x.reshape(*x.shape[:-1], *self.shape)).reshape(x.shape)


class Twice(nnx.Module):
    """One module in two places."""

    def __init__(self) -> None:
        self.first = nnx.Linear(8, 10, rngs=rngs())
        self.again = self.first
        self.last = nnx.Linear(10, 3, rngs=rngs())
        self.width = 10

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.first(x)) + self.again(2 * x))


class Gain(nnx.Param):
    """A kind of parameter that no library knows."""


class Scaled(nnx.Module):
    def __init__(self, features: int):
        self.features = features
        self.inner = nnx.Linear(8, features, rngs=rngs())
        self.gain = Gain(jnp.ones(features))
        self.out = nnx.Linear(features, 3, rngs=rngs())

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.inner(x) * self.gain[...][None]
        return self.out(y.reshape(-1, self.features))


class Words(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(11, 10, rngs=rngs())
        self.out = nnx.Linear(10, 3, rngs=rngs())

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.embed(jnp.asarray(4 * x, int) % 11)))


class Gated(nnx.Module):
    """One reader of a layer needs less of it than the other."""

    def __init__(self) -> None:
        self.first = nnx.Linear(8, 10, rngs=rngs())
        self.gain = nnx.Param(jnp.ones((1, 10)))
        self.a, self.b = (nnx.Linear(10, 3, rngs=rngs()) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        return self.a(x) + self.b(nnx.relu(x * self.gain[...]))


def heads_of(name: str, dead: slice = np.s_[6:12]) -> dict[str, Any]:
    """The zeros of one head of four, of six entries each."""
    wide = np.concatenate([24 * k + np.arange(24)[dead] for k in range(3)])
    return {
        f"{name}qkv/kernel": np.s_[:, wide],
        f"{name}qkv/bias": wide,
        f"{name}proj/kernel": dead,
    }


def linears(width: int = 10) -> Chain:
    layers = nnx.Linear(8, width, rngs=rngs()), nnx.Linear(width, 8, rngs=rngs())
    return Chain(layers[0], relu(), layers[1])


def dead_hidden(name: str = "", dead: Any = DEAD, last: int = 2) -> dict[str, Any]:
    first = {f"{name}layers/0/kernel": np.s_[..., dead], f"{name}layers/0/bias": dead}
    return first | {f"{name}layers/{last}/kernel": np.s_[..., dead, :]}


def convs(*middle: Any, width: int = 8, groups: int = 1) -> Chain:
    first = nnx.Conv(3, width, (3, 3), rngs=rngs())
    last = nnx.Conv(width, 4, (3, 3), feature_group_count=groups, rngs=rngs())
    return Chain(first, *middle, relu(), last)


def normed(norm: Any) -> Chain:
    norm.eval()
    return convs(norm)


def dead_normed(dead: Any) -> dict[str, Any]:
    return {
        "layers/0/kernel": np.s_[..., dead],
        "layers/0/bias": dead,
        "layers/1/scale": dead,
        "layers/1/bias": dead,
    }


def recurrent(cell: type) -> Callable[[], Chain]:
    def make() -> Chain:
        rnn = nnx.RNN(cell(4, 6, param_dtype=float, rngs=rngs()), rngs=rngs())
        return Chain(rnn, nnx.Linear(6, 3, rngs=rngs()))

    return make


IMAGES = (2, 6, 6, 3)
TOKENS = (2, 5, 24)

NNX = {
    "linear, both sides": Case(
        lambda: Chain(
            *(nnx.Linear(8, 10, rngs=rngs()), nnx.Linear(10, 10, rngs=rngs())),
            *(relu(), nnx.Linear(10, 3, rngs=rngs())),
        ),
        {"layers/0/kernel": np.s_[:, DEAD], "layers/0/bias": DEAD}
        | {"layers/1/kernel": np.s_[:, 7:], "layers/1/bias": np.s_[7:]},
        (2, 8),
        {"layers.0.out_features": 7, "layers.1.in_features": 7}
        | {"layers.1.out_features": 7, "layers.3.in_features": 7},
    ),
    "linear, square": Case(
        lambda: Chain(
            *(nnx.Linear(8, 10, rngs=rngs()), nnx.Linear(10, 10, rngs=rngs())),
            *(relu(), nnx.Linear(10, 3, rngs=rngs())),
        ),
        {"layers/0/kernel": np.s_[:, DEAD], "layers/0/bias": DEAD}
        | {"layers/1/kernel": np.s_[:, 5:], "layers/1/bias": np.s_[5:]},
        (2, 8),
        {"layers.1.in_features": 7, "layers.1.out_features": 5},
    ),
    "sequential": Case(
        lambda: nnx.Sequential(*linears().layers),
        dead_hidden(),
        (2, 8),
        {"layers.0.out_features": 7, "layers.2.in_features": 7},
    ),
    "convolutions": Case(
        convs,
        {"layers/0/kernel": np.s_[..., DEAD], "layers/0/bias": DEAD},
        IMAGES,
        {"layers.0.out_features": 5, "layers.2.in_features": 5}
        | {"layers.2.kernel_shape": (3, 3, 5, 4), "layers.0.kernel_size": (3, 3)},
    ),
    "convolution in groups": Case(
        lambda: convs(groups=4),
        {"layers/0/kernel": np.s_[..., 2:4], "layers/0/bias": np.s_[2:4]}
        | {"layers/2/kernel": np.s_[..., 1:2], "layers/2/bias": np.s_[1:2]},
        IMAGES,
        {},
    ),
    "batch norm": Case(
        lambda: normed(nnx.BatchNorm(8, use_running_average=True, rngs=rngs())),
        dead_normed(DEAD),
        IMAGES,
        {"layers.1.num_features": 5, "layers.0.out_features": 5},
    ),
    "group norm": Case(
        lambda: convs(nnx.GroupNorm(16, num_groups=4, rngs=rngs()), width=16),
        dead_normed(np.r_[4:8, 12:16]),
        IMAGES,
        {"layers.1.num_groups": 2, "layers.1.group_size": 4}
        | {"layers.0.out_features": 8},
    ),
    "group norm by size": Case(
        lambda: convs(
            nnx.GroupNorm(12, num_groups=None, group_size=2, rngs=rngs()), width=12
        ),
        dead_normed(np.r_[2:4, 8:12]),
        IMAGES,
        {"layers.1.num_groups": 3, "layers.1.group_size": 2}
        | {"layers.3.in_features": 6},
    ),
    "transposed convolution": Case(
        lambda: Chain(
            nnx.ConvTranspose(3, 8, (2, 2), strides=2, rngs=rngs()),
            *(relu(), nnx.Conv(8, 3, (1, 1), rngs=rngs())),
        ),
        {"layers/0/kernel": np.s_[..., DEAD], "layers/0/bias": DEAD},
        IMAGES,
        {"layers.0.out_features": 5, "layers.0.kernel_shape": (2, 2, 3, 5)},
    ),
    "several axes": Case(
        lambda: Chain(
            nnx.LinearGeneral(8, (4, 6), rngs=rngs()),
            nnx.LinearGeneral((4, 6), 3, axis=(-2, -1), rngs=rngs()),
        ),
        {"layers/0/kernel": np.s_[:, 1], "layers/0/bias": 1},
        (2, 8),
        {"layers.0.out_features": (3, 6), "layers.1.in_features": (3, 6)},
    ),
    "embedding": Case(
        Words,
        {"embed/embedding": np.s_[:, DEAD]},
        (2, 5),
        {"embed.features": 7, "embed.num_embeddings": 11, "out.in_features": 7},
    ),
    "low rank": Case(
        lambda: Chain(
            nnx.LoRALinear(8, 12, lora_rank=2, rngs=rngs()),
            nnx.LoRALinear(12, 12, lora_rank=2, rngs=rngs()),
            *(relu(), nnx.Linear(12, 3, rngs=rngs())),
        ),
        {"layers/0/kernel": np.s_[:, DEAD], "layers/0/bias": DEAD}
        | {"layers/0/lora/lora_b": np.s_[:, DEAD]}
        | {"layers/1/kernel": np.s_[:, 4:], "layers/1/bias": np.s_[4:]}
        | {"layers/1/lora/lora_b": np.s_[:, 4:]},
        (2, 8),
        {"layers.0.out_features": 9, "layers.0.lora.out_features": 9}
        | {"layers.1.in_features": 9, "layers.1.out_features": 4}
        | {"layers.1.lora.in_features": 9, "layers.1.lora.out_features": 4},
    ),
    "LSTM": Case(
        recurrent(nnx.OptimizedLSTMCell),
        {},
        (2, 4, 4),
        {"layers.0.cell.in_features": 4},
        compiled=False,
    ),
    "attention": Case(
        lambda: Residual(Attention(24, 4)),
        heads_of("inner/"),
        TOKENS,
        {"inner.heads": 3, "inner.hd": 6, "inner.qkv.out_features": 54},
    ),
    "attention, heads inferred": Case(
        lambda: Residual(Inferred(24, 4)),
        heads_of("inner/"),
        TOKENS,
        {"inner.heads": 3, "inner.hd": 6},
    ),
    "attention, inner width apart": Case(
        lambda: Attention(20, 4),
        heads_of(""),
        (2, 5, 20),
        {"heads": 3, "inner": 18, "dim": 20, "proj.in_features": 18},
    ),
    "attention, as many heads as entries": Case(
        lambda: Attention(20, 6),
        {
            "qkv/kernel": np.s_[:, np.r_[6:12, 42:48, 78:84]],
            "qkv/bias": np.r_[6:12, 42:48, 78:84],
            "proj/kernel": np.s_[6:12],
        },
        (2, 5, 20),
        {"heads": 5, "hd": 6, "inner": 30},
    ),
    "attention, configured": Case(
        lambda: Configured(20, Config(4, 2)),
        heads_of(""),
        (2, 5, 20),
        {"config.n_head": 3, "config.n_layer": 2},
    ),
    "grouped queries": Case(
        lambda: Grouped(10, 8, 2, 3),
        {"q/kernel": np.s_[:, np.r_[3:6, 15:18]], "o/kernel": np.r_[3:6, 15:18]},
        (2, 5, 10),
        {"heads": 6, "kv": 2, "rep": 3, "hd": 3},
    ),
    "sizes without arrays": Case(
        lambda: Chain(
            nnx.Linear(8, 12, rngs=rngs()), Split(3, 4), nnx.Linear(12, 2, rngs=rngs())
        ),
        {"layers/2/kernel": np.s_[4:8]},
        (2, 8),
        {"layers.1.shape": (2, 4)},
    ),
    "shared": Case(
        Twice,
        {"again/kernel": np.s_[:, DEAD], "again/bias": DEAD},
        (2, 8),
        {"first.out_features": 7, "again.out_features": 7, "last.in_features": 7}
        | {"width": 7},
    ),
    "own variable": Case(lambda: Scaled(10), {"gain": DEAD}, (2, 8), {"features": 7}),
    "read by two": Case(
        Gated,
        {"gain": np.s_[:, DEAD], "b/kernel": DEAD},
        (2, 8),
        {"first.out_features": 10, "b.in_features": 10},
    ),
}

GONE = {
    "linear": Case(
        lambda: Residual(linears()),
        dead_hidden("inner/", np.arange(10)),
        (2, 8),
        {"inner.layers.0.out_features": 1, "inner.layers.2.in_features": 1},
    ),
    "attention": Case(
        lambda: Residual(Attention(20, 4)),
        heads_of("inner/", np.s_[0:24]),
        (2, 5, 20),
        {"inner.heads": 4},
    ),
}


PLACES = np.r_[4:8, 1, 9, 13]  # a group of four, and one place of every other group


class Stream(nnx.Module):
    """What its last layer does not read of the stream, its norm counts."""

    def __init__(self) -> None:
        self.first = nnx.Linear(8, 10, rngs=rngs())
        self.norm = nnx.LayerNorm(10, rngs=rngs())
        self.mix = nnx.Linear(10, 10, rngs=rngs())
        self.last = nnx.Linear(10, 3, rngs=rngs())

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        return self.last(x + self.mix(nnx.relu(self.norm(x))))


MEANS = {
    "group norm": Case(
        lambda: convs(nnx.GroupNorm(16, num_groups=4, rngs=rngs()), width=16),
        dead_normed(PLACES),
        IMAGES,
        {"layers.1.num_groups": 3, "layers.1.group_size": 4}
        | {"layers.0.out_features": 12, "layers.3.in_features": 12},
    ),
    "group norm without arrays": Case(
        lambda: convs(
            nnx.GroupNorm(16, 4, use_bias=False, use_scale=False, rngs=rngs()), width=16
        ),
        {"layers/0/kernel": np.s_[..., PLACES], "layers/0/bias": PLACES}
        | {"layers/3/kernel": np.s_[..., PLACES, :]},
        IMAGES,
        {"layers.1.num_groups": 3, "layers.0.out_features": 12},
    ),
    "stream": Case(
        Stream,
        {"first/kernel": np.s_[:, DEAD], "first/bias": DEAD}
        | {"norm/scale": DEAD, "norm/bias": DEAD}
        | {"mix/kernel": np.s_[:, DEAD], "mix/bias": DEAD, "last/kernel": DEAD},
        (2, 8),
        {"first.out_features": 10, "mix.in_features": 10},
    ),
}


class EqxAttention(eqx.Module):
    heads: int
    hd: int = eqx.field(static=True)
    qkv: eqx.nn.Linear
    proj: eqx.nn.Linear

    def __init__(self, dim: int, heads: int):
        a, b = jax.random.split(key())
        self.heads, self.hd = heads, 6
        self.qkv = eqx.nn.Linear(dim, 18 * heads, key=a)
        self.proj = eqx.nn.Linear(6 * heads, dim, key=b)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = jax.vmap(self.qkv)(x).reshape(len(x), 3, self.heads, self.hd)
        q, k, v = jnp.moveaxis(wide, 1, 0)
        scores = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k) / self.hd**0.5)
        mixed = jnp.einsum("hts,shd->thd", scores, v)
        return jax.vmap(self.proj)(mixed.reshape(len(x), -1))


class Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear
    hidden: int = eqx.field(static=True)

    def __init__(self) -> None:
        self.cell = eqx.nn.GRUCell(4, 6, key=key())
        self.out, self.hidden = eqx.nn.Linear(6, 3, key=key()), 6

    def __call__(self, x: jax.Array) -> jax.Array:
        start = jnp.zeros(self.hidden)
        last, _ = jax.lax.scan(lambda h, u: (self.cell(u, h), None), start, x)
        return self.out(last)


def each(module: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(module)(x)


def compiled(module: Any, x: jax.Array) -> jax.Array:
    return eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(module, x)


def eqx_convs(*middle: Any, width: int = 8) -> eqx.nn.Sequential:
    first = eqx.nn.Conv2d(3, width, 3, key=key())
    last = eqx.nn.Conv2d(width, width, 3, key=key())
    return eqx.nn.Sequential([first, *middle, eqx.nn.Lambda(jax.nn.relu), last])


CHANNELS = (2, 3, 8, 8)

EQUINOX = {
    "linear, square": Case(
        lambda: eqx.nn.Sequential(list(eqx.nn.MLP(8, 3, 10, 2, key=key()).layers)),
        {"layers/0/weight": DEAD, "layers/0/bias": DEAD}
        | {"layers/1/weight": np.s_[5:], "layers/1/bias": np.s_[5:]},
        (2, 8),
        {"layers.0.out_features": 7, "layers.1.in_features": 7}
        | {"layers.1.out_features": 5, "layers.2.in_features": 5},
        each,
    ),
    "compiled": Case(
        lambda: eqx.nn.MLP(8, 3, 10, 1, key=key()),
        {"layers/0/weight": DEAD, "layers/0/bias": DEAD},
        (2, 8),
        {"width_size": 7, "in_size": 8, "depth": 1},
        compiled,
    ),
    "depthwise": Case(
        lambda: eqx_convs(eqx.nn.Conv2d(8, 8, 3, groups=8, key=key())),
        {"layers/0/weight": DEAD, "layers/0/bias": DEAD}
        | {"layers/1/weight": DEAD, "layers/1/bias": DEAD},
        CHANNELS,
        {"layers.0.out_channels": 5, "layers.1.groups": 5, "layers.1.in_channels": 5}
        | {"layers.1.out_channels": 5, "layers.3.in_channels": 5},
        each,
    ),
    "group norm": Case(
        lambda: eqx_convs(eqx.nn.GroupNorm(4, 16), width=16),
        {"layers/0/weight": np.r_[4:8, 12:16], "layers/0/bias": np.r_[4:8, 12:16]}
        | {"layers/1/weight": np.r_[4:8, 12:16], "layers/1/bias": np.r_[4:8, 12:16]},
        CHANNELS,
        {"layers.1.groups": 2, "layers.1.channels": 8, "layers.3.in_channels": 8},
        each,
    ),
    "transposed convolution": Case(
        lambda: eqx.nn.Sequential(
            [
                eqx.nn.ConvTranspose2d(3, 8, 2, stride=2, key=key()),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(8, 3, 1, key=key()),
            ]
        ),
        {"layers/0/weight": DEAD, "layers/0/bias": DEAD},
        CHANNELS,
        {"layers.0.out_channels": 5, "layers.2.in_channels": 5},
        each,
    ),
    "attention of the library": Case(
        lambda: eqx.nn.MultiheadAttention(4, 24, key=key()),
        {f"{part}_proj/weight": np.s_[6:12] for part in ("query", "key", "value")}
        | {"output_proj/weight": np.s_[:, 6:12]},
        (5, 24),
        {"num_heads": 3, "qk_size": 6, "vo_size": 6, "query_proj.out_features": 18},
        lambda module, x: module(x, x, x),
    ),
    "attention": Case(
        lambda: EqxAttention(20, 4),
        {"qkv/weight": np.r_[6:12, 30:36, 54:60], "qkv/bias": np.r_[6:12, 30:36, 54:60]}
        | {"proj/weight": np.s_[:, 6:12]},
        (2, 5, 20),
        {"heads": 3, "hd": 6, "proj.in_features": 18},
        each,
    ),
    "recurrent": Case(
        Recurrent,
        {"cell/weight_ih": np.r_[2, 8, 14], "cell/weight_hh": np.r_[2, 8, 14]}
        | {"cell/bias": np.r_[2, 8, 14], "cell/bias_n": np.r_[2]},
        (2, 5, 4),
        {"cell.input_size": 4},
        each,
    ),
}


class Tokens(eqx.Module):
    """A norm in groups over the features of every token."""

    first: eqx.nn.Linear
    norm: eqx.nn.GroupNorm
    last: eqx.nn.Linear

    def __init__(self, affine: bool):
        self.first = eqx.nn.Linear(8, 16, key=key())
        self.norm = eqx.nn.GroupNorm(4, 16, channelwise_affine=affine)
        self.last = eqx.nn.Linear(16, 3, key=key())

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jax.nn.relu(self.norm(self.first(x))))


EQUINOX_MEANS = {
    "group norm": Case(
        lambda: Tokens(affine=True),
        {"first/weight": PLACES, "first/bias": PLACES}
        | {"norm/weight": PLACES, "norm/bias": PLACES},
        (2, 8),
        {"norm.groups": 3, "norm.channels": 12, "last.in_features": 12},
        each,
    ),
    "group norm without arrays": Case(
        lambda: Tokens(affine=False),
        {"first/weight": PLACES, "first/bias": PLACES}
        | {"last/weight": np.s_[:, PLACES]},
        (2, 8),
        {"norm.groups": 3, "first.out_features": 12, "last.in_features": 12},
        each,
    ),
}
