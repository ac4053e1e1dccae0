"""Rows of a strided tensor to and from float32 scratch, in any storage dtype and for any number of channels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import cfunc, njit
from torch import Tensor

from . import simd
from .loops import copy_rows
from .simd import (
    BF16,
    F16,
    F32,
    LANES,
    MASKS,
    atomic_next,
    copy_positions,
    count_positions,
    last_position,
    load_f32_part,
    load_int,
    prefetch,
    store,
    zeros,
)  # fmt: skip

__all__ = [
    "FAULTS", "LANES_BYTES", "NOTHING", "Rows", "address", "ask", "compiled", "compiled_entry", "fill", "gather", "pack",
    "parameter_row", "refer", "scatter", "steps_of", "to_columns", "to_rows", "unpack", "visited", "zero",
]  # fmt: skip

LANES_BYTES = 4 * LANES
FAULTS = 8  # bytes from the task counter to that of routes which leave the image
_KINDS = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}


def _digest_of_sources() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_DIGEST = _digest_of_sources()


@cache
def _warn_of_no_cache() -> None:
    message = (
        "the CPU kernels are compiled anew in every process: no folder for them can be written, set NUMBA_CACHE_DIR"
    )
    warnings.warn(message, numba.NumbaWarning, stacklevel=4)


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles at the first call and keeps the result on disk; runs without the GIL, so that threads run it together.

    numba looks at the time of the one file that holds a function, so a kernel would survive a change in the file that it is
    built from: the name under which it is kept carries a digest of them all.
    """
    return _compiled(function, njit, nogil=True, error_model="numpy")


def compiled_entry(function: Callable[..., Any], signature: Any) -> Any:
    """The same for a function with C's calling convention, whose `address` others may call."""
    return _compiled(function, cfunc, signature, error_model="numpy")


