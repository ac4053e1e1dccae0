"""The native two-dimensional scan, forward and backward.

    p = gT hA + vT      q = gL hB + vL      g = exp(dt A)    v = dt B u    hA, hB: states of the cell above, to the left
    h = a p + c q       y = C . h + D u     (a, c) = (0, 1) in the first row, (1, 0) in the first column, else (1/2, 1/2)
backward, from the last cell, with eA, eB what the cells below and to the right hand back:
    e = C dy + eA + eB      hands a gT e up, c gL e to the left
    dC = sum_d h dy         dB = sum_d (a | c) dt e u        du = D dy + sum_n e (a dtT BT + c dtL BL)
    ddt = sum_n (a | c) e (A g (hA | hB) + B u)              dA = sum (a | c) e dt g (hA | hB)

Legend: B batch, H rows, W columns, D channels, N state, T from above, L from the left, BD channels of a block, U cells loaded
together, STRIP rows between checkpoints.
Layout: one warp owns (batch, BD channels) and goes row by row, an order in which both neighbours of a cell are done. The state
of the cell to the left stays in registers as an (N, BD) float32 tile; a line of W tiles in global memory (it stays in L2) holds
the states above, and each thread reads only what it wrote itself. Scanning from the other corner turns the indices round.
Cost per cell and channel: u, 2 delta and y, 8 N bytes of the line (L2), 2 N + 2 exponentials, (B, C) 6 N / BD bytes. Latency is
hidden by U cells of loads in flight and by the other warps. The backward runs the forward again and keeps the line before every
STRIP rows, then each strip once more, parking its states; 4 N (STRIP + H / STRIP) W bytes per channel, least at STRIP = sqrt(H).
dB and dC sum over channels as in `scan_backward`; no atomics.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import LOG2_E, load_channels, load_rows, sigmoid, step_size
from .memory import on_device, unit_rows, vector_rows
from .scan_backward import fold_channels, fold_offsets
from .tuning import fold_stages, table_for

__all__ = ["backward", "forward"]

# State size up to which so many cells are loaded together, forward; one at a time backward, for want of registers.
GROUPS = {4: 4, 16: 2, 64: 1}
MAPS = ("rows", "columns", "batch", "strip")


@triton.jit
def columns_of(j, columns, U: tl.constexpr, STEP: tl.constexpr):
    """U columns from j on (STEP 1) or back (-1); -1 outside the row."""
    found = ()
    for s in tl.static_range(U):
        at = j + STEP * s
        found = found + (tl.where((at >= 0) & (at < columns), at, -1).to(tl.int64),)
    return found


@triton.jit
def cells_of(i, js, rows, columns, U: tl.constexpr, REVERSE: tl.constexpr):
    """Where in the image the cells of row i as the scan counts them are; -1 for column -1."""
    found = ()
    for s in tl.static_range(U):
        index = js[s] + i * columns
        if REVERSE:
            index = rows * columns - 1 - index
        found = found + (tl.where(js[s] >= 0, index, -1),)
    return found


@triton.jit
def weights(i, j):
    """What counts from above and from the left."""
    top = tl.where(i == 0, 0.0, tl.where(j == 0, 1.0, 0.5))
    return top, 1.0 - top


@triton.jit
def mix(before, rate, dt, x, b):
    """g h + v of one direction."""
    return tl.exp2(rate * dt[None, :]) * before + (dt * x)[None, :] * b.to(tl.float32)


@triton.jit
def advance_row(
    i, source, target, y, u, delta, B, C, skip, rate_T, rate_L, shift_T, shift_L,
    rows, columns, dim, u_l, delta_l, delta_g, B_l, B_g, C_l, own, d, n, inside, tile_inside,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The states of row i into `target`, those of the row above being in `source` (which may be the same); y unless None."""
    h = tl.zeros((N, BD), tl.float32)
    for j in range(0, columns, U):
        js = columns_of(j, columns, U, 1)
        cells = cells_of(i, js, rows, columns, U, REVERSE)
        aboves = load_rows(source, js, N * BD, own, tile_inside & (i > 0), U)
        us = load_rows(u, cells, u_l, d, inside, U)
        deltas_T = load_rows(delta, cells, delta_l, d, inside, U)
        deltas_L = load_rows(delta + delta_g, cells, delta_l, d, inside, U)
        Bs_T = load_rows(B, cells, B_l, n, tile_inside, U)
        Bs_L = load_rows(B + B_g, cells, B_l, n, tile_inside, U)
        if y is not None:
            Cs = load_rows(C, cells, C_l, n, tile_inside, U)
        for s in tl.static_range(U):
            x = us[s].to(tl.float32)
            dt_T = step_size(deltas_T[s].to(tl.float32) + shift_T, True)
            dt_L = step_size(deltas_L[s].to(tl.float32) + shift_L, True)
            top, left = weights(i, j + s)
            h = top * mix(aboves[s], rate_T, dt_T, x, Bs_T[s]) + left * mix(h, rate_L, dt_L, x, Bs_L[s])
            tl.store(target + js[s] * N * BD + own, h, mask=tile_inside & (js[s] >= 0))
            if y is not None:
                out = tl.sum(h * Cs[s].to(tl.float32), axis=0) + skip * x
                tl.store(y + cells[s] * dim + d, out.to(y.dtype.element_ty), mask=inside & (cells[s] >= 0))
    tl.debug_barrier()


