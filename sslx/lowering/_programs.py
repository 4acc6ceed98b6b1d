"""Candidates for whole calls (by the rule, XLA's, measured) and their times."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sslx import _jax_compat
from sslx._calls import Call, struct
from sslx.lowering._choices import Choices, Found
from sslx.lowering._conv import Conv
from sslx.lowering._evaluate import Alive, Lowerings, lowered
from sslx.lowering._forms.form import XLA, Form
from sslx.lowering._native import direct, llvm
from sslx.lowering._rule import rule
from sslx.lowering._timings import Cache
from sslx.measure import latency

_NO_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}


def on_cpu() -> bool:
    """Whether the default device is a CPU, for which the rule was written."""
    return jax.default_backend() == "cpu"


@functools.cache
def option_sets() -> list[dict[str, str]]:
    """The compiler options worth trying on this backend, the rule's choice last."""
    if not on_cpu():
        return [{}]
    try:
        with _jax_compat.compile_time():
            jax.jit(lambda x: x + 1, compiler_options=_NO_YNN)(0.0)
    except jax.errors.JaxRuntimeError:
        return [{}]
    return [{}, _NO_YNN]


def default_form(conv: Conv) -> Form:
    """The rule's form where the rule holds, on a CPU; else XLA's."""
    if not on_cpu():
        return XLA
    if llvm.binding() is None:
        _warn_once()
    return rule(conv)


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        f"convolutions take forms of XLA, which are slower: {direct.MISSING}",
        RuntimeWarning,
        stacklevel=3,
    )


def convolutions(fn: Callable[..., Any], call: Call, alive: Sequence[Alive]) -> Found:
    """Every convolution of a call, with its scope."""
    found: Found = []

    def note(conv: Conv, name: str) -> Form:
        found.append((name, conv))
        return XLA

    shapes = [struct(x) for x in call.arrays]
    jax.eval_shape(lowered(flat(fn, call), Lowerings(note), alive), *shapes)
    return found


def flat(fn: Callable[..., Any], call: Call) -> Callable[..., Any]:
    """The function, of the arrays of a call."""
    return lambda *arrays: call.run(fn, arrays)


def by_rule(found: Found) -> Choices:
    """The choices of the rule."""
    return Choices.of(found, default_form, option_sets()[-1], on_cpu())


def left_to_xla(found: Found) -> Choices:
    """XLA's own forms."""
    return Choices.of(found, lambda conv: XLA, {}, False)


def candidates(found: Found, cache: Cache) -> dict[str, Choices]:
    """Distinct candidates for a whole call: each option with three sets of forms."""
    ways: dict[str, Choices] = {}
    for options in option_sets():
        seconds = {conv: cache.timings(conv, options) for _, conv in found}
        forms: dict[str, Callable[[Conv], Form]] = {
            "xla": lambda conv: XLA,
            "rule": default_form,
            "measured": lambda conv, s=seconds: min(s[conv], key=s[conv].__getitem__),
        }
        label = "without YNN" if options else "default options"
        for name, form in forms.items():
            cpu_ops = name != "xla" and on_cpu()
            ways[f"{name}, {label}"] = Choices.of(
                found, form, options, cpu_ops, seconds.__getitem__
            )
    distinct = {
        (tuple(c.form for c in way), tuple(way.compiler_options), way.cpu_ops): name
        for name, way in ways.items()
    }
    return {name: ways[name] for name in distinct.values()}


def program_seconds(
    calls: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]],
) -> dict[str, float]:
    """Median seconds of calls, timed side by side.

    Args:
      calls: name -> function, arguments and keyword arguments; zeros stand for arrays
        given as shapes.
    """
    ready = {}
    for name, (fn, *given) in calls.items():
        args, kwargs = jax.tree.map(_concrete, given)
        ready[name] = functools.partial(fn, *args, **kwargs)
    times = latency(ready, repeats=9, warmup=2)
    return {name: times[name].median for name in calls}


def _concrete(array: Any) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), array.shape)
    return jnp.zeros(array.shape, array.dtype)
