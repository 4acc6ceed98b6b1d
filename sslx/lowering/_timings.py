"""Time the forms of a convolution on this machine, and keep the timings on disk."""

import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sslx.lowering._conv import Conv
from sslx.lowering._forms import compute
from sslx.lowering._forms.form import Form
from sslx.lowering._rule import candidates
from sslx.measure import latency

Options = Mapping[str, str]
_PROMISING = 1.5


def timings(conv: Conv, options: Options) -> dict[Form, float]:
    """Median seconds of every candidate that comes close to the fastest.

    Every candidate is compiled on its own and run on random operands. After a first,
    short timing, those slower than 1.5 times the fastest are dropped.
    """
    x, w = _operands(conv)
    calls = {}
    for form in candidates(conv):
        run = jax.jit(
            functools.partial(compute.run, form, conv), compiler_options=dict(options)
        )
        calls[form] = functools.partial(run, x, w)
    glance = {
        f: latency({"": call}, repeats=2)[""].minimum for f, call in calls.items()
    }
    best = min(glance.values())
    near = {str(f): f for f, t in glance.items() if t <= _PROMISING * best}
    found = latency(
        {name: calls[form] for name, form in near.items()},
        repeats=_rounds(best),
        warmup=1,
    )
    return {form: found[name].median for name, form in near.items()}


def _rounds(seconds: float) -> int:
    return max(5, min(15, math.ceil(0.2 / max(seconds, 1e-6))))


def _operands(conv: Conv) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(conv.rhs)
    by_group = w.reshape(*conv.rhs[:-1], conv.groups, -1) * conv.mask[..., None]
    x = rng.standard_normal(conv.lhs)
    return jnp.asarray(x, conv.dtype), jnp.asarray(
        by_group.reshape(w.shape), conv.dtype
    )


class Cache:
    """Timings on disk: a JSON file per device and versions, replaced atomically.

    Args:
      folder: folder of the files; by default `$XDG_CACHE_HOME/sslx` or `~/.cache/sslx`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        self.folder = pathlib.Path(folder or pathlib.Path(home) / "sslx")
        self.path = self.folder / f"lowering-{_slug(_setting())}.json"
        self.entries: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.entries = json.loads(self.path.read_text(encoding="utf-8"))
            except (OSError, json.JSONDecodeError) as error:
                raise ValueError(
                    f"{self.path}: not a table of timings ({error}). Fix: remove it; "
                    "it is made again by measuring"
                ) from error

    def timings(self, conv: Conv, options: Options) -> dict[Form, float]:
        """Seconds per form of a convolution, measured now if not yet known."""
        listed = "; ".join(map(str, candidates(conv)))
        key = f"{conv.key}, options={sorted(options.items())}, forms={listed}"
        if key not in self.entries:
            found = timings(conv, options)
            self.entries[key] = [
                [f.kind, f.chunk, f.inner, seconds] for f, seconds in found.items()
            ]
            self._write()
        return {
            Form(kind, chunk, inner): seconds
            for kind, chunk, inner, seconds in self.entries[key]
        }

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, delete=False, encoding="utf-8"
        ) as file:
            json.dump(self.entries, file, indent=0)
        os.replace(file.name, self.path)


def _setting() -> str:
    """What timings depend on: the device, and on a CPU its cores, and versions."""
    device = jax.devices()[0]
    names = ("sslx", "jax", "jaxlib", "llvmlite")
    parts = [device.platform, device.device_kind]
    if device.platform == "cpu":
        parts += [_processor(), f"{_cores()}cores"]
    return "-".join([*parts, *[f"{name}{_version(name)}" for name in names]])


def _processor() -> str:
    """The model of the processor."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line for line in text.splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-none"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)
