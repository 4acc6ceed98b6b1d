"""The C library's memory, kept between calls."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Have the C library keep freed memory for the next call; for CPUs with glibc.

    XLA asks for the memory of a program's intermediate results at every call. glibc
    gives blocks of more than 32 MiB back to the system as soon as they are free, so the
    next call touches new pages, which the system has to find and clear. Kept, they cost
    nothing, and the process stays as large as it has been.

    It holds for the whole process, sets `M_MMAP_MAX` to 0, `M_TRIM_THRESHOLD` to -1 and
    `M_ARENA_MAX` to 1 (mallopt(3)), and is best called before the first computation:
    threads that have asked for memory before keep their own.

    Returns:
        Whether the C library took the settings; False where it is not glibc.

    Example:
        >>> kept = keep_memory()
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return all([library.mallopt(name, value) for name, value in settings.items()])
