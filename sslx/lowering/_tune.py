"""`tune`: the fastest exact forms and compiler options for a function."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sslx import _jax_compat
from sslx._calls import Call, require_word, struct, take_apart
from sslx._table import Table, Tabular, shape_text
from sslx.lowering._conv import Columns, Conv
from sslx.lowering._evaluate import Alive, Ways, lowered
from sslx.lowering._forms.forms import XLA, Form
from sslx.lowering._native import direct, llvm
from sslx.lowering._rule import rule
from sslx.lowering._timings import Cache
from sslx.measure import latency

Lowering = Literal["xla", "rule", "measure"]
Nonzero = tuple[Columns | None, ...]
_NO_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one convolution was measured to be best computed as.

    Attributes:
      name: the scope it stands in.
      conv: the convolution.
      form: the form taken.
      seconds: per form that came near, median of the rounds; empty under `"rule"`.
      times: how often the function has this very convolution.
    """

    name: str
    conv: Conv
    form: Form
    seconds: Mapping[Form, float]
    times: int = 1


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Tuned(Tabular):
    """A function with the forms of its convolutions and the compiler options chosen.

    Compared and hashed as an object; it is pickled if its function can be.

    Attributes:
      fn: the original function.
      lowering: how forms are chosen.
      choices: one per distinct convolution, in order of execution.
      compiler_options: what to give to `jax.jit`; they do nothing inside another jit.
      programs: under `"measure"`, seconds of the whole function per way to lower it, of
        which the fastest was taken.
      reductions: whether sums over leading axes are products with ones, pools the sum
        or maximum of shifted slices, and channels moved by machine code, all of which
        is faster on a CPU.
      nonzero: per array of the call, which entries may differ from zero.
    """

    fn: Callable[..., Any]
    lowering: Lowering
    choices: tuple[Choice, ...]
    compiler_options: Mapping[str, str]
    programs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reductions: bool = False
    nonzero: Nonzero = ()

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """`fn(*args, **kwargs)`, traced anew, in the chosen forms.

        Convolutions that were not seen when the choice was made, such as those of
        another batch size, take the form of the rule.
        """
        if self.lowering == "xla":
            return self.fn(*args, **kwargs)
        call = take_apart(args, kwargs)
        known = {choice.conv: choice.form for choice in self.choices}

        def choose(conv: Conv, name: str) -> Form:
            del name
            return known.get(conv) or default_form(conv)

        masks = _masks(self.nonzero)
        ways = Ways(choose, self.reductions)
        return lowered(_flat(self.fn, call), ways, masks)(*call.arrays)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`fn(*args, **kwargs)`, compiled with the options; settings are static.

        Within another function that JAX traces it has no options of its own.
        """
        numbers = tuple(k for k, x in enumerate(args) if _is_setting(x))
        names = tuple(name for name, x in kwargs.items() if _is_setting(x))
        inner = _jax_compat.is_tracing()
        run = self._compiled.get((numbers, names, inner))
        if run is None:
            run = self._compiled[numbers, names, inner] = jax.jit(
                self.apply,
                static_argnums=numbers,
                static_argnames=names,
                compiler_options=None if inner else dict(self.compiler_options),
            )
        return run(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_compiled"}

    @functools.cached_property
    def _compiled(self) -> dict[Any, Callable[..., Any]]:
        return {}

    def to_json(self) -> dict[str, Any]:
        """Everything but the function, as plain lists, numbers and strings.

        Choices for convolutions with a `precision` of their own are left to the rule.
        """
        plain = [c for c in self.choices if c.conv.precision is None]
        return {
            "lowering": self.lowering,
            "compiler_options": dict(self.compiler_options),
            "programs": dict(self.programs),
            "reductions": self.reductions,
            "nonzero": [c and c.to_json() for c in self.nonzero],
            "choices": [
                {
                    "name": c.name,
                    "conv": c.conv.to_json(),
                    "form": dataclasses.astuple(c.form),
                    "seconds": [
                        [dataclasses.astuple(f), s] for f, s in c.seconds.items()
                    ],
                    "times": c.times,
                }
                for c in plain
            ],
        }

    @classmethod
    def from_json(cls, fn: Callable[..., Any], data: Mapping[str, Any]) -> "Tuned":
        """The inverse of `to_json`, also after a trip through a file."""
        choices = [
            Choice(
                c["name"],
                Conv.from_json(c["conv"]),
                Form(*c["form"]),
                {Form(*form): seconds for form, seconds in c["seconds"]},
                c["times"],
            )
            for c in data["choices"]
        ]
        return cls(
            fn,
            data["lowering"],
            tuple(choices),
            data["compiler_options"],
            data["programs"],
            data["reductions"],
            tuple(c and Columns.from_json(c) for c in data["nonzero"]),
        )

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able dict per distinct convolution."""
        return [
            {
                "name": c.name,
                "kernel": c.conv.rhs,
                "output": (c.conv.lhs[0], *c.conv.out, c.conv.rhs[-1]),
                "macs": c.conv.macs,
                "times": c.times,
                "form": str(c.form),
                "seconds": {str(form): s for form, s in c.seconds.items()},
            }
            for c in self.choices
        ]

    def _table(self) -> Table:
        rows = [
            [
                c.name or "-",
                shape_text(c.conv.rhs),
                f"{c.times}",
                str(c.form),
                _gain(c),
            ]
            for c in self.choices
        ]
        head = ["convolution", "kernel", "times", "form", "XLA's own / form"]
        options = ", ".join(f"{k}={v!r}" for k, v in self.compiler_options.items())
        programs = [f"{n}: {1e3 * s:.3f} ms" for n, s in self.programs.items()]
        ends = [f"compiler options: {options or 'none'}", *programs]
        return Table(head, rows, ends)


