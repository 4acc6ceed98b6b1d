"""Machine code meets XLA's interface, and memory that ends where arrays end."""

import ctypes
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

import sslx
from sslx.lowering._native import ffi, gather, llvm
from tests.lowering.native import hardware

HEADER = pathlib.Path(jaxlib.__file__).parent / "include/xla/ffi/api/c_api.h"
STRUCTURES = {
    "Extension_Base": ffi.ExtensionBase,
    "Api_Version": ffi.ApiVersion,
    "Metadata": ffi.Metadata,
    "Metadata_Extension": ffi.MetadataExtension,
    "Buffer": ffi.Buffer,
    "Args": ffi.Args,
    "Rets": ffi.Rets,
    "Attrs": ffi.Attrs,
    "CallFrame": ffi.CallFrame,
    "Error_Create_Args": ffi.ErrorCreateArgs,
    "Error_Destroy_Args": ffi.ErrorDestroyArgs,
    "Future_Create_Args": ffi.FutureCreateArgs,
    "Future_SetAvailable_Args": ffi.FutureSetAvailableArgs,
    "Future_SetError_Args": ffi.FutureSetErrorArgs,
    "ThreadPool_Schedule_Args": ffi.ThreadPoolScheduleArgs,
    "ThreadPool_NumThreads_Args": ffi.ThreadPoolNumThreadsArgs,
    "Api": ffi.Api,
}
RENAMED = {
    "Extension_Base": "InternalExtension",
    "Error_GetMessage": "Error_GetDetails",
    "ExecutionContext_Get": "InvokeContext_Get",
}
"""What version 0.5 of the interface calls otherwise."""


