"""What SSL penalises in the ImageNet networks: units, or rows and columns."""

import dataclasses
import re
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

import sslx

Structure = Literal["units", "filter+shape", "shape"]
ALEXNET_PARTS = {"conv2": 2, "conv4": 2, "conv5": 2}
ALEXNET_ROWS = {"conv1": 1.0, "conv2": 1.0, "conv3": 1.0, "conv4": 1.0}
ALEXNET_COLUMNS = {"conv2": 1.0, "conv3": 1.7321, "conv4": 1.2247, "conv5": 1.0}
"""Factors of lambda in the authors' settings for CaffeNet; layers not named have 0."""


def make_groups(
    structure: Structure,
    model: nn.Module,
    variables: dict[str, Any],
    image: jax.ShapeDtypeStruct,
    block: int,
) -> sslx.Groups:
    """The groups of one structure in `variables["params"]`.

    units: slices of all parameters that can only go together, such as a channel of a
    residual stream with all that write and read it, `block` neighbours in the order of
    their norms; widths that are one single unit are left out;
    filter+shape: every filter (row) and every (h, w, input) column of every
    convolution, columns inside each part of a grouped one;
    shape: the columns alone.

    Raises:
        ValueError: there are none.
    """
    params = variables["params"]
    if structure == "units":
        return _units(model, variables, image, block)
    rules = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path.endswith("/kernel") and leaf.ndim == 4:
            columns = sslx.SHAPE.within(_parts(path, model))
            rows_too = structure == "filter+shape"
            rules[f"^{re.escape(path)}$"] = (
                sslx.FILTER | columns if rows_too else columns
            )
    return sslx.groups(params, rules)


def _parts(path: str, model: nn.Module) -> int:
    """Parts of the grouped convolution with this kernel; only AlexNet has any."""
    named = ALEXNET_PARTS if type(model).__name__ == "AlexNet" else {}
    return named.get(path.removesuffix("/kernel"), 1)


def authors_groups(groups: sslx.Groups) -> sslx.Groups:
    """AlexNet's rows and columns with the authors' factors, classes with 0 left out."""
    rows = {f"^{k}/kernel:FILTER": v for k, v in ALEXNET_ROWS.items()}
    columns = {f"^{k}/kernel:SHAPE": v for k, v in ALEXNET_COLUMNS.items()}
    factors = rows | columns
    kept = [c for c in groups.classes if any(re.search(k, c.name) for k in factors)]
    return dataclasses.replace(groups, classes=tuple(kept)).weighted(factors)


def _units(
    model: nn.Module, variables: dict[str, Any], image: jax.ShapeDtypeStruct, block: int
) -> sslx.Groups:
    found = sslx.units(model.apply)(variables, image)
    classes = []
    for unit in found.classes:
        members = tuple(
            dataclasses.replace(member, path=member.path.removeprefix("params/"))
            for member in unit.members
            if member.path.startswith("params/")
        )
        if members and unit.count > 1:
            name = unit.name.removeprefix("params/")
            classes.append(dataclasses.replace(unit, name=name, members=members))
    if not classes:
        raise ValueError("structure: this network has no units of several channels")
    groups = sslx.Groups(tuple(classes))
    norms = _norms(groups, variables["params"])
    return sslx.Groups(
        tuple(merged(c, np.asarray(norms[c.name]), block) for c in groups.classes)
    )


_norms = jax.jit(sslx.norms, static_argnums=0)


def balanced(groups: sslx.Groups, params: PyTree[Array]) -> sslx.Groups:
    """The groups with lambda's factor by class: its mean norm / mean of all classes'.

    Normalisation makes a kernel's scale meaningless, and widths change it from layer to
    layer: with one lambda the layer of the smallest norms would die as a whole first.
    So all classes shrink by the same part of their norms, and in each the groups go
    that are small among their neighbours.
    """
    means = {name: float(x.mean()) for name, x in _norms(groups, params).items()}
    usual = sum(means.values()) / len(means)
    classes = (
        dataclasses.replace(c, weight=c.weight * means[c.name] / usual)
        for c in groups.classes
    )
    return dataclasses.replace(groups, classes=tuple(classes))


def merged(
    single: sslx.GroupClass, norms: Float[np.ndarray, "..."], block: int
) -> sslx.GroupClass:
    """A class whose groups are `block` groups of `single` of neighbouring norm."""
    rank = np.argsort(np.argsort(norms.reshape(-1), kind="stable"))
    new = np.append(rank // block, -1)  # a slice in no group, -1, stays in none
    every = range(single.count)
    members = tuple(
        dataclasses.replace(m, ids=tuple(new[list(m.ids or every)].tolist()))
        for m in single.members
    )
    return sslx.GroupClass(single.name, (int(new.max()) + 1,), members, single.weight)
