"""How fast this machine computes the kernels' own exponential: the limit of a scan with many states."""

from __future__ import annotations

import time

import numpy as np
import torch

from .rows import LANES_BYTES, compiled, zero
from .simd import LANES, Emitter, atomic_next, load, operation, store, vec
from .threads import run_tasks

__all__ = ["exp_throughput"]

_VECTORS = 64  # 4 KiB at most: stays in L1
_PASSES = 2000


@operation(vec, vec)
def _exp2(e: Emitter, x):
    return e.exp2(x)


@compiled
def _probe(tasks, counter):
    memory = np.empty(_VECTORS * LANES_BYTES + 64, np.uint8)
    at = (memory.ctypes.data + 63) // 64 * 64
    zero(at, _VECTORS)
    while atomic_next(counter) < tasks:
        for _ in range(_PASSES):
            for i in range(_VECTORS):
                store(_exp2(load(at + i * LANES_BYTES)), at + i * LANES_BYTES)
    memory[0] = 0  # numba frees an array after its last use: this is it


def exp_throughput(repeats: int = 5) -> float:
    """Exponentials per second of all of torch's threads together, the best of some repeats."""
    tasks = 4 * torch.get_num_threads()
    best = float("inf")
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        run_tasks(_probe, lambda counter: (tasks, counter), tasks)
        best = min(best, time.perf_counter() - start)
    return tasks * _PASSES * _VECTORS * LANES / best
