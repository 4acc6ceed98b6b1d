"""Programs: functions that XLA calls by name, compiled by LLVM.

A program's name is a hash of its text, tables and way of being called, so equal
programs share one name and one piece of code. XLA keeps a name for ever, code can go:
executables hold a `lease` of what they call, and what nobody leases may be dropped and
compiled again when it is asked for.
"""

import ctypes
import functools
import hashlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from sslx.lowering._native import handler
from sslx.lowering._native.ir import Function
from sslx.lowering._native.values import Value, address


@functools.cache
def binding() -> Any:
    """`llvmlite.binding`, or None where the extra `cpu` is not installed."""
    try:
        import llvmlite.binding
    except ImportError:
        return None
    return llvmlite.binding


class Machine(NamedTuple):
    """A processor: bytes of a vector register, how many there are, and cores to use."""

    bytes: int
    registers: int
    cores: int


@functools.cache
def machine() -> Machine | None:
    """This processor; None where its vectors are not known, or LLVM is missing."""
    llvm = binding()
    if llvm is None:
        return None
    features = llvm.get_host_cpu_features()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    if features.get("avx512f"):
        return Machine(64, 32, cores)
    if features.get("avx2") and features.get("fma"):
        return Machine(32, 16, cores)
    if llvm.get_default_triple().startswith(("aarch64", "arm64")):
        return Machine(16, 32, cores)
    return None


class Calls(NamedTuple):
    """How a program is called; see `handler.Record`.

    Attributes:
      rounds: how often its pieces are taken.
      pieces: of a round.
      workers: threads, at most.
      slots: 64-bit integers of memory per worker.
      arguments: arrays that it is given.
      results: arrays that it writes.
    """

    rounds: int
    pieces: int
    workers: int
    slots: int
    arguments: int
    results: int


class _Code:
    """Compiled functions, and the tables that they read."""

    def __init__(self, text: str, numbers: np.ndarray):
        self._numbers = numbers
        llvm = binding()
        context = llvm.create_context()
        module = llvm.parse_assembly(text, context)
        self._engine = llvm.create_mcjit_compiler(module, _target_machine())
        self._engine.finalize_object()
        names = [
            f.name
            for f in module.functions
            if f.linkage == llvm.Linkage.external and not f.is_declaration
        ]
        self._places = {n: self._engine.get_function_address(n) for n in names}
        self._engine.remove_module(module)
        module.close()

    def __getitem__(self, name: str) -> int:
        return self._places[name]

    def close(self) -> None:
        """Free it, once nobody calls it."""
        self._engine.close()


class _Lease:
    """Keeps a program's code while it lives."""


class _Program:
    """A name that XLA knows, and the code behind it unless that was dropped."""

    def __init__(self, record: handler.Record, entry: int):
        self.record = record
        self.entry = entry
        self.code: _Code | None = None
        self.lease: Callable[[], _Lease | None] = lambda: None


_LOCK = threading.RLock()
_PROGRAMS: dict[str, _Program] = {}
"""By name, in the order in which they were asked for last."""
_RETIRED: list[tuple[_Program, _Code]] = []
"""Code that was replaced or dropped while it ran."""


def named(text: str, numbers: Int[np.ndarray, " _"], calls: Calls) -> str:
    """The name by which XLA calls a program, compiled if there is no code for it now.

    Args:
      text: in LLVM's language, with a function `task`; `@tables` stands for the address
        of `numbers`.
      numbers: what the program reads.
      calls: how it is called.
    """
    known = text.encode() + numbers.tobytes() + repr(calls).encode()
    name = f"sslx_{hashlib.sha256(known).hexdigest()[:24]}"
    with _LOCK:
        program = _PROGRAMS.pop(name, None) or _registered(name, calls)
        _PROGRAMS[name] = program
        if program.code is None:
            where = address(numbers.ctypes.data)
            code = _Code(text.replace("@tables", where.name), numbers)
            _retired(program, code)
    return name


def lease(name: str) -> object:
    """An object that keeps a program's code in use while it lives.

    A program without one is `unused`; dropping is safe at any time.
    """
    with _LOCK:
        program = _PROGRAMS[name]
        found = program.lease()
        if found is None:
            found = _Lease()
            program.lease = weakref.ref(found)
        return found


def unused() -> list[str]:
    """Names of programs whose code nobody leases, least recently `named` first."""
    with _LOCK:
        held = [(name, p) for name, p in _PROGRAMS.items() if p.code is not None]
        return [name for name, p in held if p.lease() is None]


def drop(name: str) -> bool:
    """Free the code of a program; whether there was some. `named` compiles it again.

    Running calls are finished. Later calls, by executables that know the name, return
    an error that says so.
    """
    with _LOCK:
        program = _PROGRAMS.get(name)
        if program is None or program.code is None:
            return False
        _retired(program, None)
        return True


def entry(name: str) -> int:
    """The address of the function that XLA calls, for tests."""
    return _PROGRAMS[name].entry


def _retired(program: _Program, code: _Code | None) -> None:
    """Replace the code of a program, and free what nobody runs any more."""
    retire = _entries().retire
    task = None if code is None else code["task"]
    retire(ctypes.byref(program.record), task)
    if program.code is not None:
        _RETIRED.append((program, program.code))
    program.code = code
    still = [(p, c) for p, c in _RETIRED if p.record.running]
    for _, old in _RETIRED:
        if all(old is not c for _, c in still):
            old.close()
    _RETIRED[:] = still


class _Entries:
    """Entries for XLA to call and their records, for the next programs; never freed."""

    def __init__(self) -> None:
        self.records = (handler.Record * _AT_ONCE)()
        place = ctypes.addressof(self.records)
        self._code = _Code(handler.source(place, _AT_ONCE), np.zeros(0, np.int32))
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        self.retire = kind(self._code["retire"])
        self.free = list(range(_AT_ONCE))

    def taken(self) -> tuple[handler.Record, int]:
        """The next record that is free, and its entry."""
        k = self.free.pop(0)
        return self.records[k], self._code[f"entry_{k}"]


_AT_ONCE = 64
_ENTRIES: list[_Entries] = []


def _entries() -> _Entries:
    if not _ENTRIES or not _ENTRIES[-1].free:
        _ENTRIES.append(_Entries())
    return _ENTRIES[-1]


def _registered(name: str, calls: Calls) -> _Program:
    record, place = _entries().taken()
    for field, number in calls._asdict().items():
        setattr(record, field, number)
    capsule = jax.ffi.pycapsule(ctypes.c_void_p(place))
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return _Program(record, place)


def _target_machine() -> Any:
    llvm = binding()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


def task() -> Function:
    """The start of the function that does one task; see `handler.Record`."""
    params = {"t": "i64", "buffers": "ptr", "worker": "i64", "held": "ptr"}
    return Function("task", params, shared=True)


def arrays(f: Function, count: int) -> list[Value]:
    """The addresses that a task is given."""
    return [f.load("ptr", f.at(f["buffers"], k, "ptr")) for k in range(count)]
