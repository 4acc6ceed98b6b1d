"""Networks made at random, as plain JAX functions, for the laws of compaction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Network:
    """A list of steps; each takes the parameters and a feature map (B, H, W, C)."""

    params: dict
    steps: list
    image: tuple
    description: str

    def apply(self, params, x):
        for step in self.steps:
            x = step(params, x)
        return x


class Builder:
    def __init__(self, seed: int, tiny: bool = False):
        self.rng = np.random.default_rng(seed)
        self.params: dict = {}
        self.steps: list = []
        self.words: list = []
        self.size = 4 if tiny else int(self.rng.choice([4, 5, 6]))
        self.width = 4 if tiny else int(self.rng.choice([2, 3, 4]))
        self.image = (2, self.size, self.size, self.width)

    def weight(self, *shape, scale=None):
        name = f"w{len(self.params)}"
        scale = 1 / np.sqrt(max(1, np.prod(shape[:-1]))) if scale is None else scale
        self.params[name] = self.rng.normal(size=shape) * scale
        return name

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def conv(self, width, kernel=3, groups=1, **options):
        k = self.weight(kernel, kernel, self.width // groups, width)
        b = self.weight(width, scale=0.3) if self.rng.random() < 0.5 else None
        padding = options.pop("padding", "SAME")

        def step(p, x):
            y = jax.lax.conv_general_dilated(
                x,
                p[k],
                options.get("strides", (1, 1)),
                padding,
                lhs_dilation=options.get("lhs_dilation", (1, 1)),
                rhs_dilation=options.get("rhs_dilation", (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            return y if b is None else y + p[b]

        self.width = width
        return step

    def norm(self, kind):
        n = self.width
        scale, bias = self.weight(n, scale=1.0), self.weight(n, scale=0.3)
        mean, var = self.weight(n, scale=0.3), self.weight(n, scale=1.0)
        groups = self.pick(*[g for g in (1, 2, 3, 4) if n % g == 0])

        def step(p, x):
            if kind == "batch":
                y = (x - p[mean]) / jnp.sqrt(p[var] ** 2 + 0.1)
            elif kind == "layer":
                m = x.mean(-1, keepdims=True)
                y = (x - m) / jnp.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + 0.1)
            elif kind == "rms":
                y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 0.1)
            elif kind == "group":
                g = x.reshape(*x.shape[:-1], groups, n // groups)
                m = g.mean((1, 2, 4), keepdims=True)
                v = (g**2).mean((1, 2, 4), keepdims=True) - m**2
                y = ((g - m) / jnp.sqrt(v + 0.1)).reshape(x.shape)
            else:
                m = x.mean((1, 2), keepdims=True)
                y = (x - m) / jnp.sqrt(((x - m) ** 2).mean((1, 2), keepdims=True) + 0.1)
            return y * p[scale] + p[bias]

        return step

    def activation(self):
        functions = (jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.silu, jax.nn.sigmoid)
        f = self.pick(*functions)
        return lambda p, x: f(x)

    def pool(self):
        window, kind = (1, 2, 2, 1), self.pick("max", "sum")

        def step(p, x):
            if kind == "max":
                return jax.lax.reduce_window(
                    x, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), "SAME"
                )
            return jax.lax.reduce_window(
                x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME"
            )

        return step

    def attention(self):
        n, heads, d = self.width, 2, 3
        q, k, v = (self.weight(n, heads, d) for _ in range(3))
        o = self.weight(heads, d, n)

        def step(p, x):
            t = x.reshape(x.shape[0], -1, n)
            qs, ks, vs = (jnp.einsum("btc,chd->bthd", t, p[w]) for w in (q, k, v))
            a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", qs, ks), -1)
            y = jnp.einsum("bhts,bshd->bthd", a, vs)
            return x + jnp.einsum("bthd,hdc->btc", y, p[o]).reshape(x.shape)

        return step

    def scan(self):
        n, layers = self.width, 2
        a, b = self.weight(layers, n, 5), self.weight(layers, 5, n)

        def step(p, x):
            def layer(h, ws):
                return h + jnp.tanh(h @ ws[0]) @ ws[1], None

            return jax.lax.scan(layer, x, (p[a], p[b]))[0]

        return step

    def branch(self, depth):
        return [self.block(depth) for _ in range(self.rng.integers(1, 3))]

    def block(self, depth=0):
        names = ["conv", "norm", "activation", "grouped", "depthwise", "pool"]
        names += ["dilated", "transposed", "shared", "standardised", "rev", "pad"]
        names += ["slice", "dense", "attention", "remat", "heads", "scan", "shuffle"]
        names += ["cond", "loop", "fused", "queries"]
        if depth < 2:
            names += ["residual", "concat", "residual", "concat", "gate"]
        name = names[self.rng.integers(len(names))]
        self.words.append(name)
        return getattr(self, f"_{name}")(depth)

    def _conv(self, depth):
        return self.conv(int(self.rng.integers(2, 7)))

    def _norm(self, depth):
        return self.norm(self.pick("batch", "layer", "rms", "group", "instance"))

    def _activation(self, depth):
        return self.activation()

    def _pool(self, depth):
        return self.pool()

    def _attention(self, depth):
        return self.attention()

    def _scan(self, depth):
        return self.scan()

    def _grouped(self, depth):
        groups = self.pick(*[g for g in (1, 2, 3) if self.width % g == 0])
        return self.conv(groups * int(self.rng.integers(1, 4)), groups=groups)

    def _depthwise(self, depth):
        return self.conv(self.width * int(self.rng.integers(1, 3)), groups=self.width)

    def _dilated(self, depth):
        return self.conv(int(self.rng.integers(2, 5)), rhs_dilation=(2, 2))

    def _transposed(self, depth):
        return self.conv(
            int(self.rng.integers(2, 5)), lhs_dilation=(2, 2), padding=((1, 1), (1, 1))
        )

    def _shared(self, depth):
        n = self.width
        w = self.weight(n, n)
        return lambda p, x: jnp.tanh(x @ p[w]) @ p[w].T

    def _standardised(self, depth):
        n, m = self.width, int(self.rng.integers(2, 6))
        w = self.weight(n, m)
        self.width = m

        def step(p, x):
            k = p[w] - p[w].mean(0)
            return x @ (k / jnp.sqrt((k**2).mean(0) + 0.01))

        return step

    def _rev(self, depth):
        return lambda p, x: x[..., ::-1]

    def _pad(self, depth):
        self.width += 2
        return lambda p, x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)))

    def _slice(self, depth):
        if self.width < 3:
            return lambda p, x: x
        self.width -= 1
        return lambda p, x: x[..., 1:]

    def _dense(self, depth):
        n, hidden = self.width, int(self.rng.integers(2, 7))
        a, b = self.weight(n, hidden), self.weight(hidden, scale=0.3)
        c = self.weight(hidden, n)
        return lambda p, x: jax.nn.relu(x @ p[a] + p[b]) @ p[c]

    def _remat(self, depth):
        inner = self._dense(depth)
        return lambda p, x: jax.checkpoint(inner)(p, x)

    def _heads(self, depth):
        n = self.width
        w = self.weight(n, 6)
        v = self.weight(3, 2, n)

        def step(p, x):
            y = (x @ p[w]).reshape(*x.shape[:-1], 3, 2)
            return jnp.einsum("...hd,hdc->...c", jnp.tanh(y), p[v])

        return step

    def _cond(self, depth):
        n = self.width
        w = self.weight(n, n)

        def step(p, x):
            branches = (jnp.tanh, lambda x: x @ p[w])
            return jax.lax.cond(x[0, 0, 0, 0] > 0, *branches, x)

        return step

    def _loop(self, depth):
        n = self.width
        w = self.weight(n, n)
        return lambda p, x: jax.lax.fori_loop(0, 3, lambda _, h: h + h @ p[w], x)

    def _fused(self, depth):
        n, heads, d = self.width, 2, 3
        w, o = self.weight(n, 3 * heads * d), self.weight(heads * d, n)

        def step(p, x):
            t = x.reshape(x.shape[0], -1, n) @ p[w]
            parts = [y.reshape(*y.shape[:-1], heads, d) for y in jnp.split(t, 3, -1)]
            q, k, v = parts
            a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), -1)
            y = jnp.einsum("bhts,bshd->bthd", a, v).reshape(*t.shape[:-1], heads * d)
            return x + (y @ p[o]).reshape(x.shape)

        return step

    def _queries(self, depth):
        n, heads, several, d = self.width, 2, 2, 3
        q = self.weight(n, heads * several * d)
        k, v = self.weight(n, heads * d), self.weight(n, heads * d)
        o = self.weight(heads * several * d, n)

        def step(p, x):
            t = x.reshape(x.shape[0], -1, n)
            split = lambda y, h: y.reshape(*t.shape[:-1], h, d)
            qs = split(t @ p[q], heads * several)
            ks, vs = (jnp.repeat(split(t @ p[w], heads), several, 2) for w in (k, v))
            a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", qs, ks), -1)
            y = jnp.einsum("bhts,bshd->bthd", a, vs).reshape(*t.shape[:-1], -1)
            return x + (y @ p[o]).reshape(x.shape)

        return step

    def _shuffle(self, depth):
        if self.width % 2:
            return lambda p, x: x
        n = self.width

        def step(p, x):
            y = x.reshape(*x.shape[:-1], 2, n // 2)
            return jnp.swapaxes(y, -1, -2).reshape(x.shape)

        return step

    def _residual(self, depth):
        width = self.width
        inner = self.branch(depth + 1)
        inner.append(self.conv(width))

        def step(p, x):
            y = x
            for s in inner:
                y = s(p, y)
            return x + y if y.shape == x.shape else y

        return step

    def _gate(self, depth):
        n = self.width
        a, b = self.weight(n, n), self.weight(n, n)
        return lambda p, x: (x @ p[a]) * jax.nn.sigmoid(x @ p[b])

    def _concat(self, depth):
        width = self.width
        inner = self.branch(depth + 1)
        grown = self.width
        self.width = width + grown

        def step(p, x):
            y = x
            for s in inner:
                y = s(p, y)
            if y.shape[:-1] != x.shape[:-1]:
                x = jax.image.resize(x, (*y.shape[:-1], width), "nearest")
            return jnp.concatenate([x, y], -1)

        return step


def network(seed: int, zeros: bool = True, tiny: bool = False) -> Network:
    """A network and its parameters, with random groups at zero or without."""
    builder = Builder(seed, tiny)
    steps = [builder.block() for _ in range(1 if tiny else builder.rng.integers(2, 6))]
    classes = 3
    if builder.rng.random() < 0.5:
        head = builder.weight(builder.width, classes)
        steps.append(lambda p, x: x.mean((1, 2)) @ p[head])
    else:
        steps.append(builder.conv(classes, kernel=1))
    make = zeroed if zeros else lambda rng, w: jnp.asarray(w)
    params = {k: make(builder.rng, w) for k, w in builder.params.items()}
    return Network(params, steps, builder.image, " ".join(builder.words))


def zeroed(rng: np.random.Generator, w: np.ndarray) -> jax.Array:
    """Slices along random axes set to zero."""
    w = w.copy()
    for axis in range(w.ndim):
        if rng.random() < (0.6 if axis == w.ndim - 1 else 0.3):
            dead = rng.random(w.shape[axis]) < rng.choice([0.2, 0.5, 0.8])
            w[(slice(None),) * axis + (dead,)] = 0
    return jnp.asarray(w)
