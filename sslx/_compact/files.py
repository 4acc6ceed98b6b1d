"""A compact network on disk: arrays by orbax, everything else as JSON. No pickle.

PATH/compact.json    the plan, the structure, and digests of all files and of itself
PATH/arrays/         the arrays
"""

import dataclasses
import hashlib
import json
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from sslx._calls import Call, take_apart
from sslx._compact.analysis.report import HeldBack, KeptZeros
from sslx._compact.compacted import Compact
from sslx._compact.folders import locatable, new_folder
from sslx._compact.jaxpr.tracing import Tracer
from sslx._compact.plan import Plan
from sslx._groups.groups import flatten, unflatten
from sslx.lowering import Tuned

_FORMAT = 5
_PLAIN = (bool, int, float, str, type(None))
_KINDS = {kind.__name__: kind for kind in (dict, OrderedDict, list, tuple)}


def save(path: str | pathlib.Path, small: Compact) -> None:
    """Write a compact network to a new folder: `compact.json` and `arrays/`.

    A killed `save` leaves a hidden folder beside `path`, which the next `save` removes.

    Args:
      path: the folder to create; it appears only when it is complete.
      small: what `compact` returned; its variables may have been trained further.

    Raises:
      FileExistsError: if the path exists; nothing is overwritten.
      ValueError: if the locale of this process cannot name the path.
    """
    path = locatable(path)
    leaves, _ = flatten(small.variables)
    arrays = {f"variables:{p}": _stored(x) for p, x in leaves.items() if x.size}
    data = {
        "fold": small._fold_constants,
        "state": small.state,
        "opaque": [[*key, why] for key, why in small._tracer.opaque.items()],
        "plan": small.plan.to_json(),
        "structure": _structure(small.variables, leaves),
        "dtypes": {p: _dtype_name(x) for p, x in leaves.items()},
        "arrays": {k: [x.shape, str(x.dtype)] for k, x in arrays.items()},
        "folded": dict(small.folded),
        "held_back": [
            [h.primitive, h.source, h.paths, h.reason] for h in small.held_back
        ],
        "kept_zeros": [dataclasses.astuple(k) for k in small.kept_zeros],
        "example": _example_to_json(small.example),
        "tuned": small.tuned and small.tuned.to_json(),
    }
    with new_folder(path) as folder:
        if arrays:
            _write_arrays(folder / "arrays", arrays)
        files = {
            file.relative_to(folder).as_posix(): _digest_of(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        content = {**data, "files": files}
        whole = {"format": _FORMAT, "digest": _digest(content), "content": content}
        (folder / "compact.json").write_text(json.dumps(whole), encoding="utf-8")


def load(
    path: str | pathlib.Path, fn: Callable[..., Any], like: PyTree | None = None
) -> Compact:
    """Read what `save` wrote; with the original function it runs again.

    Args:
      path: the folder.
      fn: the function that was given to `compact`.
      like: variables of the original network, arrays or shapes. Needed only where the
        variables are not made of dictionaries, lists and tuples; compared with the plan
        if given.

    Returns:
      The `Compact` that was saved.

    Raises:
      FileNotFoundError: if the folder holds no compact network.
      ValueError: if a file is damaged or has another version of the format; if `like`
        is needed but missing, or belongs to another network.
    """
    path = locatable(path)
    if not ((path / "compact.json").exists() or (path / "arrays").exists()):
        raise FileNotFoundError(f"{path} holds no compact network (no compact.json)")
    data = _verified(path)
    try:
        return _rebuilt(path, data, fn, like)
    except _Mismatch:
        raise
    except (
        AttributeError,
        IndexError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{path} holds what no compact network has ({error!r}); save it again"
        ) from error


class _Mismatch(ValueError):
    """The files are good, but do not fit what was given to `load`."""


def _rebuilt(
    path: pathlib.Path,
    data: Mapping[str, Any],
    fn: Callable[..., Any],
    like: PyTree | None,
) -> Compact:
    plan = Plan.from_json(data["plan"])
    dtypes = data["dtypes"]
    _check_precision(path, dtypes)
    for p, leaf in plan.leaves.items():
        stored, _ = data["arrays"].get(f"variables:{p}", (leaf.small_shape, ""))
        if tuple(stored[: len(leaf.shape)]) != leaf.small_shape:
            wanted = leaf.small_shape
            raise ValueError(f"{p}: got shape {stored}, expected {wanted} by the plan")
    arrays = _read_arrays(path / "arrays", data["arrays"])
    leaves = {
        p: _typed(arrays.get(f"variables:{p}"), leaf.small_shape, dtypes[p])
        for p, leaf in plan.leaves.items()
    }
    if like is not None:
        variables = _fitted(path, plan, leaves, like)
    elif data["structure"] is not None:
        variables = _nested(data["structure"], leaves)
    else:
        raise _Mismatch(
            f"{path}: its variables are not made of dictionaries, lists and tuples; "
            "give the original network's variables, or their shapes, as like="
        )
    held = tuple(HeldBack(a, b, tuple(c), d) for a, b, c, d in data["held_back"])
    opaque = {(name, source): why for name, source, why in data["opaque"]}
    example = _example_from_json(data["example"])
    kept = tuple(KeptZeros(*row) for row in data["kept_zeros"])
    small = Compact(
        Tracer(fn, data["state"], opaque),
        variables,
        plan,
        data["folded"],
        held,
        kept,
        example,
        data["fold"],
    )
    if data["tuned"] is None:
        return small
    tuned = Tuned.from_json(small.apply, data["tuned"])
    return dataclasses.replace(small, tuned=tuned)


# Digests.


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _damaged(file: pathlib.Path, reason: str) -> ValueError:
    return ValueError(f"{file} is damaged ({reason}); save the network again")


def _verified(path: pathlib.Path) -> dict[str, Any]:
    """The content of compact.json, itself and all files as they were written."""
    file = path / "compact.json"
    try:
        whole = json.loads(file.read_bytes())
        form, digest, content = whole["format"], whole["digest"], whole["content"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(file, repr(error)) from error
    if form != _FORMAT:
        raise ValueError(
            f"{file} is of format {form!r}, and this version of sslx reads format "
            f"{_FORMAT}: load it with the version that saved it, or save it again"
        )
    if _digest(content) != digest:
        raise _damaged(file, "its digest is another")
    for name, wanted in content["files"].items():
        part = path / name
        try:
            found = _digest_of(part)
        except OSError as error:
            raise _damaged(part, error.strerror or repr(error)) from error
        if found != wanted:
            raise _damaged(part, "its digest is another")
    return content


# Arrays.

_KEY = "key:"


def _stored(array: Any) -> Any:
    """An array of a dtype that every reader knows.

    Keys of random numbers are stored as the integers they are made of, and dtypes that
    NumPy lacks (bfloat16, float8, int4) as words of their size.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if not np.dtype(array.dtype).isbuiltin:
        return np.asarray(array).view(f"uint{8 * array.dtype.itemsize}")
    return array


def _dtype_name(array: Any) -> str:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return f"{_KEY}{jax.random.key_impl(array)}"
    return str(array.dtype)


def _typed(stored: Any | None, shape: tuple[int, ...], dtype: str) -> Any:
    """What `_stored` was given; None stands for an array of size zero."""
    if dtype.startswith(_KEY):
        impl = dtype.removeprefix(_KEY)
        if stored is None:
            return jax.random.split(jax.random.key(0, impl=impl), shape)
        array = jax.random.wrap_key_data(stored, impl=impl)
    else:
        array = np.zeros(shape, np.dtype(dtype)) if stored is None else stored
        if not np.dtype(dtype).isbuiltin:
            array = jnp.asarray(np.asarray(array).view(dtype))
    if array.shape != shape or _dtype_name(array) != dtype:
        found = f"{_dtype_name(array)}{array.shape}"
        raise ValueError(f"got an array {found}, expected {dtype}{shape}")
    return array


def _check_precision(path: pathlib.Path, dtypes: Mapping[str, str]) -> None:
    for leaf, name in dtypes.items():
        if name.startswith(_KEY):
            continue
        if jax.dtypes.canonicalize_dtype(name) != np.dtype(name):
            raise _Mismatch(
                f"{path}: {leaf} is of type {name}, which JAX would cut short; "
                "set jax_enable_x64, as it was when the network was saved"
            )


def _write_arrays(folder: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, arrays)
        checkpointer.wait_until_finished()


def _read_arrays(folder: pathlib.Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays, of these shapes and types."""
    if not facts:
        return {}
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype), sharding=device)
        for name, (shape, dtype) in facts.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, targets)


