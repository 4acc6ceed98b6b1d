"""Programs called as XLA calls them, with an interface that can refuse anything."""

import ctypes
import threading
from collections import Counter
from collections.abc import Sequence
from ctypes import POINTER, c_int64, c_void_p, cast
from typing import Any

from sslx.lowering._native import ffi, llvm

_FUNCTION = ctypes.CFUNCTYPE(c_void_p, c_void_p)
_TASK = ctypes.CFUNCTYPE(None, c_void_p)
_FUTURE = 0x1234


class Interface:
    """XLA's side of a call.

    Args:
      threads: how many it says it has.
      refuse: names of the functions that return an error.
      after: how many calls of these it serves first.
    """

    def __init__(self, threads: int = 1, refuse: Sequence[str] = (), after: int = 0):
        self.threads = threads
        self.refuse = refuse
        self.after = after
        self.calls: Counter[str] = Counter()
        self.errors: dict[int, str] = {}
        self.ended = threading.Event()
        self.running: list[threading.Thread] = []
        self.api = ffi.Api()
        self._kept = []
        for field, *_ in ffi.Api._fields_[4:]:
            name = field.removeprefix("XLA_FFI_")
            function = _FUNCTION(lambda at, name=name: self._called(name, at))
            self._kept.append(function)
            setattr(self.api, field, cast(function, c_void_p))

    def _error(self, text: str) -> int:
        self.errors[0x1000 + self.calls["errors"]] = text
        self.calls["errors"] += 1
        return 0x1000 + self.calls["errors"] - 1

    def _called(self, name: str, at: int) -> int | None:
        self.calls[name] += 1
        if name in self.refuse and self.calls[name] > self.after:
            return self._error(name)
        return getattr(self, name)(at)

    def Error_Create(self, at: int) -> int:
        asked = ffi.ErrorCreateArgs.from_address(at)
        text = ctypes.string_at(asked.message).decode()
        return self._error(f"{asked.errc}: {text}")

    def Error_Destroy(self, at: int) -> None:
        del self.errors[ffi.ErrorDestroyArgs.from_address(at).error]

    def ThreadPool_NumThreads(self, at: int) -> None:
        place = ffi.ThreadPoolNumThreadsArgs.from_address(at).num_threads
        c_int64.from_address(place).value = self.threads

    def ThreadPool_Schedule(self, at: int) -> None:
        asked = ffi.ThreadPoolScheduleArgs.from_address(at)
        thread = threading.Thread(target=_TASK(asked.task), args=(asked.data,))
        self.running.append(thread)
        thread.start()

    def Future_Create(self, at: int) -> None:
        ffi.FutureCreateArgs.from_address(at).future = _FUTURE

    def Future_SetAvailable(self, at: int) -> None:
        assert ffi.FutureSetAvailableArgs.from_address(at).future == _FUTURE
        self.ended.set()

    def Future_SetError(self, at: int) -> None:
        asked = ffi.FutureSetErrorArgs.from_address(at)
        assert asked.future == _FUTURE and asked.error in self.errors
        self.ended.set()


def frame(
    interface: Interface,
    arguments: Sequence[int],
    results: Sequence[int],
    extension: ctypes.Structure | None = None,
) -> tuple[ffi.CallFrame, Any]:
    """A call of arrays at some addresses, and what has to be kept meanwhile."""
    made = ffi.CallFrame(api=ctypes.addressof(interface.api), stage=3)
    if extension is not None:
        made.extension_start = ctypes.addressof(extension)
    kept = []
    for part, places in ((made.args, arguments), (made.rets, results)):
        buffers = [ffi.Buffer(data=place) for place in places]
        pointers = (c_void_p * len(places))(*map(ctypes.addressof, buffers))
        kept += [buffers, pointers]
        part.size = len(places)
        setattr(part, part._fields_[-1][0], ctypes.addressof(pointers))
    return made, kept


def call(
    name: str, interface: Interface, arguments: Sequence[int], results: Sequence[int]
) -> str | None:
    """Call a program and wait for its end: the error that it returned, if it did."""
    made, kept = frame(interface, arguments, results)
    error = entry(name)(ctypes.byref(made))
    if made.future:
        assert error is None and made.future == _FUTURE
        assert interface.ended.wait(60), "nobody told that the work ended"
    for thread in interface.running:
        thread.join()
    del kept
    return None if error is None else interface.errors[error]


def entry(name: str) -> Any:
    """What XLA knows by this name."""
    kind = ctypes.CFUNCTYPE(c_void_p, POINTER(ffi.CallFrame))
    return kind(llvm.entry(name))
