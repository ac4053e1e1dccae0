"""What the routed scan and its gradient share on the CPU: channels in lanes, states in registers, a tile of steps at a time.

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
Cost per step and vector of channels, with AVX-512: 26 operations for softplus and all that is once per step, R where dt is
projected here, 13 per state. 8 of these multiply, of the 9 of its exponential 4. Two multiplications and two additions can start
in a cycle, scaling by a power of two counts as two, and of chains like these a processor starts about three operations a cycle:
exponentials alone would take 64% of the time of 16 states. The gradient does the same again, and 8 multiplications and 6
operations of sums over lanes per state. Memory: delta's rows once, those of u and y once per route (from a cache, where an image
fits), 4 N bytes per channel and chunk for the gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .loops import scan_end, scan_fade
from .rows import LANES_BYTES, address, compiled, gather, parameter_row, steps_of, to_columns, to_rows, visited, zero
from .simd import LANES, add, load, mul, softplus, store, store_f32_part, zeros

__all__ = [
    "AHEAD", "CHUNK", "LOG2E", "PAD", "Problem", "channel_of", "checkpoint_of", "chunks_of", "opening_task", "restarts",
    "route_of", "task_count", "task_of", "time_steps", "until_restart",
]  # fmt: skip

CHUNK = 32
AHEAD = 12  # steps by which rows are asked for where there is one state
LOG2E = math.log2(math.e)
PAD = 3 * 64  # between scratch arrays, so that their rows do not share the low 12 bits of their addresses


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


@compiled
def task_count(problem):
    return problem.batch * problem.blocks * (problem.routes if problem.split else 1) * max(problem.pieces - 1, 1)


@compiled
def task_of(p, task):
    """Its piece (counted from the first of the pass), image, block of channels, and routes from the first to before the last."""
    block, rest = task % p.blocks, task // p.blocks
    if not p.split:
        return 0, rest, block, 0, p.routes
    k, rest = rest % p.routes, rest // p.routes
    return rest // p.batch, rest % p.batch, block, k, k + 1


@compiled
def route_of(p, b, k):
    """Address of a route's table, 0 if there is none."""
    return p.order + b * p.order_b + k * p.order_k if p.order else 0


@compiled
def channel_of(p, piece, b, k, channel):
    """The number of a channel among those of all pieces, images and routes: (pieces, B, K, D)."""
    return ((piece * p.batch + b) * p.routes + k) * p.channels + channel


@compiled
def checkpoint_of(p, checkpoints, b, k, channel):
    """Address of a channel's state after the first chunk of a route."""
    chunks = (p.steps + CHUNK - 1) // CHUNK
    return checkpoints + ((b * p.routes + k) * chunks * p.channels + channel) * p.states * 4


@compiled
def until_restart(p, t, end):
    """Steps from t to the next restart of the state or to `end`."""
    return min(end - t, p.segment - (t + p.phase) % p.segment) if p.segment else end - t


@compiled
def restarts(p, t):
    return p.segment and (t + p.phase) % p.segment == 0


@compiled
def chunks_of(p, piece):
    """The chunks of a piece: the first, and the one after the last."""
    chunks = (p.steps + CHUNK - 1) // CHUNK
    return min(piece * p.chunks, chunks), min((piece + 1) * p.chunks, chunks)


@compiled
def time_steps(dt, bias, steps, with_softplus):
    """delta -> dt, in place."""
    shift = load(bias)
    for t in range(steps):
        at = dt + t * LANES_BYTES
        value = add(load(at), shift)
        store(softplus(value) if with_softplus else value, at)


@compiled
def opening_task(p, inputs, delta, weights, scratch, positions, following, b, block, k, piece, backwards):
    """What a piece of a route leaves from zero in the states of a vector, of u and B, or in their gradient, of dy and C."""
    N, T = p.states, p.steps
    channel = block * LANES
    channels = min(p.channels - channel, LANES)
    n_vectors = (N + LANES - 1) // LANES
    pitch = n_vectors * LANES_BYTES
    x = scratch
    dt = x + CHUNK * LANES_BYTES + PAD
    rows = dt + CHUNK * LANES_BYTES + PAD
    a = rows + CHUNK * pitch + PAD
    h = a + N * LANES_BYTES + PAD
    bias = h + N * LANES_BYTES + PAD

    parameter = k * p.channels + channel
    parameter_row(bias, p.bias + parameter * 4 if p.bias else 0, channels, 1)
    to_columns(a, p.A + parameter * N * 4, channels, N, LOG2E)
    zero(h, N)
    order = route_of(p, b, k)
    if visited(order, p.order_t, T, p.positions, p.counter) < 0:
        return
    x_at, delta_at, rows_at = address(inputs, b, k, channel), address(delta, b, k, channel), address(weights, b, k, 0)
    total = zeros()
    first, last = chunks_of(p, piece)
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
                scan_fade(size, dt, x, weights_n, pitch, an, hn, steps)
            else:
                scan_end(size, dt, x, weights_n, pitch, an, hn, steps)
            n += size
    target = channel_of(p, piece, b, k, channel)
    store_f32_part(total, p.sums + target * 4, channels)
    to_rows(h, LANES_BYTES, p.ends + target * N * 4, channels, N, N)