def _is_setting(x: Any) -> bool:
    plain = x is None or isinstance(x, int | str)
    return plain or (callable(x) and jax.tree_util.all_leaves([x]))


def _gain(choice: Choice) -> str:
    """How much faster than XLA's own form, where both were timed."""
    own, mine = choice.seconds.get(XLA), choice.seconds.get(choice.form)
    return f"{own / mine:.2f}x" if own and mine else "-"


def tune(
    fn: Callable[..., Any],
    *args: Any,
    lowering: Lowering = "rule",
    cache: str | os.PathLike[str] | None = None,
    **kwargs: Any,
) -> Tuned:
    """Choose how a function's convolutions are computed, and how it is compiled.

    Every form is exact: the result differs by rounding only. Convolutions are found
    wherever they stand (`jit`, `scan`, `cond`, `while`, `checkpoint`), those that
    differentiation made included, so `fn` may be a whole training step: tune
    `jax.grad(loss)` rather than differentiate what was tuned, whose derivatives are
    XLA's. On a CPU sums, pools and moved channels take faster forms too, and programs
    of more than 32 MiB of intermediate results gain by `sslx.keep_memory`.

    What follows a convolution entry by entry (bias, norm with fixed statistics,
    residual, ReLU: `+ - * / max min` with numbers, one value per filter, or an array
    like the result) is done by the direct form before it writes the result, where
    channels are the last axis and the result has no other use.

    Taps that only meet padding, and columns that are known to be zero, are not
    multiplied: NaN or infinity in such a weight, or in what it would read, does not
    spread. Sums add up in another order than XLA's, those of half precision in float32.

    The direct form is machine code of this process, made by llvmlite (the extra
    `sslx[cpu]`; without it, forms of XLA are taken and a warning says so once). It is
    an equation `direct_conv`, which `jax.vmap` gives more images or groups, which runs
    on each device's own part in `jax.shard_map`, and which is XLA's convolution in
    derivatives, on other devices, in what `jax.export` writes, and where XLA divides
    the work among several devices.

    Args:
      fn: any JAX function.
      *args: an example call; shapes are enough. Real and complex numbers are traced
        like arrays, as by `jax.jit`; integers, booleans and strings are settings.
      lowering: `"rule"` takes forms and options by a rule for CPUs, and leaves other
        devices to XLA; `"measure"` times the candidates of every convolution, and then
        whole programs, here and now; `"xla"` leaves everything to XLA.
      cache: folder of the timings of convolutions, which are used again; by default
        `$XDG_CACHE_HOME/sslx` or `~/.cache/sslx`.
      **kwargs: more of the call.

    Returns:
      A `Tuned`, which is called like `fn`.

    Raises:
      TypeError: `fn` is no function.
      ValueError: the cache is damaged, or there is no such lowering.

    Example:
      >>> fast = sslx.tune(model.apply, variables, x, lowering="measure")
      >>> y = fast(variables, x)
    """
    return tune_sparse(fn, take_apart(args, kwargs), (), lowering, cache)


def by_rule(fn: Callable[..., Any]) -> Tuned:
    """`tune` without an example call: the rule decides whenever `apply` is traced.

    For training steps and whatever else is jitted with options of its own:

    >>> fast = sslx.lowering.by_rule(step)
    >>> step = jax.jit(
    ...     fast.apply, donate_argnums=0, compiler_options=fast.compiler_options
    ... )
    """
    _say_what_is_missing()
    lowering: Lowering = "rule" if _on_cpu() else "xla"
    return Tuned(fn, lowering, (), option_sets()[-1], reductions=_on_cpu())


def tune_sparse(
    fn: Callable[..., Any],
    call: Call,
    nonzero: Nonzero,
    lowering: Lowering,
    cache: str | os.PathLike[str] | None,
) -> Tuned:
    """`tune` for arrays some of whose entries are known to stay zero."""
    if not callable(fn):
        raise TypeError(f"fn: got {type(fn).__name__}, expected a function")
    require_word("lowering", lowering, get_args(Lowering))
    plain = Tuned(fn, lowering, (), {}, nonzero=nonzero)
    if lowering == "xla":
        return plain
    _say_what_is_missing()
    found = convolutions(fn, call, _masks(nonzero))
    if lowering == "rule":
        choices = _choices(found, default_form)
        return dataclasses.replace(by_rule(fn), choices=choices, nonzero=nonzero)
    return _measured(plain, call, found, Cache(cache))


