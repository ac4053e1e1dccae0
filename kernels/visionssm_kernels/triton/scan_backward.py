"""Routed selective scan, backward.

    g_t = C_t dy_t + states' gradient + a_{t+1} g_{t+1}          a_t = exp(dt_t A)
    dC_t = sum_d h_t dy_t      dB_t = sum_d g_t dt_t u_t      du_t = D dy_t + dt_t sum_n g_t B_t
    x_t = g_t a_t h_{t-1}      dA = sum_t dt_t x_t            ddt_t = sum_n x_t A + u_t sum_n g_t B_t
    ddelta_t = ddt_t sigmoid(delta_t + bias) with softplus    dD = sum_t dy_t u_t      dbias = sum_t ddelta_t

Legend: B batch, L positions, D channels, N state, K routes, T steps, BD channels of a block, U steps of a
group, CHUNK steps of a chunk.
Layout: that of the forward, one warp for (batch, route, BD channels). States are needed last to first and
cannot be run backwards (1 / a overflows), so they are recomputed in two levels: the chunk from its checkpoint,
parking the state before each group of U steps in `parked` (small, stays in L2), then each group in registers.
dB and dC sum over channels: each block sums its own by shuffles and writes them to its slice
of `dBC`, (blocks, B, L, K, 2N), summed in a fixed order afterwards; so are dA, dD and dbias, written per batch.
Cost per step and channel: 2 N exponentials; u, delta and B are read twice (the second time from L2), C and dy
once, du and ddelta written once; 16 N / BD bytes of dBC written and read, 8 N / U bytes of parked states; 2 N
+ log2(BD) shuffles per warp.
"""

import triton
import triton.language as tl

from .common import LOG2_E, SIZES, advance, decay_steps, load_channels, load_positions, load_rows, sigmoid, step_sizes


@triton.jit
def exchange(first, second, lane, WIDTH: tl.constexpr):
    """Lanes whose bit WIDTH is clear keep first, the others second; each gives what it does not keep to its partner."""
    upper = ((lane & WIDTH) != 0)[None, :]
    kept = tl.where(upper, second, first)
    given = tl.where(upper, first, second)
    partner = (lane ^ WIDTH)[None, :] + tl.zeros(given.shape, tl.int32)
    return kept + tl.gather(given, partner, axis=1)


