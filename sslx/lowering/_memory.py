"""The C library's memory, kept between calls."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Make glibc keep freed memory for the next call, on CPUs.

    XLA allocates the memory of intermediate results at every call. glibc returns freed
    blocks of more than 32 MiB to the system at once, so the next call touches new
    pages, which the kernel has to find and clear. Kept blocks cost nothing, but the
    process stays as large as it has ever been.

    The setting holds for the whole process: `M_MMAP_MAX` is 0, `M_TRIM_THRESHOLD` -1
    and `M_ARENA_MAX` 1 (mallopt(3)). Call it before the first computation: threads that
    have allocated memory by then keep arenas of their own.

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
