"""The routed scan on the CPU: the recurrence, its tasks, layout and cost stand in `scan_tasks.py`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .loops import (
    TOGETHER,
    enter_rows,
    project_steps,
    scan_forward,
    scan_forward_keep,
    scan_forward_rows,
    scan_rows,
    scan_rows_adding,
)
from .rows import (
    LANES_BYTES,
    Rows,
    address,
    compiled,
    fill,
    gather,
    pack,
    parameter_row,
    scatter,
    steps_of,
    to_columns,
    to_rows,
    visited,
    zero,
)
from .scan_tasks import (
    AHEAD,
    CHUNK,
    LOG2E,
    PAD,
    Problem,
    channel_of,
    checkpoint_of,
    chunks_of,
    opening_task,
    restarts,
    route_of,
    task_count,
    task_of,
    time_steps,
    until_restart,
)
from .simd import (
    F16,
    F32,
    LANES,
    MASKS,
    atomic_next,
    fresh_float_mode,
    load,
    mul,
    restore_float_mode,
    splat,
    store,
    transpose,
)
from .threads import Entry, reader

__all__ = ["ForwardJob", "forward", "forward_with_states"]

STEPS = 16  # of one state at a time: of all vectors of a task


class ForwardJob(NamedTuple):
    problem: Problem
    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    y: Rows
    checkpoints: int
    states: int  # (B, L, K, D, N), like the gradient below: only of the entries "with_states"
    dt_weight: int  # (K, D, R), or 0; with it `delta` is (B, L, K, R)
    rank: int  # R, or 0


@compiled
def _inputs_and_skip(x, dt, y, skip, steps):
    """u -> x = dt * u, in place, and y = D * u."""
    weight = load(skip)
    for t in range(steps):
        at = t * LANES_BYTES
        u = load(x + at)
        store(mul(u, weight), y + at)
        store(mul(u, load(dt + at)), x + at)


@compiled
def _turn(rows, pitch, target, columns):
    """A tile's rows of floats to columns, of CHUNK floats each."""
    for t in range(0, CHUNK, LANES):
        for r in range(0, columns, LANES):
            transpose(rows + t * pitch + 4 * r, pitch, target + 4 * (r * CHUNK + t), 4 * CHUNK, splat(np.float32(1.0)))


@compiled
def _project(low, weight, rank, target, pitch, steps):
    """delta of one vector of channels: W times what `_turn` left of the steps, and of some beyond."""
    for t in range(0, steps, TOGETHER):
        project_steps(TOGETHER, low + 4 * t, 4 * CHUNK, weight, rank, target + t * pitch, pitch)


