"""Flax NNX: smaller modules that run their own code."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from sslx._compact import Compact
from sslx.adapters._resize import (
    Built,
    Call,
    Resized,
    Shapes,
    Side,
    aligned,
    call_module,
    check,
    fit,
    refuse_constants,
    with_random,
)


def function(
    module: nnx.Module, call: Call = call_module
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and its arrays, for `sslx.compact` and all the rest.

    Args:
      module: as it would be called: `module.eval()` first, for inference.
      call: `call(module, *args, **kwargs)`; the module's `__call__` by default.

    Returns:
      `fn(variables, *args, **kwargs)`, and nested dictionaries of arrays whose paths
      are those of the attributes (`block1/conv/kernel`). Changes that the call makes
      to the module's state are dropped.
    """
    graph, state = nnx.split(module)

    def fn(variables: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        return call(_merged(graph, state, variables), *args, **kwargs)

    return fn, nnx.to_pure_dict(state)


def _merged(graph: Any, state: Any, variables: PyTree) -> nnx.Module:
    fresh = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(fresh, variables)
    return nnx.merge(graph, fresh)


def compact(
    module: nnx.Module,
    *args: Any,
    call: Call = call_module,
    strict: bool = False,
    **kwargs: Any,
) -> Resized:
    """Remove what is dead from a module; the result runs the module's own code.

    That code can neither move slices nor add folded constants, so operands are aligned
    and channels that a bias or a normalisation still speaks for are kept; the function
    that `sslx.compact` makes has neither limit.

    Args:
      module: is left as it is.
      *args: an example call; shapes are enough.
      call: as for `function`.
      strict: as for `sslx.compact`.
      **kwargs: more of the call.

    Returns:
      The smaller module, its sizes (such as `out_features`) with it, and the `Compact`
      it was made from, whose plan shrinks optimizer states.

    Raises:
      ValueError: if the module's code cannot run at the new sizes, or would compute
        something else; it is named.

    Example:
      >>> model.eval()
      >>> model, small = sslx.adapters.nnx.compact(model, x)
    """
    fn, variables = function(module, call)
    small = aligned(fn, variables, args, kwargs, strict)
    return Resized(resize(module, small, *args, call=call, **kwargs), small)


def resize(
    module: nnx.Module,
    small: Compact,
    *args: Any,
    call: Call = call_module,
    **kwargs: Any,
) -> nnx.Module:
    """A module with the arrays of a compact network, such as one that `load` read.

    Args:
      module: the original module; it is left as it is.
      small: made from `function(module)` with `alignment="align", constants="keep"`.
      *args: a call to compare the two with; shapes are enough.
      call: as for `function`.
      **kwargs: more of the call.

    Raises:
      ValueError: as for `compact`, or if constants were folded.
    """
    refuse_constants(small)
    graph, state = nnx.split(module)
    new = _merged(graph, state, small.variables)
    full = _merged(graph, state, small.expand())
    pairs = zip(nnx.iter_modules(module), nnx.iter_modules(new), strict=True)
    fit(
        ((was, now) for (_, was), (_, now) in pairs),
        _shapes,
        _build,
        setattr,
        lambda: check(_side(full, call), _side(nnx.clone(new), call), args, kwargs),
    )
    return new


def _side(module: nnx.Module, call: Call) -> Side:
    paths = {id(m): "/".join(map(str, path)) for path, m in nnx.iter_modules(module)}
    return Side(functools.partial(call, module), paths)


def _shapes(module: nnx.Module) -> Shapes:
    state = nnx.to_flat_state(nnx.state(module))
    return {"/".join(map(str, path)): leaf.shape for path, leaf in state}


def _build(kind: type, arguments: dict[str, Any]) -> Built:
    made = nnx.eval_shape(
        lambda: kind(**with_random(kind, arguments, "rngs", nnx.Rngs(0)))
    )
    return Built(_shapes(made), vars(made))