def _compiled(function: Callable[..., Any], compiler: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not function.__qualname__.endswith(_DIGEST):
        function.__qualname__ += f"_{_DIGEST}"
    try:
        return compiler(*args, cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        _warn_of_no_cache()
        return compiler(*args, **options)(function)


class Rows(NamedTuple):
    """A tensor (B, L, K, D) as a kernel sees it: where it is, how an element is stored, strides in bytes."""

    data: int
    kind: int
    size: int
    b: int
    l: int  # noqa: E741 - the letter of the legend
    k: int


NOTHING = Rows(0, F32, 4, 0, 0, 0)


def refer(tensor: Tensor | None, *, shared: bool = False) -> Rows:
    """Describes (B, L, K, D), or (B, L, 1, D) with `shared` for one that all routes use; the last stride must be 1."""
    if tensor is None:
        return NOTHING
    size = tensor.element_size()
    b, l, k, _ = tensor.stride()  # noqa: E741
    return Rows(tensor.data_ptr(), _KINDS[tensor.dtype], size, b * size, l * size, 0 if shared else k * size)


@compiled
def address(rows, b, k, channel):
    return rows.data + b * rows.b + k * rows.k + channel * rows.size


@compiled
def steps_of(positions, order, stride, start, steps):
    """positions[:steps] are the positions visited from step `start` on, -1 before the first."""
    if order != 0 and stride == 4 and start >= 0:
        copy_positions(order + 4 * start, steps, positions.ctypes.data)
        return
    for t in range(steps):
        step = start + t
        positions[t] = step if order == 0 or step < 0 else load_int(order + step * stride)


@compiled
def visited(order, stride, steps, positions, counter):
    """How many of the steps are not padding; -1, and a fault for `run_tasks`, where one lies beyond the positions there are."""
    if order == 0:
        count, last = steps, steps - 1
    elif stride == 4:
        count, last = count_positions(order, steps), last_position(order, steps)
    else:
        count, last = 0, -1
        for t in range(steps):
            position = load_int(order + t * stride)
            count += 1 if position >= 0 else 0
            last = max(last, position)
    if last < positions:
        return count
    atomic_next(counter + FAULTS)
    return -1


@compiled
def gather(scratch, width, source, stride, kind, positions, steps, channels, coming):
    """Copies `steps` rows of `channels` elements to rows of `width` vectors, zero beyond and at padding steps.

    On the way it asks for the rows of the next tile, at positions `coming`, so that they arrive while this one is computed.
    """
    size = 4 if kind == F32 else 2
    if MASKS and kind != F16:
        asked = min(len(coming), steps)
        for v in range(width):
            left, target = channels - v * LANES, scratch + v * LANES_BYTES
            copy_rows(
                kind, left, source + v * LANES * size, stride, target, width * LANES_BYTES, positions.ctypes.data,
                coming.ctypes.data, asked if left > 0 else 0, steps,
            )  # fmt: skip
        return
    for t in range(steps):
        p = positions[t]
        if t < len(coming) and coming[t] >= 0:
            row, length = source + coming[t] * stride, min(channels, width * LANES) * size
            for byte in range(0, length, 64):
                prefetch(row + byte)
            prefetch(row + length - 1)  # a row may begin within a cache line
        for v in range(width):
            target = scratch + (t * width + v) * LANES_BYTES
            at = source + p * stride + v * LANES * size
            left = channels - v * LANES
            if p < 0 or left <= 0:
                store(zeros(), target)
            elif kind == F32:
                store(simd.load(at) if left >= LANES else simd.load_f32_part(at, left), target)
            elif kind == BF16:
                store(simd.load_bf16(at) if left >= LANES else simd.load_bf16_part(at, left), target)
            else:
                store(simd.load_f16(at) if left >= LANES else simd.load_f16_part(at, left), target)


@compiled
def scatter(scratch, width, target, stride, kind, positions, steps, channels, accumulate):
    """The way back of `gather`; with `accumulate` (float32 only) it adds to what is there."""
    size = 4 if kind == F32 else 2
    for t in range(steps):
        p = positions[t]
        if p < 0:
            continue
        for v in range(width):
            value = simd.load(scratch + (t * width + v) * LANES_BYTES)
            at = target + p * stride + v * LANES * size
            left = channels - v * LANES
            if left <= 0:
                continue
            if kind == F32:
                if left >= LANES:
                    store(simd.add(value, simd.load(at)) if accumulate else value, at)
                else:
                    value = simd.add(value, simd.load_f32_part(at, left)) if accumulate else value
                    simd.store_f32_part(value, at, left)
            elif kind == BF16:
                if left >= LANES:
                    simd.store_bf16(value, at)
                else:
                    simd.store_bf16_part(value, at, left)
            elif left >= LANES:
                simd.store_f16(value, at)
            else:
                simd.store_f16_part(value, at, left)


@compiled
def fill(target, stride, size, rows, channels):
    """Zeroes `channels` elements of each row."""
    for p in range(rows):
        at = target + p * stride
        for i in range(channels * size // 2):
            simd.store_short_zero(at + 2 * i)


@compiled
def to_columns(scratch, source, channels, states, scale):
    """(channels, states) contiguous float32 -> one vector of channels per state, scaled, zero beyond."""
    if states == 1 and channels >= LANES:
        store(simd.mul(simd.load(source), simd.splat(np.float32(scale))), scratch)
        return
    squares = states // LANES * LANES if channels >= LANES else 0
    for n in range(0, squares, LANES):
        simd.transpose(
            source + n * 4, states * 4, scratch + n * LANES_BYTES, LANES_BYTES, simd.splat(np.float32(scale))
        )
    for n in range(squares, states):
        store(zeros(), scratch + n * LANES_BYTES)
    for d in range(min(channels, LANES)):
        for n in range(squares, states):
            value = simd.load_float(source + (d * states + n) * 4)
            simd.store_float(value * scale, scratch + n * LANES_BYTES + d * 4)


@compiled
def to_rows(scratch, pitch, target, channels, states, total):
    """The way back for `states` of `total` states; the vectors are `pitch` bytes apart."""
    if total == 1 and channels >= LANES:
        store(simd.load(scratch), target)
        return
    squares = states // LANES * LANES if channels >= LANES else 0
    for n in range(0, squares, LANES):
        simd.transpose(scratch + n * pitch, pitch, target + n * 4, total * 4, simd.splat(np.float32(1.0)))
    for d in range(min(channels, LANES)):
        for n in range(squares, states):
            simd.store_float(simd.load_float(scratch + n * pitch + d * 4), target + (d * total + n) * 4)


@compiled
def pack(scratch, target, channels, states):
    """One vector of channels per state, contiguous -> `states` rows of `channels` float32, or of LANES if there are more."""
    for n in range(states):
        row = target + n * min(channels, LANES) * 4
        if channels >= LANES:
            store(simd.load(scratch + n * LANES_BYTES), row)
        else:
            simd.store_f32_part(simd.load(scratch + n * LANES_BYTES), row, channels)


@compiled
def unpack(scratch, source, channels, states):
    """The way back of `pack`, zero beyond."""
    for n in range(states):
        row = source + n * min(channels, LANES) * 4
        store(simd.load(row) if channels >= LANES else load_f32_part(row, channels), scratch + n * LANES_BYTES)


@compiled
def ask(at, size):
    """Asks for what will be read soon."""
    for byte in range(0, size, 64):
        prefetch(at + byte)


@compiled
def parameter_row(scratch, source, channels, width):
    """A row of D or bias, zero where there is none."""
    for v in range(width):
        left = channels - v * LANES
        here = zeros() if source == 0 or left <= 0 else load_f32_part(source + v * LANES_BYTES, left)
        store(here, scratch + v * LANES_BYTES)


@compiled
def zero(at, vectors):
    for i in range(vectors):
        store(zeros(), at + i * LANES_BYTES)
