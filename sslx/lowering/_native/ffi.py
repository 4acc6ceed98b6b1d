"""XLA's foreign function interface for functions of a CPU, version 0.3 and later.

The structures of `xla/ffi/api/c_api.h` that a function needs; fields have the names
that they have there. Later versions only add fields.
"""

import ctypes
from ctypes import c_int, c_int64, c_size_t, c_void_p

VERSION = (0, 3)
METADATA = 1
"""The type of an extension that asks for the version."""

INVALID_ARGUMENT = 3
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
"""Codes of errors."""

_START = [("struct_size", c_size_t), ("extension_start", c_void_p)]


class ExtensionBase(ctypes.Structure):
    """The head of an extension: an element of a linked list."""

    _fields_ = [("struct_size", c_size_t), ("type", c_int), ("next", c_void_p)]


class ApiVersion(ctypes.Structure):
    """The version that a function was written for."""

    _fields_ = [*_START, ("major_version", c_int), ("minor_version", c_int)]


class Metadata(ctypes.Structure):
    """What XLA wants to know about a function."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("api_version", ApiVersion),
        ("traits", ctypes.c_uint32),
        ("state_type_id", c_int64),
    ]


class MetadataExtension(ctypes.Structure):
    """An extension that asks for `Metadata`; the function does no work."""

    _fields_ = [("extension_base", ExtensionBase), ("metadata", c_void_p)]


class Buffer(ctypes.Structure):
    """An array."""

    _fields_ = [
        *_START,
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", c_void_p),
    ]


class Args(ctypes.Structure):
    """Arguments."""

    _fields_ = [*_START, ("size", c_int64), ("types", c_void_p), ("args", c_void_p)]


class Rets(ctypes.Structure):
    """Results."""

    _fields_ = [*_START, ("size", c_int64), ("types", c_void_p), ("rets", c_void_p)]


class Attrs(ctypes.Structure):
    """Attributes, which our code does not read."""

    _fields_ = [
        *_START,
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("attrs", c_void_p),
    ]


class CallFrame(ctypes.Structure):
    """What a function is called with."""

    _fields_ = [
        *_START,
        ("api", c_void_p),
        ("ctx", c_void_p),
        ("stage", c_int),
        ("args", Args),
        ("rets", Rets),
        ("attrs", Attrs),
        ("future", c_void_p),
    ]


class ErrorCreateArgs(ctypes.Structure):
    """Make an error."""

    _fields_ = [*_START, ("message", c_void_p), ("errc", c_int)]


class ErrorDestroyArgs(ctypes.Structure):
    """Free an error that the interface returned."""

    _fields_ = [*_START, ("error", c_void_p)]


class FutureCreateArgs(ctypes.Structure):
    """Make a future, for which XLA waits."""

    _fields_ = [*_START, ("future", c_void_p)]


class FutureSetAvailableArgs(ctypes.Structure):
    """Fulfil a future."""

    _fields_ = [*_START, ("future", c_void_p)]


class FutureSetErrorArgs(ctypes.Structure):
    """Fail a future with an error, which XLA takes."""

    _fields_ = [*_START, ("future", c_void_p), ("error", c_void_p)]


class ThreadPoolScheduleArgs(ctypes.Structure):
    """Run `task(data)` on a thread of XLA."""

    _fields_ = [*_START, ("ctx", c_void_p), ("task", c_void_p), ("data", c_void_p)]


class ThreadPoolNumThreadsArgs(ctypes.Structure):
    """Ask how many threads there are."""

    _fields_ = [*_START, ("ctx", c_void_p), ("num_threads", c_void_p)]


class Api(ctypes.Structure):
    """The functions of the interface; each returns an error or null."""

    _fields_ = [
        *_START,
        ("api_version", ApiVersion),
        ("internal_api", c_void_p),
        *(
            (f"XLA_FFI_{name}", c_void_p)
            for name in (
                "Error_Create",
                "Error_GetMessage",
                "Error_Destroy",
                "Handler_Register",
                "Stream_Get",
                "Type_Register",
                "ExecutionContext_Get",
                "State_Set",
                "State_Get",
                "DeviceMemory_Allocate",
                "DeviceMemory_Free",
                "ThreadPool_Schedule",
                "ThreadPool_NumThreads",
                "Future_Create",
                "Future_SetAvailable",
                "Future_SetError",
            )
        ),
    ]


def offset(kind: type[ctypes.Structure], *path: str) -> int:
    """Bytes from the start of a structure to a field, or to a field's field."""
    total = 0
    for name in path:
        total += getattr(kind, name).offset
        kind = dict(kind._fields_)[name]  # pyright: ignore
    return total
