"""Machine code for functions that XLA calls, made by LLVM."""

import ctypes
import functools
import hashlib
import os
import sys
import threading
from typing import Any, NamedTuple

import jax
import llvmlite.binding as llvm
import numpy as np
from jaxtyping import Int


class Machine(NamedTuple):
    """Vector registers of a processor, bytes of each and how many; cores to use."""

    bytes: int
    registers: int
    cores: int


@functools.cache
def machine() -> Machine | None:
    """The vectors of this processor; None where we know of none."""
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


_ONE_AT_A_TIME = threading.Lock()
_COMPILED: dict[str, Any] = {}
"""Tables and code by name, kept as long as XLA may call them."""


def named(text: str, numbers: Int[np.ndarray, " _"]) -> str:
    """The name by which XLA calls a program; compiled at the first time.

    Args:
      text: in LLVM's language, with a function `handler`; `@tables` stands for the
        address of the numbers.
      numbers: what the program reads.
    """
    digest = hashlib.sha256(text.encode() + numbers.tobytes()).hexdigest()
    name = f"sslx_{digest[:24]}"
    with _ONE_AT_A_TIME:
        if name not in _COMPILED:
            _COMPILED[name] = numbers, _compiled(name, text, numbers)
    return name


def _compiled(name: str, text: str, numbers: np.ndarray) -> Any:
    module = llvm.parse_assembly(text.replace("@tables", _pointer(numbers.ctypes.data)))
    engine = llvm.create_mcjit_compiler(module, _target_machine())
    engine.finalize_object()
    handler = ctypes.c_void_p(engine.get_function_address("handler"))
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    return engine


def _pointer(address: int) -> str:
    return f"inttoptr (i64 {address} to ptr)"


def _target_machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )


WIDE = 'nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512"'
"""Attributes of functions that may use the longest vectors."""


def handler(
    rounds: int, pieces: int, workers: int, slots: int, arguments: int, results: int
) -> str:
    """The function that XLA calls, which lets threads of XLA do tasks.

    It does not wait for them: the thread that ends the last task tells XLA so and goes
    on with the program. Only a single task, or thread, is done at once.

    Tasks are the pieces of an array, gone through in several rounds. Each core starts
    with pieces of its own, always the same share of all, so that it finds in its cache
    what it wrote a call before; then it helps the others.

    `@task(i64 task, ptr buffers, i64 worker, ptr slots)` has to stand beside it:
    `buffers` points to the addresses of all arguments, then of all results; `slots` is
    memory of the worker, -1 before its first task.

    It is called through XLA's foreign function interface (xla/ffi/api/c_api.h, version
    0.3; later ones only add fields): a call frame has an extension at byte 8 when it
    asks for the version, else the interface at 16, the context at 24, arguments at 72,
    results at 112 and the future it returns at 168; a buffer has its data at 24; the
    interface has `ThreadPool_Schedule` at 136, `ThreadPool_NumThreads` at 144,
    `Future_Create` at 152 and `Future_SetAvailable` at 160.

    Args:
      rounds: how often the pieces are gone through.
      pieces: task `r * pieces + p` is piece `p` in round `r`.
      workers: threads, at most.
      slots: 64-bit integers of memory per worker.
      arguments: arrays that the function is given.
      results: arrays that it writes.
    """
    buffers = arguments + results
    tasks = rounds * pieces
    given = [("args", k, k) for k in range(arguments)]
    given += [("results", k, arguments + k) for k in range(results)]
    return _HANDLER % {
        "tasks": tasks,
        "before": tasks - 1,
        "rounds": rounds,
        "pieces": pieces,
        "ranges": workers,
        "core": _CORE[sys.platform == "linux"],
        "workers": workers,
        "minor": 3,
        "attributes": WIDE,
        "slots": slots,
        "bytes": 8 * slots,
        "buffers": buffers,
        "job": 40 + 8 * (buffers + workers),
        "give": "\n".join(
            f"  call void @give(ptr %{kind}, i64 {k}, ptr %job, i32 {place})"
            for kind, k, place in given
        ),
    }


def buffers(*names: str) -> list[str]:
    """Code of a task that names the addresses it is given, in their order."""
    return [
        line
        for k, name in enumerate(names)
        for line in (
            f"%{name}_at = getelementptr ptr, ptr %buffers, i64 {k}",
            f"%{name} = load ptr, ptr %{name}_at, align 8",
        )
    ]


_CORE = {
    True: """  %core32 = call i32 @sched_getcpu()
  %core = sext i32 %core32 to i64
""",
    False: """  %core = add i64 %me, 0
""",
}


