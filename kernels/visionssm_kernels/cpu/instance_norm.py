"""Instance norm of tokens on the CPU: each channel over all rows, where the channels of a row lie together in memory.

Rows are cut into pieces that stay in the L2 cache. Of each piece a first pass takes the means, a second the squares of what is
left; float64 joins the pieces; a third pass writes. Cost model: x is read twice from memory and y written once; 4 operations
per element. Sums over so few rows lose nothing, where torch's norms of this layout add up a whole volume in float32.

Legend: B batch, R rows, C channels, P pieces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import buffers
from .rows import compiled
from .simd import (
    LANES,
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load_f32_part,
    mul,
    restore_float_mode,
    splat,
    store_f32_part,
    sub,
    zeros,
)  # fmt: skip
from .threads import Entry, reader, run_tasks

__all__ = ["instance_norm"]

_PIECE = 32768  # elements of a piece
_ROWS = 512  # of a piece at most: so few add up exactly enough


class NormJob(NamedTuple):
    """Addresses of contiguous float32."""

    batch: int
    rows: int
    channels: int
    piece: int  # rows of a piece
    x: int  # (B, R, C)
    means: int  # (B, P, C) of the pieces; then (B, C), of all rows
    squares: int  # (B, P, C), sums of them around the piece's mean
    scale: int  # (B, C)
    shift: int
    y: int  # (B, R, C)
    counter: int


@compiled
def _measure(job, b, task, first, count):
    """The mean of every channel over some rows, and the sum of squares around it."""
    row = job.channels * 4
    source, target = job.x + (b * job.rows + first) * row, task * row
    share = splat(np.float32(1.0) / np.float32(count))
    for channel in range(0, job.channels, LANES):
        left, at = job.channels - channel, source + channel * 4
        s0, s1 = zeros(), zeros()  # two chains
        for r in range(0, count - 1, 2):
            s0 = add(s0, load_f32_part(at + r * row, left))
            s1 = add(s1, load_f32_part(at + (r + 1) * row, left))
        if count % 2:
            s0 = add(s0, load_f32_part(at + (count - 1) * row, left))
        mean = mul(add(s0, s1), share)
        q0, q1 = zeros(), zeros()
        for r in range(0, count - 1, 2):
            d0, d1 = sub(load_f32_part(at + r * row, left), mean), sub(load_f32_part(at + (r + 1) * row, left), mean)
            q0, q1 = fma(d0, d0, q0), fma(d1, d1, q1)
        if count % 2:
            d0 = sub(load_f32_part(at + (count - 1) * row, left), mean)
            q0 = fma(d0, d0, q0)
        store_f32_part(mean, job.means + target + channel * 4, left)
        store_f32_part(add(q0, q1), job.squares + target + channel * 4, left)


@compiled
def _apply(job, b, first, count):
    """y = (x - mean) * scale + shift."""
    row = job.channels * 4
    here, own = (b * job.rows + first) * row, b * row
    for channel in range(0, job.channels, LANES):
        left, at = job.channels - channel, channel * 4
        mean = load_f32_part(job.means + own + at, left)
        scale, shift = load_f32_part(job.scale + own + at, left), load_f32_part(job.shift + own + at, left)
        for r in range(count):
            value = sub(load_f32_part(job.x + here + r * row + at, left), mean)
            store_f32_part(fma(value, scale, shift), job.y + here + r * row + at, left)


_read_job = reader(NormJob)


@Entry
def _norm(at):
    """Takes pieces until none is left: measures them, or where `y` is given writes them."""
    job = _read_job(at)
    mode = fresh_float_mode()
    pieces = (job.rows + job.piece - 1) // job.piece
    task = atomic_next(job.counter)
    while task < job.batch * pieces:
        b, first = task // pieces, task % pieces * job.piece
        count = min(job.rows - first, job.piece)
        if job.y:
            _apply(job, b, first, count)
        else:
            _measure(job, b, task, first, count)
        task = atomic_next(job.counter)
    restore_float_mode(mode)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, inplace: bool = False) -> Tensor:
    """y (B, R, C), where x was if `inplace` and it is contiguous: see `visionssm_kernels.fused`; everything float32."""
    x = x.contiguous()
    batch, rows, channels = x.shape
    y = x if inplace else torch.empty_like(x)
    if y.numel() == 0:
        return y
    piece = max(1, min(_ROWS, _PIECE // channels))
    pieces = -(-rows // piece)
    means, squares = buffers.empty(2, batch, pieces, channels).unbind()

    def job(counter: int, *results: Tensor) -> NormJob:
        mean, scale, shift, target = (t.data_ptr() for t in results) if results else (means.data_ptr(), 0, 0, 0)
        return NormJob(
            batch, rows, channels, piece, x.data_ptr(), mean, squares.data_ptr(), scale, shift, target, counter
        )

    run_tasks(_norm, job, batch * pieces)
    share = buffers.zeros(pieces, 1, dtype=torch.float64) + piece / rows
    share[-1] = (rows - (pieces - 1) * piece) / rows
    mean = (means * share).sum(1)
    variance = squares.double().sum(1) / rows + ((means - mean[:, None]).square() * share).sum(1)
    scale = (variance + eps).rsqrt().float()
    scale = scale if weight is None else scale * weight
    shift = torch.zeros_like(scale) if bias is None else bias.float().expand_as(scale).contiguous()
    mean = mean.float()
    run_tasks(_norm, lambda counter: job(counter, mean, scale, shift, y), batch * pieces)
    return y
