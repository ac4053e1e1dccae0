"""Sums of parts on the CPU, in their order, whatever the number of threads.

Cost per element: each part is read once, the sum written once; one addition per part. Bound by memory.
"""

from __future__ import annotations

from typing import NamedTuple

from .simd import LANES, add, atomic_next, load_f32_part, store_f32_part
from .threads import Entry, reader

__all__ = ["PIECE", "ReduceJob", "reduce"]

PIECE = 4096  # elements of a task


class ReduceJob(NamedTuple):
    source: int
    target: int
    count: int
    parts: int
    counter: int


_read_reduce = reader(ReduceJob)


@Entry
def reduce(at):
    """target[i] = the sum over `parts` arrays of `count` floats, in order."""
    source, target, count, parts, counter = _read_reduce(at)
    pieces = (count + PIECE - 1) // PIECE
    piece = atomic_next(counter)
    while piece < pieces:
        for i in range(piece * PIECE, min(count, (piece + 1) * PIECE), LANES):
            total = load_f32_part(source + i * 4, count - i)
            for part in range(1, parts):
                total = add(total, load_f32_part(source + (part * count + i) * 4, count - i))
            store_f32_part(total, target + i * 4, count - i)
        piece = atomic_next(counter)
