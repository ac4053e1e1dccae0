"""Keeps freed memory in a process: on CPUs, getting it anew is what large tensors cost most.

A tensor of megabytes is handed back to the system when it is freed, and the next one arrives page by page, each a fault. glibc
can be told to keep it.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_memory() -> bool:
    """Tells glibc, for the rest of the process, to keep freed memory rather than hand it back to the system.

    Steps with large tensors on a CPU then take less time, and the process holds more than it needs at its peak: the README says
    how much of both.

    Returns:
        Whether it was told: False where the C library is another one (macOS, Windows, musl).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    tell = ctypes.CDLL(None).mallopt
    return all(tell(what, value) for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28)))
