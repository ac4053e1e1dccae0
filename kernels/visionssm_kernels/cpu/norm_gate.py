"""LayerNorm over channels, then a gate, row by row on the CPU: a row is read once from memory, the rest happens in the L1 cache.

Cost model: a row of D is read (with its gate) and written once; three short passes over D / LANES registers, one exponential
per gated element. torch's own norm, SiLU and product read and write each row up to seven times.

Legend: R rows, D channels.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .buffers import empty
from .rows import LANES_BYTES, compiled
from .simd import (
    LANES,
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load,
    load_f32_part,
    load_float,
    mul,
    restore_float_mode,
    silu,
    splat,
    store,
    store_f32_part,
    sub,
    total,
    zeros,
)  # fmt: skip
from .threads import Entry, reader, run_tasks

__all__ = ["norm_gate"]

_PIECE = 16384  # elements of a task


class NormJob(NamedTuple):
    """Addresses of float32 (0 where weight or bias is none), strides of rows in bytes."""

    rows: int
    channels: int
    piece: int  # rows of a task
    norm: int
    x: int
    x_row: int
    gate: int
    gate_row: int
    weight: int
    bias: int
    y: int
    numbers: int  # eps, scale
    counter: int


@compiled
def _sum(x, channels):
    s0, s1, s2, s3 = zeros(), zeros(), zeros(), zeros()
    step, i = 4 * LANES, 0
    while i + step <= channels:
        at = x + i * 4
        s0, s1 = add(s0, load(at)), add(s1, load(at + LANES_BYTES))
        s2, s3 = add(s2, load(at + 2 * LANES_BYTES)), add(s3, load(at + 3 * LANES_BYTES))
        i += step
    while i < channels:
        s0 = add(s0, load_f32_part(x + i * 4, channels - i))
        i += LANES
    return total(add(add(s0, s1), add(s2, s3)))


@compiled
def _sum_of_squares(x, channels, mean):
    """Of x - mean."""
    s0, s1, s2, s3 = zeros(), zeros(), zeros(), zeros()
    shift = splat(mean)
    step, i = 4 * LANES, 0
    while i + step <= channels:
        at = x + i * 4
        d0, d1 = sub(load(at), shift), sub(load(at + LANES_BYTES), shift)
        d2, d3 = sub(load(at + 2 * LANES_BYTES), shift), sub(load(at + 3 * LANES_BYTES), shift)
        s0, s1, s2, s3 = fma(d0, d0, s0), fma(d1, d1, s1), fma(d2, d2, s2), fma(d3, d3, s3)
        i += step
    while i + LANES <= channels:
        d0 = sub(load(x + i * 4), shift)
        s0 = fma(d0, d0, s0)
        i += LANES
    result = total(add(add(s0, s1), add(s2, s3)))
    while i < channels:
        difference = load_float(x + i * 4) - mean
        result += difference * difference
        i += 1
    return result


@compiled
def _row(job, x, gate, y, eps, scale):
    channels, mean, factor = job.channels, np.float32(0.0), np.float32(1.0)
    if job.norm:
        count = np.float32(channels)
        mean = _sum(x, channels) / count
        factor = np.float32(1.0) / np.sqrt(_sum_of_squares(x, channels, mean) / count + eps)
    shift, factors, scales = splat(mean), splat(factor), splat(scale)
    for i in range(0, channels, LANES):
        at, left = i * 4, channels - i
        if left >= LANES:
            value = mul(sub(load(x + at), shift), factors)
            if job.weight:
                value = mul(value, load(job.weight + at))
            if job.bias:
                value = add(value, load(job.bias + at))
            store(mul(value, mul(silu(load(gate + at)), scales)), y + at)
        else:
            value = mul(sub(load_f32_part(x + at, left), shift), factors)
            if job.weight:
                value = mul(value, load_f32_part(job.weight + at, left))
            if job.bias:
                value = add(value, load_f32_part(job.bias + at, left))
            store_f32_part(mul(value, mul(silu(load_f32_part(gate + at, left)), scales)), y + at, left)


_read_job = reader(NormJob)


@Entry
def _norm_gate(at):
    """Takes tasks until none is left."""
    job = _read_job(at)
    mode = fresh_float_mode()
    eps, scale = load_float(job.numbers), load_float(job.numbers + 4)
    pieces = (job.rows + job.piece - 1) // job.piece
    task = atomic_next(job.counter)
    while task < pieces:
        for row in range(task * job.piece, min(job.rows, (task + 1) * job.piece)):
            _row(
                job, job.x + row * job.x_row, job.gate + row * job.gate_row, job.y + row * job.channels * 4, eps, scale
            )
        task = atomic_next(job.counter)
    restore_float_mode(mode)


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """(R, D) with contiguous rows at one distance, and that distance in bytes; a copy only where strides need it."""
    flat = x.reshape(-1, x.shape[-1])
    flat = flat if flat.stride(1) == 1 or flat.shape[1] <= 1 else flat.contiguous()
    return flat, 4 * flat.stride(0)


def norm_gate(
    x: Tensor, gate: Tensor, weight: Tensor | None, bias: Tensor | None, norm: bool, eps: float, scale: float
) -> Tensor:
    """y: see `visionssm_kernels.fused`; everything float32."""
    y = empty(*x.shape)
    if y.numel() == 0:
        return y
    x, x_row = _rows(x)
    gate, gate_row = _rows(gate)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    rows, channels = x.shape
    piece = max(1, _PIECE // channels)
    numbers = array("f", [eps, scale])
    where = numbers.buffer_info()[0]
    parameters = [0 if t is None else t.data_ptr() for t in (weight, bias)]

    def job(counter: int) -> NormJob:
        return NormJob(
            rows, channels, piece, int(norm), x.data_ptr(), x_row, gate.data_ptr(), gate_row, *parameters, y.data_ptr(),
            where, counter,
        )  # fmt: skip

    run_tasks(_norm_gate, job, -(-rows // piece))
    return y
