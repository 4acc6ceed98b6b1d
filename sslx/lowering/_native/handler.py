"""The function that XLA calls: it spreads the tasks of a program over XLA's threads.

XLA calls a program's entry with a call frame. `handler` answers questions about the
interface's version, and passes everything else on to `execute`, which gathers what the
workers share in a `_Job`, asks XLA for a future, schedules `join` on as many threads as
can help, and returns without waiting. Workers take tasks by atomic counters (`work`);
the one that ends the last task fulfils the future, and the last one to leave frees the
job. A single task, or thread, runs within the call; so does whatever XLA refuses to
schedule.

Tasks are the pieces of an array, taken in several rounds. Each core starts with the
same share of the pieces in every call, so that it finds in its cache what it wrote
before; then it helps the others.

This code is compiled once for many programs and is never freed. Every program has a
record and an entry that XLA knows by name. `retire` replaces a program's code, or drops
it; a call of a dropped program returns an error, and code is freed only when the count
of running calls says that nobody uses it.
"""

import ctypes
import sys
from ctypes import c_int64, c_void_p

from sslx.lowering._native import ffi
from sslx.lowering._native.ffi import CallFrame, offset
from sslx.lowering._native.ir import Function, module
from sslx.lowering._native.values import NULL, Value, address


class Record(ctypes.Structure):
    """A program, as this code knows it.

    Attributes:
      task: its code, `task(i64 task, ptr buffers, i64 worker, ptr slots)`: `buffers`
        points to the addresses of all arguments, then of all results; `slots` is memory
        of the worker, -1 before its first task. Null if it was dropped.
      running: calls that may use the code.
      rounds: how often all pieces are taken.
      pieces: task `r * pieces + p` is piece `p` in round `r`.
      workers: threads, at most.
      slots: 64-bit integers of memory per worker.
      arguments: arrays that the program is given.
      results: arrays that it writes.
    """

    _fields_ = [
        ("task", c_void_p),
        ("running", c_int64),
        ("rounds", c_int64),
        ("pieces", c_int64),
        ("workers", c_int64),
        ("slots", c_int64),
        ("arguments", c_int64),
        ("results", c_int64),
    ]


class _Job(ctypes.Structure):
    """What the workers of a call share.

    Attributes:
      done: tasks that have ended.
      holders: workers that have not left yet; the last one frees it.
      workers: how many have started.
      record: of the program.
      task: its code.
      api: XLA's interface.
      future: of XLA, which waits for it.
      buffers: addresses of all arrays, followed by a counter per share of the pieces:
        tasks of it that have begun.
    """

    _fields_ = [
        ("done", c_int64),
        ("holders", c_int64),
        ("workers", c_int64),
        ("record", c_void_p),
        ("task", c_void_p),
        ("api", c_void_p),
        ("future", c_void_p),
        ("buffers", c_int64 * 0),
    ]


def source(records: int, count: int) -> str:
    """Code with functions `entry_0`, `entry_1`, ... for an array of records."""
    size = ctypes.sizeof(Record)
    entries = [_entry(k, records + k * size) for k in range(count)]
    parts = [_handler(), _execute(), _work(), _join(), _release(), _forget(), _fail()]
    return module([*entries, *parts, _retire()])


Kind = type[ctypes.Structure]


def _field(f: Function, start: Value, kind: Kind, *path: str) -> Value:
    return f.at(start, offset(kind, *path))


def _read(f: Function, start: Value, kind: Kind, *path: str) -> Value:
    """A field that is an address."""
    return f.load("ptr", _field(f, start, kind, *path))


def _count(f: Function, start: Value, kind: Kind, *path: str) -> Value:
    """A field that is a 64-bit integer."""
    return f.load("i64", _field(f, start, kind, *path))


def _request(f: Function, kind: Kind, **fields: Value) -> Value:
    """The structure that a function of the interface takes."""
    size = ctypes.sizeof(kind)
    place = f.memory(size)
    f.fill(place, 0, size)
    for name, value in {"struct_size": Value("i64", str(size)), **fields}.items():
        f.store(value, _field(f, place, kind, name), 4 if value.type == "i32" else 8)
    return place


def _ask(f: Function, api: Value, name: str, request: Value) -> Value:
    """Call a function of the interface."""
    function = _read(f, api, ffi.Api, f"XLA_FFI_{name}")
    return f.call(function, request, result="ptr")


def _entry(k: int, record: int) -> Function:
    f = Function(f"entry_{k}", {"frame": "ptr"}, "ptr", shared=True)
    f.ret(f.call("handler", address(record), f["frame"], result="ptr"))
    return f


