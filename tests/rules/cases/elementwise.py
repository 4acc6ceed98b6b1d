"""Forms of the primitives of `rules/elementwise.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.rules.cases.forms import (
    NONE,
    PRIMITIVES,
    ROW,
    Form,
    X,
    bind,
)

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
