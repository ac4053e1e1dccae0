"""Keeps freed memory in a process: on CPUs, getting it anew is what large tensors cost most.

A tensor of megabytes is handed back to the system when it is freed, and the next one arrives page by page, each a fault of a
microsecond or so: 4 GiB of intermediate results are a million. glibc can be told to keep it.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_memory() -> bool:
    """Tells glibc, for the rest of the process, to keep freed memory rather than hand it back to the system.

    Steps with large tensors on a CPU take less time, a training step of SegMamba at 64^3 two thirds. The process holds a third or
    so more than it needs at its peak, and keeps it.

    Returns:
        Whether it was told: False where the C library is another one (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl has a mallopt that does nothing
        tell = library.mallopt
    except AttributeError:
        return False
    return all(tell(what, value) for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28)))
