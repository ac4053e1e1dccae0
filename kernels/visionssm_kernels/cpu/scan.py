"""The routed scan and its gradient on the CPU: channels in lanes, states in registers, a tile of steps at a time.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t . h_t + D u_t        dt = softplus(delta + bias)
    g_t = C_t dy_t + exp(dt_{t+1} A) g_{t+1}        h_t's gradient, from which follow the others: `triton/scan_backward.py`

A task is one image and one block of channels, over all routes one after the other where they add up to one output, else
over one route. For every tile of CHUNK steps it gathers the rows the route visits into scratch memory (L1), runs the
recurrence there group of states by group of states, and scatters the result back. The gradient keeps one state per chunk and
recomputes the states between. What a task computes depends on shapes alone, never on the number of threads.

Where images, routes and channels are too few to keep the threads busy, a route is cut into pieces. An opening pass computes
the first piece (the gradient: the last) and of the others only what they would leave from zero, `ends`, and the sum of their
time steps, `sums`. That gives every piece's true start, `starts`, as a state's end is linear in its start: exp(A sum dt) times
it, plus what the piece leaves from zero. A second pass computes the other pieces from there.

Legend: B batch, L image positions, D channels, N state, K routes, T steps of a route.
Layout: tensors as `ops.py` has them, channels last; scratch holds a vector of channels per step or state, one after the other.
Cost per step and vector of channels, with AVX-512: 30 operations for softplus and all that is once per step, 13 per state. 8
of these multiply, and two multiplications start in a cycle: a state takes 4 cycles at least, its exponential by itself 3. The
gradient does the same again, and 8 multiplications and 6 operations of sums over lanes per state. Memory: delta's rows once,
those of u and y once per route (from a cache, where an image fits), 4 N bytes per channel and chunk for the gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .loops import (
    KEPT,
    NARROW,
    enter_back_rows,
    enter_rows,
    leave_back_rows,
    replay_rows,
    retreat_rows,
    scan_backward,
    scan_backward_dh,
    scan_end,
    scan_fade,
    scan_forward,
    scan_forward_keep,
    scan_forward_rows,
    scan_replay,
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
    unpack,
    visited,
    zero,
)  # fmt: skip
from .simd import (
    BF16,
    F16,
    F32,
    LANES,
    MASKS,
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load,
    load_f32_part,
    load_float,
    mul,
    restore_float_mode,
    sigmoid,
    softplus,
    store,
    store_f32_part,
    store_float,
    zeros,
)  # fmt: skip
from .threads import Entry, reader

__all__ = [
    "CHUNK", "PIECE", "BackwardJob", "ForwardJob", "Problem", "ReduceJob", "backward", "backward_with_states", "forward",
    "forward_with_states", "reduce",
]  # fmt: skip

CHUNK = 32
AHEAD = 12  # steps by which rows are asked for where there is one state
_LOG2E = math.log2(math.e)
MOST = max(NARROW)
STEPS = 16  # of one state at a time: of all vectors of a task
_PAD = 3 * 64  # between scratch arrays, so that their rows do not share the low 12 bits of their addresses


class Problem(NamedTuple):
    """Sizes, parameters and the route table; addresses of contiguous float32 or int32, 0 where there is none."""

    batch: int
    positions: int
    channels: int
    states: int
    routes: int
    steps: int
    softplus: int
    A: int
    D: int
    bias: int
    order: int
    order_b: int  # strides in bytes
    order_k: int
    order_t: int
    width: int  # vectors of channels per task
    blocks: int  # of channels
    split: int  # 1: a task is one route, 0: all of them
    counter: int  # address of the next task's number
    segment: int  # the state restarts before step t where (t + phase) % segment == 0; 0: never
    phase: int
    pieces: int  # of a route
    chunks: int  # in a piece
    opening: int  # 1 in the opening pass
    starts: int  # (pieces, B, K, D, N), or 0 in the opening pass and for one piece
    ends: int  # the same, or 0 but in the opening pass
    sums: int  # (pieces, B, K, D), likewise


class ForwardJob(NamedTuple):
    problem: Problem
    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    y: Rows
    checkpoints: int
    states: int  # (B, L, K, D, N), like the gradient below: only of the entries "with_states"


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


class ReduceJob(NamedTuple):
    source: int
    target: int
    count: int
    parts: int
    counter: int


@compiled
def _tasks(problem):
    return problem.batch * problem.blocks * (problem.routes if problem.split else 1) * max(problem.pieces - 1, 1)


@compiled
def _task(p, task):
    """Its piece (counted from the first of the pass), image, block of channels, and routes from the first to before the last."""
    block, rest = task % p.blocks, task // p.blocks
    if not p.split:
        return 0, rest, block, 0, p.routes
    k, rest = rest % p.routes, rest // p.routes
    return rest // p.batch, rest % p.batch, block, k, k + 1


@compiled
def _piece(p, t, end):
    """Steps from t to the next restart of the state or to `end`."""
    return min(end - t, p.segment - (t + p.phase) % p.segment) if p.segment else end - t


@compiled
def _restarts(p, t):
    return p.segment and (t + p.phase) % p.segment == 0


@compiled
def _chunks_of(p, piece):
    """The chunks of a piece: the first, and the one after the last."""
    chunks = (p.steps + CHUNK - 1) // CHUNK
    return min(piece * p.chunks, chunks), min((piece + 1) * p.chunks, chunks)


@compiled
def _time_steps(dt, bias, steps, with_softplus):
    """delta -> dt, in place."""
    shift = load(bias)
    for t in range(steps):
        at = dt + t * LANES_BYTES
        value = add(load(at), shift)
        store(softplus(value) if with_softplus else value, at)


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
def _inputs_and_skip(x, dt, y, skip, steps):
    """u -> x = dt * u, in place, and y = D * u."""
    weight = load(skip)
    for t in range(steps):
        at = t * LANES_BYTES
        u = load(x + at)
        store(mul(u, weight), y + at)
        store(mul(u, load(dt + at)), x + at)


@compiled
def _opening_task(p, inputs, delta, weights, scratch, positions, following, b, block, k, piece, backwards):
    """What a piece of a route leaves from zero in the states of a vector, of u and B, or in their gradient, of dy and C."""
    N, T = p.states, p.steps
    channel = block * LANES
    channels = min(p.channels - channel, LANES)
    n_vectors = (N + LANES - 1) // LANES
    pitch = n_vectors * LANES_BYTES
    x = scratch
    dt = x + CHUNK * LANES_BYTES + _PAD
    rows = dt + CHUNK * LANES_BYTES + _PAD
    a = rows + CHUNK * pitch + _PAD
    h = a + N * LANES_BYTES + _PAD
    bias = h + N * LANES_BYTES + _PAD

    parameter = k * p.channels + channel
    parameter_row(bias, p.bias + parameter * 4 if p.bias else 0, channels, 1)
    to_columns(a, p.A + parameter * N * 4, channels, N, _LOG2E)
    zero(h, N)
    order = p.order + b * p.order_b + k * p.order_k if p.order else 0
    x_at, delta_at, rows_at = address(inputs, b, k, channel), address(delta, b, k, channel), address(weights, b, k, 0)
    total = zeros()
    first, last = _chunks_of(p, piece)
    for i in range(last - first):
        chunk = last - 1 - i if backwards else first + i
        start, next_ = chunk * CHUNK, (chunk - 1 if backwards else chunk + 1) * CHUNK
        steps = min(T - start, CHUNK)
        steps_of(positions, order, p.order_t, start, steps)
        coming = following[: min(max(T - next_, 0), CHUNK) if next_ >= 0 else 0]
        steps_of(coming, order, p.order_t, next_, len(coming))
        gather(rows, n_vectors, rows_at, weights.l, weights.kind, positions, steps, N, coming)
        gather(x, 1, x_at, inputs.l, inputs.kind, positions, steps, channels, coming)
        gather(dt, 1, delta_at, delta.l, delta.kind, positions, steps, channels, coming)
        shift = load(bias)
        for t in range(steps):
            at = t * LANES_BYTES
            value = add(load(dt + at), shift)
            value = softplus(value) if p.softplus else value
            total = add(total, value)
            store(value, dt + at)
            if not backwards:
                store(mul(value, load(x + at)), x + at)
        n = 0
        while n < N:
            size = 4 if N - n >= 4 else 1
            weights_n, an, hn = rows + 4 * n, a + n * LANES_BYTES, h + n * LANES_BYTES
            if backwards:
                if size == 4:
                    scan_fade(4, dt, x, weights_n, pitch, an, hn, steps)
                else:
                    scan_fade(1, dt, x, weights_n, pitch, an, hn, steps)
            elif size == 4:
                scan_end(4, dt, x, weights_n, pitch, an, hn, steps)
            else:
                scan_end(1, dt, x, weights_n, pitch, an, hn, steps)
            n += size
    target = (piece * p.batch + b) * p.routes * p.channels + parameter
    store_f32_part(total, p.sums + target * 4, channels)
    to_rows(h, LANES_BYTES, p.ends + target * N * 4, channels, N, N)


@compiled
def _forward_task(p, job, states, scratch, positions, following, b, block, k, first, piece):
    """One route, or piece of a route, of one block of channels; `states` is an address or None."""
    width, N, T = p.width, p.states, p.steps
    channel = block * width * LANES
    channels = min(p.channels - channel, width * LANES)
    row = width * LANES_BYTES
    n_vectors = (N + LANES - 1) // LANES
    pitch = n_vectors * LANES_BYTES
    x = scratch
    dt = x + CHUNK * LANES_BYTES + _PAD
    y = dt + CHUNK * LANES_BYTES + _PAD
    b_rows = y + CHUNK * LANES_BYTES + _PAD
    c_rows = b_rows + CHUNK * pitch + _PAD
    a = c_rows + CHUNK * pitch + _PAD
    h = a + N * row + _PAD
    bias = h + N * row + _PAD
    skip = bias + row
    kept = skip + row + _PAD
    small = kept + 4 * CHUNK * LANES_BYTES + _PAD

    parameter = (k * p.channels + channel) * 4
    parameter_row(bias, p.bias + parameter if p.bias else 0, channels, width)
    parameter_row(skip, p.D + parameter if p.D else 0, channels, width)
    for v in range(width):
        to_columns(a + v * N * LANES_BYTES, p.A + (parameter + v * LANES_BYTES) * N, channels - v * LANES, N, _LOG2E)
    zero(h, N * width)
    its_start = ((piece * p.batch + b) * p.routes * p.channels + k * p.channels + channel) * N * 4
    if p.starts:
        to_columns(h, p.starts + its_start, channels, N, 1.0)  # width is 1

    order = p.order + b * p.order_b + k * p.order_k if p.order else 0
    y_at = address(job.y, b, k, channel)
    seen = visited(order, p.order_t, T)
    complete = seen >= p.positions
    kind = job.u.kind if job.u.kind == job.delta.kind else F16
    plain = seen == T and p.softplus and states is None and kind != F16
    floats = kind == F32 and job.y.kind == F32
    single = plain and floats and N == 1 and channels == width * LANES and job.B.kind == F32 and job.C.kind == F32
    u_at, delta_at = address(job.u, b, k, channel), address(job.delta, b, k, channel)
    b_at, c_at = address(job.B, b, k, 0), address(job.C, b, k, 0)
    here, there = positions.ctypes.data, following.ctypes.data
    if first and not complete and p.pieces == 1:  # else it is zero
        fill(y_at, job.y.l, job.y.size, p.positions, channels)
    if states is not None:
        states_row = p.routes * p.channels * N * 4
        states_at = states + b * p.positions * states_row + parameter * N
        if not complete:
            fill(states_at, states_row, 4, p.positions, channels * N)
    chunks = (T + CHUNK - 1) // CHUNK
    checkpoint = job.checkpoints + ((b * p.routes + k) * chunks * p.channels + channel) * N * 4

    for chunk in range(*_chunks_of(p, piece)):
        start = chunk * CHUNK
        steps = min(T - start, CHUNK)
        steps_of(positions, order, p.order_t, start, steps)
        ahead = AHEAD if single else CHUNK
        coming = following[: max(min(T - start - ahead, CHUNK), 0)]
        steps_of(coming, order, p.order_t, start + ahead, len(coming))
        if single:
            t = 0
            while t < steps:  # up to the next restart of the state
                count = min(_piece(p, start + t, start + steps), STEPS)
                if _restarts(p, start + t):
                    zero(h, width)
                if first:
                    scan_rows(
                        width, u_at, job.u.l, delta_at, job.delta.l, y_at, job.y.l, b_at, job.B.l, c_at, job.C.l, bias, skip, a,
                        h, small, small + STEPS * row, here + 8 * t, there + 8 * t, count,
                    )  # fmt: skip
                else:
                    scan_rows_adding(
                        width, u_at, job.u.l, delta_at, job.delta.l, y_at, job.y.l, b_at, job.B.l, c_at, job.C.l, bias, skip, a,
                        h, small, small + STEPS * row, here + 8 * t, there + 8 * t, count,
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
            u_v, delta_v = u_at + v * LANES * job.u.size, delta_at + v * LANES * job.delta.size
            y_v = y_at + v * LANES * job.y.size
            if whole and kind == BF16:
                enter_rows(
                    BF16, left, u_v, job.u.l, delta_v, job.delta.l, bias + column, skip + column, x, dt, y, here, steps
                )
            elif whole:
                enter_rows(
                    F32, left, u_v, job.u.l, delta_v, job.delta.l, bias + column, skip + column, x, dt, y, here, steps
                )
            else:
                gather(x, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                gather(dt, 1, delta_v, job.delta.l, job.delta.kind, positions, steps, left, coming)
                _time_steps(dt, bias + column, steps, p.softplus)
                _inputs_and_skip(x, dt, y, skip + column, steps)
            t = 0
            while t < steps:  # up to the next restart of the state
                count = _piece(p, start + t, start + steps)
                if _restarts(p, start + t):
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
                                job.u.l, delta_v, job.delta.l, there + 8 * t, count,
                            )  # fmt: skip
                        elif N - n >= 8:
                            size = 8
                            scan_forward(8, dtt, xt, yt, bn, cn, pitch, an, hn, u_v, job.u.l, delta_v, job.delta.l, y_v, job.y.l,
                                         there + 8 * t, count)  # fmt: skip
                        elif N - n >= 4:
                            size = 4
                            scan_forward(4, dtt, xt, yt, bn, cn, pitch, an, hn, u_v, job.u.l, delta_v, job.delta.l, y_v, job.y.l,
                                         there + 8 * t, count)  # fmt: skip
                        elif N - n >= 2:
                            size = 2
                            scan_forward(2, dtt, xt, yt, bn, cn, pitch, an, hn, u_v, job.u.l, delta_v, job.delta.l, y_v, job.y.l,
                                         there + 8 * t, count)  # fmt: skip
                        else:
                            size = 1
                            scan_forward(1, dtt, xt, yt, bn, cn, pitch, an, hn, u_v, job.u.l, delta_v, job.delta.l, y_v, job.y.l,
                                         there + 8 * t, count)  # fmt: skip
                    else:
                        if N - n >= 4:
                            size = 4
                            scan_forward_keep(4, dtt, xt, yt, bn, cn, pitch, an, hn, kept, count)
                        else:
                            size = 1
                            scan_forward_keep(1, dtt, xt, yt, bn, cn, pitch, an, hn, kept, count)
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
        to_rows(h, LANES_BYTES, p.ends + its_start, channels, N, N)


@compiled
def _forward(job, states):
    """Takes tasks until none is left."""
    mode = fresh_float_mode()
    p = job.problem
    row = p.width * LANES_BYTES
    pitch = (p.states + LANES - 1) // LANES * LANES_BYTES
    size = (2 * pitch + 7 * LANES_BYTES) * CHUNK + (2 * p.states + 2 + 2 * STEPS) * row + 10 * _PAD
    memory = np.empty(size + 64, np.uint8)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    positions, following = np.zeros(CHUNK, np.int64), np.zeros(CHUNK, np.int64)
    total = _tasks(p)
    task = atomic_next(p.counter)
    while task < total:
        piece, b, block, first, last = _task(p, task)
        if p.pieces > 1 and not p.opening:
            piece += 1
        for k in range(first, last):
            if p.opening and piece > 0:
                _opening_task(p, job.u, job.delta, job.B, scratch, positions, following, b, block, k, piece, False)
            else:
                _forward_task(p, job, states, scratch, positions, following, b, block, k, k == first, piece)
        task = atomic_next(p.counter)
    restore_float_mode(mode)
    memory[0] = 0  # numba frees an array after its last use: this is it


_read_forward = reader(ForwardJob)


@Entry
def forward(at):
    _forward(_read_forward(at), None)


@Entry
def forward_with_states(at):
    job = _read_forward(at)
    _forward(job, job.states)


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
    tile, small, columns = CHUNK * LANES_BYTES + _PAD, CHUNK * pitch + _PAD, N * row + _PAD
    u = scratch
    x, dt, dy, slope, dx, ddt = u + tile, u + 2 * tile, u + 3 * tile, u + 4 * tile, u + 5 * tile, u + 6 * tile
    b_rows = ddt + tile
    c_rows, db_rows, dc_rows = b_rows + small, b_rows + 2 * small, b_rows + 3 * small
    a = dc_rows + small
    a_log2, carry, da, h = a + columns, a + 2 * columns, a + 3 * columns, a + 4 * columns
    bias = h + columns
    skip, dbias, dskip = bias + row, bias + 2 * row, bias + 3 * row
    before = bias + 4 * row + _PAD
    decays = before + (CHUNK + 1) * 4 * LANES_BYTES + _PAD
    dh = decays + CHUNK * 4 * LANES_BYTES + _PAD
    steps_kept = dh + (CHUNK * 4 + KEPT * MOST) * LANES_BYTES + _PAD

    parameter = (k * p.channels + channel) * 4
    parameter_row(bias, p.bias + parameter if p.bias else 0, channels, width)
    parameter_row(skip, p.D + parameter if p.D else 0, channels, width)
    for v in range(width):
        source, left, column = p.A + (parameter + v * LANES_BYTES) * N, channels - v * LANES, v * N * LANES_BYTES
        to_columns(a + column, source, left, N, 1.0)
        to_columns(a_log2 + column, source, left, N, _LOG2E)
    zero(carry, N * width)
    its_start = ((piece * p.batch + b) * p.routes * p.channels + k * p.channels + channel) * N * 4
    if p.starts:
        to_columns(carry, p.starts + its_start, channels, N, 1.0)  # width is 1
    zero(da, N * width)
    zero(dbias, 2 * width)

    order = p.order + b * p.order_b + k * p.order_k if p.order else 0
    du_at, ddelta_at = address(job.du, b, k, channel), address(job.ddelta, b, k, channel)
    db_at, dc_at = address(job.dB, b, k, 0) + block * job.part, address(job.dC, b, k, 0) + block * job.part
    seen = visited(order, p.order_t, T)
    if seen < p.positions and p.pieces == 1:  # else they are zero
        if first:
            fill(du_at, job.du.l, job.du.size, p.positions, channels)
        fill(ddelta_at, job.ddelta.l, job.ddelta.size, p.positions, channels)
        fill(db_at, job.dB.l, job.dB.size, p.positions, N)
        fill(dc_at, job.dC.l, job.dC.size, p.positions, N)
    chunks = (T + CHUNK - 1) // CHUNK
    checkpoint = job.checkpoints + ((b * p.routes + k) * chunks * p.channels + channel) * N * 4
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

    first_chunk, last_chunk = _chunks_of(p, piece)
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
            for v in range(0, width, MOST):
                w, c1 = min(width - v, MOST), v * LANES_BYTES
                if chunk == 0:
                    zero(h, w)
                else:
                    for i in range(w):
                        store(load(checkpoint + ((chunk - 1) * p.channels + (v + i) * LANES) * 4), h + i * LANES_BYTES)
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
        for v in range(width):
            left, column = channels - v * LANES, v * LANES_BYTES
            if left <= 0:
                break
            whole = plain and (MASKS or left >= LANES)
            u_v, delta_v = u_at + v * LANES * job.u.size, delta_at + v * LANES * job.delta.size
            dy_v, du_v = dy_at + v * LANES * job.dy.size, du_at + v * LANES * job.du.size
            ddelta_v = ddelta_at + v * LANES * job.ddelta.size
            if whole and kind == BF16:
                gather(u, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                enter_back_rows(BF16, left, u_v, job.u.l, delta_v, job.delta.l, dy_v, job.dy.l, bias + column, x, dt, dy, slope,
                                here, steps)  # fmt: skip
            elif whole:
                enter_back_rows(F32, left, u_v, job.u.l, delta_v, job.delta.l, dy_v, job.dy.l, bias + column, x, dt, dy, slope,
                                here, steps)  # fmt: skip
            else:
                gather(u, 1, u_v, job.u.l, job.u.kind, positions, steps, left, coming)
                gather(dt, 1, delta_v, job.delta.l, job.delta.kind, positions, steps, left, coming)
                gather(dy, 1, dy_v, job.dy.l, job.dy.kind, positions, steps, left, coming)
                if p.softplus:
                    _time_steps_and_slopes(dt, slope, bias + column, steps)
                else:
                    _time_steps(dt, bias + column, steps, False)
                _multiply(x, u, dt, steps)
            zero(dx, steps)
            zero(ddt, steps)
            if chunk == 0:
                zero(h, N)
            else:
                unpack(h, checkpoint + ((chunk - 1) * p.channels + v * LANES) * N * 4, left, N)
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
                    count = _piece(p, start + t, start + steps)
                    kept_t, decays_t = kept + t * size * LANES_BYTES, decays + t * size * LANES_BYTES
                    dtt, xt, bt, there_t = dt + t * LANES_BYTES, x + t * LANES_BYTES, bn + t * pitch, there + 8 * t
                    restarts = _restarts(p, start + t)
                    if restarts:
                        zero(hn, size)
                    if size == 4:
                        scan_replay(4, dtt, xt, bt, pitch, a2n, hn, kept_t, decays_t, u_v, job.u.l, delta_v, job.delta.l,
                                    dy_v, job.dy.l, there_t, count)  # fmt: skip
                    elif size == 2:
                        scan_replay(2, dtt, xt, bt, pitch, a2n, hn, kept_t, decays_t, u_v, job.u.l, delta_v, job.delta.l,
                                    dy_v, job.dy.l, there_t, count)  # fmt: skip
                    else:
                        scan_replay(1, dtt, xt, bt, pitch, a2n, hn, kept_t, decays_t, u_v, job.u.l, delta_v, job.delta.l,
                                    dy_v, job.dy.l, there_t, count)  # fmt: skip
                    if restarts:
                        zero(decays_t, size)  # no gradient passes to the steps before
                    t += count
                if grad_states is None:
                    if size == 4:
                        scan_backward(4, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                      du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                    elif size == 2:
                        scan_backward(2, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                      du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                    else:
                        scan_backward(1, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                      du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                else:
                    if size == 4:
                        scan_backward_dh(4, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                         du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                    elif size == 2:
                        scan_backward_dh(2, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                         du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                    else:
                        scan_backward_dh(1, dt, x, dy, dx, ddt, bn, cn, dbn, dcn, pitch, an, gn, dan, before, kept, decays, dh,
                                         du_v, job.du.l, ddelta_v, job.ddelta.l, there, steps)  # fmt: skip
                n += size
            if whole and floats:
                leave_back_rows(
                    1, left, u_v, job.u.l, dy, du_v, job.du.l, ddelta_v, job.ddelta.l, dt, slope, dx, ddt, skip + column,
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
        to_rows(carry, LANES_BYTES, p.ends + its_start, channels, N, N)
    parameter += (piece * p.batch + b) * p.routes * p.channels * 4
    for v in range(width):
        left = channels - v * LANES
        to_rows(da + v * N * LANES_BYTES, LANES_BYTES, job.dA + (parameter + v * LANES_BYTES) * N, left, N, N)
        for scratch_at, target in ((dskip, job.dD), (dbias, job.dbias)):
            if target and left > 0:
                store_f32_part(load(scratch_at + v * LANES_BYTES), target + parameter + v * LANES_BYTES, left)


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
    size += 20 * _PAD
    memory = np.empty(size + 64, np.uint8)
    scratch = (memory.ctypes.data + 63) // 64 * 64
    positions, following = np.zeros(CHUNK, np.int64), np.zeros(CHUNK, np.int64)
    total = _tasks(p)
    task = atomic_next(p.counter)
    while task < total:
        piece, b, block, first, last = _task(p, task)
        if p.opening:
            piece += 1
        for k in range(first, last):
            if p.opening and piece < p.pieces - 1:
                _opening_task(p, job.dy, job.delta, job.C, scratch, positions, following, b, block, k, piece, True)
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


PIECE = 4096


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