@compiled
def _forward_task(p, job, states, scratch, positions, following, own, b, block, k, first, piece):
    """One route, or piece of a route, of one block of channels; `states` is an address or None."""
    width, N, T = p.width, p.states, p.steps
    channel = block * width * LANES
    channels = min(p.channels - channel, width * LANES)
    row = width * LANES_BYTES
    n_vectors = (N + LANES - 1) // LANES
    pitch = n_vectors * LANES_BYTES
    x = scratch
    dt = x + CHUNK * LANES_BYTES + PAD
    y = dt + CHUNK * LANES_BYTES + PAD
    b_rows = y + CHUNK * LANES_BYTES + PAD
    c_rows = b_rows + CHUNK * pitch + PAD
    a = c_rows + CHUNK * pitch + PAD
    h = a + N * row + PAD
    bias = h + N * row + PAD
    skip = bias + row
    kept = skip + row + PAD
    small = kept + 4 * CHUNK * LANES_BYTES + PAD
    rank, n_ranks = job.rank, (job.rank + LANES - 1) // LANES
    raw = small + STEPS * row
    low_rows = raw + STEPS * row + PAD
    low = low_rows + CHUNK * n_ranks * LANES_BYTES + PAD
    weights = low + (CHUNK * n_ranks + 1) * LANES_BYTES + PAD

    parameter = (k * p.channels + channel) * 4
    parameter_row(bias, p.bias + parameter if p.bias else 0, channels, width)
    parameter_row(skip, p.D + parameter if p.D else 0, channels, width)
    for v in range(width):
        left, column = channels - v * LANES, v * LANES_BYTES
        to_columns(a + N * column, p.A + (parameter + column) * N, left, N, LOG2E)
        if rank:
            to_columns(weights + rank * column, job.dt_weight + (parameter + column) * rank, left, rank, 1.0)
    zero(h, N * width)
    number = channel_of(p, piece, b, k, channel)
    if p.starts:
        to_columns(h, p.starts + 4 * N * number, channels, N, 1.0)  # width is 1

    order = route_of(p, b, k)
    seen = visited(order, p.order_t, T, p.positions, p.counter)
    if seen < 0:
        return
    y_at = address(job.y, b, k, channel)
    complete = seen >= p.positions
    kind = job.u.kind if job.u.kind == job.delta.kind else F16
    plain = seen == T and p.softplus and states is None and kind != F16
    floats = kind == F32 and job.y.kind == F32
    single = plain and floats and N == 1 and channels == width * LANES and job.B.kind == F32 and job.C.kind == F32
    u_at, delta_at = address(job.u, b, k, channel), address(job.delta, b, k, 0 if rank else channel)
    b_at, c_at = address(job.B, b, k, 0), address(job.C, b, k, 0)
    here, there = positions.ctypes.data, following.ctypes.data
    if first and not complete and p.pieces == 1:  # else it is zero
        fill(y_at, job.y.l, job.y.size, p.positions, channels)
    if states is not None:
        states_row = p.routes * p.channels * N * 4
        states_at = states + b * p.positions * states_row + parameter * N
        if not complete:
            fill(states_at, states_row, 4, p.positions, channels * N)
    checkpoint = checkpoint_of(p, job.checkpoints, b, k, channel)

    for chunk in range(*chunks_of(p, piece)):
        start = chunk * CHUNK
        steps = min(T - start, CHUNK)
        steps_of(positions, order, p.order_t, start, steps)
        ahead = AHEAD if single else CHUNK
        coming = following[: max(min(T - start - ahead, CHUNK), 0)]
        steps_of(coming, order, p.order_t, start + ahead, len(coming))
        if rank:
            gather(low_rows, n_ranks, delta_at, job.delta.l, job.delta.kind, positions, steps, rank, coming)
            _turn(low_rows, n_ranks * LANES_BYTES, low, rank)
        if single:
            t = 0
            while t < steps:  # up to the next restart of the state
                count = min(until_restart(p, start + t, start + steps), STEPS)
                if restarts(p, start + t):
                    zero(h, width)
                if rank:
                    delta_v, delta_l, delta_here, delta_there = raw, row, own, own
                    for v in range(width):
                        column = v * LANES_BYTES
                        _project(low + 4 * t, weights + rank * column, rank, raw + column, row, count)
                else:
                    delta_v, delta_l, delta_here, delta_there = delta_at, job.delta.l, here + 8 * t, there + 8 * t
                if first:
                    scan_rows(
                        width, u_at, job.u.l, delta_v, delta_l, y_at, job.y.l, b_at, job.B.l, c_at, job.C.l, bias, skip, a, h,
                        small, raw, here + 8 * t, there + 8 * t, delta_here, delta_there, count,
                    )  # fmt: skip
                else:
                    scan_rows_adding(
                        width, u_at, job.u.l, delta_v, delta_l, y_at, job.y.l, b_at, job.B.l, c_at, job.C.l, bias, skip, a, h,
                        small, raw, here + 8 * t, there + 8 * t, delta_here, delta_there, count,
                    )  # fmt: skip
                t += count
        else:
            gather(b_rows, n_vectors, b_at, job.B.l, job.B.kind, positions, steps, N, coming)
            gather(c_rows, n_vectors, c_at, job.C.l, job.C.kind, positions, steps, N, coming)
        for v in range(0 if single else width):
            left, column = channels - v * LANES, v * LANES_BYTES
            if left <= 0:
                break
            whole = plain and (MASKS or left >= LANES)
            direct = whole and job.y.kind == F32 and N % 8 == 0  # the last states' loop writes y to its rows
            u_v, y_v = u_at + v * LANES * job.u.size, y_at + v * LANES * job.y.size
            if rank:  # delta comes to lie at dt
                _project(low, weights + rank * column, rank, dt, LANES_BYTES, steps)
                delta_v, delta_l, delta_here, ask_v, ask_l = dt, LANES_BYTES, own, u_v, job.u.l
            else:
                delta_v, delta_l, delta_here = delta_at + v * LANES * job.delta.size, job.delta.l, here
                ask_v, ask_l = delta_v, delta_l
            if whole:
                enter_rows(
                    kind, left, u_v, job.u.l, delta_v, delta_l, bias + column, skip + column, x, dt, y, here, delta_here, steps,
                )  # fmt: skip
            else:
                gather(x, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                if not rank:
                    gather(dt, 1, delta_v, delta_l, job.delta.kind, positions, steps, left, coming)
                time_steps(dt, bias + column, steps, p.softplus)
                _inputs_and_skip(x, dt, y, skip + column, steps)
            t = 0
            while t < steps:  # up to the next restart of the state
                count = until_restart(p, start + t, start + steps)
                if restarts(p, start + t):
                    zero(h + v * N * LANES_BYTES, N)
                its = t * LANES_BYTES
                xt, dtt, yt, bt, ct = x + its, dt + its, y + its, b_rows + t * pitch, c_rows + t * pitch
                n = 0
                while n < N:
                    at = (v * N + n) * LANES_BYTES
                    bn, cn, an, hn = bt + 4 * n, ct + 4 * n, a + at, h + at
                    if states is None:
                        if direct and N - n == 8:
                            size = 8
                            scan_forward_rows(
                                8, dtt, xt, yt, bn, cn, pitch, an, hn, left, y_v, job.y.l, here + 8 * t, 0 if first else 1, u_v,
                                job.u.l, ask_v, ask_l, there + 8 * t, count,
                            )  # fmt: skip
                        else:
                            size = 8 if N - n >= 8 else 4 if N - n >= 4 else 2 if N - n >= 2 else 1
                            scan_forward(size, dtt, xt, yt, bn, cn, pitch, an, hn, u_v, job.u.l, ask_v, ask_l, y_v, job.y.l,
                                         there + 8 * t, count)  # fmt: skip
                    else:
                        size = 4 if N - n >= 4 else 1
                        scan_forward_keep(size, dtt, xt, yt, bn, cn, pitch, an, hn, kept, count)
                        for i in range(count):
                            if positions[t + i] >= 0:
                                target = states_at + positions[t + i] * states_row + (v * LANES * N + n) * 4
                                to_rows(kept + i * size * LANES_BYTES, LANES_BYTES, target, left, size, N)
                    n += size
                t += count
            if not direct:
                scatter(y, 1, y_v, job.y.l, job.y.kind, positions, steps, left, not first)
        for v in range(width if job.checkpoints else 0):
            target = checkpoint + (chunk * p.channels + v * LANES) * N * 4
            pack(h + v * N * LANES_BYTES, target, channels - v * LANES, N)
    if p.opening:
        to_rows(h, LANES_BYTES, p.ends + 4 * N * number, channels, N, N)


@compiled
def _forward(job, states):
    """Takes tasks until none is left."""
    mode = fresh_float_mode()
    p = job.problem
    row = p.width * LANES_BYTES
    pitch = (p.states + LANES - 1) // LANES * LANES_BYTES
    low = (job.rank + LANES - 1) // LANES * LANES_BYTES
    size = (2 * pitch + 2 * low + 7 * LANES_BYTES) * CHUNK + (2 * p.states + job.rank + 2 + 2 * STEPS) * row + 14 * PAD
    memory = np.empty(size + 64, np.uint8)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    positions, following = np.zeros(CHUNK, np.int64), np.zeros(CHUNK, np.int64)
    own = np.arange(CHUNK)  # "positions" of rows in scratch
    total = task_count(p)
    task = atomic_next(p.counter)
    while task < total:
        piece, b, block, first, last = task_of(p, task)
        if p.pieces > 1 and not p.opening:
            piece += 1
        for k in range(first, last):
            if p.opening and piece > 0:
                opening_task(p, job.u, job.delta, job.B, scratch, positions, following, b, block, k, piece, False)
            else:
                _forward_task(
                    p, job, states, scratch, positions, following, own.ctypes.data, b, block, k, k == first, piece
                )
        task = atomic_next(p.counter)
    restore_float_mode(mode)
    memory[0], own[0] = 0, 0  # numba frees an array after its last use: this is it


_read_forward = reader(ForwardJob)


@Entry
def forward(at):
    _forward(_read_forward(at), None)


@Entry
def forward_with_states(at):
    job = _read_forward(at)
    _forward(job, job.states)
