"""State space duality, causal, in chunks of matrix products: forward and backward.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T        y_t = C_t h_t + D x_t        one A and one dt per head, h is (N, P)
in a chunk that starts from H and ends in E, with a_t = sum_{s <= t} dt_s A and m_ts = exp(a_t - a_s) dt_s for s <= t:
    y = ((C B^T) * m) x + exp(a) C H + D x
    E = exp(a_end) H + sum_s exp(a_end - a_s) dt_s B_s x_s^T
backward, with G = dy x^T and dE:
    dx = ((C B^T) * m)^T dy + w B dE + D dy        w_s = exp(a_end - a_s) dt_s
    dC = (G * m) B + exp(a) dy H^T                 dB = (G * m)^T C + w x dE^T
    dH = exp(a_end) dE + sum_t exp(a_t) C_t dy_t^T
and dt gets its share of m, of w and, through a, a sum from the end of the chunk.

Legend: B batch, L positions, H heads, P channels of a head, G groups of heads that share B and C, N state, Q steps of a chunk.
Layout: a program owns (batch, chunk, head); its tiles are (Q, P), (Q, N), (Q, Q) and (N, P), products by tensor cores in the
dtype of x, sums in float32. (float32 would take three passes of TF32 and more registers than there are.) Chunks meet in two
small passes over their end states, (B, chunks, H, N, P) float32.
Cost per step and head: 2 Q (N + P) + 4 N P multiply-adds forward, 2.5 times that backward, on tensor cores; x, y, B and C once,
8 N P / Q bytes of states. No exponential but Q / 2 + 2: the recurrence element by element would take N P.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import exp, product, product_type
from .memory import on_device

__all__ = ["CHUNK", "backward", "forward"]

CHUNK = 32
SIZES = ("length", "chunks")


@triton.jit
def rows_of(pointer, t, length, stride, width, SIZE: tl.constexpr):
    """(Q, SIZE) tile of rows, zeros past the end and past `width`."""
    column = tl.arange(0, SIZE)[None, :]
    return tl.load(pointer + t[:, None] * stride + column, mask=(t < length)[:, None] & (column < width), other=0.0)


@triton.jit
def state_of(pointer, index, N, P, NN: tl.constexpr, PP: tl.constexpr):
    n = tl.arange(0, NN)[:, None]
    p = tl.arange(0, PP)[None, :]
    return tl.load(pointer + index * N * P + n * P + p, mask=(n < N) & (p < P), other=0.0)


@triton.jit
def steps_of(dt, A, t, length, heads, head):
    """dt (zero past the end), the running sum of dt A, and its value at the end of the chunk."""
    step = tl.load(dt + t * heads + head, mask=t < length, other=0.0)
    rate = tl.load(A + head)
    return step, tl.cumsum(step * rate, axis=0), tl.sum(step, axis=0) * rate, rate


@triton.jit(do_not_specialize=SIZES)
def chunk_kernel(
    x, dt, A, B, states, totals, length, chunks, heads, groups, P, N,
    BACKWARD: tl.constexpr, Q: tl.constexpr, TYPE: tl.constexpr, NN: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state at its end; or, BACKWARD with dy and C for x and B, to the gradient of that at its start.
    Grid (batch x chunks x heads); totals are a_end."""
    pid = tl.program_id(0)
    head = pid % heads
    c = pid // heads % chunks
    b = (pid // heads // chunks).to(tl.int64)
    t = c * Q + tl.arange(0, Q)
    step, a, end, _ = steps_of(dt + b * length * heads, A, t, length, heads, head)
    weight = exp(a) if BACKWARD else exp(end - a) * step
    group = head // (heads // groups)
    rows = rows_of(x + (b * length * heads + head) * P, t, length, heads * P, P, PP)
    keys = rows_of(B + (b * length * groups + group) * N, t, length, groups * N, N, NN).to(tl.float32) * weight[:, None]
    state = product(tl.trans(keys), rows, TYPE)
    n = tl.arange(0, NN)[:, None]
    p = tl.arange(0, PP)[None, :]
    tl.store(states + pid.to(tl.int64) * N * P + n * P + p, state, mask=(n < N) & (p < P))
    tl.store(totals + pid, end)


@triton.jit(do_not_specialize=SIZES)
def pass_kernel(states, totals, chunks, heads, size, BLOCK: tl.constexpr, BACKWARD: tl.constexpr):
    """states[c] becomes what enters chunk c (BACKWARD: what comes back to its end), in place. Grid (batch x heads x blocks)."""
    blocks = tl.cdiv(size, BLOCK)
    pid = tl.program_id(0) // blocks
    offset = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    carry = tl.zeros((BLOCK,), tl.float32)
    for i in range(chunks):
        c = chunks - 1 - i if BACKWARD else i
        index = ((pid // heads) * chunks + c).to(tl.int64) * heads + pid % heads
        added = tl.load(states + index * size + offset, mask=offset < size, other=0.0)
        tl.store(states + index * size + offset, carry, mask=offset < size)
        carry = exp(tl.load(totals + index)) * carry + added


@triton.jit(do_not_specialize=SIZES)
def output_kernel(
    x, dt, A, B, C, D, states, y, length, chunks, heads, groups, P, N,
    Q: tl.constexpr, TYPE: tl.constexpr, NN: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    """y (B, L, H, P). Grid (batch x chunks x heads)."""
    pid = tl.program_id(0)
    head = pid % heads
    c = pid // heads % chunks
    b = (pid // heads // chunks).to(tl.int64)
    s = tl.arange(0, Q)
    t = c * Q + s
    step, a, _, _ = steps_of(dt + b * length * heads, A, t, length, heads, head)
    group = head // (heads // groups)
    rows = rows_of(x + (b * length * heads + head) * P, t, length, heads * P, P, PP)
    B_tile = rows_of(B + (b * length * groups + group) * N, t, length, groups * N, N, NN)
    C_tile = rows_of(C + (b * length * groups + group) * N, t, length, groups * N, N, NN)
    before = s[:, None] >= s[None, :]
    m = tl.where(before, exp(tl.where(before, a[:, None] - a[None, :], 0.0)) * step[None, :], 0.0)
    out = product(product(C_tile, tl.trans(B_tile), TYPE) * m, rows, TYPE)
    state = state_of(states, pid.to(tl.int64), N, P, NN, PP)
    out += exp(a)[:, None] * product(C_tile, state, TYPE)
    if D is not None:
        out += tl.load(D + head) * rows.to(tl.float32)
    p = tl.arange(0, PP)[None, :]
    place = ((b * length + t[:, None]) * heads + head) * P + p
    tl.store(y + place, out.to(y.dtype.element_ty), mask=(t < length)[:, None] & (p < P))


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    dy, x, dt, A, B, C, D, states, dstates, dx, ddt, dA, dB, dC, dD, length, chunks, heads, groups, P, N,
    INPUT: tl.constexpr, Q: tl.constexpr, TYPE: tl.constexpr, NN: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    """dx (B, L, H, P), ddt (B, L, H), each program's dA and dD (B, chunks, H), each head's dB and dC (B, L, H, N):
    dx and dD with INPUT, else the others, for together they would not fit in registers. Grid (batch x chunks x heads)."""
    pid = tl.program_id(0)
    head = pid % heads
    c = pid // heads % chunks
    b = (pid // heads // chunks).to(tl.int64)
    s = tl.arange(0, Q)
    t = c * Q + s
    step, a, end, rate = steps_of(dt + b * length * heads, A, t, length, heads, head)
    group = head // (heads // groups)
    x_tile = rows_of(x + (b * length * heads + head) * P, t, length, heads * P, P, PP)
    dy_tile = rows_of(dy + (b * length * heads + head) * P, t, length, heads * P, P, PP)
    B_tile = rows_of(B + (b * length * groups + group) * N, t, length, groups * N, N, NN)
    C_tile = rows_of(C + (b * length * groups + group) * N, t, length, groups * N, N, NN)
    p = tl.arange(0, PP)[None, :]
    n = tl.arange(0, NN)[None, :]
    there = (t < length)[:, None]

    before = s[:, None] >= s[None, :]
    decay = tl.where(before, exp(tl.where(before, a[:, None] - a[None, :], 0.0)), 0.0)
    m = decay * step[None, :]
    tail = exp(end - a)
    CB = product(C_tile, tl.trans(B_tile), TYPE)
    dstate = state_of(dstates, pid.to(tl.int64), N, P, NN, PP)
    if INPUT:
        out = product(tl.trans(CB * m), dy_tile, TYPE) + (tail * step)[:, None] * product(B_tile, dstate, TYPE)
        if D is not None:
            out += tl.load(D + head) * dy_tile.to(tl.float32)
            tl.store(dD + pid, tl.sum(tl.sum(dy_tile.to(tl.float32) * x_tile.to(tl.float32), axis=1), axis=0))
        place = ((b * length + t[:, None]) * heads + head) * P + p
        tl.store(dx + place, out.to(dx.dtype.element_ty), mask=there & (p < P))
    else:
        place = ((b * length + t[:, None]) * heads + head) * N + n
        ahead = product(x_tile, tl.trans(dstate), TYPE)
        from_end = tail * tl.sum(B_tile.to(tl.float32) * ahead, axis=1)
        G = product(dy_tile, tl.trans(x_tile), TYPE)
        dB_tile = product(tl.trans(G * m), C_tile, TYPE) + (tail * step)[:, None] * ahead
        tl.store(dB + place, dB_tile, mask=there & (n < N))

        state = state_of(states, pid.to(tl.int64), N, P, NN, PP)
        dend = exp(end) * tl.sum(tl.sum(state * dstate, axis=1), axis=0) + tl.sum(step * from_end, axis=0)
        back = exp(a)[:, None] * product(dy_tile, tl.trans(state), TYPE)
        tl.store(dC + place, product(G * m, B_tile, TYPE) + back, mask=there & (n < N))

        direct = G * CB * decay
        through = direct * step[None, :]
        da = tl.sum(through, axis=1) - tl.sum(through, axis=0)
        da += tl.sum(C_tile.to(tl.float32) * back, axis=1) - step * from_end
        later = tl.sum(da, axis=0) - tl.cumsum(da, axis=0) + da + dend
        ddt_row = tl.sum(direct, axis=0) + from_end + rate * later
        tl.store(ddt + (b * length + t) * heads + head, ddt_row, mask=t < length)
        tl.store(dA + pid, tl.sum(step * later, axis=0))


def _sizes(x: Tensor, B: Tensor) -> tuple[int, dict[str, int]]:
    """Chunks, and the sizes of tiles: powers of two that tensor cores take."""
    tiles = {"NN": max(16, triton.next_power_of_2(B.shape[3])), "PP": max(16, triton.next_power_of_2(x.shape[3]))}
    warps = min(16, max(4, tiles["NN"] * tiles["PP"] // 512))
    return triton.cdiv(x.shape[1], CHUNK), {"Q": CHUNK, "TYPE": product_type(x.dtype), **tiles, "num_warps": warps}


def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, backward: bool) -> Tensor:
    (batch, length, heads, P), (_, _, groups, N) = x.shape, B.shape
    chunks, tiles = _sizes(x, B)
    states = torch.empty((batch, chunks, heads, N, P), dtype=torch.float32, device=x.device)
    totals = torch.empty((batch, chunks, heads), dtype=torch.float32, device=x.device)
    with on_device(x):
        chunk_kernel[batch * chunks * heads,](
            x, dt, A, B, states, totals, length, chunks, heads, groups, P, N, BACKWARD=backward, **tiles
        )
        pass_kernel[batch * heads * triton.cdiv(N * P, 256),](
            states, totals, chunks, heads, N * P, BLOCK=256, BACKWARD=backward, num_warps=1
        )
    return states


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """(y, the states that enter the chunks); see `visionssm_kernels.ssd_scan`, with dt final and float32."""
    x, dt, A, B, C, D = (t if t is None else t.contiguous() for t in (x, dt, A, B.to(x.dtype), C.to(x.dtype), D))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (batch, length, heads, P), (_, _, groups, N) = x.shape, B.shape
    chunks, tiles = _sizes(x, B)
    if not y.numel():
        return y, torch.zeros((batch, chunks, heads, N, P), dtype=torch.float32, device=x.device)
    states = _states(x, dt, A, B, False)
    with on_device(x):
        output_kernel[batch * chunks * heads,](
            x, dt, A, B, C, D, states, y, length, chunks, heads, groups, P, N, **tiles
        )
    return y, states


def backward(
    dy: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, dt, A, B, C and D in the shapes and dtypes of these; None for a D that is None."""
    if not x.numel():
        return tuple(t if t is None else torch.zeros_like(t) for t in (x, dt, A, B, C, D))
    dB_dtype, dC_dtype = B.dtype, C.dtype
    dy, x, dt, A, B, C, D = (
        t if t is None else t.contiguous() for t in (dy.to(x.dtype), x, dt, A, B.to(x.dtype), C.to(x.dtype), D)
    )
    (batch, length, heads, P), (_, _, groups, N) = x.shape, B.shape
    chunks, tiles = _sizes(x, B)
    dstates = _states(dy, dt, A, C, True)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    ddt = torch.empty(dt.shape, dtype=torch.float32, device=x.device)
    dA, dD = (torch.empty((batch, chunks, heads), dtype=torch.float32, device=x.device) for _ in range(2))
    dB, dC = (torch.empty((batch, length, heads, N), dtype=torch.float32, device=x.device) for _ in range(2))
    with on_device(x):
        for part in (True, False):
            gradient_kernel[batch * chunks * heads,](
                dy, x, dt, A, B, C, D, states, dstates, dx, ddt, dA, dB, dC, dD, length, chunks, heads, groups, P, N,
                INPUT=part, **tiles,
            )  # fmt: skip
    dB, dC = (t.unflatten(2, (groups, heads // groups)).sum(3) for t in (dB, dC))
    return dx, ddt, dA.sum((0, 1)), dB.to(dB_dtype), dC.to(dC_dtype), None if D is None else dD.sum((0, 1))
