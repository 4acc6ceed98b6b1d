"""A compact network on disk: arrays by orbax, everything else as JSON. No pickle."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from sslx._calls import Call, take_apart
from sslx._compact._analysis import Folded
from sslx._compact._compact import Compact
from sslx._compact._plan import Plan
from sslx._compact._tracing import Tracer
from sslx._groups import flatten, unflatten
from sslx.graph import Held, KeptZeros
from sslx.lowering import Tuned

_FORMAT = 2
_PLAIN = (bool, int, float, str, type(None))


def save(path: str | pathlib.Path, small: Compact) -> None:
    """Write a compact network to a new folder: `compact.json` and `arrays/`.

    Args:
      path: the folder to make; it appears only once it is complete.
      small: what `compact` returned, its variables perhaps trained further.

    Raises:
      FileExistsError: if the path exists; nothing is overwritten.
    """
    path = pathlib.Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists; give a new folder or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves, _ = flatten(small.variables)
    arrays = {f"variables:{p}": _plain_array(x) for p, x in leaves.items() if x.size}
    arrays |= {f"folded:{p}": f.values for p, f in small.folded.items()}
    data = {
        "format": _FORMAT,
        "fold": small.fold,
        "state": small.state,
        "opaque": [[*key, why] for key, why in small.tracer.opaque.items()],
        "plan": small.plan.to_json(),
        "dtypes": {p: _dtype_name(x) for p, x in leaves.items()},
        "folded": {p: f.axes for p, f in small.folded.items()},
        "held_back": [
            [h.primitive, h.source, h.paths, h.reason] for h in small.held_back
        ],
        "kept_zeros": [dataclasses.astuple(k) for k in small.kept_zeros],
        "example": _example_to_json(small.example),
        "tuned": small.tuned and small.tuned.to_json(),
    }
    with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent) as temporary:
        folder = pathlib.Path(temporary) / "new"
        folder.mkdir()
        (folder / "compact.json").write_text(json.dumps(data))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "arrays", arrays)
            checkpointer.wait_until_finished()
        folder.rename(path)


def load(
    path: str | pathlib.Path, fn: Callable[..., Any], like: PyTree | None = None
) -> Compact:
    """Read what `save` wrote; with the original function it runs again.

    Args:
      path: the folder.
      fn: the function that was given to `compact`.
      like: variables of the original network, arrays or shapes; needed only where they
        are not nested dictionaries, and compared with the plan where given.

    Raises:
      FileNotFoundError: if there is no such network.
      ValueError: if it is damaged, or if `like` is not of the network it came from.
    """
    path = pathlib.Path(path).absolute()
    if not (path / "compact.json").is_file():
        raise FileNotFoundError(f"{path} holds no compact network (no compact.json)")
    try:
        data = json.loads((path / "compact.json").read_text())
        plan = Plan.from_json(data["plan"])
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(path / "arrays", _targets(data, plan))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; save it again") from error
    leaves = {
        p: _typed_array(arrays.get(f"variables:{p}"), plan.leaves[p].small_shape, dtype)
        for p, dtype in data["dtypes"].items()
    }
    folded = {
        p: Folded(tuple(map(tuple, axes)), np.asarray(arrays[f"folded:{p}"]))
        for p, axes in data["folded"].items()
    }
    variables = _nested(leaves) if like is None else _fitted(path, plan, leaves, like)
    held = tuple(Held(a, b, tuple(c), d) for a, b, c, d in data["held_back"])
    opaque = {(name, source): why for name, source, why in data["opaque"]}
    example = _example_from_json(data["example"])
    kept = tuple(KeptZeros(*row) for row in data["kept_zeros"])
    small = Compact(
        Tracer(fn, data["state"], opaque),
        variables,
        plan,
        folded,
        held,
        kept,
        example,
        data["fold"],
    )
    if data["tuned"] is None:
        return small
    tuned = Tuned.from_json(small.apply, data["tuned"])
    return dataclasses.replace(small, tuned=tuned)


_KEY = "key:"


def _plain_array(array: Any) -> Any:
    """Keys of random numbers as the integers they are made of."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    return array


def _dtype_name(array: Any) -> str:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return f"{_KEY}{jax.random.key_impl(array)}"
    return str(array.dtype)


def _typed_array(array: Any | None, shape: tuple[int, ...], dtype: str) -> Any:
    if array is None:
        return np.zeros(shape, dtype)
    if dtype.startswith(_KEY):
        return jax.random.wrap_key_data(array, impl=dtype.removeprefix(_KEY))
    return array


def _targets(data: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def struct(shape: tuple[int, ...], path: str) -> jax.ShapeDtypeStruct:
        name = data["dtypes"][path]
        if name.startswith(_KEY):
            made = jax.eval_shape(lambda: jax.random.key(0, impl=name[len(_KEY) :]))
            data_shape = jax.eval_shape(jax.random.key_data, made)
            shape, name = (*shape, *data_shape.shape), str(data_shape.dtype)
        dtype = np.dtype(name)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    targets = {
        f"variables:{p}": struct(leaf.small_shape, p)
        for p, leaf in plan.leaves.items()
        if 0 not in leaf.small_shape
    }
    return targets | {
        f"folded:{p}": struct(tuple(map(len, axes)), p)
        for p, axes in data["folded"].items()
    }


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = leaf
    return tree


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
        raise ValueError(
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
