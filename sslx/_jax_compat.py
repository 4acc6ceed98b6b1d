"""The only file that imports `jax.extend` or unstable JAX names."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
"""Primitives that only name a piece of a program, and the parameter that holds it."""


def open_jaxpr(jaxpr: Any) -> tuple[Any, list[Any]]:
    """The jaxpr and the values of its constants, whether given open or closed."""
    if isinstance(jaxpr, ClosedJaxpr):
        return getattr(jaxpr, "jaxpr", jaxpr), list(jaxpr.consts)
    return jaxpr, []


def named_program(eqn: Any) -> Any | None:
    """The program that an equation stands for and only names, or None.

    A collective that `jax.vmap` has given axes of the operands in the place of names is
    a reduction over them.
    """
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return params[CALLS[name]]
    axes = params.get("axes", ()) if name in _COLLECTIVES else ()
    if not axes or not all(isinstance(axis, int) for axis in axes):
        return None
    if params["axis_index_groups"] is not None:
        return None
    reduce = _COLLECTIVES[name]
    avals = [v.aval for v in eqn.invars]
    return jax.make_jaxpr(lambda *xs: [reduce(x, axes) for x in xs])(*avals)


_COLLECTIVES = {
    "psum": jax.lax.reduce_sum,
    "pmax": jax.lax.reduce_max,
    "pmin": jax.lax.reduce_min,
}


def is_traced(array: Any) -> bool:
    """Whether the value of an array is not known yet."""
    return isinstance(array, jax.core.Tracer)


def is_tracing() -> bool:
    """Whether the code that runs is being traced by a transformation of JAX."""
    from jax._src import core

    return not core.trace_state_clean()


def is_jaxpr(value: Any) -> bool:
    """Whether an equation parameter holds a nested program."""
    return isinstance(value, (ClosedJaxpr, Jaxpr))


def custom_jvp_jaxpr(
    params: dict[str, Any], zeros: list[bool]
) -> tuple[Any, list[Any], list[bool]]:
    """A call's derivative rule as a jaxpr, for inputs with the given zero tangents.

    Its inputs are all primals, then the tangents that are not zero; its outputs all
    primal outputs, then the tangents that are not zero, as the last list says.
    """
    rule = params["jvp_jaxpr_fun"]
    jaxpr, consts, out_zeros = rule.call_wrapped(*zeros[params["num_consts"] :])
    return jaxpr, list(consts), list(out_zeros)


def source_line(eqn: Any) -> str:
    """`file:line (function)` of the user's code that made an equation."""
    from jax._src import source_info_util

    return source_info_util.summarize(eqn.source_info)


def scope(eqn: Any) -> str:
    """The name stack of an equation, such as `ResNet/block1/conv1`."""
    return str(eqn.source_info.name_stack)


