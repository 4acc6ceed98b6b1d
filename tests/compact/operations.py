"""Programs of operations at random, for the laws of compaction.

`tests.networks` draws layers; here single operations are drawn, on values of any rank
whose first axis is the batch. Steps, once drawn, can be left out one by one
(`Program.reduced`), so that what fails becomes small.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shape = tuple[int, ...]
Step = Callable[..., Any]
OPERATIONS: dict[str, Callable[..., Step | None]] = {}
LIMIT = 240


@dataclasses.dataclass
class Program:
    """Steps on a growing list of values, of which some are returned.

    Attributes:
      params: parameters by name, with zero slices.
      steps: name, function of the parameters and of values, which values.
      outputs: which values are returned.
      shapes: the shape of every value.
    """

    params: dict[str, jax.Array]
    steps: list[tuple[str, Step, tuple[int, ...]]]
    outputs: tuple[int, ...]
    shapes: list[Shape]

    def apply(self, params: dict[str, jax.Array], x: jax.Array) -> list[jax.Array]:
        values = [x]
        used = self.used()
        for k, (_, fn, inputs) in enumerate(self.steps):
            wanted = k + 1 in used
            values.append(fn(params, *(values[i] for i in inputs)) if wanted else x)
        return [values[k] for k in self.outputs]

    def used(self) -> set[int]:
        """The values that outputs follow from."""
        used = set(self.outputs)
        for k in range(len(self.steps), 0, -1):
            if k in used:
                used.update(self.steps[k - 1][2])
        return used

    def __str__(self) -> str:
        used = self.used()
        rows = [
            f"v{k + 1} = {name}({', '.join(f'v{i}' for i in inputs)})"
            f"  # {self.shapes[k + 1]}"
            for k, (name, _, inputs) in enumerate(self.steps)
            if k + 1 in used
        ]
        return "\n".join([*rows, f"return {[f'v{k}' for k in self.outputs]}"])

    def reduced(self) -> Iterator["Program"]:
        """Programs with less in them."""
        for k in sorted(self.used()):
            if (k,) != self.outputs and k:
                yield dataclasses.replace(self, outputs=(k,))
        for k, (_, _, inputs) in enumerate(self.steps):
            if k + 1 not in self.used():
                continue
            for i in inputs:
                if i and self.shapes[i] == self.shapes[k + 1]:
                    steps = list(self.steps)
                    steps[k] = ("copy", lambda p, x: x, (i,))
                    if self.steps[k][0] != "copy":
                        yield dataclasses.replace(self, steps=steps)


class Draw:
    """What is drawn at random, from one seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, jax.Array] = {}

    def maybe(self, chance: float = 0.5) -> bool:
        return bool(self.rng.random() < chance)

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def number(self) -> float:
        return self.pick(0.0, 1.0, -0.7, 0.3, 2.0)

    def size(self) -> int:
        return int(self.rng.integers(1, 7))

    def axis(self, shape: Shape) -> int:
        """Any axis but the batch; the last one more often."""
        return len(shape) - 1 if self.maybe() else int(self.rng.integers(1, len(shape)))

    def param(self, *shape: int) -> str:
        """The name of a new parameter, slices of it zero."""
        name = f"p{len(self.params)}"
        w = self.rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        for axis in range(len(shape)):
            if self.maybe(0.5):
                dead = self.rng.random(shape[axis]) < self.pick(0.3, 0.6, 0.9)
                w[(slice(None),) * axis + (dead,)] = 0
        if not shape and self.maybe(0.3):
            w = np.zeros(())
        self.params[name] = jnp.asarray(w)
        return name

    def spread(self, shape: Shape) -> str:
        """A parameter that broadcasts against a shape."""
        tail = shape[int(self.rng.integers(1, len(shape) + 1)) :]
        return self.param(*(n if self.maybe(0.7) else 1 for n in tail))


def operation(draw: Callable[..., Step | None]) -> Callable[..., Step | None]:
    OPERATIONS[draw.__name__] = draw
    return draw


