"""Routed selective scan, forward.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t . h_t + D u_t        dt = softplus(delta + bias)

Step t of route k reads u, delta, B, C at position order[k, t] and writes y there; nothing is permuted in memory.
With `dt_weight` W (K, D, R), `delta` holds rows of R numbers and a step's delta is W @ its row.

Legend: B batch, L positions, D channels, N state, K routes, T steps, R rank padded to a power of two from 16 on, BD channels
of a block, U steps loaded together, CHUNK steps between checkpoints.
Layout: one warp owns (batch, route, BD channels). Its state is an (N, BD) float32 tile in registers; rows of
u, delta and y are coalesced over channels, rows of B and C are broadcast over them. exp(dt A) is one exp2, for
A is multiplied by log2(e) once.
Cost per step and channel, in bytes: u + delta + y + (B + C) 2 N / BD; in exponentials: N + 1. Latency is
hidden by U steps of loads in flight and by the other warps. Where batch x routes x blocks is too small to fill
the device, chunks run in parallel: every chunk's end state from a zero start, a pass over chunks (the decay of
a chunk needs only the sum of its dt), then every chunk from its true start.
With `dt_weight`, R / BD values are read per step and channel in place of the one of delta, and a (BD, R) by (R, U) product on
tensor cores gives the deltas of U steps: BD R / 2048 of their instructions per step with U = 8, six times as many in float32. W
lies in shared memory meanwhile. One by one, R multiply-adds would double a step's instructions at R = 48.
"""

import triton
import triton.language as tl

from .common import (
    LOG2_E,
    SIZES,
    advance,
    decay_steps,
    load_channels,
    load_positions,
    load_rows,
    load_weight,
    project_rows,
    step_sizes,
)


@triton.jit
def load_deltas(
    delta, weight, order, positions, t, T, stride, rank, d, inside,
    U: tl.constexpr, R: tl.constexpr, HALVINGS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """U rows of delta, read or projected."""
    if weight is None:
        rows = load_rows(delta, positions, stride, d, inside, U)
    else:  # the compiler reads what follows a return, too
        rows = project_rows(delta, weight, order, t, T, stride, rank, U, R, HALVINGS, TYPE)
    return rows


@triton.jit(do_not_specialize=SIZES)
def scan_forward_kernel(
    u, delta, dt_weight, A, B, C, D, bias, order, y, checkpoints, states,
    L, T, dim, rank, routes, chunks, segment, phase,
    u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, C_b, C_l, C_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESTARTS: tl.constexpr, R: tl.constexpr, HALVINGS: tl.constexpr, TYPE: tl.constexpr, SPLIT: tl.constexpr,
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
    weight = None
    if dt_weight is not None:
        weight = load_weight(dt_weight, k * dim + d, rank, inside, R, delta.dtype.element_ty)

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
            deltas = load_deltas(delta, weight, order, positions, t, T, delta_l, rank, d, inside, U, R, HALVINGS, TYPE)
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
    u, delta, dt_weight, A, B, bias, order, checkpoints, dt_sums,
    T, dim, rank, routes, chunks, segment, phase,
    u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESTARTS: tl.constexpr, R: tl.constexpr, HALVINGS: tl.constexpr, TYPE: tl.constexpr,
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
    weight = None
    if dt_weight is not None:
        weight = load_weight(dt_weight, k * dim + d, rank, inside, R, delta.dtype.element_ty)

    h = tl.zeros((N, BD), tl.float32)
    dt_sum = tl.zeros((BD,), tl.float32)
    for t in range(c * CHUNK, tl.minimum((c + 1) * CHUNK, T), U):
        positions = load_positions(order, t, T, U)
        us = load_rows(u, positions, u_l, d, inside, U)
        deltas = load_deltas(delta, weight, order, positions, t, T, delta_l, rank, d, inside, U, R, HALVINGS, TYPE)
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