@triton.jit(do_not_specialize=MAPS)
def wavefront_forward_kernel(
    u, delta, A, B, C, D, bias, y, line, kept,
    rows, columns, dim, batch, strip, u_b, u_l, delta_b, delta_l, delta_g, B_b, B_l, B_g, C_b, C_l,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Grid (batch x blocks). Either y (B, H, W, D), or `kept` (B x blocks, strips, W, BD, N), the last row before every strip
    but the first."""
    blocks = tl.cdiv(dim, BD)
    program = tl.program_id(0).to(tl.int64)
    b = program // blocks
    lane = tl.arange(0, BD)
    d = (tl.program_id(0) % blocks) * BD + lane
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n
    own = lane[None, :] * N + n
    if y is not None:
        y += b * rows * columns * dim
    line += program * columns * N * BD
    rate_T = tl.load(A + tile, mask=tile_inside, other=0.0) * LOG2_E
    rate_L = tl.load(A + dim * N + tile, mask=tile_inside, other=0.0) * LOG2_E
    skip = load_channels(D, d, inside)
    shift_T = load_channels(bias, d, inside)
    shift_L = load_channels(bias, dim + d, inside)
    strips = tl.cdiv(rows, strip)
    for i in range(rows):
        if kept is not None:  # noqa: SIM102 (decided when it is compiled)
            if (i > 0) & (i % strip == 0):
                for j in range(columns):
                    place = ((program * strips + i // strip) * columns + j) * N * BD
                    tl.store(kept + place + own, tl.load(line + j * N * BD + own))
        advance_row(
            i, line, line, y, u + b * u_b, delta + b * delta_b, B + b * B_b, C + b * C_b, skip, rate_T, rate_L, shift_T, shift_L,
            rows, columns, dim, u_l, delta_l, delta_g, B_l, B_g, C_l, own, d, n, inside, tile_inside, N, BD, U, REVERSE,
        )  # fmt: skip


@triton.jit(do_not_specialize=MAPS)
def wavefront_backward_kernel(
    grad_y, u, delta, A, B, C, D, bias, kept, line, parked, du, ddelta, dA, dBC, dD, dbias,
    rows, columns, dim, batch, strip, grad_b, grad_l,
    u_b, u_l, delta_b, delta_l, delta_g, B_b, B_l, B_g, C_b, C_l,
    N: tl.constexpr, BD: tl.constexpr, U: tl.constexpr, STAGES: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Grid (batch x blocks). `parked` (B x blocks, STRIP + 1, W, BD, N) holds the states of a strip under the line before it;
    `line` what the row below hands up. dA (B, 2, D, N), dD (B, D), dbias (B, 2, D); dBC (blocks, B, H W, 3, N) is dB from
    above, dB from the left and dC."""
    blocks = tl.cdiv(dim, BD)
    block = tl.program_id(0) % blocks
    b = (tl.program_id(0) // blocks).to(tl.int64)
    lane = tl.arange(0, BD)
    d = block * BD + lane
    n = tl.arange(0, N)[:, None] + tl.zeros((N, BD), tl.int32)
    inside = d < dim
    tile_inside = (n < N) & inside[None, :]
    tile = d[None, :] * N + n
    own = lane[None, :] * N + n
    grad_y += b * grad_b
    u += b * u_b
    delta += b * delta_b
    B += b * B_b
    C += b * C_b
    du += b * rows * columns * dim
    ddelta += b * rows * columns * 2 * dim
    dBC += (block.to(tl.int64) * batch + b) * rows * columns * 3 * N
    folded = fold_offsets(N, STAGES)
    strips = tl.cdiv(rows, strip)
    line += tl.program_id(0).to(tl.int64) * columns * N * BD
    kept += tl.program_id(0).to(tl.int64) * strips * columns * N * BD
    parked += tl.program_id(0).to(tl.int64) * (strip + 1) * columns * N * BD
    A_T = tl.load(A + tile, mask=tile_inside, other=0.0)
    A_L = tl.load(A + dim * N + tile, mask=tile_inside, other=0.0)
    skip = load_channels(D, d, inside)
    shift_T = load_channels(bias, d, inside)
    shift_L = load_channels(bias, dim + d, inside)
    dA_T = tl.zeros((N, BD), tl.float32)
    dA_L = tl.zeros((N, BD), tl.float32)
    dD_row = tl.zeros((BD,), tl.float32)
    dbias_T = tl.zeros((BD,), tl.float32)
    dbias_L = tl.zeros((BD,), tl.float32)
    for reverse_strip in range(strips):
        first = (strips - 1 - reverse_strip) * strip
        count = tl.minimum(strip, rows - first)
        if first > 0:
            for j in range(columns):
                tl.store(parked + j * N * BD + own, tl.load(kept + (first // strip * columns + j) * N * BD + own))
        tl.debug_barrier()
        for r in range(count):
            above = parked + r * columns * N * BD
            advance_row(
                first + r, above, above + columns * N * BD, None, u, delta, B, C, skip, A_T * LOG2_E, A_L * LOG2_E,
                shift_T, shift_L, rows, columns, dim, u_l, delta_l, delta_g, B_l, B_g, C_l, own, d, n, inside, tile_inside,
                N, BD, U, REVERSE,
            )  # fmt: skip
        for reverse_r in range(count):
            r = count - 1 - reverse_r
            i = first + r
            above = parked + r * columns * N * BD
            carry = tl.zeros((N, BD), tl.float32)
            for done in range(0, columns, U):
                j = columns - 1 - done
                js = columns_of(j, columns, U + 1, -1)
                cells = cells_of(i, js, rows, columns, U, REVERSE)
                aboves = load_rows(above, js, N * BD, own, tile_inside & (i > 0), U)
                states = load_rows(above + columns * N * BD, js, N * BD, own, tile_inside, U + 1)
                handed = load_rows(line, js, N * BD, own, tile_inside & (i < rows - 1), U)
                us = load_rows(u, cells, u_l, d, inside, U)
                deltas_T = load_rows(delta, cells, delta_l, d, inside, U)
                deltas_L = load_rows(delta + delta_g, cells, delta_l, d, inside, U)
                grads = load_rows(grad_y, cells, grad_l, d, inside, U)
                Bs_T = load_rows(B, cells, B_l, n, tile_inside, U)
                Bs_L = load_rows(B + B_g, cells, B_l, n, tile_inside, U)
                Cs = load_rows(C, cells, C_l, n, tile_inside, U)
                for s in tl.static_range(U):
                    there = inside & (cells[s] >= 0)
                    x = us[s].to(tl.float32)
                    grad = grads[s].to(tl.float32)
                    raw_T = deltas_T[s].to(tl.float32) + shift_T
                    raw_L = deltas_L[s].to(tl.float32) + shift_L
                    dt_T = step_size(raw_T, True)
                    dt_L = step_size(raw_L, True)
                    top, left = weights(i, j - s)
                    e = grad[None, :] * Cs[s].to(tl.float32) + handed[s] + carry
                    e_T = top * e
                    e_L = left * e
                    up = e_T * tl.exp2(A_T * LOG2_E * dt_T[None, :])
                    carry = e_L * tl.exp2(A_L * LOG2_E * dt_L[None, :])
                    tl.store(line + js[s] * N * BD + own, up, mask=tile_inside & (js[s] >= 0))
                    s_T = up * aboves[s]
                    s_L = carry * states[s + 1]
                    dA_T += s_T * dt_T[None, :]
                    dA_L += s_L * dt_L[None, :]
                    b_T = tl.sum(e_T * Bs_T[s].to(tl.float32), axis=0)
                    b_L = tl.sum(e_L * Bs_L[s].to(tl.float32), axis=0)
                    ddelta_T = (tl.sum(s_T * A_T, axis=0) + x * b_T) * sigmoid(raw_T)
                    ddelta_L = (tl.sum(s_L * A_L, axis=0) + x * b_L) * sigmoid(raw_L)
                    dbias_T += ddelta_T
                    dbias_L += ddelta_L
                    dD_row += grad * x
                    du_row = skip * grad + dt_T * b_T + dt_L * b_L
                    tl.store(du + cells[s] * dim + d, du_row.to(du.dtype.element_ty), mask=there)
                    place = ddelta + cells[s] * 2 * dim + d
                    tl.store(place, ddelta_T.to(ddelta.dtype.element_ty), mask=there)
                    tl.store(place + dim, ddelta_L.to(ddelta.dtype.element_ty), mask=there)
                    sums = fold_channels(e_T * (dt_T * x)[None, :], e_L * (dt_L * x)[None, :], N, BD, STAGES)
                    tl.store(dBC + cells[s] * 3 * N + folded, sums, mask=(folded >= 0) & (cells[s] >= 0))
                    read = tl.sum(states[s] * grad[None, :], axis=1)
                    place = dBC + cells[s] * 3 * N + 2 * N + tl.arange(0, N)
                    tl.store(place, read, mask=(tl.arange(0, N) < N) & (cells[s] >= 0))
            tl.debug_barrier()
    tl.store(dA + b * 2 * dim * N + tile, dA_T, mask=tile_inside)
    tl.store(dA + (b * 2 + 1) * dim * N + tile, dA_L, mask=tile_inside)
    if dD is not None:
        tl.store(dD + b * dim + d, dD_row, mask=inside)
    if dbias is not None:
        tl.store(dbias + b * 2 * dim + d, dbias_T, mask=inside)
        tl.store(dbias + (b * 2 + 1) * dim + d, dbias_L, mask=inside)


def _scan_strides(u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[int, ...]:
    """Of images whose cells have one stride: (batch, cell) and for delta and B, (batch, cell, direction)."""
    return (*u.stride()[:2], *delta.stride()[:3], *B.stride()[:3], *C.stride()[:2])


def _prepare(*tensors: Tensor) -> list[Tensor]:
    """(B, H, W, ...) as (B, H W, ...) without a copy where it can be; the last two are B and C."""
    flat = [x.flatten(1, 2) for x in tensors]
    return [unit_rows(x) for x in flat[:-2]] + [vector_rows(x) for x in flat[-2:]]


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, reverse: bool
) -> Tensor:
    """See `visionssm_kernels.wavefront_scan`."""
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel():
        block = table_for(u.device).scan[A.shape[-1]][0]
        _run_forward(_prepare(u, delta, B, C), A, D, bias, y, None, u.shape, block, u.shape[1], reverse)
    return y


def _run_forward(
    images: list[Tensor], A: Tensor, D: Tensor | None, bias: Tensor | None, y: Tensor | None, kept: Tensor | None,
    shape: torch.Size, block: int, strip: int, reverse: bool,
) -> None:  # fmt: skip
    (batch, rows, columns, dim), d_state, (u, delta, B, C) = shape, A.shape[-1], images
    grid = batch * triton.cdiv(dim, block)
    line = torch.empty((grid, columns, block, d_state), dtype=torch.float32, device=u.device)
    A, D, bias = (x if x is None else x.contiguous() for x in (A, D, bias))
    with on_device(u):
        wavefront_forward_kernel[grid,](
            u, delta, A, B, C, D, bias, y, line, kept, rows, columns, dim, batch, strip, *_scan_strides(u, delta, B, C),
            N=d_state, BD=block, U=next(cells for largest, cells in GROUPS.items() if d_state <= largest), REVERSE=reverse,
            num_warps=1, maxnreg=255,
        )  # fmt: skip


def backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D and bias in the shapes and dtypes of these; None for a D or bias that is None."""
    (batch, rows, columns, dim), d_state = u.shape, A.shape[-1]
    if not u.numel():
        return tuple(x if x is None else torch.zeros_like(x) for x in (u, delta, A, B, C, D, bias))
    grad, *images = _prepare(grad, u, delta, B, C)
    block = min(table_for(u.device).scan_backward[d_state][0], 256 // d_state)  # twelve tiles are live
    strip = math.isqrt(rows - 1) + 1
    blocks = triton.cdiv(dim, block)
    grid = batch * blocks
    floats = {"dtype": torch.float32, "device": u.device}
    A, D, bias = (x if x is None else x.contiguous() for x in (A, D, bias))
    kept = torch.empty((grid, triton.cdiv(rows, strip), columns, block, d_state), **floats)
    if strip < rows:
        _run_forward(images, A, D, bias, None, kept, u.shape, block, strip, reverse)
    line = torch.empty((grid, columns, block, d_state), **floats)
    parked = torch.empty((grid, strip + 1, columns, block, d_state), **floats)
    du, ddelta = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (u, delta))
    dA = torch.empty((batch, 2, dim, d_state), **floats)
    dD, dbias = torch.empty((batch, dim), **floats), torch.empty((batch, 2, dim), **floats)
    dBC = torch.empty((blocks, batch, rows, columns, 3, d_state), **floats)
    with on_device(u):
        wavefront_backward_kernel[grid,](
            grad, images[0], images[1], A, *images[2:], D, bias, kept, line, parked, du, ddelta, dA, dBC, dD, dbias,
            rows, columns, dim, batch, strip, *grad.stride()[:2], *_scan_strides(*images),
            N=d_state, BD=block, U=1, STAGES=fold_stages(d_state, block), REVERSE=reverse, num_warps=1, maxnreg=255,
        )  # fmt: skip
    dBC = dBC.sum(0)
    dB, dC = (
        dBC[..., :2, :].to(B.dtype, copy=True, memory_format=torch.contiguous_format),
        dBC[..., 2, :].to(C.dtype, copy=True, memory_format=torch.contiguous_format),
    )
    return du, ddelta, dA.sum(0), dB, dC, None if D is None else dD.sum(0), None if bias is None else dbias.sum(0)