def program(seed: int) -> Program:
    """The program of a seed, on an input of shape (2, ...)."""
    draw = Draw(seed)
    sizes = (draw.size() for _ in range(draw.pick(1, 2, 2, 2, 3)))
    shapes: list[Shape] = [(2, *sizes)]
    steps: list[tuple[str, Step, tuple[int, ...]]] = []
    names = sorted(OPERATIONS)
    for name, at in _start(draw):
        _add(draw, name, shapes, steps, at)
    count = draw.rng.integers(5, 11)
    while len(steps) < count:
        _add(draw, draw.pick(*names), shapes, steps)
    outputs = {len(steps)}
    if draw.maybe(0.2):
        outputs.add(int(draw.rng.integers(1, len(steps) + 1)))
    return Program(draw.params, steps, tuple(sorted(outputs)), shapes)


def _start(draw: Draw) -> list[tuple[str, int]]:
    """Most programs begin with dead channels."""
    return [("dense", 0)] if draw.maybe(0.8) else []


def _add(
    draw: Draw,
    name: str,
    shapes: list[Shape],
    steps: list[tuple[str, Step, tuple[int, ...]]],
    at: int | None = None,
) -> None:
    make = OPERATIONS[name]
    count = len(inspect.signature(make).parameters) - 1
    newest = len(shapes) - 1
    recent = [newest, newest, *range(max(0, newest - 4), newest + 1)]
    inputs = [newest if at is None else at]
    inputs += [int(draw.pick(*recent)) for _ in range(count - 1)]
    before = dict(draw.params)
    fn = make(draw, *(shapes[i] for i in inputs))
    if fn is not None:
        args = [jax.ShapeDtypeStruct(shapes[i], jnp.float64) for i in inputs]
        out = jax.eval_shape(fn, draw.params, *args)
        if len(out.shape) > 1 and out.shape[0] == 2 and 0 < out.size <= LIMIT:
            shapes.append(out.shape)
            steps.append((name, fn, tuple(inputs)))
            return
    draw.params = before


# One value, entry by entry.

SMOOTH = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "hard_swish": jax.nn.hard_swish,
    "leaky": jax.nn.leaky_relu,
    "abs": jnp.abs,
    "square": lambda x: jnp.square(jnp.tanh(x)),
    "cube": lambda x: jnp.tanh(x) ** 3,
    "power": lambda x: (jnp.abs(x) + 0.5) ** 0.7,
    "root": lambda x: jnp.sqrt(jnp.abs(x)),
    "inverse_root": lambda x: lax.rsqrt(jnp.square(x) + 0.1),
    "inverse": lambda x: 1 / (1 + jnp.square(x)),
    "exp": lambda x: jnp.exp(jnp.tanh(x)),
    "expm1": lambda x: jnp.expm1(jnp.tanh(x)),
    "log": lambda x: jnp.log(jnp.square(x) + 0.5),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "erf": jax.scipy.special.erf,
    "atan2": lambda x: jnp.arctan2(jnp.abs(x) + 1, 2.0),
    "nan_to_num": jnp.nan_to_num,
    "negative": lambda x: -x,
    "sign": lambda x: jnp.sign(x + 0.0123),
    "floor": lambda x: jnp.floor(3 * x + 0.3719),
    "integers": lambda x: (3 * x + 0.3719).astype(jnp.int32).astype(x.dtype),
    "above": lambda x: (x > 0.0617).astype(x.dtype),
    "stop": lax.stop_gradient,
    "hard_tanh": jax.nn.hard_tanh,
    "log_sigmoid": jax.nn.log_sigmoid,
}


@operation
def function(draw: Draw, shape: Shape) -> Step:
    name = draw.pick(*SMOOTH)
    fn = SMOOTH[name]
    if draw.maybe(0.15):
        inner = fn
        fn = draw.pick(jax.checkpoint, jax.jit)(lambda x: inner(x))
    return lambda p, x: fn(x)


@operation
def function_again(draw: Draw, shape: Shape) -> Step:
    return function(draw, shape)


@operation
def with_a_number(draw: Draw, shape: Shape) -> Step:
    c = draw.number()
    return draw.pick(
        lambda p, x: x + c,
        lambda p, x: c - x,
        lambda p, x: x * c,
        lambda p, x: jnp.maximum(x, c),
        lambda p, x: jnp.minimum(jnp.maximum(x, 0), 0.6),
        lambda p, x: jnp.clip(x, min(c, 0.1), 0.8),
        lambda p, x: jnp.where(x > 0.0617, x, c),
        lambda p, x: jnp.where(x > 0.0617, c, x),
        lambda p, x: x / (c + 3),
    )


