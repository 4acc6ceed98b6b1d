"""What was chosen for the convolutions of a call."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sslx._table import Table, Tabular, shape_text
from sslx.lowering._conv import Conv
from sslx.lowering._forms.form import XLA, Form, applies

Found = list[tuple[str, Conv]]
"""The convolutions of a call in order of execution, each with its name scope."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one convolution is computed.

    Attributes:
      name: the name scope of its first occurrence.
      conv: the convolution.
      form: the form taken.
      seconds: the median of each form that came close to the fastest; empty if none
        was timed.
      times: how often it occurs in the call.
    """

    name: str
    conv: Conv
    form: Form
    seconds: Mapping[Form, float]
    times: int = 1


@dataclasses.dataclass(frozen=True, repr=False)
class Choices(Tabular):
    """How a call is computed; iterates over its `Choice`s.

    Attributes:
      convolutions: one choice per distinct convolution, in order of execution.
      compiler_options: for `jax.jit`; they do nothing inside another jit.
      programs: under `"measure"`, the seconds of the whole call per way to compute it,
        of which the fastest was taken.
      cpu_ops: whether sums over leading axes are computed as products with ones, pools
        from shifted slices, and gathers of channels by machine code, all of which is
        faster on a CPU.
    """

    convolutions: tuple[Choice, ...]
    compiler_options: Mapping[str, str]
    programs: Mapping[str, float]
    cpu_ops: bool

    @classmethod
    def of(
        cls,
        found: Found,
        form: Callable[[Conv], Form],
        compiler_options: Mapping[str, str],
        cpu_ops: bool,
        seconds: Callable[[Conv], Mapping[Form, float]] = lambda conv: {},
    ) -> "Choices":
        """Choose by functions of a convolution."""
        names: dict[Conv, list[str]] = {}
        for name, conv in found:
            names.setdefault(conv, []).append(name)
        convolutions = tuple(
            Choice(scopes[0], conv, form(conv), seconds(conv), len(scopes))
            for conv, scopes in names.items()
        )
        return cls(convolutions, compiler_options, {}, cpu_ops)

    @classmethod
    def merged(cls, several: Iterable["Choices"]) -> "Choices | None":
        """Those of several calls, where the last one wins; None if there are none."""
        every = list(several)
        if not every:
            return None
        convolutions = {c.conv: c for choices in every for c in choices}
        return dataclasses.replace(every[-1], convolutions=tuple(convolutions.values()))

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.convolutions)

    @functools.cached_property
    def by_conv(self) -> dict[Conv, Choice]:
        """The choice of each convolution."""
        return {choice.conv: choice for choice in self}

    def serving(self, found: Found) -> "Choices | None":
        """The same for another call; None if it has a convolution that is not known."""
        known = self.by_conv
        if not all(conv in known for _, conv in found):
            return None
        form, seconds = (lambda c: known[c].form), (lambda c: known[c].seconds)
        options, cpu_ops = self.compiler_options, self.cpu_ops
        served = Choices.of(found, form, options, cpu_ops, seconds)
        return dataclasses.replace(served, programs=self.programs)

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able dict per distinct convolution."""
        return [
            {
                "name": c.name,
                "kernel": c.conv.rhs,
                "output": c.conv.shape,
                "macs": c.conv.macs,
                "times": c.times,
                "form": str(c.form),
                "seconds": {str(form): s for form, s in c.seconds.items()},
            }
            for c in self
        ]

    def _table(self) -> Table:
        head = ["convolution", "kernel", "output", "times", "form", "XLA's / form"]
        lines = [
            [
                c.name or "-",
                shape_text(c.conv.rhs),
                shape_text(c.conv.shape),
                f"{c.times}",
                str(c.form),
                _speedup(c),
            ]
            for c in self
        ]
        options = ", ".join(f"{k}={v!r}" for k, v in self.compiler_options.items())
        programs = [f"{n}: {1e3 * s:.3f} ms" for n, s in self.programs.items()]
        notes = [f"compiler options: {options or 'none'}", *programs]
        return Table(head, lines, notes)

    def __repr__(self) -> str:
        return str(self)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings.

        Choices for convolutions with a `precision` of their own are left out.
        """
        return {
            "compiler_options": dict(self.compiler_options),
            "programs": dict(self.programs),
            "cpu_ops": self.cpu_ops,
            "convolutions": [
                {
                    "name": c.name,
                    "conv": c.conv.to_json(),
                    "form": dataclasses.astuple(c.form),
                    "seconds": [
                        [dataclasses.astuple(f), s] for f, s in c.seconds.items()
                    ],
                    "times": c.times,
                }
                for c in self
                if c.conv.precision is None
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Choices":
        """The inverse of `to_json`, also after a trip through a file.

        Choices of forms that cannot be computed here, such as `direct` without LLVM,
        are left out.
        """
        convolutions = (
            Choice(
                c["name"],
                Conv.from_json(c["conv"]),
                Form(*c["form"]),
                {Form(*form): seconds for form, seconds in c["seconds"]},
                c["times"],
            )
            for c in data["convolutions"]
        )
        return cls(
            tuple(c for c in convolutions if applies(c.form, c.conv) is None),
            data["compiler_options"],
            data["programs"],
            data["cpu_ops"],
        )


def _speedup(choice: Choice) -> str:
    """Over XLA's own form, where both were timed."""
    own, mine = choice.seconds.get(XLA), choice.seconds.get(choice.form)
    return f"{own / mine:.2f}x" if own and mine else "-"