def test_structures_lie_as_in_the_header_of_xla(tmp_path: pathlib.Path) -> None:
    """A C compiler and the header that jaxlib ships say where every field is."""
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None or not HEADER.exists():
        pytest.skip("SKIPPED: no C compiler, or jaxlib comes without its header")
    fields = [
        (name, kind, field)
        for name, kind in STRUCTURES.items()
        for field, *_ in kind._fields_
    ]
    asked = [f"offsetof(struct XLA_FFI_{name}, {field})" for name, _, field in fields]
    expected = [getattr(kind, field).offset for _, kind, field in fields]
    constants = (
        "XLA_FFI_API_MAJOR",
        "XLA_FFI_API_MINOR",
        "XLA_FFI_Extension_Metadata",
        "XLA_FFI_Error_Code_INVALID_ARGUMENT",
        "XLA_FFI_Error_Code_RESOURCE_EXHAUSTED",
        "XLA_FFI_Error_Code_FAILED_PRECONDITION",
    )
    lines = [f'printf("%ld\\n", (long)({what}));' for what in (*asked, *constants)]
    names = HEADER.read_text(encoding="utf-8")
    renamed = "".join(
        f"#define XLA_FFI_{old} XLA_FFI_{new}\n"
        for old, new in RENAMED.items()
        if f"XLA_FFI_{new}" in names
    )
    includes = f'#include <stdio.h>\n#include "{HEADER}"\n'
    code = f"{includes}{renamed}int main() {{{''.join(lines)}}}"
    (tmp_path / "layout.c").write_text(code, encoding="utf-8")
    program = tmp_path / "layout"
    subprocess.run([compiler, tmp_path / "layout.c", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    found = [int(n) for n in done.stdout.split()]
    assert dict(zip(asked, found[: len(asked)], strict=True)) == dict(
        zip(asked, expected, strict=True)
    )
    major, minor, *codes = found[len(asked) :]
    assert major == ffi.VERSION[0] and minor >= ffi.VERSION[1]
    assert codes == [
        ffi.METADATA,
        ffi.INVALID_ARGUMENT,
        ffi.RESOURCE_EXHAUSTED,
        ffi.FAILED_PRECONDITION,
    ]


SHAPE, SOURCE = (3000, 64), tuple(range(5, 60))


def copied(interface: hardware.Interface) -> tuple[str | None, bool]:
    """A program of several tasks: the error it returned, whether all was written."""
    name = gather._program(SOURCE, SHAPE, "float32")
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    y = np.full((SHAPE[0], len(SOURCE)), np.nan, np.float32)
    error = hardware.call(name, interface, [x.ctypes.data], [y.ctypes.data])
    assert llvm._PROGRAMS[name].record.running == 0
    return error, bool((y == x[:, SOURCE]).all())


@pytest.mark.parametrize(
    ("threads", "refuse", "after"),
    [
        (1, (), 0),
        (4, (), 0),
        (0, (), 0),
        (4, ("ThreadPool_NumThreads",), 0),
        (4, ("Future_Create",), 0),
        (4, ("ThreadPool_Schedule",), 0),
        (4, ("ThreadPool_Schedule",), 1),
        (4, ("Future_SetAvailable",), 0),
    ],
)
def test_what_xla_refuses_is_done_all_the_same(
    threads: int, refuse: tuple[str, ...], after: int
) -> None:
    """And nobody waits for ever; errors are freed, or handed on."""
    interface = hardware.Interface(threads, refuse, after)
    assert copied(interface) == (None, True)
    handed_on = ["Future_SetAvailable"] if "Future_SetAvailable" in refuse else []
    assert list(interface.errors.values()) == handed_on
    assert interface.calls["Future_SetError"] == len(handed_on)


def test_other_numbers_of_arrays_are_an_error() -> None:
    name = gather._program(SOURCE, SHAPE, "float32")
    for arguments, results in (([], [1]), ([1], []), ([1, 1], [1])):
        error = hardware.call(name, hardware.Interface(), arguments, results)
        assert error == "3: sslx: a program was given more or fewer arrays than it has"


def test_no_memory_is_an_error() -> None:
    record = llvm._PROGRAMS[gather._program(SOURCE, SHAPE, "float32")].record
    workers = record.workers
    record.workers = 1 << 45
    try:
        error, _ = copied(hardware.Interface())
    finally:
        record.workers = workers
    assert error == "8: sslx: no memory to share the tasks of a program among threads"
    assert copied(hardware.Interface()) == (None, True)


def test_extensions_are_told_by_their_type() -> None:
    """One that is not known may come first, or alone."""
    metadata = ffi.Metadata()
    asks = ffi.MetadataExtension(metadata=ctypes.addressof(metadata))
    asks.extension_base.type = ffi.METADATA
    unknown = ffi.ExtensionBase(type=77, next=ctypes.addressof(asks))
    name = gather._program(SOURCE, SHAPE, "float32")
    x, y = np.ones(SHAPE, np.float32), np.zeros((SHAPE[0], len(SOURCE)), np.float32)
    places = [x.ctypes.data], [y.ctypes.data]
    asked, _kept = hardware.frame(hardware.Interface(), *places, unknown)
    assert hardware.entry(name)(ctypes.byref(asked)) is None
    version = metadata.api_version
    assert (version.major_version, version.minor_version) == ffi.VERSION
    assert not y.any()
    unknown.next = None
    called, _kept = hardware.frame(hardware.Interface(), *places, unknown)
    assert hardware.entry(name)(ctypes.byref(called)) is None
    assert y.all()


def test_code_is_leased() -> None:
    name = gather._program(tuple(range(2, 50)), (200, 64), "float64")
    assert llvm.unused()[-1] == name
    held = llvm.lease(name)
    assert llvm.lease(name) is held and name not in llvm.unused()
    del held
    assert name in llvm.unused()


def test_code_may_be_dropped_at_any_time() -> None:
    """A call of it is an error until it is compiled again."""
    x = jnp.arange(64.0 * 100).reshape(100, 64)
    tuned = sslx.tune(lambda x: jnp.take(x, np.arange(3, 40), axis=1))
    run = jax.jit(tuned.apply)
    np.testing.assert_array_equal(run(x), x[:, 3:40])
    name = gather._program(tuple(range(3, 40)), x.shape, "float32")
    assert llvm.drop(name) and not llvm.drop(name) and name not in llvm.unused()
    with pytest.raises(Exception, match="was dropped"):
        run(x).block_until_ready()
    assert name == gather._program(tuple(range(3, 40)), x.shape, "float32")
    np.testing.assert_array_equal(run(x), x[:, 3:40])


def guarded(first: int, count: int) -> None:
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "tests.lowering.native.guarded",
    ]
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(
        [*command, str(first), str(count)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-3000:]}"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_code_touches_nothing_outside_of_its_arrays() -> None:
    """In a process of its own, which an access to a closed page ends."""
    guarded(0, 15)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("first", range(0, 5000, 500))
def test_no_code_touches_anything_outside_of_its_arrays(first: int) -> None:
    """3,000 convolutions and 500 gradients, less those without a result."""
    guarded(first, 500)
