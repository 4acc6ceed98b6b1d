"""Evaluate a jaxpr, bodies of calls included, with its convolutions in other forms."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx.lowering import _epilogue
from sslx.lowering._conv import (
    Conv,
    from_canonical,
    from_params,
    has_sizes,
    to_canonical,
)
from sslx.lowering._epilogue import Epilogue
from sslx.lowering._forms import compute
from sslx.lowering._forms.form import Form
from sslx.lowering._native.direct import direct_with_epilogue, is_gradient
from sslx.lowering._native.gather import gathered
from sslx.lowering._pools import reduced


class Lowerings(NamedTuple):
    """How to compute what is not left to XLA.

    Attributes:
      form: of a convolution, given its name scope.
      cpu_ops: whether sums, pools and gathers of channels take forms that are faster on
        a CPU.
    """

    form: Callable[[Conv, str], Form]
    cpu_ops: bool = False


Alive = np.ndarray | None
"""The entries of an array that may differ from zero; None means all."""


def lowered(
    fn: Callable[..., Any], lowerings: Lowerings, alive: Sequence[Alive]
) -> Any:
    """A function of the same flat arrays that computes `fn` in the chosen forms.

    Args:
      fn: of arrays, to a pytree.
      lowerings: `form` is called once per convolution.
      alive: per argument, which entries may differ from zero.
    """

    def run(*arrays: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*arrays)
        known = {k: mask for k, mask in enumerate(alive) if mask is not None}
        outs = _evaluate(closed, lowerings, known, arrays)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), outs)

    return run


def _evaluate(
    jaxpr: Any,
    lowerings: Lowerings,
    alive: Mapping[int, np.ndarray],
    arrays: Sequence[Any],
) -> list[Any]:
    opened, consts = _jax_compat.open_jaxpr(jaxpr)
    env: dict[Any, Any] = dict(zip(opened.constvars, consts, strict=True))
    env.update(zip(opened.invars, arrays, strict=True))
    masks = {opened.invars[k]: mask for k, mask in alive.items()}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax_compat.Literal) else env[atom]

    def mask_of(atom: Any) -> Alive:
        return None if isinstance(atom, _jax_compat.Literal) else masks.get(atom)

    def evaluate(eqn: Any, form: Form | None = None) -> None:
        operands = [read(atom) for atom in eqn.invars]
        known = [mask_of(atom) for atom in eqn.invars]
        with _jax_compat.in_scope(_jax_compat.scope(eqn)):
            outs = _equation(eqn, lowerings, operands, known, form)
        env.update(zip(eqn.outvars, outs, strict=True))
        if eqn.primitive.name in _FOLLOWED and any(m is not None for m in known):
            mask = _FOLLOWED[eqn.primitive.name](eqn, known, operands)
            if mask is not None:
                masks[eqn.outvars[0]] = mask

    def with_epilogue(place: int, epilogue: Epilogue) -> None:
        eqn, *after = (opened.eqns[k] for k in (place, *epilogue.equations))
        operands = [read(atom) for atom in eqn.invars]
        conv = from_params(eqn.params, *operands, alive=mask_of(eqn.invars[1]))
        form = lowerings.form(conv, _jax_compat.scope(eqn))
        if form.kind == "direct" and not is_gradient(conv):

            def follow(y: Any, *operands: Any) -> Any:
                return _epilogue.by_equations(opened, place, epilogue, y, operands)

            given = to_canonical(eqn.params, *operands)
            given += [read(atom) for atom in epilogue.operands]
            with _jax_compat.in_scope(_jax_compat.scope(eqn)):
                y = direct_with_epilogue(conv, epilogue.post_ops, follow, *given)
            env[after[-1].outvars[0]] = y
        else:
            evaluate(eqn, form)
            for each in after:
                evaluate(each)

    found = _epilogue.epilogues(opened)
    ends = {e.equations[-1]: k for k, e in found.items()}
    waiting = {j for k, e in found.items() for j in (k, *e.equations)}
    for k, eqn in enumerate(opened.eqns):
        if k in ends:
            with_epilogue(ends[k], found[ends[k]])
        elif k not in waiting:
            evaluate(eqn)
    return [read(atom) for atom in opened.outvars]


def _equation(
    eqn: Any,
    lowerings: Lowerings,
    operands: list[Any],
    known: list[Alive],
    form: Form | None,
) -> list[Any]:
    name, params = eqn.primitive.name, dict(eqn.params)
    other = (
        _other_form(eqn, lowerings, operands, known, form) if has_sizes(eqn) else None
    )
    if other is not None:
        return [other]
    if name in _jax_compat.CALLS:
        body = params[_jax_compat.CALLS[name]]
        alive = {k: m for k, m in enumerate(known) if m is not None}
        return _evaluate(body, lowerings, alive, operands)
    elif name in ("checkpoint", "remat", "remat2"):
        run = functools.partial(_body, params["jaxpr"], lowerings)
        keep = jax.checkpoint(
            run, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        return list(keep(*operands))
    else:
        for key, value in params.items():
            if isinstance(value, tuple):
                parts = [_rewritten(part, lowerings) for part in value]
                named = getattr(value, "_make", None)
                params[key] = named(parts) if named else tuple(parts)
            else:
                params[key] = _rewritten(value, lowerings)
    early = has_sizes(eqn) and _finds_slices(eqn, operands)
    with _jax_compat.compile_time() if early else contextlib.nullcontext():
        out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _other_form(
    eqn: Any,
    lowerings: Lowerings,
    operands: list[Any],
    known: list[Alive],
    form: Form | None,
) -> Any | None:
    """The result in another form; None where the equation is left to XLA."""
    name, params = eqn.primitive.name, eqn.params
    if name == "conv_general_dilated":
        conv = from_params(params, *operands, alive=known[1])
        form = form or lowerings.form(conv, _jax_compat.scope(eqn))
        if form.kind == "xla":
            return None
        out = compute.run(form, conv, *to_canonical(params, *operands))
        return from_canonical(params, out)
    if lowerings.cpu_ops and len(operands) == 1:
        return reduced(eqn.primitive, params, operands[0])
    if lowerings.cpu_ops and name == "gather":
        return gathered(params, *operands)
    return None


def _finds_slices(eqn: Any, operands: list[Any]) -> bool:
    """Whether it is arithmetic on short, known integers, such as starts of slices."""
    short = all(math.prod(v.aval.shape) <= _LONGEST for v in eqn.outvars)
    known = bool(operands) and all(map(_is_index, operands))
    return known and short and eqn.primitive.name in _ARITHMETIC


def _is_index(operand: Any) -> bool:
    if _jax_compat.is_traced(operand) or np.size(operand) > _LONGEST:
        return False
    dtype = jnp.result_type(operand)
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


_LONGEST = 1 << 16
_ARITHMETIC = frozenset(
    "add sub mul div rem max min neg sign abs and or xor not eq ne lt le gt ge clamp "
    "select_n convert_element_type broadcast_in_dim reshape squeeze transpose rev "
    "concatenate slice pad split reduce_sum reduce_max reduce_min cumsum".split()
)


def _body(jaxpr: Any, lowerings: Lowerings, *arrays: Any) -> list[Any]:
    return _evaluate(jaxpr, lowerings, {}, arrays)


def _rewritten(value: Any, lowerings: Lowerings) -> Any:
    """A parameter of an equation; a closed jaxpr is rewritten to use other forms."""
    if not isinstance(value, _jax_compat.ClosedJaxpr):
        return value
    if not (lowerings.cpu_ops or has_convolution(value)):
        return value
    return jax.make_jaxpr(functools.partial(_body, value, lowerings))(*value.in_avals)


def has_convolution(jaxpr: Any) -> bool:
    """Whether a jaxpr, or a body of its calls, has a convolution."""
    opened, _ = _jax_compat.open_jaxpr(jaxpr)
    for eqn in opened.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            return True
        if any(map(has_convolution, _bodies(eqn))):
            return True
    return False


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs that an equation calls."""
    values = eqn.params.values()
    parts = [v if isinstance(v, tuple) else (v,) for v in values]
    return [b for part in parts for b in part if _jax_compat.is_jaxpr(b)]


