"""Routed selective scan, forward.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t . h_t + D u_t        dt = softplus(delta + bias)

Step t of route k reads u, delta, B, C at position order[k, t] and writes y there; nothing is permuted in memory.

Legend: B batch, L positions, D channels, N state, K routes, T steps, BD channels of a block, U steps loaded
together, CHUNK steps between checkpoints.
Layout: one warp owns (batch, route, BD channels). Its state is an (N, BD) float32 tile in registers; rows of
u, delta and y are coalesced over channels, rows of B and C are broadcast over them. exp(dt A) is one exp2, for
A is multiplied by log2(e) once.
Cost per step and channel, in bytes: u + delta + y + (B + C) 2 N / BD; in exponentials: N + 1. Latency is
hidden by U steps of loads in flight and by the other warps. Where batch x routes x blocks is too small to fill
the device, chunks run in parallel: every chunk's end state from a zero start, a pass over chunks (the decay of
a chunk needs only the sum of its dt), then every chunk from its true start.
"""

import triton
import triton.language as tl

from .common import LOG2_E, SIZES, advance, decay_steps, load_channels, load_positions, load_rows, step_sizes


@triton.jit(do_not_specialize=SIZES)
def scan_forward_kernel(
    u, delta, A, B, C, D, bias, order, y, checkpoints, states,
    L, T, dim, routes, chunks, segment, phase,
    u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, C_b, C_l, C_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESTARTS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Grid (batch x routes x blocks x (chunks if SPLIT else 1)). With SPLIT, checkpoints are read: they must be final."""
    blocks = tl.cdiv(dim, BD)
    parts = chunks if SPLIT else 1
    part = tl.program_id(0) % parts
    pid = tl.program_id(0) // parts
    k = ((pid // blocks) % routes).to(tl.int64)
    b = (pid // blocks // routes).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n

    u += b * u_b + k * u_k
    delta += b * delta_b + k * delta_k
    B += b * B_b + k * B_k
    C += b * C_b + k * C_k
    if order is not None:
        order += b * order_b + k * order_k
    y += (b * L * routes + k) * dim
    decay_rate = tl.load(A + k * dim * N + tile, mask=tile_inside, other=0.0) * LOG2_E
    skip = load_channels(D, k * dim + d, inside)
    shift = load_channels(bias, k * dim + d, inside)

    h = tl.zeros((N, BD), tl.float32)
    first = 0
    last = chunks
    chunk0 = (b * routes + k) * chunks
    if SPLIT:
        first = part
        last = first + 1
        h = tl.load(checkpoints + (chunk0 + first - 1) * dim * N + tile, mask=tile_inside & (first > 0), other=0.0)

    for c in range(first, last):
        for t in range(c * CHUNK, tl.minimum((c + 1) * CHUNK, T), U):
            positions = load_positions(order, t, T, U)
            us = load_rows(u, positions, u_l, d, inside, U)
            deltas = load_rows(delta, positions, delta_l, d, inside, U)
            Bs = load_rows(B, positions, B_l, n, tile_inside, U)
            Cs = load_rows(C, positions, C_l, n, tile_inside, U)
            dts = step_sizes(deltas, shift, t, T, U, SOFTPLUS)
            spans = decay_steps(dts, t, T, segment, phase, U, RESTARTS)
            for i in tl.static_range(U):
                h = advance(h, tl.exp2(decay_rate * spans[i][None, :]), dts[i], us[i], Bs[i])
                out = tl.sum(h * Cs[i].to(tl.float32), axis=0) + skip * us[i].to(tl.float32)
                visited = positions[i] >= 0
                tl.store(y + positions[i] * routes * dim + d, out.to(y.dtype.element_ty), mask=inside & visited)
                if states is not None:
                    place = ((b * L + positions[i]) * routes + k) * dim * N
                    tl.store(states + place + tile, h, mask=tile_inside & visited)
        if checkpoints is not None and not SPLIT:
            tl.store(checkpoints + (chunk0 + c) * dim * N + tile, h, mask=tile_inside)


@triton.jit(do_not_specialize=SIZES)
def chunk_state_kernel(
    u, delta, A, B, bias, order, checkpoints, dt_sums,
    T, dim, routes, chunks, segment, phase,
    u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESTARTS: tl.constexpr,
):  # fmt: skip
    """End state of every chunk from a zero start, and its sum of dt (B, K, chunks, D). Grid (batch x routes x
    blocks x chunks)."""
    blocks = tl.cdiv(dim, BD)
    pid = tl.program_id(0) // chunks
    c = tl.program_id(0) % chunks
    k = ((pid // blocks) % routes).to(tl.int64)
    b = (pid // blocks // routes).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n

    u += b * u_b + k * u_k
    delta += b * delta_b + k * delta_k
    B += b * B_b + k * B_k
    if order is not None:
        order += b * order_b + k * order_k
    decay_rate = tl.load(A + k * dim * N + tile, mask=tile_inside, other=0.0) * LOG2_E
    shift = load_channels(bias, k * dim + d, inside)

    h = tl.zeros((N, BD), tl.float32)
    dt_sum = tl.zeros((BD,), tl.float32)
    for t in range(c * CHUNK, tl.minimum((c + 1) * CHUNK, T), U):
        positions = load_positions(order, t, T, U)
        us = load_rows(u, positions, u_l, d, inside, U)
        deltas = load_rows(delta, positions, delta_l, d, inside, U)
        Bs = load_rows(B, positions, B_l, n, tile_inside, U)
        dts = step_sizes(deltas, shift, t, T, U, SOFTPLUS)
        spans = decay_steps(dts, t, T, segment, phase, U, RESTARTS)
        for i in tl.static_range(U):
            h = advance(h, tl.exp2(decay_rate * spans[i][None, :]), dts[i], us[i], Bs[i])
            dt_sum += spans[i]
    place = ((b * routes + k) * chunks + c) * dim
    tl.store(checkpoints + place * N + tile, h, mask=tile_inside)
    tl.store(dt_sums + place + d, dt_sum, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def chunk_pass_kernel(
    A, carried, dt_sums, dim, routes, chunks,
    N: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """carried[c] += exp(A dt_sum[c]) carried[c - 1], in place along the chunks (c + 1 with REVERSE). Grid
    (batch x routes x blocks)."""
    blocks = tl.cdiv(dim, BD)
    pid = tl.program_id(0)
    bk = (pid // blocks).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n
    decay_rate = tl.load(A + (bk % routes) * dim * N + tile, mask=tile_inside, other=0.0) * LOG2_E
    h = tl.zeros((N, BD), tl.float32)
    for i in range(chunks):
        c = chunks - 1 - i if REVERSE else i
        place = (bk * chunks + c) * dim
        dt_sum = tl.load(dt_sums + place + d, mask=inside, other=0.0)
        h = tl.exp2(decay_rate * dt_sum[None, :]) * h + tl.load(carried + place * N + tile, mask=tile_inside, other=0.0)
        tl.store(carried + place * N + tile, h, mask=tile_inside)
