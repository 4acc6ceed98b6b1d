"""`tune`: `jax.jit` with the fastest exact forms and compiler options."""

import dataclasses
import functools
import html
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, get_args

import jax

from sslx import _jax_compat
from sslx._calls import (
    require_function,
    require_two_steps,
    require_word,
    take_apart,
)
from sslx.lowering import _programs
from sslx.lowering._choices import Choices, Found
from sslx.lowering._conv import Columns, Conv
from sslx.lowering._evaluate import Lowerings, lowered
from sslx.lowering._forms.form import Form
from sslx.lowering._nonzero import Nonzero, masks
from sslx.lowering._settings import Settings, signature, unwrapping
from sslx.lowering._timings import Cache

Lowering = Literal["xla", "rule", "measure"]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Tuned:
    """What `tune` returns: a compiled function, and how it computes its convolutions.

    `print` shows what was chosen so far. Compared and hashed as an object; it is
    pickled if its function can be, along with what was measured.

    Attributes:
      fn: the original function.
      lowering: how forms are chosen.
      cache: folder of the timings; None is the default one.
      options: of `jax.jit`.
      nonzero: per array, in order of the call's, which entries may differ from zero;
        arrays beyond its end may be nonzero everywhere.
      known: measured earlier, for example in another process. Calls that have no other
        convolutions take these choices in place of a measurement.
    """

    fn: Callable[..., Any]
    lowering: Lowering = "rule"
    cache: str | os.PathLike[str] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nonzero: Nonzero = ()
    known: Choices | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`fn(*args, **kwargs)`, compiled.

        Inside another function that JAX traces, that function's compiler options hold
        and nothing is measured: a call that was not measured before takes the forms
        known for its convolutions, else the rule's, and keeps them as long as JAX
        keeps that trace.
        """
        return self._compiled(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """`jax.jit(fn).lower`: for ahead-of-time compilation; shapes are enough."""
        return self._compiled(args, kwargs).lower(*args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """`fn(*args, **kwargs)` in the chosen forms, for a `jax.jit` of your own.

        It is traced at every call and never measures; `choices` does.

        >>> run = jax.jit(fast.apply, compiler_options=fast.compiler_options)
        """
        return self._run(None, args, kwargs)

    def choices(self, *args: Any, **kwargs: Any) -> Choices:
        """How a call is computed; chosen now if it is the first one of its shapes.

        Args:
          *args: a call; shapes are enough.
          **kwargs: keyword arguments of the call.
        """
        given = self._static.wrap(args, kwargs)
        key = signature(*given) if self.lowering == "measure" else None
        if key in self._made:
            return self._made[key]
        fn, call = unwrapping(self.fn), take_apart(*given)
        found = _programs.convolutions(fn, call, masks(self.nonzero))
        if self.lowering != "measure":
            return self._note(found)
        made = None if self.known is None else self.known.serving(found)
        if made is None and _jax_compat.is_tracing():
            form, cpu_ops = self._chosen(None)
            return Choices.of(found, form, self.compiler_options, cpu_ops)
        if made is None:
            made = self._measured(found, args, kwargs)
        self._made[key] = made
        return made

    @property
    def compiler_options(self) -> dict[str, str]:
        """For a `jax.jit` of `apply`: the rule's, or those that were measured last."""
        return self._compiler_options(self._known())

    def to_json(self) -> dict[str, Any]:
        """How it chooses and what it measured; neither function nor `jax.jit` options.

        Choices for convolutions with a `precision` of their own are left to the rule.
        """
        known = self._known()
        return {
            "lowering": self.lowering,
            "nonzero": [c and c.to_json() for c in self.nonzero],
            "known": None if known is None else known.to_json(),
        }

    @classmethod
    def from_json(cls, fn: Callable[..., Any], data: Mapping[str, Any]) -> "Tuned":
        """The inverse of `to_json`, also after a trip through a file."""
        known = None if data["known"] is None else Choices.from_json(data["known"])
        nonzero = tuple(c and Columns.from_json(c) for c in data["nonzero"])
        return cls(fn, data["lowering"], nonzero=nonzero, known=known)

    def __reduce__(self) -> Any:
        fields = (self.fn, self.lowering, self.cache, self.options, self.nonzero)
        return Tuned, (*fields, self._known())

    def __repr__(self) -> str:
        name = getattr(self.fn, "__qualname__", repr(self.fn))
        return f"Tuned({name}, lowering={self.lowering!r})"

    def __str__(self) -> str:
        tables = [str(made) for made in self._shown]
        return "\n\n".join([repr(self), *(tables or [self._nothing])])

    def _repr_html_(self) -> str:
        tables = "".join(table._repr_html_() for table in self._shown)
        return f"<p>{html.escape(repr(self))}</p>{tables or self._nothing}"

    @property
    def _shown(self) -> list[Choices]:
        """The distinct choices so far."""
        known = [] if self.known is None else [self.known]
        every = [*known, *self._made.values()]
        return list({str(made): made for made in every}.values())

    @property
    def _nothing(self) -> str:
        return "everything is left to XLA" if self._is_plain else "nothing chosen yet"

    @functools.cached_property
    def _static(self) -> Settings:
        get = self.options.get
        return Settings.of(self.fn, get("static_argnums"), get("static_argnames"))

    @functools.cached_property
    def _made(self) -> dict[Hashable, Choices]:
        """By signature under `"measure"`, otherwise by the convolutions of a call."""
        return {}

    @property
    def _is_plain(self) -> bool:
        """Whether XLA gets the function as it is."""
        ruled = self.lowering == "rule" and not _programs.on_cpu()
        return ruled or self.lowering == "xla"

    def _note(self, found: Found) -> Choices:
        made = _programs.left_to_xla if self._is_plain else _programs.by_rule
        return self._made.setdefault(tuple(found), made(found))

    def _known(self) -> Choices | None:
        """All that was measured."""
        if self.lowering != "measure":
            return None
        known = [] if self.known is None else [self.known]
        return Choices.merged([*known, *self._made.values()])

    def _chosen(self, choices: Choices | None) -> tuple[Callable[[Conv], Form], bool]:
        """Forms and `cpu_ops`; without choices, from what is known and the rule."""
        choices = self._known() if choices is None else choices
        if choices is None:
            return _programs.default_form, _programs.on_cpu()
        known = choices.by_conv

        def form(conv: Conv) -> Form:
            return known[conv].form if conv in known else _programs.default_form(conv)

        return form, choices.cpu_ops

    def _measured(
        self, found: Found, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Choices:
        """The fastest whole program among XLA's, the rule's and the measured ones."""
        ways = _programs.candidates(found, Cache(self.cache))
        settings = self._static.among(args, kwargs)
        runs = {n: self._jit(way, settings, donate=False) for n, way in ways.items()}
        calls = {name: (run, args, kwargs) for name, run in runs.items()}
        seconds = _programs.program_seconds(calls)
        best = min(seconds, key=seconds.__getitem__)
        return dataclasses.replace(ways[best], programs=seconds)

    @functools.cached_property
    def _jitted(self) -> dict[Hashable, Any]:
        return {}

    def _compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The jitted function for a call."""
        inside = _jax_compat.is_tracing()
        choices = key = None
        if self.lowering == "measure":
            key = signature(*self._static.wrap(args, kwargs))
            choices = self._made.get(key)
            if choices is None and not inside:
                choices = self.choices(*args, **kwargs)
        settings = self._static.among(args, kwargs)
        place = settings, inside, None if choices is None else key
        if place not in self._jitted:
            self._jitted[place] = self._jit(choices, settings, inside=inside)
        return self._jitted[place]

    def _jit(
        self,
        choices: Choices | None,
        settings: Settings,
        *,
        inside: bool = False,
        donate: bool = True,
    ) -> Any:
        @functools.wraps(self.fn, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            return self._run(choices, args, kwargs)

        options = dict(self.options)
        if not donate:
            options |= {"donate_argnums": None, "donate_argnames": None}
        options["static_argnums"], options["static_argnames"] = settings
        options["compiler_options"] = (
            None if inside else self._compiler_options(choices)
        )
        return jax.jit(run, **options)

    def _compiler_options(self, choices: Choices | None) -> dict[str, str]:
        own = self.options.get("compiler_options") or {}
        if self._is_plain:
            return dict(own)
        chosen = _programs.option_sets()[-1]
        if choices is not None:
            chosen = choices.compiler_options
        return {**chosen, **own}

    def _run(
        self,
        choices: Choices | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Evaluate the function in the forms of these choices, or of known ones."""
        if self._is_plain:
            return self.fn(*args, **kwargs)
        given = self._static.wrap(args, kwargs)
        if choices is None and self.lowering == "measure":
            choices = self._made.get(signature(*given))
        form, cpu_ops = self._chosen(choices)
        found: Found = []

        def noted(conv: Conv, name: str) -> Form:
            found.append((name, conv))
            return form(conv)

        call = take_apart(*given)
        flat = _programs.flat(unwrapping(self.fn), call)
        run = lowered(flat, Lowerings(noted, cpu_ops), masks(self.nonzero))
        out = run(*call.arrays)
        if self.lowering == "rule":
            self._note(found)
        return out


def tune(
    fn: Callable[..., Any],
    *_example: Any,
    lowering: Lowering = "rule",
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Tuned:
    r"""`jax.jit` with the fastest exact forms of convolutions and compiler options.

    The result is called like `jax.jit(fn)`: the first call with arguments of new shapes
    traces `fn`, chooses and compiles. It computes

    $$\mathrm{tune}(f)(x) = f(x)$$

    up to rounding. Convolutions are found at any depth (`jit`, `scan`, `cond`, `while`,
    `checkpoint`), including those that differentiation makes, so `fn` may be a whole
    training step. Tune `jax.grad(loss)` rather than differentiate a tuned function,
    whose derivatives are XLA's. On a CPU, sums, pools and gathers of channels take
    faster forms too, and programs with more than 32 MiB of intermediate results gain
    from `sslx.keep_memory`.

    Elementwise operations that follow a convolution (bias, norm with fixed statistics,
    residual, ReLU: `+ - * / max min` with numbers, one value per filter, or an array
    like the result) are computed by the direct form before it writes the result, if
    channels are the last axis and the result has no other use.

    Taps that only meet padding, and columns that are known to be zero, are not
    multiplied: NaN or infinity in such a weight, or in what it would read, does not
    spread. Sums add up in another order than XLA's, those of half precision in float32.

    The direct form is machine code that llvmlite makes in this process (the extra
    `sslx[cpu]`; without it, XLA's forms are taken, with one warning). In the program it
    is the primitive `direct_conv`: `jax.vmap` adds images or groups to it, and in
    `jax.shard_map` it runs on each device's own part. It becomes XLA's convolution in
    derivatives, on other devices, in what `jax.export` writes, and where XLA partitions
    the program over several devices.

    Args:
      fn: any JAX function.
      lowering: `"rule"` takes forms and options by a rule for CPUs, and leaves other
        devices to XLA; `"measure"` times the candidates of every convolution, then
        whole programs, at the first call of each shape (seconds to minutes); `"xla"`
        leaves everything to XLA.
      cache: folder in which the timings of convolutions are kept for later processes;
        by default `$XDG_CACHE_HOME/sslx` or `~/.cache/sslx`.
      **options: of `jax.jit`, such as `donate_argnums` or `in_shardings`. Integers,
        booleans, strings, functions and None are static arguments without being named;
        `static_argnums` and `static_argnames` add others.

    Returns:
      A `Tuned`; `choices` shows how a call is computed, `apply` is for a `jax.jit` of
      your own.

    Raises:
      TypeError: `fn` is not a function, an example call is given, or `jax.jit` has no
        such option.
      ValueError: the lowering is unknown; when called, the cache is damaged.

    Example:
      >>> fast = sslx.tune(model.apply)
      >>> y = fast(variables, x)
      >>> print(fast)
      >>> step = sslx.tune(step, donate_argnums=0)
    """
    require_function(fn)
    require_two_steps("sslx.tune(fn)(*args)", _example)
    require_word("lowering", lowering, get_args(Lowering))
    try:
        jax.jit(fn, **options)
    except TypeError as error:
        error.add_note(
            "tune passes on what it does not know to jax.jit; fix: give the arguments "
            "of fn to what tune returns, sslx.tune(fn)(*args, **kwargs)"
        )
        raise
    return Tuned(fn, lowering, cache, options)
