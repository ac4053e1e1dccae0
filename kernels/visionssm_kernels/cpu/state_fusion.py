"""Sums of dilated depthwise convolutions with replicated borders over a channels-last map: only the taps that exist.

    y[i, j] = sum_gab w[g, a, b] h[C(i + o_a), C(j + o_b)]        o_a = dilation_g (a - side // 2), C clamps to the map

A task is one image row of one block of channels. Tables say where the rows and the columns around the map lie, those of the
border beyond it, so that a tap's address is one sum of two entries.

Legend: B batch, H height, W width, D channels, T taps of all kernels together.
Cost per position and channel: T multiply-adds on rows that lie in a cache, one row read from memory and one written.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from .buffers import empty
from .loops import WIDTHS, sum_taps
from .rows import LANES_BYTES, compiled
from .simd import (
    LANES,
    atomic_next,
    fma,
    fresh_float_mode,
    load_f32_part,
    load_long,
    restore_float_mode,
    store_f32_part,
    zeros,
)  # fmt: skip
from .threads import Entry, reader, run_tasks

__all__ = ["fuse_states"]


class FusionJob(NamedTuple):
    """Sizes, strides in bytes, addresses: x (B, H, W, D), weight (T, D), offsets (T, 2) int64, y (B, H, W, D)."""

    batch: int
    height: int
    columns: int
    channels: int
    taps: int
    margin: int  # the largest offset
    width: int  # vectors of channels per task
    blocks: int
    x: int
    x_b: int
    x_h: int
    x_w: int
    weight: int
    offsets: int
    y: int
    counter: int


@compiled
def _row(job, rows, shifts, places, b, y, block):
    """One row; `places` are the columns' offsets in bytes, `shifts` the taps' places among them."""
    channel = block * job.width * LANES
    left = min(job.channels - channel, job.width * LANES)
    image, weight, pitch = job.x + b * job.x_b + channel * 4, job.weight + channel * 4, job.channels * 4
    for tap in range(job.taps):
        h = y + load_long(job.offsets + 16 * tap)
        rows[tap] = image + min(max(h, 0), job.height - 1) * job.x_h
    target = job.y + ((b * job.height + y) * job.columns * job.channels + channel) * 4
    for x in range(job.columns):
        if left == job.width * LANES:
            here = places.ctypes.data + 8 * x
            sum_taps(job.width, rows.ctypes.data, shifts.ctypes.data, here, weight, pitch, target, job.taps)
        else:
            for v in range(job.width):
                part, at = left - v * LANES, v * LANES_BYTES
                if part > 0:
                    total = zeros()
                    for i in range(job.taps):
                        source = rows[i] + places[x + shifts[i] // 8] + at
                        total = fma(load_f32_part(weight + i * pitch + at, part), load_f32_part(source, part), total)
                    store_f32_part(total, target + at, part)
        target += pitch


_read_job = reader(FusionJob)


@Entry
def _fuse(at):
    """Takes tasks until none is left."""
    job = _read_job(at)
    mode = fresh_float_mode()
    rows, shifts = np.empty(job.taps, np.int64), np.empty(job.taps, np.int64)
    for tap in range(job.taps):
        shifts[tap] = 8 * (load_long(job.offsets + 16 * tap + 8) + job.margin)
    places = np.empty(job.columns + 2 * job.margin, np.int64)
    for i in range(len(places)):
        places[i] = min(max(i - job.margin, 0), job.columns - 1) * job.x_w
    total = job.batch * job.height * job.blocks
    task = atomic_next(job.counter)
    while task < total:
        block, line = task % job.blocks, task // job.blocks
        _row(job, rows, shifts, places, line // job.height, line % job.height, block)
        task = atomic_next(job.counter)
    restore_float_mode(mode)
    rows[0] = shifts[0] = places[0] = 0  # numba frees an array after its last use: this is it


def fuse_states(x: Tensor, weight: Tensor, offsets: Tensor, margin: int) -> Tensor:
    """y (B, H, W, D) in float32.

    Args:
        x: (B, H, W, D) float32, the last dimension contiguous.
        weight: (T, D) float32, contiguous.
        offsets: (T, 2) int64, what each tap adds to the row and the column that it reads.
        margin: the largest of them.
    """
    batch, height, columns, channels = x.shape
    y = empty(*x.shape)
    vectors = -(-channels // LANES)
    width = next(w for w in WIDTHS if vectors % w == 0)
    blocks = vectors // width
    strides = (4 * s for s in x.stride()[:3])

    def job(counter: int) -> FusionJob:
        return FusionJob(
            batch, height, columns, channels, len(weight), margin, width, blocks, x.data_ptr(), *strides, weight.data_ptr(),
            offsets.data_ptr(), y.data_ptr(), counter,
        )  # fmt: skip

    run_tasks(_fuse, job, batch * height * blocks if columns else 0)
    return y