# How zero entries pass through operations that often precede a convolution.


def _same(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    return known[0]


def _transpose(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    return None if known[0] is None else known[0].transpose(eqn.params["permutation"])


def _reshape(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    return None if known[0] is None else known[0].reshape(eqn.outvars[0].aval.shape)


def _slice(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    p, mask = eqn.params, known[0]
    if mask is None:
        return None
    steps = p["strides"] or (1,) * mask.ndim
    rows = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return mask[tuple(slice(*row) for row in rows)]


def _gather(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    """Whole slices along one axis, at known positions inside the array."""
    p, mask, indices = eqn.params, known[0], operands[1]
    if mask is None or _jax_compat.is_traced(indices) or np.ndim(indices) != 2:
        return None
    axes, numbers = p["dimension_numbers"].start_index_map, p["dimension_numbers"]
    axis, places = axes[0], np.asarray(indices)[:, 0]
    sizes = tuple(1 if a == axis else n for a, n in enumerate(mask.shape))
    offsets = tuple(a for a in range(mask.ndim) if a != axis)
    whole = (tuple(p["slice_sizes"]), tuple(numbers.offset_dims)) == (sizes, offsets)
    inside = places.size and 0 <= places.min() and places.max() < mask.shape[axis]
    return mask.take(places, axis) if len(axes) == 1 and whole and inside else None


def _product(eqn: Any, known: list[Alive], operands: list[Any]) -> Alive:
    shape = eqn.outvars[0].aval.shape
    full = [m for m in known if m is not None and m.shape == shape]
    return np.logical_and.reduce(full) if full else None


_FOLLOWED: dict[str, Callable[[Any, list[Alive], list[Any]], Alive]] = {
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "neg": _same,
    "stop_gradient": _same,
    "optimization_barrier": _same,
    "reshape": _reshape,
    "squeeze": _reshape,
    "slice": _slice,
    "gather": _gather,
    "transpose": _transpose,
    "mul": _product,
}
