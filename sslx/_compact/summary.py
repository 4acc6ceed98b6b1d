"""What a compaction did, layer by layer."""

from typing import Any

import jax
import numpy as np

from sslx import measure
from sslx._groups.groups import flatten
from sslx._table import Table, shape_text


def rows(small: Any) -> list[dict[str, Any]]:
    """One row per convolution or product of the original function."""
    return _compared(*costs(small))


def _compared(before: measure.Cost, after: measure.Cost) -> list[dict[str, Any]]:
    """Layers of the same name in their order; then products that came in addition."""
    left: dict[str, list[measure.LayerCost]] = {}
    for layer in after.layers:
        left.setdefault(layer.name, []).append(layer)
    out = []
    for layer in before.layers:
        match = left.get(layer.name)
        out.append(_row(layer.name, layer, match.pop(0) if match else None))
    more = [layer for layers in left.values() for layer in layers]
    return out + [_row(layer.name, None, layer) for layer in more]


def _row(
    name: str, before: measure.LayerCost | None, after: measure.LayerCost | None
) -> dict[str, Any]:
    return {
        "layer": name,
        "kernel_before": before.kernel if before else None,
        "kernel_after": after.kernel if after else None,
        "macs_before": before.macs if before else 0,
        "macs_after": after.macs if after else 0,
        "bytes_before": before.weight_bytes if before else 0,
        "bytes_after": after.weight_bytes if after else 0,
    }


def costs(small: Any) -> tuple[measure.Cost, measure.Cost]:
    """Cost of the original and of the reduced function on the example call."""
    if small.example is None:
        raise ValueError(
            "no example call: the one given to compact could not be saved; "
            "summarise before saving, or compact again"
        )
    args, kwargs = small.example.rebuild(small.example.arrays)
    leaves, treedef = flatten(small.variables)
    wide = [
        jax.ShapeDtypeStruct(small.plan.leaves[p].shape, x.dtype)
        for p, x in leaves.items()
    ]
    full = jax.tree_util.tree_unflatten(treedef, wide)
    narrow = jax.tree_util.tree_unflatten(
        treedef, [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves.values()]
    )
    before = measure.cost(small.fn, full, *args, **kwargs)
    return before, measure.cost(small.apply, narrow, *args, **kwargs)


def table(small: Any) -> Table:
    """Layers and totals, and what was held back."""
    before, after = costs(small)
    total = [
        "all parameters",
        f"{before.parameters:,} -> {after.parameters:,}",
        f"{before.macs:,} -> {after.macs:,}",
        f"{before.parameter_bytes:,} -> {after.parameter_bytes:,}",
    ]
    lines = [*map(_cells, _compared(before, after)), total]
    return Table(["layer", "kernel", "MACs", "bytes"], lines, _remarks(small))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["layer"],
        f"{_shape(row['kernel_before'], 'none')} -> {_shape(row['kernel_after'])}",
        f"{row['macs_before']:,} -> {row['macs_after']:,}",
        f"{row['bytes_before']:,} -> {row['bytes_after']:,}",
    ]


def _shape(shape: tuple[int, ...] | None, missing: str = "gone") -> str:
    return missing if shape is None else shape_text(shape)


def _remarks(small: Any) -> list[str]:
    lines = [f"held back: {held}" for held in small.held_back]
    lines += [f"kept: {kept}" for kept in small.kept_zeros]
    if small.folded:
        lines.append(
            f"constants: {sum(small.folded.values()):,} entries stay only because "
            f"constant channels are made of them ({', '.join(sorted(small.folded))})"
        )
    return lines