def _handler() -> Function:
    """Answer what XLA asks by an extension, or do the work."""
    f = Function("handler", {"record": "ptr", "frame": "ptr"}, "ptr")
    frame = f["frame"]
    with f.repeat(_read(f, frame, CallFrame, "extension_start")) as walk:
        (extension,) = walk.values
        f.leave(f.same(extension, NULL))
        base = ffi.ExtensionBase
        kind = f.load("i32", _field(f, extension, base, "type"), 4)
        with f.when(f.same(kind, ffi.METADATA)):
            asked = _read(f, extension, ffi.MetadataExtension, "metadata")
            for name, number in zip(("major", "minor"), ffi.VERSION, strict=True):
                path = "api_version", f"{name}_version"
                place = _field(f, asked, ffi.Metadata, *path)
                f.store(Value("i32", str(number)), place, 4)
            f.ret(NULL)
        walk.values = [_read(f, extension, base, "next")]
    running = _field(f, f["record"], Record, "running")
    f.changed("add", running, 1)
    task_at = _field(f, f["record"], Record, "task")
    task = f.let("ptr", f"load atomic ptr, {task_at} seq_cst, align 8")
    api = _read(f, frame, CallFrame, "api")
    with f.when(f.same(task, NULL)):
        f.changed("sub", running, 1)
        f.ret(_failed(f, api, ffi.FAILED_PRECONDITION, _DROPPED))
    f.ret(f.call("execute", f["record"], frame, api, task, result="ptr"))
    return f


def _failed(f: Function, api: Value, code: int, text: bytes) -> Value:
    return f.call("fail", api, Value("i32", str(code)), _message(text), result="ptr")


_DROPPED = (
    b"sslx: the machine code of this program was dropped; trace and compile again"
)
_OTHER_ARRAYS = b"sslx: a program was given more or fewer arrays than it has"
_NO_MEMORY = b"sslx: no memory to share the tasks of a program among threads"
_MESSAGES = {
    text: ctypes.create_string_buffer(text)
    for text in (_DROPPED, _OTHER_ARRAYS, _NO_MEMORY)
}


def _message(text: bytes) -> Value:
    return address(ctypes.addressof(_MESSAGES[text]))


def _execute() -> Function:
    """Spread a job over threads, or do it here."""
    params = {"record": "ptr", "frame": "ptr", "api": "ptr", "task": "ptr"}
    f = Function("execute", params, "ptr")
    record, frame, api = f["record"], f["frame"], f["api"]
    running = _field(f, record, Record, "running")
    arguments = _count(f, record, Record, "arguments")
    results = _count(f, record, Record, "results")
    for part, wanted in (("args", arguments), ("rets", results)):
        given = _count(f, frame, CallFrame, part, "size")
        with f.when(f.differ(given, wanted)):
            f.changed("sub", running, 1)
            f.ret(_failed(f, api, ffi.INVALID_ARGUMENT, _OTHER_ARRAYS))
    numbers = f.add(f.add(arguments, results), _count(f, record, Record, "workers"))
    size = f.add(f.mul(numbers, 8), ctypes.sizeof(_Job))
    job = f.call("malloc", size, result="ptr")
    with f.when(f.same(job, NULL)):
        f.changed("sub", running, 1)
        f.ret(_failed(f, api, ffi.RESOURCE_EXHAUSTED, _NO_MEMORY))
    f.fill(job, 0, size)
    for name in ("record", "task", "api"):
        f.store(f[name], _field(f, job, _Job, name))
    place = _field(f, job, _Job, "buffers")
    _addresses(f, _read(f, frame, CallFrame, "args", "args"), arguments, place)
    place = f.at(place, arguments, "ptr")
    _addresses(f, _read(f, frame, CallFrame, "rets", "rets"), results, place)
    context = _read(f, frame, CallFrame, "ctx")
    threads = _threads(f, record, api, context)
    future = _future(f, api, threads)
    with f.when(f.same(future, NULL)):
        f.call("work", job, result="i1")
        f.call("free", job)
        f.changed("sub", running, 1)
        f.ret(NULL)
    f.store(threads, _field(f, job, _Job, "holders"))
    f.store(future, _field(f, job, _Job, "future"))
    f.store(future, _field(f, frame, CallFrame, "future"))
    join = Value("ptr", "@join")
    request = _request(f, ffi.ThreadPoolScheduleArgs, ctx=context, task=join, data=job)
    with f.loop(0, threads):
        error = _ask(f, api, "ThreadPool_Schedule", request)
        with f.when(f.differ(error, NULL)):
            f.call("forget", api, error)
            f.call("join", job)
    f.ret(NULL)
    return f


def _addresses(f: Function, arrays: Value, count: Value, into: Value) -> None:
    with f.loop(0, count) as each:
        array = f.load("ptr", f.at(arrays, each.index, "ptr"))
        data = _read(f, array, ffi.Buffer, "data")
        f.store(data, f.at(into, each.index, "ptr"))


def _threads(f: Function, record: Value, api: Value, context: Value) -> Value:
    """How many threads can help; 1 where XLA has none."""
    number = f.memory(8)
    f.store(Value("i64", "1"), number)
    kind = ffi.ThreadPoolNumThreadsArgs
    request = _request(f, kind, ctx=context, num_threads=number)
    f.call("forget", api, _ask(f, api, "ThreadPool_NumThreads", request))
    most = f.min(f.load("i64", number), _count(f, record, Record, "workers"))
    rounds = _count(f, record, Record, "rounds")
    tasks = f.mul(rounds, _count(f, record, Record, "pieces"))
    return f.max(f.min(most, tasks), 1)


