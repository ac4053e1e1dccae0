"""The causal depthwise convolution along routes on the CPU: the tasks and tiles of the scan (`scan_tasks.py`).

    u[order[t]] = act(bias + sum_j w[W - 1 - j] x[order[t - j]])        j = 0..W-1; x is 0 before the route
    dx[order[s]] = sum_j w[W - 1 - j] g[order[s + j]]                   g = gradient before the activation

Legend: B batch, L image positions, D channels, K routes, T steps of a route, W taps.
Layout: channels in lanes; the W - 1 rows before a step stay in registers (float32, four taps) or in scratch.
Cost per step and channel: W multiply-adds, with SiLU an exponential and a quotient; a row read and one written. Bound by memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .loops import LONG_TAPS, LONG_WIDTHS, convolve_along, convolve_along_silu
from .rows import (
    LANES_BYTES,
    Rows,
    address,
    compiled,
    fill,
    gather,
    parameter_row,
    scatter,
    steps_of,
    to_columns,
    to_rows,
    visited,
    zero,
)  # fmt: skip
from .simd import (
    F32,
    LANES,
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load,
    mul,
    restore_float_mode,
    sigmoid,
    splat,
    store,
    store_f32_part,
    sub,
)  # fmt: skip
from .threads import Entry, reader

__all__ = ["ConvJob", "convolve"]

_TILE = 32
_PAD = 3 * 64


class ConvJob(NamedTuple):
    """Sizes, addresses of contiguous float32 and int32 (0 where there is none), tensors."""

    batch: int
    positions: int
    channels: int
    taps: int
    routes: int
    steps: int
    silu: int
    backwards: int
    weight: int
    bias: int
    order: int
    order_b: int  # strides in bytes
    order_k: int
    order_t: int
    width: int  # vectors of channels per task
    blocks: int  # of channels
    split: int  # 1: a task is one route, 0: all of them
    counter: int
    x: Rows
    u: Rows  # the output, or its gradient
    dx: Rows
    dweight: int  # (B, K, D, W)
    dbias: int  # (B, K, D)


@compiled
def _convolve(x, weight, bias, out, width, taps, steps):
    """out[t] = bias + sum_j weight[j] x[t + j]; `x` begins taps - 1 steps before `out`."""
    for v in range(width):
        start = load(bias + v * LANES_BYTES)
        for t in range(steps):
            total = start
            for j in range(taps):
                tap = load(weight + (v * taps + j) * LANES_BYTES)
                total = fma(tap, load(x + ((t + j) * width + v) * LANES_BYTES), total)
            store(total, out + (t * width + v) * LANES_BYTES)


@compiled
def _activate(values, vectors):
    for i in range(vectors):
        at = values + i * LANES_BYTES
        value = load(at)
        store(mul(value, sigmoid(value)), at)


@compiled
def _through_silu(grad, values, vectors):
    """grad *= d silu / d value."""
    one = splat(np.float32(1.0))
    for i in range(vectors):
        at = i * LANES_BYTES
        value = load(values + at)
        s = sigmoid(value)
        store(mul(load(grad + at), fma(mul(value, s), sub(one, s), s)), grad + at)


@compiled
def _gradients(x, grad, weight, dx, dweight, dbias, width, taps, steps):
    """dx[t] = sum_j weight[taps - 1 - j] grad[t + j]; adds to the gradients of weight and bias."""
    for v in range(width):
        to_bias = load(dbias + v * LANES_BYTES)
        for t in range(steps):
            to_bias = add(to_bias, load(grad + (t * width + v) * LANES_BYTES))
            total = splat(np.float32(0.0))
            for j in range(taps):
                tap = load(weight + (v * taps + taps - 1 - j) * LANES_BYTES)
                total = fma(tap, load(grad + ((t + j) * width + v) * LANES_BYTES), total)
            store(total, dx + (t * width + v) * LANES_BYTES)
        store(to_bias, dbias + v * LANES_BYTES)
        for j in range(taps):
            part = splat(np.float32(0.0))
            for t in range(steps):
                at = (t * width + v) * LANES_BYTES
                part = fma(load(grad + at), load(x + at + j * width * LANES_BYTES), part)
            at = dweight + (v * taps + j) * LANES_BYTES
            store(add(load(at), part), at)


@compiled
def _whole_route(job, scratch, positions, following, order, channel, channels, x_at, u_at, weight, bias):
    """A route without padding steps, float32, four taps: rows are read and written where they lie, the taps stay in registers."""
    here, there = positions.ctypes.data, following.ctypes.data
    weights, pair = scratch, LONG_WIDTHS[0]
    histories = weights + LONG_TAPS * pair * LANES_BYTES
    zero(histories, (LONG_TAPS - 1) * job.width)
    for start in range(0, job.steps, _TILE):
        steps = min(job.steps - start, _TILE)
        steps_of(positions, order, job.order_t, start, steps)
        coming = following[: max(min(job.steps - start - _TILE, _TILE), 0)]
        steps_of(coming, order, job.order_t, start + _TILE, len(coming))
        for v in range(0, job.width, pair):
            left, width = channels - v * LANES, min(pair, job.width - v)
            if left <= 0:
                break
            for j in range(LONG_TAPS):
                for i in range(width):
                    tap = load(weight + ((v + i) * LONG_TAPS + j) * LANES_BYTES)
                    store(tap, weights + (j * width + i) * LANES_BYTES)
            column, history = v * LANES_BYTES, histories + (LONG_TAPS - 1) * v * LANES_BYTES
            x, u, shift = x_at + column, u_at + column, bias + column
            if job.silu:
                convolve_along_silu(width, left, x, job.x.l, u, job.u.l, weights, shift, history, here, there, steps)
            else:
                convolve_along(width, left, x, job.x.l, u, job.u.l, weights, shift, history, here, there, steps)


@compiled
def _task(job, scratch, positions, following, b, block, k, first):
    backwards = job.backwards
    width, taps, T = job.width, job.taps, job.steps
    channel = block * width * LANES
    channels = min(job.channels - channel, width * LANES)
    row = width * LANES_BYTES
    history = (taps - 1) * row
    x = scratch
    out = x + _TILE * row + history + _PAD
    grad = out + _TILE * row + _PAD
    weight = grad + _TILE * row + history + _PAD
    dweight = weight + taps * row + _PAD
    bias = dweight + taps * row + _PAD
    dbias = bias + row

    parameter = (k * job.channels + channel) * 4
    parameter_row(bias, job.bias + parameter if job.bias else 0, channels, width)
    for v in range(width):
        source = job.weight + (parameter + v * LANES_BYTES) * taps
        to_columns(weight + v * taps * LANES_BYTES, source, channels - v * LANES, taps, 1.0)
    order = job.order + b * job.order_b + k * job.order_k if job.order else 0
    x_at, u_at, dx_at = address(job.x, b, k, channel), address(job.u, b, k, channel), address(job.dx, b, k, channel)
    seen = visited(order, job.order_t, T, job.positions, job.counter)
    if seen < 0:
        return
    if seen < job.positions:
        if not backwards:
            fill(u_at, job.u.l, job.u.size, job.positions, channels)
        elif first:
            fill(dx_at, job.dx.l, job.dx.size, job.positions, channels)
    if backwards:
        zero(dweight, width * taps)
        zero(dbias, width)
    elif seen == T and taps == LONG_TAPS and job.x.kind == F32 and job.u.kind == F32:
        _whole_route(job, scratch, positions, following, order, channel, channels, x_at, u_at, weight, bias)
        return

    tiles = (T + _TILE - 1) // _TILE
    for i in range(tiles):
        tile = tiles - 1 - i if backwards else i
        start = tile * _TILE
        steps = min(T - start, _TILE)
        steps_of(positions, order, job.order_t, start - taps + 1, steps + taps - 1)
        next_start = start + (-_TILE if backwards else _TILE)
        coming = following[: max(min(T - next_start, _TILE), 0) if next_start >= 0 else 0]
        steps_of(coming, order, job.order_t, next_start, len(coming))
        gather(x, width, x_at, job.x.l, job.x.kind, positions, steps + taps - 1, channels, coming)
        present = positions[taps - 1 :]
        if not backwards or job.silu:
            _convolve(x, weight, bias, out, width, taps, steps)
        if not backwards:
            if job.silu:
                _activate(out, steps * width)
            scatter(out, width, u_at, job.u.l, job.u.kind, present, steps, channels, False)
            continue
        if i == 0:
            zero(grad + steps * row, (taps - 1) * width)
        else:  # what the tile after this one left
            for r in range((taps - 1) * width - 1, -1, -1):
                store(load(grad + r * LANES_BYTES), grad + _TILE * row + r * LANES_BYTES)
        gather(grad, width, u_at, job.u.l, job.u.kind, present, steps, channels, coming)
        if job.silu:
            _through_silu(grad, out, steps * width)
        _gradients(x, grad, weight, out, dweight, dbias, width, taps, steps)
        scatter(out, width, dx_at, job.dx.l, job.dx.kind, present, steps, channels, not first)

    if backwards:
        parameter += b * job.routes * job.channels * 4
        for v in range(width):
            left, source = channels - v * LANES, dweight + v * taps * LANES_BYTES
            to_rows(source, LANES_BYTES, job.dweight + (parameter + v * LANES_BYTES) * taps, left, taps, taps)
            if left > 0:
                store_f32_part(load(dbias + v * LANES_BYTES), job.dbias + parameter + v * LANES_BYTES, left)


_read_job = reader(ConvJob)


@Entry
def convolve(at):
    """Takes tasks until none is left."""
    job = _read_job(at)
    mode = fresh_float_mode()
    row = job.width * LANES_BYTES
    memory = np.empty((3 * _TILE + 4 * job.taps + 4) * row + 8 * _PAD, np.uint8)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    positions, following = np.zeros(_TILE + job.taps - 1, np.int64), np.zeros(_TILE, np.int64)
    total = job.batch * job.blocks * (job.routes if job.split else 1)
    task = atomic_next(job.counter)
    while task < total:
        block = task % job.blocks
        b, first, last = task // job.blocks, 0, job.routes
        if job.split:
            b, first = b // job.routes, b % job.routes
            last = first + 1
        for k in range(first, last):
            _task(job, scratch, positions, following, b, block, k, k == first)
        task = atomic_next(job.counter)
    restore_float_mode(mode)
    memory[0] = 0  # numba frees an array after its last use: this is it