def _measured(
    plain: Tuned, call: Call, found: list[tuple[str, Conv]], cache: Cache
) -> Tuned:
    """The fastest whole program among XLA's, the rule's and the measured ones."""
    ways: dict[str, Tuned] = {}
    for options in option_sets():
        seconds = {conv: cache.timings(conv, options) for _, conv in found}
        forms = {
            "xla": {conv: XLA for conv in seconds},
            "rule": {conv: default_form(conv) for conv in seconds},
            "measured": {
                conv: min(s, key=s.__getitem__) for conv, s in seconds.items()
            },
        }
        label = "without YNN" if options else "default options"
        for name, chosen in forms.items():
            choices = _choices(found, chosen.__getitem__, seconds.__getitem__)
            ways[f"{name}, {label}"] = dataclasses.replace(
                plain,
                choices=choices,
                compiler_options=options,
                reductions=name != "xla" and _on_cpu(),
            )
    distinct = {
        (
            tuple(c.form for c in way.choices),
            tuple(way.compiler_options),
            way.reductions,
        ): name
        for name, way in ways.items()
    }
    programs = {name: (ways[name], call) for name in distinct.values()}
    seconds = program_seconds(programs)
    best = min(seconds, key=seconds.__getitem__)
    return dataclasses.replace(ways[best], programs=seconds)


def program_seconds(programs: Mapping[str, tuple[Tuned, Call]]) -> dict[str, float]:
    """Seconds of whole calls, side by side; arrays given as shapes are zeros."""
    calls = {}
    for name, (tuned, call) in programs.items():
        args, kwargs = call.rebuild([_concrete(x) for x in call.arrays])
        calls[name] = functools.partial(tuned, *args, **kwargs)
    times = latency(calls, repeats=9, warmup=2)
    return {name: times[name].median for name in calls}


def _choices(
    found: list[tuple[str, Conv]],
    form: Callable[[Conv], Form],
    seconds: Callable[[Conv], Mapping[Form, float]] = lambda conv: {},
) -> tuple[Choice, ...]:
    names: dict[Conv, list[str]] = {}
    for name, conv in found:
        names.setdefault(conv, []).append(name)
    return tuple(
        Choice(scopes[0], conv, form(conv), seconds(conv), len(scopes))
        for conv, scopes in names.items()
    )


@functools.cache
def option_sets() -> list[dict[str, str]]:
    """The compiler options worth trying on this backend, the rule's choice last."""
    if not _on_cpu():
        return [{}]
    try:
        with _jax_compat.compile_time():
            jax.jit(lambda x: x + 1, compiler_options=_NO_YNN)(0.0)
    except jax.errors.JaxRuntimeError:
        return [{}]
    return [{}, _NO_YNN]


def _concrete(array: Any) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        return array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), array.shape)
    return jnp.zeros(array.shape, array.dtype)


def nonzero_of(leaves: Sequence[Any]) -> Nonzero:
    """Per array, the entries that are not zero, where whole lines of it are."""
    return tuple(_nonzero(leaf) for leaf in leaves)


def _nonzero(leaf: Any) -> Columns | None:
    if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.ndim < 3:
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return None
    mask = np.asarray(leaf != 0)
    lines = any(not mask.any(axis).all() for axis in range(mask.ndim))
    return Columns.of(mask) if lines else None


def _masks(nonzero: Nonzero) -> list[Alive]:
    return [None if entries is None else entries.mask for entries in nonzero]


def _flat(fn: Callable[..., Any], call: Call) -> Callable[..., Any]:
    return lambda *arrays: call.run(fn, arrays)


def default_form(conv: Conv) -> Form:
    """The rule's form where the rule holds: on a CPU; else XLA's."""
    return rule(conv) if _on_cpu() else XLA


def _say_what_is_missing() -> None:
    if _on_cpu() and llvm.llvm is None:
        _warn_once()


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        f"convolutions take forms of XLA, which are slower: {direct.MISSING}",
        RuntimeWarning,
        stacklevel=5,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def convolutions(
    fn: Callable[..., Any], call: Call, alive: Sequence[Alive] = ()
) -> list[tuple[str, Conv]]:
    """Every convolution of a call, with its scope."""
    found: list[tuple[str, Conv]] = []

    def note(conv: Conv, name: str) -> Form:
        found.append((name, conv))
        return XLA

    shapes = [struct(x) for x in call.arrays]
    jax.eval_shape(lowered(_flat(fn, call), Ways(note), alive), *shapes)
    return found