def _future(f: Function, api: Value, threads: Value) -> Value:
    """A future for XLA to wait for; null for one thread, or where XLA refuses."""
    with f.when(f.less(1, threads), NULL) as several:
        request = _request(f, ffi.FutureCreateArgs)
        f.call("forget", api, _ask(f, api, "Future_Create", request))
        several.values = [_read(f, request, ffi.FutureCreateArgs, "future")]
    return several.values[0]


def _work() -> Function:
    """Do tasks until all have begun; true if the last one to end was one of them."""
    f = Function("work", {"job": "ptr"}, "i1")
    job = f["job"]
    record = _read(f, job, _Job, "record")
    task = _read(f, job, _Job, "task")
    slots = _count(f, record, Record, "slots")
    pieces = _count(f, record, Record, "pieces")
    rounds = _count(f, record, Record, "rounds")
    ranges = _count(f, record, Record, "workers")
    arguments = _count(f, record, Record, "arguments")
    arrays = f.add(arguments, _count(f, record, Record, "results"))
    held = f.let("ptr", f"alloca i64, {slots}, align 8")
    f.fill(held, -1, f.mul(slots, 8))
    me = f.changed("add", _field(f, job, _Job, "workers"), 1)
    buffers = _field(f, job, _Job, "buffers")
    before_last = f.sub(f.mul(rounds, pieces), 1)
    done = _field(f, job, _Job, "done")
    core = me
    if sys.platform == "linux":
        core = f.let("i64", f"sext {f.call('sched_getcpu', result='i32')} to i64")
    with f.loop(0, ranges, Value("i1", "false")) as share:
        mine = f.mod(f.add(core, share.index), ranges)
        low = f.mul(mine, pieces)
        first = f.div(low, ranges)
        count = f.sub(f.div(f.add(low, pieces), ranges), first)
        before_end = f.sub(f.mul(count, rounds), 1)
        begun = f.at(f.at(buffers, arrays, "i64"), mine, "i64")
        with f.repeat(share.values[0]) as each:
            k = f.changed("add", begun, 1)
            f.leave(f.less(before_end, k))
            start = f.mul(f.div(k, count), pieces)
            number = f.add(f.add(start, first), f.mod(k, count))
            f.call(task, number, buffers, me, held)
            each.values = [f.same(f.changed("add", done, 1), before_last)]
        share.values = each.values
    f.ret(share.values[0])
    return f


def _join() -> Function:
    """What a thread does for a job: tasks, and fulfilling the future at the end."""
    f = Function("join", {"job": "ptr"})
    api, future = (_read(f, f["job"], _Job, name) for name in ("api", "future"))
    last = f.call("work", f["job"], result="i1")
    f.call("release", f["job"])
    with f.when(last):
        request = _request(f, ffi.FutureSetAvailableArgs, future=future)
        error = _ask(f, api, "Future_SetAvailable", request)
        with f.when(f.differ(error, NULL)):
            kind = ffi.FutureSetErrorArgs
            request = _request(f, kind, future=future, error=error)
            f.call("forget", api, _ask(f, api, "Future_SetError", request))
    f.ret()
    return f


def _release() -> Function:
    """Leave a job; the last worker frees it."""
    f = Function("release", {"job": "ptr"})
    holders = f.changed("sub", _field(f, f["job"], _Job, "holders"), 1)
    with f.when(f.same(holders, 1)):
        record = _read(f, f["job"], _Job, "record")
        f.call("free", f["job"])
        f.changed("sub", _field(f, record, Record, "running"), 1)
    f.ret()
    return f


def _forget() -> Function:
    """Free an error of the interface, if there is one."""
    f = Function("forget", {"api": "ptr", "error": "ptr"})
    with f.when(f.differ(f["error"], NULL)):
        request = _request(f, ffi.ErrorDestroyArgs, error=f["error"])
        destroy = _read(f, f["api"], ffi.Api, "XLA_FFI_Error_Destroy")
        f.call(destroy, request)
    f.ret()
    return f


def _fail() -> Function:
    """An error to return to XLA."""
    f = Function("fail", {"api": "ptr", "code": "i32", "message": "ptr"}, "ptr")
    kind = ffi.ErrorCreateArgs
    request = _request(f, kind, message=f["message"], errc=f["code"])
    f.ret(_ask(f, f["api"], "Error_Create", request))
    return f


def _retire() -> Function:
    """Replace the code of a record; returns how many calls may still use the old."""
    f = Function("retire", {"record": "ptr", "task": "ptr"}, "i64", shared=True)
    place = _field(f, f["record"], Record, "task")
    f.let("ptr", f"atomicrmw xchg {place}, {f['task']} seq_cst")
    running = _field(f, f["record"], Record, "running")
    f.ret(f.let("i64", f"load atomic i64, {running} seq_cst, align 8"))
    return f
