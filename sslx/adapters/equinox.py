"""Equinox: smaller modules that run their own code."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from sslx._calls import require_two_steps
from sslx._compact.compacted import Compact
from sslx._compact.plan import LeafPlan
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
    module: PyTree, call: Call = call_module
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and its arrays, for `sslx.compact` and the like.

    Args:
      module: a module or a tree of them, such as `(model, state)`; as it would be
        called: `eqx.nn.inference_mode(model)` first, for inference.
      call: `call(module, *args, **kwargs)`; the module's `__call__` by default, which
        takes one example: give `lambda m, x: jax.vmap(m)(x)` for a batch.

    Returns:
      `fn(variables, *args, **kwargs)`, and the module with its arrays alone, whose
      paths are those of the attributes (`layers/0/weight`).
    """
    arrays, static = eqx.partition(module, eqx.is_array)

    def fn(variables: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        return call(eqx.combine(variables, static), *args, **kwargs)

    return fn, arrays


def compact(
    module: PyTree,
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
      module: as for `function`.
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
      >>> batched = lambda model, x: jax.vmap(model)(x)
      >>> model, small = sslx.adapters.equinox.compact(model, call=batched)(x)
    """
    require_two_steps("equinox.compact(model, **options)(*args)", _example)

    def of(*args: Any, **kwargs: Any) -> Resized:
        resized = lambda small: resize(module, small, call=call, sizes=sizes)(
            *args, **kwargs
        )
        return reduced(_LIBRARY, module, resized, call, strict, args, kwargs)

    return of


def resize(
    module: PyTree,
    small: Compact,
    *,
    call: Call = call_module,
    sizes: Mapping[str, Any] | None = None,
) -> Callable[..., PyTree]:
    """A module with the arrays of a compact network, such as one that `load` read.

    Args:
      module: the original module.
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

    def of(*args: Any, **kwargs: Any) -> PyTree:
        static = eqx.partition(module, eqx.is_array)[1]
        _, treedef = flatten(small.variables)
        trees = small.expand(), small.variables, unflatten(treedef, small.plan.leaves)
        versions = Versions(module, *(eqx.combine(tree, static) for tree in trees))
        fit(_LIBRARY, versions, small, call, sizes or {}, args, kwargs)
        return versions.now

    return of


def _modules(tree: PyTree, path: str = "") -> Iterator[tuple[str, eqx.Module]]:
    if isinstance(tree, eqx.Module):
        yield path, tree
    children, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree
    )
    for key, child in children:
        if child is not tree:
            name = jax.tree_util.keystr(key, simple=True, separator="/")
            yield from _modules(child, f"{path}/{name}" if path else name)


def _arrays(module: PyTree) -> Mapping[str, Any]:
    return flatten(eqx.filter(module, _is_shaped))[0]


def _is_shaped(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | LeafPlan)


def _build(kind: type, arguments: dict[str, Any]) -> Built:
    arguments = with_random(kind, arguments, "key", jax.random.key(0))
    made = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(kind)(**arguments)[0])
    shapes = {path: leaf.shape for path, leaf in _arrays(made).items()}
    return Built(shapes, vars(made))


def _modes(tree: PyTree) -> list[PyTree]:
    quiet = eqx.nn.inference_mode(tree)
    return [quiet] if eqx.tree_equal(quiet, tree) else [tree, quiet]


def _state(tree: PyTree) -> list[str]:
    """The paths of what lies in an `eqx.nn.State`."""
    is_state = lambda node: isinstance(node, eqx.nn.State)
    kept = jax.tree.map(lambda x: x if is_state(x) else None, tree, is_leaf=is_state)
    return list(_arrays(kept))


_LIBRARY = Library(
    *(_modules, _arrays, _build, object.__setattr__),
    *(_modes, function, _state),
)
