"""What this machine can do: whether it compiles the kernels' vectors at all, and how fast it computes their exponential."""

from __future__ import annotations

import math
import time
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from . import simd
from .rows import LANES_BYTES, compiled, zero
from .simd import ARCHITECTURE, LANES, Emitter, atomic_next, load, operation, store, vec
from .threads import Entry, reader, run_tasks

__all__ = ["exp_throughput", "why_broken"]

_VECTORS = 64  # 4 KiB at most: stays in L1
_PASSES = 2000


@operation(vec, vec)
def _exp2(e: Emitter, x):
    return e.exp2(x)


@compiled
def _sample(at):
    """exp2(softplus(x)) of a vector by way of both half precisions, in place."""
    value = load(at)
    simd.store_f16(value, at)
    value = simd.load_f16(at)
    simd.store_bf16_part(value, at, 3)
    store(simd.fma(_exp2(simd.softplus(value)), simd.splat(np.float32(2.0)), simd.load_bf16_part(at, 3)), at)


@cache
def why_broken() -> str | None:
    """None if a small kernel of every kind of operation compiles and computes the right values, else what is wrong."""
    if ARCHITECTURE not in ("x86_64", "aarch64", "arm64"):
        return f"is not made for {ARCHITECTURE} processors (x86_64, aarch64)"
    values = np.zeros(LANES, np.float32)
    values[:4] = -1.5, 0.0, 2.25, 4.0
    try:
        _sample(values.ctypes.data)
    except Exception as error:  # numba and LLVM raise many kinds
        return f"does not compile here: {type(error).__name__}: {error}".splitlines()[0]
    for x, read_again, got in zip((-1.5, 0.0, 2.25, 4.0), (-1.5, 0.0, 2.25, 0.0), values, strict=False):
        wanted = 2.0 * 2.0 ** math.log1p(math.exp(x)) + read_again
        if not abs(got - wanted) < 1e-5 * wanted:
            return f"computes wrong values here: {got} instead of {wanted}"
    return None


class _ProbeJob(NamedTuple):
    tasks: int
    counter: int


_read_job = reader(_ProbeJob)


@Entry
def _probe(at):
    tasks, counter = _read_job(at)
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
    tasks = 100 * torch.get_num_threads()  # 20 ms or so
    best = float("inf")
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        run_tasks(_probe, lambda counter: _ProbeJob(tasks, counter), tasks)
        best = min(best, time.perf_counter() - start)
    return tasks * _PASSES * _VECTORS * LANES / best