@triton.jit
def fold_channels(first, second, N: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr):
    """Sums of two (N, BD) tiles over channels, as a (2N / 2^STAGES, 2^STAGES) tile in the order of `fold_offsets`.

    Every stage halves the values a lane holds: 2N - 1 shuffles, where 2N sums one by one take 2N log2(BD).
    """
    lane = tl.arange(0, BD)
    total = exchange(first, second, lane, BD // 2)
    for i in tl.static_range(STAGES - 1):
        halves = tl.permute(tl.reshape(total, (2, N >> (i + 1), BD)), (1, 2, 0))
        low, high = tl.split(halves)
        total = exchange(low, high, lane, BD >> (i + 2))
    return tl.sum(tl.reshape(total, ((2 * N) >> STAGES, 1 << STAGES, BD >> STAGES)), axis=2)


@triton.jit
def fold_offsets(N: tl.constexpr, STAGES: tl.constexpr):
    """Where `fold_channels` leaves which sum, as offsets into (2, N)."""
    lane = tl.arange(0, 1 << STAGES)[None, :]
    return lane * ((2 * N) >> STAGES) + tl.arange(0, (2 * N) >> STAGES)[:, None]


@triton.jit(do_not_specialize=SIZES)
def scan_backward_kernel(
    grad_y, grad_states, u, delta, A, B, C, D, bias, order, checkpoints, carries, parked,
    du, ddelta, dA, dBC, dD, dbias,
    L, T, dim, batch, routes, chunks, segment, phase,
    grad_b, grad_l, grad_k, u_b, u_l, u_k, delta_b, delta_l, delta_k, B_b, B_l, B_k, C_b, C_l, C_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
    SOFTPLUS: tl.constexpr, RESTARTS: tl.constexpr,
):  # fmt: skip
    """Grid (batch x routes x blocks x (chunks if carries else 1)); dA, dD and dbias have a slice for each program
    of a block."""
    blocks = tl.cdiv(dim, BD)
    parts = 1 if carries is None else chunks
    part = tl.program_id(0) % parts
    pid = tl.program_id(0) // parts
    k = ((pid // blocks) % routes).to(tl.int64)
    b = (pid // blocks // routes).to(tl.int64)
    block = pid % blocks
    d = block * BD + tl.arange(0, BD)
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n

    grad_y += b * grad_b + k * grad_k
    u += b * u_b + k * u_k
    delta += b * delta_b + k * delta_k
    B += b * B_b + k * B_k
    C += b * C_b + k * C_k
    if order is not None:
        order += b * order_b + k * order_k
    image = (b * L * routes + k) * dim
    du += image
    ddelta += image
    dBC += ((block.to(tl.int64) * batch + b) * L * routes + k) * 2 * N
    folded = fold_offsets(N, STAGES)
    chunk0 = (b * routes + k) * chunks
    parked += tl.program_id(0).to(tl.int64) * (CHUNK // U) * N * BD
    parking = tl.arange(0, BD)[None, :] * N + n

    A_tile = tl.load(A + k * dim * N + tile, mask=tile_inside, other=0.0)
    decay_rate = A_tile * LOG2_E
    skip = load_channels(D, k * dim + d, inside)
    shift = load_channels(bias, k * dim + d, inside)

    carry = tl.zeros((N, BD), tl.float32)
    dA_tile = tl.zeros((N, BD), tl.float32)
    dD_row = tl.zeros((BD,), tl.float32)
    dbias_row = tl.zeros((BD,), tl.float32)
    first = 0
    last = chunks
    if carries is not None:
        first = part
        last = part + 1
        carry = tl.load(carries + (chunk0 + last) * dim * N + tile, mask=tile_inside & (last < chunks), other=0.0)
    for reverse_c in range(last - first):
        c = last - 1 - reverse_c
        start = c * CHUNK
        groups = tl.cdiv(tl.minimum(CHUNK, T - start), U)
        h = tl.load(checkpoints + (chunk0 + c - 1) * dim * N + tile, mask=tile_inside & (c > 0), other=0.0)
        for group in range(groups - 1):
            tl.store(parked + group * N * BD + parking, h)
            t = start + group * U
            positions = load_positions(order, t, T, U)
            us = load_rows(u, positions, u_l, d, inside, U)
            deltas = load_rows(delta, positions, delta_l, d, inside, U)
            Bs = load_rows(B, positions, B_l, n, tile_inside, U)
            dts = step_sizes(deltas, shift, t, T, U, SOFTPLUS)
            spans = decay_steps(dts, t, T, segment, phase, U, RESTARTS)
            for i in tl.static_range(U):
                h = advance(h, tl.exp2(decay_rate * spans[i][None, :]), dts[i], us[i], Bs[i])
        tl.store(parked + (groups - 1) * N * BD + parking, h)
        tl.debug_barrier()

        for reverse_group in range(groups):
            group = groups - 1 - reverse_group
            h = tl.load(parked + group * N * BD + parking)
            t = start + group * U
            positions = load_positions(order, t, T, U)
            us = load_rows(u, positions, u_l, d, inside, U)
            deltas = load_rows(delta, positions, delta_l, d, inside, U)
            grads = load_rows(grad_y, positions, grad_l, d, inside, U)
            Bs = load_rows(B, positions, B_l, n, tile_inside, U)
            Cs = load_rows(C, positions, C_l, n, tile_inside, U)
            dts = step_sizes(deltas, shift, t, T, U, SOFTPLUS)
            spans = decay_steps(dts, t, T, segment, phase, U, RESTARTS)
            decays = ()
            states = (h,)
            for i in tl.static_range(U):
                decays = decays + (tl.exp2(decay_rate * spans[i][None, :]),)
                states = states + (advance(states[i], decays[i], dts[i], us[i], Bs[i]),)
            for i in tl.static_range(U - 1, -1, -1):
                visited = positions[i] >= 0
                u_row = us[i].to(tl.float32)
                grad = grads[i].to(tl.float32)
                g = carry + grad[None, :] * Cs[i].to(tl.float32)
                if grad_states is not None:
                    place = ((b * L + positions[i]) * routes + k) * dim * N
                    g += tl.load(grad_states + place + tile, mask=tile_inside & visited, other=0.0)
                carry = g * decays[i]
                x = carry * states[i]
                dA_tile += x * dts[i][None, :]
                gB = tl.sum(g * Bs[i].to(tl.float32), axis=0)
                ddelta_row = tl.sum(x * A_tile, axis=0) + u_row * gB
                if SOFTPLUS:
                    ddelta_row *= sigmoid(deltas[i].to(tl.float32) + shift)
                dbias_row += ddelta_row
                dD_row += grad * u_row
                du_row = skip * grad + dts[i] * gB
                place = positions[i] * routes * dim + d
                tl.store(du + place, du_row.to(du.dtype.element_ty), mask=inside & visited)
                tl.store(ddelta + place, ddelta_row.to(ddelta.dtype.element_ty), mask=inside & visited)
                sums = fold_channels(g * (dts[i] * u_row)[None, :], states[i + 1] * grad[None, :], N, BD, STAGES)
                tl.store(dBC + positions[i] * routes * 2 * N + folded, sums, mask=(folded >= 0) & visited)
        tl.debug_barrier()

    out = ((b * routes + k) * parts + part) * dim
    tl.store(dA + out * N + tile, dA_tile, mask=tile_inside)
    if dD is not None:
        tl.store(dD + out + d, dD_row, mask=inside)
    if dbias is not None:
        tl.store(dbias + out + d, dbias_row, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def chunk_carry_kernel(
    grad_y, grad_states, delta, A, C, bias, order, carries, dt_sums,
    L, T, dim, routes, chunks, segment, phase,
    grad_b, grad_l, grad_k, delta_b, delta_l, delta_k, C_b, C_l, C_k, order_b, order_k,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
    RESTARTS: tl.constexpr,
):  # fmt: skip
    """Gradient that every chunk hands to the one before it, a_t g_t at its first step, with nothing from later
    chunks; and its sum of dt.

    Grid (batch x routes x blocks x chunks).
    """
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

    grad_y += b * grad_b + k * grad_k
    delta += b * delta_b + k * delta_k
    C += b * C_b + k * C_k
    if order is not None:
        order += b * order_b + k * order_k
    decay_rate = tl.load(A + k * dim * N + tile, mask=tile_inside, other=0.0) * LOG2_E
    shift = load_channels(bias, k * dim + d, inside)

    carry = tl.zeros((N, BD), tl.float32)
    dt_sum = tl.zeros((BD,), tl.float32)
    groups = tl.cdiv(tl.minimum(CHUNK, T - c * CHUNK), U)
    for reverse_group in range(groups):
        t = c * CHUNK + (groups - 1 - reverse_group) * U
        positions = load_positions(order, t, T, U)
        deltas = load_rows(delta, positions, delta_l, d, inside, U)
        grads = load_rows(grad_y, positions, grad_l, d, inside, U)
        Cs = load_rows(C, positions, C_l, n, tile_inside, U)
        dts = step_sizes(deltas, shift, t, T, U, SOFTPLUS)
        spans = decay_steps(dts, t, T, segment, phase, U, RESTARTS)
        for i in tl.static_range(U - 1, -1, -1):
            g = carry + grads[i].to(tl.float32)[None, :] * Cs[i].to(tl.float32)
            if grad_states is not None:
                place = ((b * L + positions[i]) * routes + k) * dim * N
                g += tl.load(grad_states + place + tile, mask=tile_inside & (positions[i] >= 0), other=0.0)
            carry = g * tl.exp2(decay_rate * spans[i][None, :])
            dt_sum += spans[i]
    place = ((b * routes + k) * chunks + c) * dim
    tl.store(carries + place * N + tile, carry, mask=tile_inside)
    tl.store(dt_sums + place + d, dt_sum, mask=inside)
