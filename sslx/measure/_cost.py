"""Multiply-accumulates, parameters and bytes of a function, read off its jaxpr."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sslx._calls import is_array, struct, take_apart
from sslx._groups.paths import leaves_by_path
from sslx._jax_compat import Literal, is_jaxpr, open_jaxpr, scope
from sslx._table import Table, Tabular, shape_text


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One convolution or matrix product.

    Attributes:
        name: Path of the kernel in the first argument, such as `params/conv1/kernel`;
            the name scope where no parameter is involved (attention scores).
        kind: `conv` or `dot`.
        kernel: Shape of the operand that does not depend on the data; `()` where
            both do.
        output: Shape of the result.
        macs: Multiply-accumulates; taps that fall on padding count.
        macs_inside: The same without taps on padding: half of the FLOPs that XLA
            reports.
        weights: Entries of the kernel.
        weight_bytes: Bytes of the kernel.
        output_bytes: Bytes of the result.
        times: How often the layer runs (the length of the `scan` around it); `macs`
            and `output_bytes` are totals over all runs.
    """

    name: str
    kind: str
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    macs: int
    macs_inside: int
    weights: int
    weight_bytes: int
    output_bytes: int
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Cost(Tabular):
    """The layers of a function and their totals.

    Attributes:
        layers: One entry per convolution or matrix product, in order of execution.
        weights: Entries of all distinct parameter leaves that serve as kernels.
        parameters: Entries of all leaves of the first argument.
        parameter_bytes: Bytes of all leaves of the first argument.
        notes: What was not counted, if anything.
    """

    layers: tuple[LayerCost, ...]
    weights: int
    parameters: int
    parameter_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_inside(self) -> int:
        """The same without taps on padding."""
        return sum(layer.macs_inside for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the results of all layers, each written once per run."""
        return sum(layer.output_bytes for layer in self.layers)

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able dict per layer."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Totals, notes and rows, JSON-able."""
        totals = ("macs", "macs_inside", "activation_bytes")
        fields = ("weights", "parameters", "parameter_bytes")
        record: dict[str, Any] = {name: getattr(self, name) for name in totals + fields}
        return record | {"notes": list(self.notes), "layers": self.rows()}

    def _table(self) -> Table:
        rows = [
            [
                r.name,
                shape_text(r.kernel),
                shape_text(r.output),
                f"{r.macs:,}",
                f"{r.weights:,}",
            ]
            for r in self.layers
        ]
        total = ["total", "", "", f"{self.macs:,}", f"{self.weights:,}"]
        head = ["layer", "kernel", "output", "MACs", "weights"]
        return Table(head, [*rows, total], self.notes)


def cost(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Cost:
    """Count multiply-accumulates, parameters and bytes of `fn` without running it.

    convolution: MACs = output entries * kernel taps * input channels per group
    dot:         MACs = output entries * contracted entries

    Convolutions and matrix products are counted at any depth; a `scan` multiplies by
    its length, and of a `cond` the most expensive branch counts. The direct
    convolutions of `sslx.tune` count the columns that they read. All taps count, those
    on padding included, as is usual in the literature; XLA leaves these out, which is
    `macs_inside`. Taps on the holes of a dilated input (transposed convolutions) never
    count.

    Args:
        fn: Any JAX function; its first argument is the pytree of parameters.
        *args: Pytrees of arrays or of `jax.ShapeDtypeStruct`; batch size as given.
        **kwargs: Keyword arguments of the call. Leaves that are not arrays, here and in
            `args`, are settings (`train=False`) and are not traced.

    Returns:
        Rows per layer and totals.

    Example:
        >>> dense = lambda params, x: x @ params["w"]
        >>> w, x = jax.ShapeDtypeStruct((3, 5), "float32"), jax.numpy.ones((2, 3))
        >>> cost(dense, {"w": w}, x).macs
        30
    """
    if not args:
        raise ValueError("cost: got no arguments, expected fn's parameters and inputs")
    leaves, _ = leaves_by_path(args[0])
    names = [path for path, leaf in leaves if is_array(leaf)]
    closed = _trace(fn, args, kwargs)
    walk = _Walk(names)
    jaxpr, _ = open_jaxpr(closed)
    params = [_Origin(frozenset([i]), False) for i in range(len(names))]
    data = [_Origin(frozenset(), True)] * (len(jaxpr.invars) - len(names))
    walk.run(jaxpr, params + data, times=1)
    avals = [v.aval for v in jaxpr.invars[: len(names)]]
    return Cost(
        layers=tuple(walk.layers),
        weights=sum(math.prod(avals[i].shape) for i in walk.kernels),
        parameters=sum(math.prod(aval.shape) for aval in avals),
        parameter_bytes=sum(_bytes(aval) for aval in avals),
        notes=tuple(dict.fromkeys(walk.notes)),
    )


def _trace(fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The program of a call, with its arrays as inputs in order."""
    call = take_apart(args, kwargs)

    def of_arrays(arrays: Any) -> Any:
        args, kwargs = call.rebuild(arrays)
        return fn(*args, **kwargs)

    return jax.make_jaxpr(of_arrays)([struct(x) for x in call.arrays])


class _Origin(NamedTuple):
    """Where a value comes from: parameter leaves, and whether data is involved."""

    leaves: frozenset[int]
    data: bool


_NOTHING = _Origin(frozenset(), False)


def _join(origins: Sequence[_Origin]) -> _Origin:
    leaves = frozenset[int]().union(*(o.leaves for o in origins))
    return _Origin(leaves, any(o.data for o in origins))


class _Walk:
    """Follows origins through a program and collects its layers."""

    def __init__(self, names: list[str]):
        self.names = names
        self.layers: list[LayerCost] = []
        self.kernels: set[int] = set()
        self.notes: list[str] = []

    def run(self, jaxpr: Any, origins: Sequence[_Origin], times: int) -> list[_Origin]:
        """Walk one program; return the origins of its results."""
        known = dict(zip(jaxpr.invars, origins, strict=True))

        def read(atom: Any) -> _Origin:
            return _NOTHING if isinstance(atom, Literal) else known.get(atom, _NOTHING)

        for eqn in jaxpr.eqns:
            outs = self.step(eqn, [read(atom) for atom in eqn.invars], times)
            known.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, ins: list[_Origin], times: int) -> list[_Origin]:
        """Walk one equation."""
        name = eqn.primitive.name
        if name in ("conv_general_dilated", "dot_general", "direct_conv"):
            self.layers.append(self.layer(eqn, ins, times))
        elif name == "scan":
            return self.scan(eqn, ins, times)
        elif name == "while":
            return self.loop(eqn, ins, times)
        elif name == "cond":
            return self.branches(eqn, ins, times)
        elif name == "pallas_call":
            self.notes.append("pallas_call: a hand-written kernel, not counted")
        else:
            bodies = [value for value in eqn.params.values() if is_jaxpr(value)]
            body = open_jaxpr(bodies[0])[0] if len(bodies) == 1 else None
            if body is not None and len(body.invars) == len(ins):
                outs = self.run(body, ins, times)
                if len(outs) == len(eqn.outvars):
                    return outs
        return [_join(ins)] * len(eqn.outvars)

    def scan(self, eqn: Any, ins: list[_Origin], times: int) -> list[_Origin]:
        body, _ = open_jaxpr(eqn.params["jaxpr"])
        # What is scanned over has one axis less inside; how parameters of the equation
        # spell these numbers changes between versions of JAX.
        scanned = sum(map(_loses_axis, eqn.invars, body.invars))
        carries = len(body.outvars) - sum(map(_loses_axis, eqn.outvars, body.outvars))
        consts = len(body.invars) - scanned - carries
        settled = self._settle(
            lambda walk, carry: walk.run(
                body, [*ins[:consts], *carry, *ins[consts + carries :]], 1
            )[:carries],
            ins[consts : consts + carries],
        )
        full = [*ins[:consts], *settled, *ins[consts + carries :]]
        return self.run(body, full, times * eqn.params["length"])

    def loop(self, eqn: Any, ins: list[_Origin], times: int) -> list[_Origin]:
        body, _ = open_jaxpr(eqn.params["body_jaxpr"])
        skip = eqn.params["cond_nconsts"]
        first = skip + eqn.params["body_nconsts"]
        settled = self._settle(
            lambda walk, carry: walk.run(body, [*ins[skip:first], *carry], 1),
            ins[first:],
        )
        before = len(self.layers)
        outs = self.run(body, [*ins[skip:first], *settled], times)
        if len(self.layers) > before:
            self.notes.append("while: iterations unknown, one counted")
        return outs

    def branches(self, eqn: Any, ins: list[_Origin], times: int) -> list[_Origin]:
        walks = [_Walk(self.names) for _ in eqn.params["branches"]]
        outs = [
            walk.run(open_jaxpr(branch)[0], ins[1:], times)
            for walk, branch in zip(walks, eqn.params["branches"], strict=True)
        ]
        costliest = max(walks, key=lambda walk: sum(r.macs for r in walk.layers))
        self.layers += costliest.layers
        for walk in walks:
            self.kernels |= walk.kernels
            self.notes += walk.notes
        return [_join([ins[0], *parts]) for parts in zip(*outs, strict=True)]

    def _settle(
        self,
        turn: Callable[["_Walk", list[_Origin]], list[_Origin]],
        carry: list[_Origin],
    ) -> list[_Origin]:
        """Carried origins once further turns of a loop add nothing."""
        while True:
            new = turn(_Walk(self.names), carry)
            joined = [_join(pair) for pair in zip(carry, new, strict=True)]
            if joined == carry:
                return carry
            carry = joined

    def layer(self, eqn: Any, ins: list[_Origin], times: int) -> LayerCost:
        lhs, rhs = (atom.aval for atom in eqn.invars[:2])
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "dot_general":
            kind, fixed = "dot", [i for i in (0, 1) if not ins[i].data]
            (contracted, _), _ = eqn.params["dimension_numbers"]
            macs = math.prod(out.shape) * math.prod(lhs.shape[a] for a in contracted)
            inside = macs
        elif eqn.primitive.name == "direct_conv":
            kind, fixed, conv = "conv", [1], eqn.params["program"].conv
            macs, inside = conv.macs, conv.macs_inside
        else:
            kind, fixed = "conv", [1]
            macs, inside = _conv_macs(eqn.params, lhs.shape, rhs.shape, out.shape)
        which = fixed[0] if len(fixed) == 1 else None
        kernel = (lhs, rhs)[which] if which is not None else None
        origin = ins[which] if which is not None else _NOTHING
        leaves = sorted(origin.leaves) if not origin.data else []
        self.kernels.update(leaves)
        name = "+".join(self.names[i] for i in leaves) or scope(eqn)
        return LayerCost(
            name=name or eqn.primitive.name,
            kind=kind,
            kernel=tuple(kernel.shape) if kernel is not None else (),
            output=tuple(out.shape),
            macs=macs * times,
            macs_inside=inside * times,
            weights=math.prod(kernel.shape) if kernel is not None else 0,
            weight_bytes=_bytes(kernel) if kernel is not None else 0,
            output_bytes=_bytes(out) * times,
            times=times,
        )


def _conv_macs(
    params: Mapping[str, Any],
    lhs: Sequence[int],
    rhs: Sequence[int],
    out: Sequence[int],
) -> tuple[int, int]:
    """MACs of one convolution, with and without the taps on padding."""
    numbers = params["dimension_numbers"]
    batch, feature, *spatial = numbers.out_spec
    outer = out[batch] * out[feature] * rhs[numbers.rhs_spec[1]]
    every, inside = outer, outer
    for axis in range(len(spatial)):
        size = lhs[numbers.lhs_spec[2 + axis]]
        taps, places = rhs[numbers.rhs_spec[2 + axis]], out[spatial[axis]]
        hole = params["lhs_dilation"][axis]
        start = params["window_strides"][axis] * np.arange(places)[:, None]
        reach = params["rhs_dilation"][axis] * np.arange(taps)
        position = start + reach - params["padding"][axis][0]
        real = (
            (position >= 0) & (position <= (size - 1) * hole) & (position % hole == 0)
        )
        met = int(real.sum())
        inside *= met
        every *= met if hole > 1 else taps * places
    return every, inside


def _loses_axis(outer: Any, inner: Any) -> bool:
    return outer.aval.ndim > inner.aval.ndim


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
