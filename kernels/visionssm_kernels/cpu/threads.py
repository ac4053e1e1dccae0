"""Runs a compiled kernel on as many threads as torch would use.

Kernels take their tasks from a shared counter and run without the GIL, so plain Python threads do: any number of callers at
once (DataParallel), nested or not, and a forked child (a DataLoader worker) starts its own. numba's own threading layers
allow neither of the two everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

__all__ = ["run_tasks"]

_pool: ThreadPoolExecutor | None = None
_size = 0


def _forget_pool() -> None:
    global _pool, _size
    _pool, _size = None, 0  # its threads stayed behind in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _size
    if _pool is None or _size < count:  # a smaller one finishes what it has and ends
        _pool, _size = ThreadPoolExecutor(count, thread_name_prefix="visionssm"), count
    return _pool


def run_tasks(kernel: Callable[..., Any], make_arguments: Callable[[int], tuple[Any, ...]], tasks: int) -> None:
    """Runs kernel(*make_arguments(address of a task counter)) on this thread and helpers until all tasks are done."""
    if tasks == 0:
        return
    counter = np.zeros(1, np.int64)
    arguments = make_arguments(counter.ctypes.data)
    helpers = min(torch.get_num_threads(), tasks) - 1
    if helpers <= 0:
        kernel(*arguments)
        return
    pool = _helpers(helpers)
    futures = [pool.submit(kernel, *arguments) for _ in range(helpers)]
    kernel(*arguments)
    for future in futures:
        if not future.cancel():  # one that has not begun has nothing left to do
            future.result()
