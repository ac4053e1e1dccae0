"""The gradient of the routed scan on the CPU: the recurrence, its tasks, layout and cost stand in `scan_tasks.py`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .loops import (
    KEPT,
    NARROW,
    enter_back_rows,
    leave_back_rows,
    replay_rows,
    retreat_rows,
    scan_backward,
    scan_backward_dh,
    scan_replay,
)
from .rows import (
    LANES_BYTES,
    Rows,
    address,
    ask,
    compiled,
    fill,
    gather,
    parameter_row,
    scatter,
    steps_of,
    to_columns,
    to_rows,
    unpack,
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
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load,
    load_float,
    mul,
    prefetch_to_write,
    restore_float_mode,
    sigmoid,
    softplus,
    store,
    store_f32_part,
    store_float,
    zeros,
)
from .threads import Entry, reader

__all__ = ["BackwardJob", "backward", "backward_with_states"]

MOST = max(NARROW)


class BackwardJob(NamedTuple):
    problem: Problem
    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    dy: Rows
    du: Rows
    ddelta: Rows
    dB: Rows  # of the first block; the next one's lie `part` bytes further
    dC: Rows
    part: int
    dA: int  # (pieces, B, K, D, N), and (pieces, B, K, D) for the next two
    dD: int
    dbias: int
    checkpoints: int
    grad_states: int


@compiled
def _time_steps_and_slopes(dt, slope, bias, steps):
    """delta -> dt, in place, and its derivative."""
    shift = load(bias)
    for t in range(steps):
        at = t * LANES_BYTES
        value = add(load(dt + at), shift)
        store(softplus(value), dt + at)
        store(sigmoid(value), slope + at)


@compiled
def _finish_gradients(u, dt, dy, slope, dx, ddt, skip, dskip, dbias, steps, with_softplus):
    """dx -> du and ddt -> ddelta, in place; adds to the gradients of D and bias."""
    weight, to_skip, to_bias = load(skip), zeros(), zeros()
    for t in range(steps):
        at = t * LANES_BYTES
        g, gdx, gu = load(dy + at), load(dx + at), load(u + at)
        store(fma(gdx, load(dt + at), mul(weight, g)), dx + at)
        raw = fma(gdx, gu, load(ddt + at))
        if with_softplus:
            raw = mul(raw, load(slope + at))
        store(raw, ddt + at)
        to_skip, to_bias = fma(g, gu, to_skip), add(to_bias, raw)
    store(add(load(dskip), to_skip), dskip)
    store(add(load(dbias), to_bias), dbias)


@compiled
def _multiply(x, u, dt, steps):
    for t in range(steps):
        at = t * LANES_BYTES
        store(mul(load(u + at), load(dt + at)), x + at)


@compiled
def _backward_task(p, job, grad_states, scratch, positions, following, b, block, k, first, piece):
    """One route, or piece of a route, of one block of channels, its chunks in reverse; `grad_states` is an address or None."""
    width, N, T = p.width, p.states, p.steps
    channel = block * width * LANES
    channels = min(p.channels - channel, width * LANES)
    row = width * LANES_BYTES
    n_vectors = (N + LANES - 1) // LANES
    pitch = n_vectors * LANES_BYTES
    tile, small, columns = CHUNK * LANES_BYTES + PAD, CHUNK * pitch + PAD, N * row + PAD
    u = scratch
    x, dt, dy, slope, dx, ddt = u + tile, u + 2 * tile, u + 3 * tile, u + 4 * tile, u + 5 * tile, u + 6 * tile
    b_rows = ddt + tile
    c_rows, db_rows, dc_rows = b_rows + small, b_rows + 2 * small, b_rows + 3 * small
    a = dc_rows + small
    a_log2, carry, da, h = a + columns, a + 2 * columns, a + 3 * columns, a + 4 * columns
    bias = h + columns
    skip, dbias, dskip = bias + row, bias + 2 * row, bias + 3 * row
    before = bias + 4 * row + PAD
    decays = before + (CHUNK + 1) * 4 * LANES_BYTES + PAD
    dh = decays + CHUNK * 4 * LANES_BYTES + PAD
    steps_kept = dh + (CHUNK * 4 + KEPT * MOST) * LANES_BYTES + PAD

    parameter = (k * p.channels + channel) * 4
    parameter_row(bias, p.bias + parameter if p.bias else 0, channels, width)
    parameter_row(skip, p.D + parameter if p.D else 0, channels, width)
    for v in range(width):
        source, left, column = p.A + (parameter + v * LANES_BYTES) * N, channels - v * LANES, v * N * LANES_BYTES
        to_columns(a + column, source, left, N, 1.0)
        to_columns(a_log2 + column, source, left, N, LOG2E)
    zero(carry, N * width)
    number = channel_of(p, piece, b, k, channel)
    if p.starts:
        to_columns(carry, p.starts + 4 * N * number, channels, N, 1.0)  # width is 1
    zero(da, N * width)
    zero(dbias, 2 * width)

    order = route_of(p, b, k)
    seen = visited(order, p.order_t, T, p.positions, p.counter)
    if seen < 0:
        return
    du_at, ddelta_at = address(job.du, b, k, channel), address(job.ddelta, b, k, channel)
    db_at, dc_at = address(job.dB, b, k, 0) + block * job.part, address(job.dC, b, k, 0) + block * job.part
    if seen < p.positions and p.pieces == 1:  # else they are zero
        if first:
            fill(du_at, job.du.l, job.du.size, p.positions, channels)
        fill(ddelta_at, job.ddelta.l, job.ddelta.size, p.positions, channels)
        fill(db_at, job.dB.l, job.dB.size, p.positions, N)
        fill(dc_at, job.dC.l, job.dC.size, p.positions, N)
    checkpoint = checkpoint_of(p, job.checkpoints, b, k, channel)
    if grad_states is not None:
        states_row = p.routes * p.channels * N * 4
        states_at = grad_states + b * p.positions * states_row + parameter * N

    kind = job.u.kind if job.u.kind == job.delta.kind and job.u.kind == job.dy.kind else F16
    plain = seen == T and p.softplus and kind != F16
    floats = kind == F32 and job.du.kind == F32
    single = plain and floats and N == 1 and channels == width * LANES and not p.segment and grad_states is None
    single = single and job.B.kind == F32 and job.C.kind == F32
    here, there = positions.ctypes.data, following.ctypes.data
    u_at, delta_at, dy_at = (
        address(job.u, b, k, channel),
        address(job.delta, b, k, channel),
        address(job.dy, b, k, channel),
    )
    b_at, c_at = address(job.B, b, k, 0), address(job.C, b, k, 0)

    first_chunk, last_chunk = chunks_of(p, piece)
    for chunk in range(last_chunk - 1, first_chunk - 1, -1):
        start = chunk * CHUNK
        steps = min(T - start, CHUNK)
        steps_of(positions, order, p.order_t, start, steps)
        if single:
            near = max(steps - AHEAD, 0)  # then come the first steps of the tile before
            for t in range(near):
                following[t] = positions[t + AHEAD]
            if chunk > 0:
                steps_of(following[near:], order, p.order_t, start - CHUNK, steps - near)
            else:
                for t in range(near, steps):
                    following[t] = positions[0]
            zero(db_rows, (steps + LANES - 1) // LANES)
            zero(dc_rows, (steps + LANES - 1) // LANES)
            if chunk > 1:
                ask(checkpoint + (chunk - 2) * p.channels * 4, width * LANES_BYTES)
            for v in range(0, width, MOST):
                w, c1 = min(width - v, MOST), v * LANES_BYTES
                if chunk == 0:
                    zero(h, w)
                else:
                    for i in range(w):
                        unpack(
                            h + i * LANES_BYTES, checkpoint + ((chunk - 1) * p.channels + (v + i) * LANES) * 4, LANES, 1
                        )
                replay_rows(
                    w, u_at + c1, job.u.l, delta_at + c1, job.delta.l, dy_at + c1, job.dy.l, du_at + c1, job.du.l,
                    ddelta_at + c1, job.ddelta.l, b_at, job.B.l, bias + c1, a_log2 + c1, h, steps_kept, here, there, steps,
                )  # fmt: skip
                retreat_rows(
                    w, u_at + c1, job.u.l, dy_at + c1, job.dy.l, du_at + c1, job.du.l, ddelta_at + c1, job.ddelta.l,
                    b_at, job.B.l, c_at, job.C.l, db_rows, dc_rows, skip + c1, a + c1, carry + c1, da + c1, dskip + c1,
                    dbias + c1, steps_kept, here, 0 if first else LANES, steps,
                )  # fmt: skip
            for t in range(steps):
                store_float(load_float(db_rows + 4 * t), db_at + positions[t] * job.dB.l)
                store_float(load_float(dc_rows + 4 * t), dc_at + positions[t] * job.dC.l)
            continue
        coming = following[: CHUNK if chunk > 0 else 0]
        steps_of(coming, order, p.order_t, start - CHUNK, len(coming))
        for t in range(len(coming), steps):
            following[t] = positions[0]
        gather(b_rows, n_vectors, b_at, job.B.l, job.B.kind, positions, steps, N, coming)
        gather(c_rows, n_vectors, c_at, job.C.l, job.C.kind, positions, steps, N, coming)
        zero(db_rows, steps * n_vectors)
        zero(dc_rows, steps * n_vectors)
        for t in range(steps):
            prefetch_to_write(db_at + positions[t] * job.dB.l)
            prefetch_to_write(dc_at + positions[t] * job.dC.l)
        for v in range(width):
            left, column = channels - v * LANES, v * LANES_BYTES
            if left <= 0:
                break
            whole = plain and (MASKS or left >= LANES)
            u_v, delta_v = u_at + v * LANES * job.u.size, delta_at + v * LANES * job.delta.size
            dy_v, du_v = dy_at + v * LANES * job.dy.size, du_at + v * LANES * job.du.size
            ddelta_v = ddelta_at + v * LANES * job.ddelta.size
            if whole:
                if not floats:
                    gather(u, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                enter_back_rows(kind, left, u_v, job.u.l, delta_v, job.delta.l, dy_v, job.dy.l, bias + column, x, dt, dy, slope,
                                here, steps)  # fmt: skip
            else:
                gather(u, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                gather(dt, 1, delta_v, job.delta.l, job.delta.kind, positions, steps, left, coming)
                gather(dy, 1, dy_v, job.dy.l, job.dy.kind, positions, steps, left, coming)
                if p.softplus:
                    _time_steps_and_slopes(dt, slope, bias + column, steps)
                else:
                    time_steps(dt, bias + column, steps, False)
                _multiply(x, u, dt, steps)
            zero(dx, steps)
            zero(ddt, steps)
            if chunk == 0:
                zero(h, N)
            else:
                kept_at = checkpoint + ((chunk - 1) * p.channels + v * LANES) * N * 4
                unpack(h, kept_at, left, N)
                if left > LANES and v + 1 < width:  # the next one of these, so that nobody waits for it
                    ask(kept_at + LANES_BYTES * N, min(left - LANES, LANES) * N * 4)
                elif chunk > 1:
                    ask(checkpoint + (chunk - 2) * p.channels * N * 4, min(channels, LANES) * N * 4)
            n = 0
            while n < N:
                size = 4 if N - n >= 4 else 2 if N - n >= 2 else 1
                at = (v * N + n) * LANES_BYTES
                hn, a2n, an, gn, dan = h + n * LANES_BYTES, a_log2 + at, a + at, carry + at, da + at
                bn, cn, dbn, dcn = b_rows + 4 * n, c_rows + 4 * n, db_rows + 4 * n, dc_rows + 4 * n
                kept = before + size * LANES_BYTES
                for j in range(size):
                    store(load(hn + j * LANES_BYTES), before + j * LANES_BYTES)
                if grad_states is not None:
                    for t in range(steps):
                        for j in range(size):
                            target = dh + (t * size + j) * LANES_BYTES
                            source = states_at + positions[t] * states_row + (v * LANES * N + n + j) * 4
                            _strided(target, source, N, left if positions[t] >= 0 else 0)
                t = 0
                while t < steps:  # up to the next restart of the state
                    count = until_restart(p, start + t, start + steps)
                    kept_t, decays_t = kept + t * size * LANES_BYTES, decays + t * size * LANES_BYTES
                    dtt, xt, bt, there_t = dt + t * LANES_BYTES, x + t * LANES_BYTES, bn + t * pitch, there + 8 * t
                    anew = restarts(p, start + t)
                    if anew:
                        zero(hn, size)
                    scan_replay(size, dtt, xt, bt, pitch, a2n, hn, kept_t, decays_t, u_v, job.u.l, delta_v, job.delta.l, dy_v,
                                job.dy.l, there_t, count)  # fmt: skip
                    if anew:
                        zero(decays_t, size)  # no gradient passes to the steps before
                    t += count
                if grad_states is None:
                    scan_backward(size, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                  du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                else:
                    scan_backward_dh(size, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                     du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                n += size
            if whole and floats:
                leave_back_rows(
                    F32, left, u_v, job.u.l, dy, du_v, job.du.l, ddelta_v, job.ddelta.l, dt, slope, dx, ddt, skip + column,
                    dskip + column, dbias + column, here, 0 if first else 1, steps,
                )  # fmt: skip
            else:
                _finish_gradients(
                    u, dt, dy, slope, dx, ddt, skip + column, dskip + column, dbias + column, steps, p.softplus
                )
                scatter(dx, 1, du_v, job.du.l, job.du.kind, positions, steps, left, not first)
                scatter(ddt, 1, ddelta_v, job.ddelta.l, job.ddelta.kind, positions, steps, left, False)
        scatter(db_rows, n_vectors, db_at, job.dB.l, job.dB.kind, positions, steps, N, False)
        scatter(dc_rows, n_vectors, dc_at, job.dC.l, job.dC.kind, positions, steps, N, False)

    if p.opening:
        to_rows(carry, LANES_BYTES, p.ends + 4 * N * number, channels, N, N)
    for v in range(width):
        left = channels - v * LANES
        to_rows(da + v * N * LANES_BYTES, LANES_BYTES, job.dA + (4 * number + v * LANES_BYTES) * N, left, N, N)
        for scratch_at, target in ((dskip, job.dD), (dbias, job.dbias)):
            if target and left > 0:
                store_f32_part(load(scratch_at + v * LANES_BYTES), target + 4 * number + v * LANES_BYTES, left)


@compiled
def _strided(scratch, source, stride, count):
    """A vector of `count` floats that lie `stride` floats apart, zero beyond."""
    store(zeros(), scratch)
    for i in range(min(count, LANES)):
        store_float(load_float(source + i * stride * 4), scratch + i * 4)


@compiled
def _backward(job, grad_states):
    """Takes tasks until none is left."""
    mode = fresh_float_mode()
    p = job.problem
    row = p.width * LANES_BYTES
    pitch = (p.states + LANES - 1) // LANES * LANES_BYTES
    size = (
        (4 * pitch + (19 + KEPT * MOST) * LANES_BYTES) * CHUNK
        + (5 * p.states + 4) * row
        + (4 + KEPT * MOST) * LANES_BYTES
    )
    size += 20 * PAD
    memory = np.empty(size + 64, np.uint8)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    positions, following = np.zeros(CHUNK, np.int64), np.zeros(CHUNK, np.int64)
    total = task_count(p)
    task = atomic_next(p.counter)
    while task < total:
        piece, b, block, first, last = task_of(p, task)
        if p.opening:
            piece += 1
        for k in range(first, last):
            if p.opening and piece < p.pieces - 1:
                opening_task(p, job.dy, job.delta, job.C, scratch, positions, following, b, block, k, piece, True)
            else:
                _backward_task(p, job, grad_states, scratch, positions, following, b, block, k, k == first, piece)
        task = atomic_next(p.counter)
    restore_float_mode(mode)
    memory[0] = 0  # numba frees an array after its last use: this is it


_read_backward = reader(BackwardJob)


@Entry
def backward(at):
    _backward(_read_backward(at), None)


@Entry
def backward_with_states(at):
    job = _read_backward(at)
    _backward(job, job.grad_states)
