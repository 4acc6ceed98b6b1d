"""What a compaction did, layer by layer."""

from typing import Any

import jax
import numpy as np

from sslx import measure
from sslx._groups.groups import flatten


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


def text(small: Any) -> str:
    """A table, totals, and what was held back."""
    table = [("layer", "kernel", "", "MACs", "", "bytes", "")]
    before, after = costs(small)
    table += [_cells(row) for row in _compared(before, after)]
    table.append(_total(before, after))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 1 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([*lines, *_remarks(small)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    before, after = row["kernel_before"], row["kernel_after"]
    return (
        row["layer"],
        "none" if before is None else "x".join(map(str, before)),
        "-> " + ("gone" if after is None else "x".join(map(str, after))),
        f"{row['macs_before']:,}",
        f"-> {row['macs_after']:,}",
        f"{row['bytes_before']:,}",
        f"-> {row['bytes_after']:,}",
    )


def _total(before: measure.Cost, after: measure.Cost) -> tuple[str, ...]:
    return (
        "all parameters",
        f"{before.parameters:,}",
        f"-> {after.parameters:,}",
        f"{before.macs:,}",
        f"-> {after.macs:,}",
        f"{before.parameter_bytes:,}",
        f"-> {after.parameter_bytes:,}",
    )


def _remarks(small: Any) -> list[str]:
    lines = [f"held back: {held}" for held in small.held_back]
    lines += [f"kept: {kept}" for kept in small.kept_zeros]
    if small.folded:
        lines.append(
            f"constants: {sum(small.folded.values()):,} entries stay only because "
            f"constant channels are made of them ({', '.join(sorted(small.folded))})"
        )
    return lines


def html(small: Any) -> str:
    """The table as HTML, for notebooks."""
    head = "".join(f"<th>{h}</th>" for h in ("layer", "kernel", "MACs", "bytes"))
    body = ""
    before, after = costs(small)
    for row in [*map(_cells, _compared(before, after)), _total(before, after)]:
        cells = [row[0], *(f"{row[i]} {row[i + 1]}" for i in (1, 3, 5))]
        body += "<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
    notes = "".join(f"<p>{line}</p>" for line in _remarks(small))
    return f"<table><tr>{head}</tr>{body}</table>{notes}"
