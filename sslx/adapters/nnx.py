"""Flax NNX: smaller modules that run their own code."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from sslx._calls import require_two_steps
from sslx._compact.compacted import Compact
from sslx._groups.groups import flatten, unflatten
from sslx.adapters._resize import (
    Call,
    Library,
    Resized,
    Versions,
    call_module,
    fit,
    reduced,
    refuse_constants,
)
from sslx.adapters._sizes import Built, with_random


def function(
    module: nnx.Module, call: Call = call_module
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and its arrays, for `sslx.compact` and the like.

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
    *_example: Any,
    call: Call = call_module,
    sizes: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Callable[..., Resized]:
    """Remove what is dead from a module; the result runs the module's own code.

    That code can neither move slices nor add folded constants, so operands are aligned,
    and channels that a bias or a normalisation keeps nonzero stay; the function that
    `sslx.compact` returns has neither limit.

    Sizes in attributes (integers, also in tuples and configurations) follow the arrays:
    they become what the constructor, called again, derives from them, or the kept part
    of an axis or of one of its factors; of several candidates, the one with which the
    module computes the right outputs. A submodule whose code cannot run correctly at
    smaller sizes, such as a norm over channels of which some are gone, keeps its size:
    `small.held_back` names it and the reason.

    Args:
      module: is left as it is.
      call: as for `function`.
      sizes: new values of attributes that are not found otherwise, by path:
        `{"attn.heads": 3, "blocks.0.config.n_head": 2, "norm.shape": (13,)}`.
      strict: as for `sslx.compact`; also raise instead of keeping a submodule whole.

    Returns:
      A function of an example call, `(*args, **kwargs)` of arrays or shapes. It gives
      the smaller module, with its sizes (such as `out_features`), and the `Compact`
      that it was made from, whose plan shrinks optimizer states.

    Raises:
      ValueError: if the module's code cannot run at the new sizes or would compute
        something else; if a size has several candidates and no call tells which; if
        `sizes` names something that is not a size. The text names each attribute, its
        old size and the candidates.

    Example:
      >>> model.eval()
      >>> model, small = sslx.adapters.nnx.compact(model)(x)
    """
    require_two_steps("nnx.compact(model, **options)(*args)", _example)

    def of(*args: Any, **kwargs: Any) -> Resized:
        resized = lambda small: resize(module, small, call=call, sizes=sizes)(
            *args, **kwargs
        )
        return reduced(_LIBRARY, module, resized, call, strict, args, kwargs)

    return of


def resize(
    module: nnx.Module,
    small: Compact,
    *,
    call: Call = call_module,
    sizes: Mapping[str, Any] | None = None,
) -> Callable[..., nnx.Module]:
    """A module with the arrays of a compact network, such as one that `load` read.

    Args:
      module: the original module; it is left as it is.
      small: made from `function(module)` with `alignment="align", constants="keep"`.
      call: as for `function`.
      sizes: as for `compact`.

    Returns:
      A function of a call to compare the two with, `(*args, **kwargs)` of arrays or
      shapes, that gives the smaller module.

    Raises:
      ValueError: as for `compact`, or if constants were folded.
    """
    refuse_constants(small)

    def of(*args: Any, **kwargs: Any) -> nnx.Module:
        graph, state = nnx.split(module)
        _, treedef = flatten(small.variables)
        trees = small.expand(), small.variables, unflatten(treedef, small.plan.leaves)
        versions = Versions(module, *(_merged(graph, state, tree) for tree in trees))
        fit(_LIBRARY, versions, small, call, sizes or {}, args, kwargs)
        return versions.now

    return of


def _modules(module: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, part in nnx.iter_modules(module):
        if not isinstance(part, nnx.List | nnx.Dict):
            yield "/".join(map(str, path)), part


def _arrays(module: nnx.Module) -> Mapping[str, Any]:
    return flatten(nnx.to_pure_dict(nnx.state(module)))[0]


def _build(kind: type, arguments: dict[str, Any]) -> Built:
    made = nnx.eval_shape(
        lambda: kind(**with_random(kind, arguments, "rngs", nnx.Rngs(0)))
    )
    shapes = {path: leaf.shape for path, leaf in _arrays(made).items()}
    return Built(shapes, vars(made))


def _modes(module: nnx.Module) -> list[nnx.Module]:
    quiet = nnx.clone(module)
    quiet.eval()
    return [quiet] if nnx.graphdef(quiet) == nnx.graphdef(module) else [module, quiet]


def _state(module: nnx.Module) -> list[str]:
    """The paths of all variables but parameters."""
    variables = nnx.to_flat_state(nnx.state(module))
    return [
        "/".join(map(str, path))
        for path, variable in variables
        if not isinstance(variable, nnx.Param)
    ]


_LIBRARY = Library(_modules, _arrays, _build, setattr, _modes, function, _state)
