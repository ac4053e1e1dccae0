"""Runs a compiled kernel on torch's own threads.

Kernels take their tasks from a shared counter and run without the GIL, so any number of threads may call one. The threads are
those of the OpenMP library that torch has loaded: they still spin from torch's last operation when ours begins, and torch
finds them spinning after it. Threads of our own would fight them for the cores. Where there is no such library
(Windows), and in a forked child (a DataLoader worker), where OpenMP's threads are gone without its knowledge, plain Python
threads do it.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, get_type_hints

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .rows import FAULTS, compiled_entry

__all__ = ["Entry", "reader", "run_tasks"]

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # ctypes lets go of the GIL while it runs


class Entry:
    """Decorates entry(at): what a thread runs, given the address of a job that it reads with a `reader`. Compiled when used."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function

    @cached_property
    def pointer(self) -> Any:
        self._compiled = compiled_entry(self._function, types.void(types.int64))
        return _Function(self._compiled.address)


def _zeros(job: type) -> Any:
    return job(*(0 if kind is int else _zeros(kind) for kind in get_type_hints(job).values()))


def reader(job: type) -> Any:
    """A numba function read(address) -> job, for a NamedTuple of int and of such NamedTuples."""
    result = numba.typeof(_zeros(job))

    def read(typingctx: Any, address: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            kind = context.get_value_type(result)
            return builder.load(builder.inttoptr(values[0], kind.as_pointer()), align=8)

        return result(types.int64), codegen

    return intrinsic(read)


def _numbers(job: Iterable[Any]) -> list[int]:
    numbers: list[int] = []
    for value in job:
        numbers.extend(value) if isinstance(value, tuple) else numbers.append(value)
    return numbers


def _find_openmp() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the library that torch uses, or None."""
    try:
        symbols = ctypes.CDLL(None)  # torch makes its dependencies visible to the whole process
        start, count = symbols.GOMP_parallel, symbols.omp_get_max_threads
    except (OSError, AttributeError, TypeError):
        return None
    if count() != torch.get_num_threads():  # some other library's
        return None
    start.argtypes, start.restype = [_Function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return start


_openmp = _find_openmp()
_pool: ThreadPoolExecutor | None = None
_size = 0


def _after_fork() -> None:
    global _openmp, _pool, _size
    _openmp, _pool, _size = None, None, 0  # the threads stayed behind in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _size
    if _pool is None or _size < count:  # a smaller one finishes what it has and ends
        _pool, _size = ThreadPoolExecutor(count, thread_name_prefix="visionssm"), count
    return _pool


def run_tasks(entry: Entry, make_job: Callable[[int], NamedTuple], tasks: int) -> None:
    """Runs entry(make_job(address of a task counter)) on as many threads as torch would use, until all tasks are done.

    Raises:
        ValueError: a task met a route that leaves the image; what it should have written is undefined.
    """
    if tasks == 0:
        return
    function, counters = entry.pointer, (ctypes.c_int64 * 2)()
    job = array("q", _numbers(make_job(ctypes.addressof(counters))))
    data, threads = job.buffer_info()[0], torch.get_num_threads()
    if threads == 1 or tasks == 1:
        function(data)
    elif _openmp is not None:
        _openmp(function, data, threads, 0)  # always torch's number: another one would have OpenMP start new threads
    else:
        helpers = min(threads, tasks) - 1
        futures = [_helpers(helpers).submit(function, data) for _ in range(helpers)]
        function(data)
        for future in futures:
            if not future.cancel():  # one that has not begun has nothing left to do
                future.result()
    if counters[FAULTS // 8]:
        raise ValueError("order holds positions that u or x does not have")