@operation
def with_a_parameter(draw: Draw, shape: Shape) -> Step:
    w = draw.spread(shape)
    return draw.pick(
        lambda p, x: x + p[w],
        lambda p, x: p[w] - x,
        lambda p, x: x * p[w],
        lambda p, x: jnp.maximum(x, p[w]),
        lambda p, x: x / (1 + jnp.square(p[w])),
        lambda p, x: jnp.where(x > 0.0617, x, p[w]),
        lambda p, x: jnp.tanh(x) * p[w] + p[w],
        lambda p, x: x * jnp.exp(p[w]),
    )


@operation
def bias(draw: Draw, shape: Shape) -> Step:
    w = draw.spread(shape)
    return lambda p, x: x + p[w]


@operation
def with_a_table(draw: Draw, shape: Shape) -> Step:
    """An array of numbers, some slices of it zero."""
    table = np.linspace(-1, 1, int(np.prod(shape[1:]))).reshape(shape[1:])
    table = np.where(np.arange(shape[-1]) % 3 == 0, 0.0, table)
    return draw.pick(lambda p, x: x * table, lambda p, x: x + table)


@operation
def dropout(draw: Draw, shape: Shape) -> Step:
    seed = int(draw.rng.integers(100))

    def step(p: Any, x: Any) -> Any:
        keep = jax.random.bernoulli(jax.random.key(seed), 0.6, x.shape)
        return jnp.where(keep, x / 0.6, 0)

    return step


# Products.


@operation
def dense(draw: Draw, shape: Shape) -> Step:
    w = draw.param(shape[-1], draw.size())
    return lambda p, x: x @ p[w]


@operation
def dense_and_bias(draw: Draw, shape: Shape) -> Step:
    n = draw.size()
    w, b = draw.param(shape[-1], n), draw.param(n)
    return lambda p, x: x @ p[w] + p[b]


@operation
def mix(draw: Draw, shape: Shape) -> Step:
    """Dense along any axis, with a bias along that one or over all."""
    axis, n = draw.axis(shape), draw.size()
    w, b = draw.param(shape[axis], n), draw.param(n)

    def step(p: Any, x: Any) -> Any:
        y = jnp.moveaxis(x, axis, -1) @ p[w] + p[b]
        return jnp.moveaxis(y, -1, axis)

    return step


@operation
def einsum(draw: Draw, shape: Shape) -> Step:
    """With a weight of random letters: shared ones summed or kept."""
    letters = "bcdefg"[: len(shape)]
    sizes = dict(zip(letters, shape, strict=True)) | {
        "y": draw.size(),
        "z": draw.size(),
    }
    shared = [a for a in letters[1:] if draw.maybe(0.6)]
    mine = [*shared, *"yz"[: draw.pick(0, 1, 1, 2)]]
    draw.rng.shuffle(mine)
    out = [a for a in dict.fromkeys([*letters[1:], *mine]) if draw.maybe(0.7)]
    draw.rng.shuffle(out)
    w = draw.param(*(sizes[a] for a in mine))
    text = f"{letters},{''.join(mine)}->b{''.join(out)}"
    return lambda p, x: jnp.einsum(text, x, p[w])


@operation
def attention(draw: Draw, a: Shape, b: Shape) -> Step | None:
    if len(a) != 3 or len(b) != 3:
        return None
    q, k, v = draw.param(a[2], 3), draw.param(b[2], 3), draw.param(b[2], draw.size())
    causal = a[1] == b[1] and draw.maybe()

    def step(p: Any, x: Any, y: Any) -> Any:
        scores = jnp.einsum("btc,bsc->bts", x @ p[q], y @ p[k])
        if causal:
            seen = jnp.tril(jnp.ones(scores.shape[1:], bool))
            scores = jnp.where(seen, scores, -1e9)
        return jax.nn.softmax(scores, -1) @ (y @ p[v])

    return step