def _varying(array: Any) -> frozenset[str]:
    """The axes of `jax.shard_map` along which an array differs between devices."""
    kind = getattr(jax.typeof(array), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()


def varying_alike(arrays: Sequence[Any]) -> list[Any]:
    """Arrays that vary over the same axes of `jax.shard_map`, as operands have to."""
    found = [frozenset() if x is None else _varying(x) for x in arrays]
    axes = frozenset[str]().union(*found)
    return [
        x
        if x is None or mine == axes
        else jax.lax.pcast(x, tuple(sorted(axes - mine)), to="varying")
        for x, mine in zip(arrays, found, strict=True)
    ]


def _explicit_spec(array: Any) -> tuple[Any, ...] | None:
    """Per axis, the explicit mesh axes an array is sharded over; None if none is."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    kinds = getattr(getattr(sharding, "mesh", None), "axis_types", ())
    if sharding is None or jax.sharding.AxisType.Explicit not in kinds:
        return None
    spec = tuple(sharding.spec)
    return spec if any(part is not None for part in spec) else None


def sharded_alike(arrays: Sequence[Any]) -> list[Any]:
    """Arrays of one shape, whole ones cut as those that are sharded explicitly."""
    specs = [_explicit_spec(x) for x in arrays]
    cut = next((x for x, spec in zip(arrays, specs, strict=True) if spec), None)
    if cut is None:
        return list(arrays)
    target = jax.typeof(cut).sharding
    return [
        x if spec else jax.sharding.reshard(x, target)
        for x, spec in zip(arrays, specs, strict=True)
    ]


def whole_along(array: Any, axis: int) -> Any:
    """An array that is not sharded explicitly along an axis, so that it may be cut."""
    spec = _explicit_spec(array)
    if spec is None or spec[axis] is None:
        return array
    parts = [None if a == axis else part for a, part in enumerate(spec)]
    return jax.sharding.reshard(array, jax.sharding.PartitionSpec(*parts))


def in_scope(name: str) -> contextlib.AbstractContextManager:
    """Context whose operations stand in a name scope; the empty name adds none."""
    return jax.named_scope(name) if name else contextlib.nullcontext()


def acts(eqn: Any) -> bool:
    """Whether an equation does something besides computing its results."""
    from jax._src import core

    return any(not isinstance(e, core.NamedAxisEffect) for e in eqn.effects)


def compile_time() -> Any:
    """Context in which operations on concrete arrays run now, under any trace."""
    return jax.ensure_compile_time_eval()


def primitive(name: str, abstract: Any) -> Any:
    """A new primitive of one result without effects.

    Args:
      name: of its equations.
      abstract: of the operands' abstract values and the parameters, the result's.
    """
    from jax.extend.core import Primitive

    new = Primitive(name)
    new.def_abstract_eval(abstract)

    @functools.partial(jax.jit, static_argnums=0)
    def run(params: tuple[tuple[str, Any], ...], *operands: Any) -> Any:
        return new.bind(*operands, **dict(params))

    new.def_impl(lambda *operands, **params: run(tuple(params.items()), *operands))
    return new


def set_derivatives(new: Any, plain: Any) -> None:
    """Give a primitive the derivatives of a function of its operands and parameters."""
    from jax.interpreters import ad

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        moving = [k for k, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
        along = _of_some(functools.partial(plain, **params), primals, moving)
        points, directions = ([side[k] for k in moving] for side in (primals, tangents))
        _, tangent = jax.jvp(along, points, directions)
        return new.bind(*primals, **params), tangent

    def transpose(cotangent: Any, *operands: Any, **params: Any) -> Any:
        wanted = [k for k, o in enumerate(operands) if ad.is_undefined_primal(o)]
        found: list[Any] = [None] * len(operands)
        if not isinstance(cotangent, ad.Zero):
            along = _of_some(functools.partial(plain, **params), operands, wanted)
            avals = [operands[k].aval for k in wanted]
            back = jax.linear_transpose(along, *avals)(cotangent)
            for k, value in zip(wanted, back, strict=True):
                found[k] = value
        return found

    ad.primitive_jvps[new] = jvp
    ad.primitive_transposes[new] = transpose


def _of_some(fn: Any, values: Any, places: list[int]) -> Any:
    def run(*some: Any) -> Any:
        given = dict(zip(places, some, strict=True))
        return fn(*[given.get(k, value) for k, value in enumerate(values)])

    return run


def set_batching(new: Any, rule: Any) -> None:
    """Let `rule(size, operands, axes, **params)` map a primitive over an axis.

    It gives the result, whose first axis is the mapped one; axes are None for operands
    that are not mapped.
    """
    from jax.interpreters import batching

    def batched(operands: Any, axes: Any, **params: Any) -> Any:
        (size, *_) = [
            o.shape[a] for o, a in zip(operands, axes, strict=True) if a is not None
        ]
        return rule(size, operands, list(axes), **params), 0

    batching.primitive_batchers[new] = batched


def set_lowerings(new: Any, plain: Any, on_cpu: Any, holding: Any) -> None:
    """Lower a primitive to one function on a CPU and to another one elsewhere.

    `on_cpu` stands for code of this process and device: exported programs, and those
    that a compiler is to partition over several devices, take `plain` there too. What
    the list of the context `holding()` has in the end lives as long as the program.
    """
    from jax.interpreters import mlir

    anywhere = mlir.lower_fun(plain, multiple_results=False)
    here = mlir.lower_fun(on_cpu, multiple_results=False)

    def lower(context: Any, *operands: Any, **params: Any) -> Any:
        module = context.module_context
        if module.lowering_parameters.for_export or _is_partitioned(module):
            return anywhere(context, *operands, **params)
        local = [jax.core.ShapedArray(a.shape, a.dtype) for a in context.avals_in]
        with holding() as held:
            results = here(context.replace(avals_in=local), *operands, **params)
        for each in held:
            module.add_keepalive(each)
        return results

    mlir.register_lowering(new, anywhere)
    mlir.register_lowering(new, lower, platform="cpu")


def _is_partitioned(module: Any) -> bool:
    """Whether XLA spreads the operations of a module over several devices."""
    axes = module.axis_context
    if hasattr(axes, "manual_axes"):
        names = set(axes.mesh.axis_names) - axes.manual_axes
        return any(axes.mesh.shape[name] > 1 for name in names)
    return getattr(axes, "num_devices", 1) > 1