# Trees.


def _structure(variables: PyTree, leaves: Mapping[str, Any]) -> Any:
    """Nested lists with paths in place of leaves; None for other containers."""
    paths: list[str] = []

    def walk(node: Any, *keys: str) -> Any:
        kind = type(node).__name__
        if node is None:
            return [kind, []]
        if _KINDS.get(kind) is not type(node):
            paths.append("/".join(keys))
            return paths[-1]
        if isinstance(node, (list, tuple)):
            return [kind, [walk(x, *keys, str(k)) for k, x in enumerate(node)]]
        if not {str, int}.issuperset(map(type, node)):
            paths.append("")
        return [kind, [[k, walk(x, *keys, str(k))] for k, x in node.items()]]

    structure = walk(variables)
    return structure if sorted(paths) == sorted(leaves) else None


def _nested(structure: Any, leaves: Mapping[str, Any]) -> Any:
    if isinstance(structure, str):
        return leaves[structure]
    kind, children = structure
    if kind == "NoneType":
        return None
    if issubclass(_KINDS[kind], dict):
        return _KINDS[kind]((k, _nested(x, leaves)) for k, x in children)
    return _KINDS[kind](_nested(x, leaves) for x in children)


def _fitted(
    path: pathlib.Path, plan: Plan, leaves: Mapping[str, Any], like: PyTree
) -> PyTree:
    wide, treedef = flatten(like)
    errors = [
        f"  {p}: the plan has it, the model does not" for p in plan.leaves.keys() - wide
    ]
    errors += [
        f"  {p}: the model has it, the plan does not" for p in wide.keys() - plan.leaves
    ]
    errors += [
        f"  {p}: the model has shape {np.shape(wide[p])}, the plan {leaf.shape}"
        for p, leaf in plan.leaves.items()
        if p in wide and np.shape(wide[p]) != leaf.shape
    ]
    if errors:
        raise _Mismatch(
            f"{path} was made from another model:\n" + "\n".join(sorted(errors))
        )
    return unflatten(treedef, {p: leaves[p] for p in wide})


def _example_to_json(example: Call | None) -> Any:
    if example is None:
        return None
    args, kwargs = example.rebuild(example.arrays)

    def plain(x: Any) -> Any:
        if isinstance(x, jax.ShapeDtypeStruct):
            return {"shape": x.shape, "dtype": str(x.dtype)}
        return x

    values = [*args, *kwargs.values()]
    if all(isinstance(x, (*_PLAIN, jax.ShapeDtypeStruct)) for x in values):
        return [[plain(x) for x in args], {k: plain(x) for k, x in kwargs.items()}]
    return None


def _example_from_json(data: Any) -> Call | None:
    if data is None:
        return None

    def struct(x: Any) -> Any:
        if isinstance(x, dict):
            return jax.ShapeDtypeStruct(tuple(x["shape"]), np.dtype(x["dtype"]))
        return x

    args, kwargs = data
    rebuilt = tuple(map(struct, args)), {k: struct(x) for k, x in kwargs.items()}
    return take_apart(*rebuilt)