@operation
def convolution(draw: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    n = shape[-1]
    parts = int(draw.pick(*[g for g in (1, 1, 2, 3, n) if n % g == 0]))
    w = draw.param(draw.pick(1, 2, 3), n // parts, parts * draw.pick(1, 2))
    stride, wide = draw.pick((1,), (1,), (2,)), draw.pick((1,), (1,), (2,))
    padding = draw.pick("SAME", "SAME", ((2, 0),))

    def step(p: Any, x: Any) -> Any:
        names = ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(
            x, p[w], stride, padding, (1,), wide, names, parts
        )

    return step


@operation
def weight_made_of_weights(draw: Draw, shape: Shape) -> Step:
    a, b = draw.param(shape[-1], 4), draw.param(4, draw.size())
    act = draw.pick(jnp.tanh, lambda w: w - w.mean(0), lambda w: w, jax.nn.softmax)
    return lambda p, x: x @ (act(p[a]) @ p[b])


# Reductions.


@operation
def centred(draw: Draw, shape: Shape) -> Step:
    axes = draw.pick((-1,), (-1,), (draw.axis(shape),), tuple(range(1, len(shape))))
    return lambda p, x: x - x.mean(axes, keepdims=True)


@operation
def standardised(draw: Draw, shape: Shape) -> Step:
    axes = draw.pick((-1,), (draw.axis(shape),), tuple(range(1, len(shape))))
    full = draw.maybe()

    def step(p: Any, x: Any) -> Any:
        mean = x.mean(axes, keepdims=True) if full else 0.0
        var = jnp.square(x - mean).mean(axes, keepdims=True)
        return (x - mean) * lax.rsqrt(var + 0.1)

    return step


@operation
def softmax(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    fn = draw.pick(jax.nn.softmax, jax.nn.log_softmax)
    return lambda p, x: fn(x, axis)


@operation
def ratio_of_exponentials(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)

    def step(p: Any, x: Any) -> Any:
        e = jnp.exp(jnp.tanh(x))
        return e / e.sum(axis, keepdims=True)

    return step


@operation
def reduction(draw: Draw, shape: Shape) -> Step:
    axis, keep = draw.axis(shape), draw.maybe()
    names = ("sum", "mean", "max", "min", "prod", "var")
    fn = getattr(jnp, draw.pick(*names, "sum", "mean"))
    return lambda p, x: fn(x, axis=axis, keepdims=keep)


@operation
def less_a_reduction(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    fn = draw.pick(jnp.sum, jnp.mean, jnp.max, jax.scipy.special.logsumexp)
    combine = draw.pick(jnp.subtract, jnp.add, jnp.multiply)
    return lambda p, x: combine(x, jnp.tanh(fn(x, axis=axis, keepdims=True)))


@operation
def highest(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    n = shape[axis]
    ramp = np.arange(n).reshape(-1, *(1,) * (len(shape) - 1 - axis)) * 0.01371

    def step(p: Any, x: Any) -> Any:
        return jax.nn.one_hot(jnp.argmax(x + ramp, axis), n, axis=axis)

    return step


@operation
def along_an_axis(draw: Draw, shape: Shape) -> Step:
    axis, back = draw.axis(shape), draw.maybe(0.3)
    fn = draw.pick(lax.cumsum, lax.cummax, lax.cummin, lax.cumlogsumexp, lax.cumprod)
    return lambda p, x: fn(x, axis=axis, reverse=back)


@operation
def sort(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    ramp = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - 1 - axis)) * 0.0137

    def pair(p: Any, x: Any) -> Any:
        keys, values = lax.sort((x + ramp, jnp.tanh(x)), dimension=axis)
        return keys * values

    k = int(draw.rng.integers(1, shape[-1] + 1))
    return draw.pick(
        lambda p, x: jnp.sort(x, axis),
        pair,
        lambda p, x: lax.top_k(x, k)[0],
        lambda p, x: jnp.sort(x, axis, descending=True),
    )


@operation
def window(draw: Draw, shape: Shape) -> Step:
    axis, padding = draw.axis(shape), draw.pick("SAME", "VALID")
    size = tuple(2 if a == axis and shape[a] > 1 else 1 for a in range(len(shape)))
    stride = size if draw.maybe(0.3) else (1,) * len(shape)
    start, fn = draw.pick((-jnp.inf, lax.max), (0.0, lax.add))
    return lambda p, x: lax.reduce_window(x, start, fn, size, stride, padding)


# Places.


@operation
def transposed(draw: Draw, shape: Shape) -> Step:
    order = (0, *(1 + draw.rng.permutation(len(shape) - 1)).tolist())
    return lambda p, x: x.transpose(order)


@operation
def reshaped(draw: Draw, shape: Shape) -> Step:
    n = int(np.prod(shape[1:]))
    factors = [k for k in range(1, n + 1) if n % k == 0]
    k = int(draw.pick(*factors))
    new = draw.pick((n,), (k, n // k), (1, n), (k, 1, n // k))
    return lambda p, x: x.reshape(x.shape[0], *new)


@operation
def moved(draw: Draw, shape: Shape) -> Step:
    axis, by = draw.axis(shape), int(draw.rng.integers(0, 4))
    return draw.pick(
        lambda p, x: jnp.flip(x, axis),
        lambda p, x: jnp.roll(x, by, axis),
        lambda p, x: jnp.repeat(x, 2, axis),
        lambda p, x: jnp.concatenate([x, x], axis),
        lambda p, x: jnp.stack([x, 2 * x], axis),
    )


@operation
def cut(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    n = shape[axis]
    start = int(draw.rng.integers(0, n))
    stop = int(draw.rng.integers(start + 1, n + 1))
    step = draw.pick(1, 1, 2)
    lead = (slice(None),) * axis
    return draw.pick(
        lambda p, x: x[(*lead, slice(start, stop, step))],
        lambda p, x: x[(*lead, start)] if x.ndim > 2 else x,
        lambda p, x: lax.dynamic_slice_in_dim(x, start, stop - start, axis),
    )


@operation
def parts(draw: Draw, shape: Shape) -> Step:
    """Split, some parts perhaps empty; other orders, functions of each, together."""
    axis = draw.axis(shape)
    at = sorted(int(draw.rng.integers(0, shape[axis] + 1)) for _ in range(2))
    order = draw.rng.permutation(3).tolist()
    fns = [draw.pick(*SMOOTH.values()) for _ in range(3)]

    def step(p: Any, x: Any) -> Any:
        pieces = [f(y) for f, y in zip(fns, jnp.split(x, at, axis), strict=True)]
        return jnp.concatenate([pieces[k] for k in order], axis)

    return step


@operation
def unstacked(draw: Draw, shape: Shape) -> Step | None:
    if len(shape) < 3:
        return None
    axis = draw.axis(shape)

    def step(p: Any, x: Any) -> Any:
        first, *rest = jnp.unstack(x, axis=axis)
        return sum((k + 1) * jnp.tanh(y) for k, y in enumerate(rest)) + first

    return step


@operation
def beside_a_parameter(draw: Draw, shape: Shape) -> Step:
    """Class tokens, constant channels, blocks of zeros, nothing at all."""
    axis, n = draw.axis(shape), draw.pick(0, 1, 1, 2)
    block = tuple(n if a == axis else k for a, k in enumerate(shape))
    w = draw.param(*block[1:])
    c, kind, first = draw.number(), draw.maybe(0.7), draw.maybe()

    def step(p: Any, x: Any) -> Any:
        y = jnp.broadcast_to(p[w] if kind else c, (x.shape[0], *block[1:]))
        return jnp.concatenate([y, x] if first else [x, y], axis)

    return step


@operation
def pad(draw: Draw, shape: Shape) -> Step:
    axis, w = draw.axis(shape), draw.param()
    low, high, inner = (int(draw.pick(0, 0, 1, 2)) for _ in range(3))
    if draw.maybe(0.2) and shape[axis] > 1:
        low = -1
    config = [(low, high, inner) if a == axis else (0, 0, 0) for a in range(len(shape))]
    c, width = (
        draw.number(),
        [(1, 1) if a == axis else (0, 0) for a in range(len(shape))],
    )
    return draw.pick(
        lambda p, x: lax.pad(x, jnp.asarray(c, x.dtype), config),
        lambda p, x: lax.pad(x, jnp.asarray(0, x.dtype), config),
        lambda p, x: lax.pad(x, p[w].astype(x.dtype), config),
        lambda p, x: jnp.pad(x, width, mode="edge"),
    )


@operation
def taken(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    n, c = shape[axis], draw.number()
    at = draw.rng.integers(0, n, draw.size())
    beyond = np.append(at, n + 1)

    def by_data(p: Any, x: Any) -> Any:
        index = (jnp.abs(x.sum(tuple(range(1, x.ndim)))) * 7 + 0.37).astype(int) % n
        return jnp.take(x, index[0], axis) if x.ndim > 2 else x

    return draw.pick(
        lambda p, x: jnp.take(x, at, axis),
        lambda p, x: jnp.take(x, beyond, axis, mode="fill", fill_value=c),
        lambda p, x: jnp.take(x, beyond, axis, mode="clip"),
        by_data,
    )


@operation
def written(draw: Draw, shape: Shape) -> Step:
    axis = draw.axis(shape)
    n, c = shape[axis], draw.number()
    lead = (slice(None),) * axis
    at = draw.rng.choice(n, draw.pick(1, max(1, n // 2)), replace=False)
    w = draw.param(*(at.size if a == axis else k for a, k in enumerate(shape) if a))
    how = draw.pick("set", "add", "multiply", "max")

    def update(p: Any, x: Any) -> Any:
        y = jnp.zeros_like(x)[(*lead, slice(0, 1))] + 0.4
        return lax.dynamic_update_slice_in_dim(x, y, int(at[0]), axis)

    return draw.pick(
        lambda p, x: getattr(x.at[(*lead, at)], how)(p[w]),
        lambda p, x: getattr(x.at[(*lead, at)], how)(c),
        lambda p, x: x.at[(*lead, int(at[0]))].set(0),
        update,
    )


# Two values.


@operation
def together(draw: Draw, a: Shape, b: Shape) -> Step | None:
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return None
    return draw.pick(
        lambda p, x, y: x + y,
        lambda p, x, y: x - y,
        lambda p, x, y: x * y,
        lambda p, x, y: x * jax.nn.sigmoid(y),
        lambda p, x, y: jnp.maximum(x, y),
        lambda p, x, y: jnp.where(x > 0.0617, x, y),
        lambda p, x, y: jnp.where(y > 0.0617, 0.0, x),
        lambda p, x, y: sum(lax.optimization_barrier((x, y))),
    )


@operation
def joined(draw: Draw, a: Shape, b: Shape) -> Step | None:
    if len(a) != len(b):
        return None
    axes = [k for k in range(1, len(a)) if a[:k] + a[k + 1 :] == b[:k] + b[k + 1 :]]
    if not axes:
        return None
    axis = int(draw.pick(*axes))
    return lambda p, x, y: jnp.concatenate([x, y], axis)


@operation
def beside_a_summary(draw: Draw, a: Shape, b: Shape) -> Step | None:
    """One value, and what is left of another where it is averaged."""
    if a[-1] != b[-1]:
        return None

    def step(p: Any, x: Any, y: Any) -> Any:
        mean = y.mean(tuple(range(1, y.ndim - 1)))
        return x + mean.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1)

    return step


# Programs inside.


@operation
def scan_over_positions(draw: Draw, shape: Shape) -> Step | None:
    if len(shape) != 3:
        return None
    n = draw.size()
    w, u, b = draw.param(shape[-1], n), draw.param(n, n), draw.param(n)
    kind = draw.pick("last", "all", "sums")

    def step(p: Any, x: Any) -> Any:
        def body(h: Any, row: Any) -> Any:
            h = jnp.tanh(row @ p[w] + h @ p[u] + p[b])
            return h, h if kind == "all" else h.sum(-1)

        start = jnp.zeros((x.shape[0], n), x.dtype)
        last, rows = lax.scan(body, start, x.swapaxes(0, 1))
        if kind == "all":
            return rows.swapaxes(0, 1)
        return last if kind == "last" else rows.T

    return step


@operation
def scan_over_layers(draw: Draw, shape: Shape) -> Step:
    n = shape[-1]
    a, b = draw.param(3, n, 4), draw.param(3, 4, n)
    body = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)
    return lambda p, x: lax.scan(body, x, (p[a], p[b]))[0]


@operation
def branches(draw: Draw, shape: Shape) -> Step:
    w, c = draw.param(shape[-1], shape[-1]), draw.number()
    fns = (lambda x, w: jnp.tanh(x), lambda x, w: x @ w, lambda x, w: x * c)
    return lambda p, x: lax.switch((x.sum() > 0.0617).astype(int), fns, x, p[w])


@operation
def loop(draw: Draw, shape: Shape) -> Step:
    w, b = draw.param(shape[-1], shape[-1]), draw.spread(shape)
    return lambda p, x: lax.fori_loop(
        0, 2, lambda _, h: jnp.tanh(h @ p[w]) + p[b] + h, x
    )


@operation
def mapped(draw: Draw, shape: Shape) -> Step:
    w = draw.param(shape[-1], draw.size())
    return lambda p, x: lax.map(lambda row: jnp.tanh(row @ p[w]), x)
