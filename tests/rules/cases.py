"""Forms of every primitive that has a rule: small functions and their operands.

An operand is a shape, to be filled at random, or an array, used as it is.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name


class Form(NamedTuple):
    """One way to call a primitive.

    Attributes:
      fn: makes the equation, perhaps with a few others.
      operands: shapes, or arrays.
      kinds: of the random operands: f float64, h bfloat16, i int8, b bool, c complex.
    """

    fn: Callable[..., Any]
    operands: tuple[Any, ...]
    kinds: str = "f"


def primitives() -> dict[str, Any]:
    """All primitives of JAX and what they are called, experimental modules apart."""
    import jax.scipy.fft
    import jax.scipy.linalg
    import jax.scipy.ndimage
    import jax.scipy.signal
    import jax.scipy.special
    import jax.scipy.stats  # noqa: F401

    kind = type(lax.add_p).__mro__[-2]
    found = {}
    for name, module in list(sys.modules.items()):
        ours = ".pallas" not in name and ".experimental" not in name
        if ours and name.startswith("jax."):
            rows = vars(module).values()
            found.update((v.name, v) for v in list(rows) if isinstance(v, kind))
    return found


PRIMITIVES = primitives()


def bind(name: str, **params: Any) -> Callable[..., Any]:
    return lambda *xs: PRIMITIVES[name].bind(*xs, **params)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int32)


X, ROW, COLUMN, NONE = (4, 5), (1, 5), (4, 1), ()
KEY = np.array([3, 7], np.uint32)
PLACES = ints([0], [9], [2])

CASES: dict[str, list[Form]] = {}


def unary(names: str, kinds: str, **params: Any) -> None:
    for name in names.split():
        if name in PRIMITIVES:
            CASES[name] = [Form(bind(name, **params), (X,), kinds)]


unary("neg sign abs square", "fhi")
unary("cbrt sinh cosh asin acos atan asinh acosh atanh tan", "fh", accuracy=None)
for _name in "asin acos atan asinh acosh atanh sinh cosh".split():
    unary(_name, "fh")
unary("sqrt rsqrt exp exp2 expm1 log log1p logistic sin cos tanh", "fh", accuracy=None)
unary("log2", "fh", accuracy=None)
unary("erf erfc erf_inv lgamma digamma bessel_i0e bessel_i1e floor ceil", "fh")
unary("is_finite", "fh")
unary("one_minus_square", "fi")
unary("copy", "fhib")
unary("not", "ib")
unary("population_count clz", "i")
unary("real imag conj", "c")
CASES["conj"] = [Form(lax.conj, (X,), "fc")]
CASES["round"] = [Form(lambda x: lax.round(x * 3), (X,), "fh")]
CASES["integer_pow"] = [
    Form(lambda x, y=y: lax.integer_pow(x, y), (X,), kinds)
    for y, kinds in ((3, "fhi"), (0, "fi"), (-2, "fh"))
]
CASES["convert_element_type"] = [
    Form(lambda x: (x * 3).astype(jnp.int8), (X,), "fh"),
    Form(lambda x: x.astype(bool), (X,), "fi"),
    Form(lambda x: x.astype(jnp.float32), (X,), "fib"),
]
CASES["reduce_precision"] = [
    Form(lambda x: lax.reduce_precision(x, 5, 2), (X,), "fh"),
    Form(lambda x: lax.reduce_precision(x, 8, 0), (X,), "f"),
]
CASES["bitcast_convert_type"] = [
    Form(lambda x: lax.bitcast_convert_type(x, jnp.int64), (X,), "f"),
    Form(lambda x: lax.bitcast_convert_type(x, jnp.uint8), (X,), "ih"),
    Form(lambda x: lax.bitcast_convert_type(x, jnp.int64), ((3, 4, 8),), "i"),
]

UNIFORM, VARYING = np.full(X, 2), np.arange(20).reshape(X) % 5 - 1
BINARY = {
    **dict.fromkeys("add sub mul max min eq ne lt le gt ge".split(), "fhi"),
    **dict.fromkeys("div rem".split(), "fhi"),
    **dict.fromkeys("and or xor".split(), "ib"),
    **dict.fromkeys("pow atan2 nextafter".split(), "fh"),
    **dict.fromkeys(
        "shift_left shift_right_logical shift_right_arithmetic mulhi".split(), "i"
    ),
}


def _with_literal(bound, literal, first: bool = False):
    def fn(x):
        y = np.asarray(literal).astype(x.dtype)
        return bound(y, x) if first else bound(x, y)

    return fn


def binary(name: str, kinds: str) -> list[Form]:
    params: dict[str, Any] = {"mul": {"out_dtype": None}}.get(name, {})
    bound = bind(name, **params)
    own = kinds[0]
    forms = [Form(bound, (X, X), kinds), Form(bound, (X, ROW), own)]
    for literal in (0, 2, -3, UNIFORM, VARYING):
        forms.append(Form(_with_literal(bound, np.broadcast_to(literal, X)), (X,), own))
    forms.append(Form(_with_literal(bound, UNIFORM, first=True), (X,), own))
    return forms


for _name, _kinds in BINARY.items():
    CASES[_name] = binary(_name, _kinds)
for _name in ("igamma", "igammac"):
    _with_half = _with_literal(bind(_name), np.full(X, 0.5), first=True)
    CASES[_name] = [Form(_with_half, (X,))]
CASES["zeta"] = [Form(bind("zeta"), (X, X))]
CASES["polygamma"] = [Form(bind("polygamma"), (X, X))]
CASES["igamma_grad_a"] = [Form(bind("igamma_grad_a"), (X, X))]
CASES["mul"].append(Form(lambda x, y: x * y, (X, NONE), "fhi"))
CASES["max"] += [
    Form(lambda x: jnp.maximum(x, -1e30), (X,)),
    Form(lambda x: jnp.minimum(jnp.maximum(x, 0), 6), (X,), "fhi"),
    Form(jax.nn.relu6, (X,), "fh"),
]
CASES["pow"] += [
    Form(lambda x: jnp.abs(x) ** 1.5, (X,)),
    Form(lambda x: 2.0**x, (X,)),
    Form(lambda x: jnp.abs(x) ** -0.5, (X,)),
]
CASES["div"] += [
    Form(lambda x: x / x, (X,)),
    Form(lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), (X,)),
]
CASES["add_any"] = [Form(bind("add_any"), (X, X), "fhi")]
CASES["eq_to"] = [Form(bind("eq_to"), (X, X), "fi")]
CASES["le_to"] = [Form(bind("le_to"), (X, X), "fi")]
CASES["lt_to"] = [Form(bind("lt_to"), (X, X), "fi")]
CASES["complex"] = [Form(lax.complex, (X, X), "f")]
CASES["polynomial"] = [Form(bind("polynomial"), (X, X, X))]
CASES["regularized_incomplete_beta"] = [
    Form(lambda x, y: lax.betainc(jnp.full(X, 2.0), y, x), (X, X)),
]
CASES["clamp"] = [
    Form(lax.clamp, (X, X, X), "fhi"),
    Form(lax.clamp, (NONE, X, NONE), "fi"),
    Form(lambda x: jnp.clip(x, -1, 2), (X,), "fhi"),
    Form(lambda x: lax.clamp(0.5, x, 2.0), (X,)),
    Form(lambda x: lax.clamp(np.full(X, -1.0), x, 1.0 + VARYING**2), (X,)),
]
CASES["select_n"] = [
    Form(lambda x, y: lax.select(x > 0, x, y), (X, X), "fhi"),
    Form(lambda p, x, y: lax.select(p > 0, x, y), (NONE, X, X), "f"),
    Form(lambda p, x, y: lax.select_n(p, x, y), (X, X, X), "b"),
    Form(
        lambda p, x, y, z: lax.select_n(jnp.clip(p, 0, 2).astype(jnp.int32), x, y, z),
        (X, X, X, X),
        "f",
    ),
    Form(lambda x: jnp.where(x > 0, x, 0), (X,), "fi"),
    Form(lambda x: jnp.where(x > 0, x, 0.1 * x), (X,)),
    Form(lambda x: jnp.where(VARYING > 0, x, 3), (X,)),
    Form(lambda x, y: jnp.where(x < 1, y, 1), (X, X)),
    Form(jnp.nan_to_num, (X,), "fh"),
    *(
        Form(fn, (X,), "fh")
        for fn in (
            jax.nn.elu,
            jax.nn.selu,
            jax.nn.celu,
            jax.nn.hard_tanh,
            jax.nn.leaky_relu,
            jax.nn.hard_sigmoid,
            jax.nn.hard_swish,
            jax.nn.softplus,
            jax.nn.soft_sign,
            jax.nn.mish,
            jax.nn.gelu,
        )
    ),
]

# Nothing is computed.

CASES["stop_gradient"] = [Form(bind("stop_gradient"), (X,), "fh")]
if "stop_gradient" in PRIMITIVES and not hasattr(PRIMITIVES["stop_gradient"], "bind"):
    del CASES["stop_gradient"]
CASES["name"] = [
    Form(lambda x: checkpoint_name(x, "x"), (X,), "fh"),
]
CASES["optimization_barrier"] = [
    Form(lambda x: lax.optimization_barrier(x), (X,), "fhib"),
    Form(lambda *xs: lax.optimization_barrier(xs), (X, (5, 3), X, NONE), "fi"),
]
MESH = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
REPLICATED = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())


def _resharded(x):
    with jax.sharding.use_abstract_mesh(MESH.abstract_mesh):
        return jax.sharding.reshard(x, REPLICATED.spec)


CASES["reshard"] = [Form(_resharded, (X,), "fi")]
CASES["sharding_constraint"] = [
    Form(
        lambda x: lax.with_sharding_constraint(
            x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
        ),
        (X,),
        "fi",
    )
]
CASES["device_put"] = [
    Form(lambda x: jax.device_put(x), (X,), "f"),
    Form(lambda *xs: jax.device_put(xs), (X, (5, 3), NONE), "fi"),
]

# Sources.

CASES["iota"] = [Form(lambda x: x + lax.broadcasted_iota(x.dtype, X, 1), (X,), "fi")]
CASES["rng_bit_generator"] = [
    Form(
        lambda x: (
            x * lax.rng_bit_generator(np.zeros(4, np.uint32), X)[1].astype(x.dtype)
        ),
        (X,),
    )
]


def _threefry(x):
    halves = np.arange(20, dtype=np.uint32).reshape(2, 10)
    bits = bind("threefry2x32")(*np.broadcast_to(KEY[:, None], (2, 10)), *halves)
    return x * jnp.concatenate(bits).reshape(X).astype(x.dtype)


CASES["threefry2x32"] = [Form(_threefry, (X,))]


def _keys(x):
    key = jax.random.clone(jax.random.fold_in(jax.random.key(3), 1))
    first, _ = jax.random.split(key)
    data = jax.random.key_data(first)
    again = jax.random.wrap_key_data(data, impl="threefry2x32")
    return x * jax.random.bits(again, X, np.uint8).astype(x.dtype)


for _name in "seed wrap unwrap bits split fold_in clone".split():
    CASES[f"random_{_name}"] = [Form(_keys, (X,))]
CASES["random_gamma"] = [
    Form(lambda x: x + jax.random.gamma(jax.random.key(0), 2.0, X, x.dtype), (X,))
]

# Layout.

CASES["broadcast_in_dim"] = [
    Form(lambda x: lax.broadcast_in_dim(x, (2, 4, 3, 5), (1, 3)), (X,), "fhib"),
    Form(lambda x: lax.broadcast_in_dim(x, (3, 5), (0, 1)), (ROW,)),
    Form(lambda x: lax.broadcast_in_dim(x, (3, 5), ()), (NONE,)),
    Form(lambda x: lax.broadcast_in_dim(x, (0, 5), (0, 1)), (ROW,)),
]
CASES["reshape"] = [
    Form(lambda x: x.reshape(20), (X,), "fhi"),
    Form(lambda x: x.reshape(2, 2, 5, 1), (X,)),
    Form(lambda x: x.reshape(10, 2), (X,)),
    Form(lambda x: x.reshape(4, 1, 5), ((1, 4, 5, 1),)),
    Form(lambda x: x.reshape(0, 3), ((4, 0),)),
    Form(lambda x: x.reshape(1, 1), (NONE,)),
]
CASES["squeeze"] = [Form(lambda x: lax.squeeze(x, (0, -1)), ((1, 4, 5, 1),), "fi")]
CASES["transpose"] = [Form(lambda x: x.transpose(2, 0, 1), ((3, 4, 5),), "fi")]
CASES["rev"] = [Form(lambda x: lax.rev(x, (0, 2)), ((3, 4, 5),), "fi")]
CASES["slice"] = [
    Form(lambda x: x[1:3, ::2], (X,), "fi"),
    Form(lambda x: x[2:2], (X,)),
    Form(lambda x: lax.slice(x, (1, 0), (4, 5), (2, 3)), (X,)),
]
CASES["split"] = [
    Form(lambda x: lax.split(x, (2, 0, 3), 1), (X,), "fi"),
    Form(lambda x: lax.split(x, (4,), 0), (X,)),
]
CASES["concatenate"] = [
    Form(lambda *xs: lax.concatenate(xs, 1), (X, (4, 0), (4, 2)), "fhi"),
    Form(lambda *xs: lax.concatenate(xs, 0), (X, X)),
    Form(lambda x: lax.concatenate([x], 0), (X,)),
    Form(lambda x: jnp.concatenate([x, np.ones((4, 2))], 1), (X,)),
]
CASES["stack"] = [
    Form(lambda *xs, a=a: jnp.stack(xs, a), (X, X, X), "fi") for a in (0, 1, 2)
]
CASES["unstack"] = [
    Form(lambda x, a=a: jnp.unstack(x, axis=a), (X,), "fi") for a in (0, 1)
]
CASES["tile"] = [
    Form(lambda x: jnp.tile(x, (2, 1, 3)), (X,), "fi"),
    Form(lambda x: jnp.tile(x, (2, 2)), (X,)),
    Form(lambda x: jnp.tile(x, 2), ((4, 0),)),
]
PADS = {
    "both": ((1, 2, 0), (0, 1, 0)),
    "one": ((0, 0, 0), (2, 0, 0)),
    "inside": ((0, 0, 0), (0, 0, 2)),
    "crop": ((-1, 0, 0), (1, -2, 1)),
    "none": ((0, 0, 0), (0, 0, 0)),
}
CASES["pad"] = [
    *(
        Form(lambda x, c=c, v=v: lax.pad(x, np.asarray(v, x.dtype), c), (X,), "fi")
        for c in PADS.values()
        for v in (0, 3)
    ),
    *(Form(lambda x, y, c=c: lax.pad(x, y, c), (X, NONE)) for c in PADS.values()),
    Form(lambda x: lax.pad(x, -jnp.inf, PADS["both"]), (X,)),
    Form(lambda x: jnp.pad(x, 1), (X,), "fhi"),
    Form(lambda x, v: jnp.pad(x, ((0, 0), (1, 1)), constant_values=v[0]), (X, (3,))),
    Form(lambda x: lax.pad(x, x.sum(), PADS["one"]), (X,)),
]

# Reductions.

REDUCTIONS = {
    "reduce_sum": "fhi",
    "reduce_max": "fhi",
    "reduce_min": "fhi",
    "reduce_prod": "fhi",
    "reduce_and": "ib",
    "reduce_or": "ib",
    "reduce_xor": "i",
}
for _name, _kinds in REDUCTIONS.items():
    _more: dict[str, Any] = {"out_sharding": None}
    if _name in ("reduce_and", "reduce_or", "reduce_xor"):
        _more = {}

    def _reduce(axes, name=_name, more=_more):
        def fn(x):
            try:
                return bind(name, axes=axes, **more)(x)
            except TypeError:
                return bind(name, axes=axes)(x)

        return fn

    CASES[_name] = [
        Form(_reduce((1,)), (X,), _kinds),
        Form(_reduce((0, 2)), ((3, 4, 5),), _kinds[0]),
        Form(_reduce((0, 1)), (X,), _kinds[0]),
        Form(_reduce((1,)), ((4, 0),), _kinds[0]),
        Form(_reduce((0,)), ((0, 5),), _kinds[0]),
        Form(_reduce((1,)), ((0, 5),), _kinds[0]),
    ]
for _name in ("argmax", "argmin"):
    _best = getattr(lax, _name)
    CASES[_name] = [
        Form(lambda x, f=_best: f(x, 1, np.int32), ((3, 4, 5),), "fhi"),
        Form(lambda x, f=_best: f(x, 0, np.int8), (X,), "f"),
    ]


def _pooled(init, op, **options):
    def fn(x):
        start = np.asarray(init).astype(x.dtype)
        window = options.get("window", (1, 2, 3))
        strides = options.get("strides", (1, 1, 2))
        padding = options.get("padding", "VALID")
        more = {k: options[k] for k in options if k.endswith("dilation")}
        return lax.reduce_window(x, start, op, window, strides, padding, **more)

    return fn


POOLS: list[dict[str, Any]] = [
    {},
    {"padding": "SAME"},
    {"padding": ((0, 0), (3, 0), (0, 4))},
    {"base_dilation": (1, 3, 1), "window_dilation": (1, 2, 1)},
    {"window": (2, 1, 1), "strides": (2, 1, 1)},
]
for _name, _init, _op in (
    ("reduce_window_sum", 0, lax.add),
    ("reduce_window_max", -np.inf, lax.max),
    ("reduce_window_min", np.inf, lax.min),
    ("reduce_window", 2, lax.add),
):
    CASES[_name] = [
        Form(_pooled(_init, _op, **options), ((2, 4, 5),), "fh") for options in POOLS
    ]
CASES["reduce_window"] += [
    Form(_pooled(1, lambda a, b: a + 2 * b), ((2, 4, 5),)),
    Form(
        lambda x, y: lax.reduce_window(
            (x, y),
            (0.0, 1.0),
            lambda a, b: (a[0] + b[0], a[1] * b[1]),
            (1, 2),
            (1, 1),
            "SAME",
        ),
        (X, X),
    ),
]
CASES["select_and_scatter_add"] = [
    Form(
        lambda x, g, w=w, s=s, p=p: bind(
            "select_and_scatter_add",
            select_prim=lax.ge_p,
            window_dimensions=w,
            window_strides=s,
            padding=p,
        )(g, x),
        ((2, 4, 5), g),
        "f",
    )
    for w, s, p, g in (
        ((1, 2, 1), (1, 2, 1), ((0, 0), (0, 0), (0, 0)), (2, 2, 5)),
        ((1, 2, 2), (1, 2, 1), ((0, 0), (0, 0), (1, 0)), (2, 2, 5)),
    )
]

# Along an axis.

for _name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
    _running = getattr(lax, _name)
    CASES[_name] = [
        Form(
            lambda x, f=_running, a=a, r=r: f(x, a, r),
            (shape,),
            "fh" if _name == "cumlogsumexp" else "fhi",
        )
        for a, r, shape in ((0, False, X), (1, True, X), (1, False, (4, 0)))
    ]
CASES["sort"] = [
    Form(lambda x: lax.sort(x, 1), (X,), "fhi"),
    Form(lambda x, y: lax.sort((x, y), 0, num_keys=1), (X, X), "fi"),
    Form(lambda x, y, z: lax.sort((x, y, z), 1, num_keys=2), (X, X, X)),
    Form(lambda x: jnp.argsort(x, axis=1), (X,)),
]
CASES["top_k"] = [
    Form(lambda x: lax.top_k(x, 2), (X,), "fhi"),
    Form(lambda x: lax.top_k(x, 3, axis=0), (X,)),
]
CASES["fft"] = [
    Form(lambda x: jnp.fft.fft(x), (X,), "c"),
    Form(lambda x: jnp.fft.ifft2(x), ((3, 4, 4),), "c"),
    Form(lambda x: jnp.fft.rfft(x, n=8), (X,), "f"),
    Form(lambda x: jnp.fft.irfft(x, n=6), (X,), "c"),
    Form(lambda x: jnp.fft.fft(x, axis=0), (X,), "c"),
]

# Indexing.

CASES["dynamic_slice"] = [
    Form(
        lambda x, i: lax.dynamic_slice(x, (i[0], np.int32(0)), (2, 5)),
        (X, ints(7)),
        "fi",
    ),
    Form(lambda x, i: lax.dynamic_slice(x, (np.int32(0), i[0]), (4, 5)), (X, ints(2))),
    Form(lambda x: lax.dynamic_slice(x, (1, 1), (2, 2)), (X,)),
]
CASES["dynamic_update_slice"] = [
    Form(
        lambda x, y, i: lax.dynamic_update_slice(x, y, (i[0], np.int32(0))),
        (X, (2, 5), ints(7)),
        "fi",
    ),
    Form(
        lambda x, y, i: lax.dynamic_update_slice(x, y, (np.int32(0), i[0])),
        (X, (4, 2), ints(1)),
    ),
    Form(lambda x, y: lax.dynamic_update_slice(x, y, (0, 0)), (X, X)),
]


def _gathered(**options):
    return lambda x, i: x.at[i[:, 0]].get(**options)


def _along(x, i):
    return jnp.take_along_axis(x, i, 1, mode="clip")


CASES["gather"] = [
    *(
        Form(_gathered(**options), (X, places), kinds)
        for places, options, kinds in (
            (PLACES, {"mode": "clip"}, "fhi"),
            (PLACES, {"mode": "fill"}, "fhi"),
            (PLACES, {"mode": "fill", "fill_value": 1}, "fi"),
            (PLACES, {"mode": "fill", "fill_value": 0}, "fi"),
            (PLACES, {"mode": "fill", "fill_value": np.nan}, "f"),
            (ints([1], [3]), {"mode": "promise_in_bounds"}, "fi"),
        )
    ),
    Form(lambda x, i: x.at[:, i].get(mode="fill", fill_value=2), (X, ints(1, 8))),
    Form(lambda x, i: jnp.take(x, i, axis=0), (X, ints(1, 3))),
    Form(_along, (X, ints(*[[1, 7]] * 4)), "f"),
    Form(
        jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=3)),
        ((3, 4, 5), ints([1, 9], [0, 0], [2, 3])),
    ),
]
SCATTERS = {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-min": "min",
    "scatter-max": "max",
}
for _name, _method in SCATTERS.items():

    def _write(x, y, i, method=_method, **options):
        return getattr(x.at[i[:, 0]], method)(y, **options)

    def _write_columns(x, y, i, method=_method):
        return getattr(x.at[:, i], method)(y)

    CASES[_name] = [
        Form(_write, (X, (3, 5), PLACES), "fhi"),
        Form(
            lambda x, y, i, write=_write: write(x, y, i, mode="clip"),
            (X, (3, 5), PLACES),
        ),
        Form(_write_columns, (X, (4, 2), ints(1, 1))),
        Form(
            lambda y, i, write=_write: write(jnp.full(X, 0.5), y, i),
            ((3, 5), PLACES),
        ),
    ]
CASES["scatter"] += [
    Form(lambda x: x.at[1].apply(jnp.cos), (X,)),
    Form(lambda x, y: lax.dynamic_update_slice(x, y, (1, 0)), (X, (1, 5))),
    Form(
        jax.vmap(lambda x, i, y: x.at[i].set(y)),
        ((3, 4, 5), ints(1, 9, 2), (3, 5)),
    ),
]

# Products.


def _dot(numbers, **options):
    return lambda x, y: lax.dot_general(x, y, numbers, **options)


CASES["dot_general"] = [
    Form(_dot((((1,), (0,)), ((), ()))), (X, (5, 3)), "fhi"),
    Form(_dot((((2,), (1,)), ((0,), (0,)))), ((2, 4, 5), (2, 5, 3)), "fh"),
    Form(_dot((((1, 2), (2, 0)), ((), ()))), ((3, 4, 5), (5, 2, 4))),
    Form(_dot((((), ()), ((), ()))), ((3,), (2,))),
    Form(_dot((((1,), (0,)), ((), ()))), ((4, 0), (0, 3))),
    Form(_dot((((1,), (1,)), ((0,), (0,)))), (X, X)),
    Form(
        _dot((((1,), (0,)), ((), ())), preferred_element_type=jnp.int32),
        (X, (5, 3)),
        "i",
    ),
]
SIZES = ints(1, 0, 2)
CASES["ragged_dot_general"] = [
    Form(lax.ragged_dot, (X, (3, 5, 2), SIZES), "f"),
    Form(
        lambda x, y, s: lax.ragged_dot_general(
            x,
            y,
            s,
            lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []),
        ),
        (X, (4, 3), SIZES),
        "f",
    ),
]


def _conv(strides=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return lambda x, w: lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


IMAGE = (2, 5, 4, 4)
CASES["conv_general_dilated"] = [
    Form(_conv(), (IMAGE, (3, 3, 4, 3)), "fh"),
    Form(_conv((2, 1), ((1, 0), (-1, 2))), (IMAGE, (2, 3, 4, 3))),
    Form(_conv(feature_group_count=2), (IMAGE, (3, 3, 2, 6))),
    Form(_conv(feature_group_count=4), (IMAGE, (3, 3, 1, 8))),
    Form(
        _conv(padding=((1, 1), (2, 0)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
        (IMAGE, (3, 3, 4, 3)),
    ),
    Form(
        _conv(numbers=("NCHW", "OIHW", "NHWC")),
        ((2, 4, 5, 4), (3, 4, 3, 3)),
    ),
    Form(_conv(batch_group_count=2), (IMAGE, (3, 3, 4, 4))),
    Form(_conv((1,), "VALID", ("NWC", "WIO", "NWC")), ((2, 5, 3), (2, 3, 4))),
    Form(_conv(padding="VALID"), ((0, 5, 4, 4), (3, 3, 4, 3))),
]