# The job that workers share: tasks done, holders, workers, the interface, the future,
# buffers, and per share of the pieces how many tasks of it were begun.
_HANDLER = """
%%job = type { i64, i64, i64, ptr, ptr, [%(buffers)d x ptr], [%(ranges)d x i64] }

define internal i1 @work(ptr %%job) %(attributes)s {
entry:
  %%held = alloca [%(slots)d x i64], align 8
  call void @llvm.memset.p0.i64(ptr align 8 %%held, i8 -1, i64 %(bytes)d, i1 false)
  %%workers = getelementptr %%job, ptr %%job, i64 0, i32 2
  %%me = atomicrmw add ptr %%workers, i64 1 monotonic
  %%buffers = getelementptr %%job, ptr %%job, i64 0, i32 5
%(core)s  br label %%share
share:
  %%i = phi i64 [ 0, %%entry ], [ %%i1, %%over ]
  %%before = phi i1 [ false, %%entry ], [ %%last, %%over ]
  %%place = add i64 %%core, %%i
  %%mine = urem i64 %%place, %(ranges)d
  %%low = mul i64 %%mine, %(pieces)d
  %%high = add i64 %%low, %(pieces)d
  %%first = udiv i64 %%low, %(ranges)d
  %%end = udiv i64 %%high, %(ranges)d
  %%n = sub i64 %%end, %%first
  %%all = mul i64 %%n, %(rounds)d
  %%begun = getelementptr %%job, ptr %%job, i64 0, i32 6, i64 %%mine
  br label %%loop
loop:
  %%last = phi i1 [ %%before, %%share ], [ %%ended, %%run ]
  %%k = atomicrmw add ptr %%begun, i64 1 acq_rel
  %%some = icmp slt i64 %%k, %%all
  br i1 %%some, label %%run, label %%over
run:
  %%round = udiv i64 %%k, %%n
  %%piece = urem i64 %%k, %%n
  %%rounds = mul i64 %%round, %(pieces)d
  %%sum = add i64 %%rounds, %%first
  %%t = add i64 %%sum, %%piece
  call void @task(i64 %%t, ptr %%buffers, i64 %%me, ptr %%held)
  %%done = atomicrmw add ptr %%job, i64 1 acq_rel
  %%ended = icmp eq i64 %%done, %(before)d
  br label %%loop
over:
  %%i1 = add i64 %%i, 1
  %%more = icmp slt i64 %%i1, %(ranges)d
  br i1 %%more, label %%share, label %%out
out:
  ret i1 %%last
}

define internal void @release(ptr %%job) nounwind {
  %%holders = getelementptr %%job, ptr %%job, i64 0, i32 1
  %%before = atomicrmw sub ptr %%holders, i64 1 acq_rel
  %%last = icmp eq i64 %%before, 1
  br i1 %%last, label %%free, label %%end
free:
  call void @free(ptr %%job)
  br label %%end
end:
  ret void
}

define internal void @join(ptr %%job) %(attributes)s {
  %%ap = getelementptr %%job, ptr %%job, i64 0, i32 3
  %%api = load ptr, ptr %%ap, align 8
  %%fp = getelementptr %%job, ptr %%job, i64 0, i32 4
  %%future = load ptr, ptr %%fp, align 8
  %%last = call i1 @work(ptr %%job)
  call void @release(ptr %%job)
  br i1 %%last, label %%tell, label %%end
tell:
  %%it = alloca [3 x i64], align 8
  store i64 24, ptr %%it, align 8
  %%it1 = getelementptr i64, ptr %%it, i64 1
  store ptr null, ptr %%it1, align 8
  %%it2 = getelementptr i64, ptr %%it, i64 2
  store ptr %%future, ptr %%it2, align 8
  %%sp = getelementptr i8, ptr %%api, i64 160
  %%set = load ptr, ptr %%sp, align 8
  %%error = call ptr %%set(ptr %%it)
  br label %%end
end:
  ret void
}

define ptr @handler(ptr %%frame) %(attributes)s {
entry:
  %%threads = alloca i64, align 8
  %%ask = alloca [4 x i64], align 8
  %%schedule = alloca [5 x i64], align 8
  %%make = alloca [3 x i64], align 8
  %%ep = getelementptr i8, ptr %%frame, i64 8
  %%extension = load ptr, ptr %%ep, align 8
  %%called = icmp eq ptr %%extension, null
  br i1 %%called, label %%execute, label %%describe
describe:
  %%mp = getelementptr i8, ptr %%extension, i64 24
  %%metadata = load ptr, ptr %%mp, align 8
  %%major = getelementptr i8, ptr %%metadata, i64 24
  store i32 0, ptr %%major, align 4
  %%minor = getelementptr i8, ptr %%metadata, i64 28
  store i32 %(minor)d, ptr %%minor, align 4
  ret ptr null
execute:
  %%ap = getelementptr i8, ptr %%frame, i64 16
  %%api = load ptr, ptr %%ap, align 8
  %%cp = getelementptr i8, ptr %%frame, i64 24
  %%context = load ptr, ptr %%cp, align 8
  %%gp = getelementptr i8, ptr %%frame, i64 72
  %%args = load ptr, ptr %%gp, align 8
  %%rp = getelementptr i8, ptr %%frame, i64 112
  %%results = load ptr, ptr %%rp, align 8
  %%job = call ptr @malloc(i64 %(job)d)
  call void @llvm.memset.p0.i64(ptr align 8 %%job, i8 0, i64 %(job)d, i1 false)
%(give)s
  store i64 1, ptr %%threads, align 8
  call void @llvm.memset.p0.i64(ptr align 8 %%ask, i8 0, i64 32, i1 false)
  store i64 32, ptr %%ask, align 8
  %%ask2 = getelementptr i64, ptr %%ask, i64 2
  store ptr %%context, ptr %%ask2, align 8
  %%ask3 = getelementptr i64, ptr %%ask, i64 3
  store ptr %%threads, ptr %%ask3, align 8
  %%np = getelementptr i8, ptr %%api, i64 144
  %%count = load ptr, ptr %%np, align 8
  %%e0 = call ptr %%count(ptr %%ask)
  %%n = load i64, ptr %%threads, align 8
  %%n1 = call i64 @llvm.smin.i64(i64 %%n, i64 %(workers)d)
  %%n2 = call i64 @llvm.smin.i64(i64 %%n1, i64 %(tasks)d)
  %%n3 = call i64 @llvm.smax.i64(i64 %%n2, i64 1)
  %%alone = icmp eq i64 %%n3, 1
  br i1 %%alone, label %%here, label %%shared
here:
  %%ended = call i1 @work(ptr %%job)
  call void @free(ptr %%job)
  ret ptr null
shared:
  %%holders = getelementptr %%job, ptr %%job, i64 0, i32 1
  store i64 %%n3, ptr %%holders, align 8
  %%jap = getelementptr %%job, ptr %%job, i64 0, i32 3
  store ptr %%api, ptr %%jap, align 8
  call void @llvm.memset.p0.i64(ptr align 8 %%make, i8 0, i64 24, i1 false)
  store i64 24, ptr %%make, align 8
  %%mfp = getelementptr i8, ptr %%api, i64 152
  %%create = load ptr, ptr %%mfp, align 8
  %%e2 = call ptr %%create(ptr %%make)
  %%make2 = getelementptr i64, ptr %%make, i64 2
  %%future = load ptr, ptr %%make2, align 8
  %%jfp = getelementptr %%job, ptr %%job, i64 0, i32 4
  store ptr %%future, ptr %%jfp, align 8
  %%ffp = getelementptr i8, ptr %%frame, i64 168
  store ptr %%future, ptr %%ffp, align 8
  call void @llvm.memset.p0.i64(ptr align 8 %%schedule, i8 0, i64 40, i1 false)
  store i64 40, ptr %%schedule, align 8
  %%s2 = getelementptr i64, ptr %%schedule, i64 2
  store ptr %%context, ptr %%s2, align 8
  %%s3 = getelementptr i64, ptr %%schedule, i64 3
  store ptr @join, ptr %%s3, align 8
  %%s4 = getelementptr i64, ptr %%schedule, i64 4
  store ptr %%job, ptr %%s4, align 8
  %%fp = getelementptr i8, ptr %%api, i64 136
  %%call = load ptr, ptr %%fp, align 8
  br label %%spread
spread:
  %%i = phi i64 [ 0, %%shared ], [ %%i1, %%spread ]
  %%e1 = call ptr %%call(ptr %%schedule)
  %%i1 = add i64 %%i, 1
  %%more = icmp slt i64 %%i1, %%n3
  br i1 %%more, label %%spread, label %%end
end:
  ret ptr null
}

define internal void @give(ptr %%buffers, i64 %%i, ptr %%job, i32 %%field) nounwind {
  %%bp = getelementptr ptr, ptr %%buffers, i64 %%i
  %%buffer = load ptr, ptr %%bp, align 8
  %%dp = getelementptr i8, ptr %%buffer, i64 24
  %%data = load ptr, ptr %%dp, align 8
  %%place = getelementptr %%job, ptr %%job, i64 0, i32 5, i32 %%field
  store ptr %%data, ptr %%place, align 8
  ret void
}
declare ptr @malloc(i64)
declare i32 @sched_getcpu()
declare void @free(ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
"""
