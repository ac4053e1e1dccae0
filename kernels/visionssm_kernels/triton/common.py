"""Small device functions shared by the Triton kernels.

Legend: N state, R rank of dt's projection, BD channels of one block, U steps loaded together. Tiles are (N, BD), rows are (BD,).
Positions are int64, because position x stride overruns int32 on large volumes; -1 is a step without a token.
"""

import torch
import triton
import triton.language as tl

# Arguments that vary from call to call: no kernel of their own for a multiple of 16 or for 1.
SIZES = ("L", "T", "batch", "chunks", "segment", "phase")

LOG2_E = tl.constexpr(1.4426950408889634)

_HALVES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def product_type(dtype: torch.dtype) -> tl.dtype:
    """The dtype in which tensor cores multiply numbers of `dtype`; the interpreter has no product of bfloat16."""
    return tl.float32 if triton.knobs.runtime.interpret else _HALVES.get(dtype, tl.float32)


@triton.jit
def product(left, right, TYPE: tl.constexpr):
    """A product of matrices, added up in float32; float32 itself takes three passes of TF32."""
    return tl.dot(left.to(TYPE), right.to(TYPE), input_precision="tf32x3")


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def log1p(e):
    """log(1 + e) for 0 <= e <= 1 to float32 rounding, small e included (there log(1 + e) would lose its digits).

    2 atanh(s) with s = e / (2 + e) <= 1/3; the first term left out is 2 s^17 / 17 < 1e-9 of the sum.
    """
    s = e / (2.0 + e)
    q = s * s
    p = 1.0 / 13.0 + q * (1.0 / 15.0)
    p = 1.0 / 11.0 + q * p
    p = 1.0 / 9.0 + q * p
    p = 1.0 / 7.0 + q * p
    p = 1.0 / 5.0 + q * p
    p = 1.0 / 3.0 + q * p
    return 2.0 * s + 2.0 * s * q * p


@triton.jit
def step_size(raw, SOFTPLUS: tl.constexpr):
    """dt of a row of delta + bias."""
    dt = raw
    if SOFTPLUS:
        dt = tl.maximum(raw, 0.0) + log1p(exp(-tl.abs(raw)))
    return dt


@triton.jit
def sigmoid(x):
    e = exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def load_position(order, t, T):
    """Position visited at step t; -1 for a padding step and outside 0..T-1. `order` None is the identity."""
    within = (t >= 0) & (t < T)
    position = tl.where(within, t, -1) if order is None else tl.load(order + t, mask=within, other=-1)
    return position.to(tl.int64)


@triton.jit
def load_positions(order, t, T, U: tl.constexpr):
    positions = ()
    for i in tl.static_range(U):
        positions = positions + (load_position(order, t + i, T),)
    return positions


@triton.jit
def load_rows(pointer, positions, stride, offsets, mask, U: tl.constexpr):
    """U rows (or tiles) of offsets' shape, one per position, zeros at -1, in their own dtype: all loads in
    flight together."""
    rows = ()
    for i in tl.static_range(U):
        rows = rows + (tl.load(pointer + positions[i] * stride + offsets, mask=mask & (positions[i] >= 0), other=0.0),)
    return rows


@triton.jit
def load_weight(dt_weight, channels, rank, inside, R: tl.constexpr, dtype):
    """The (BD, R) part of `dt_weight` that belongs to rows `channels`, zeros past `rank`, rounded to `dtype`."""
    r = tl.arange(0, R)[None, :]
    at = dt_weight + channels[:, None] * rank + r
    return tl.load(at, mask=inside[:, None] & (r < rank), other=0.0).to(dtype)


@triton.jit
def project_rows(low, weight, order, t, T, stride, rank, U: tl.constexpr, R: tl.constexpr, HALVINGS: tl.constexpr,
                 TYPE: tl.constexpr):  # fmt: skip
    """U rows weight @ low[position] of the steps from t on, zeros where there is no token: one product for all U, taken apart.

    2^HALVINGS is U.
    """
    BD: tl.constexpr = weight.shape[0]
    positions = load_position(order, t + tl.arange(0, U), T)[None, :]
    r = tl.arange(0, R)[:, None]
    columns = tl.load(low + positions * stride + r, mask=(positions >= 0) & (r < rank), other=0.0)
    parts = (tl.trans(product(weight, columns, TYPE)),)
    for i in tl.static_range(HALVINGS):
        halves = ()
        for j in tl.static_range(1 << i):
            pairs = tl.permute(tl.reshape(parts[j], (2, U >> (i + 1), BD)), (1, 2, 0))
            halves = halves + tl.split(pairs)
        parts = halves
    rows = ()
    for i in tl.static_range(U):
        rows = rows + (tl.reshape(parts[i], (BD,)),)
    return rows


@triton.jit
def step_sizes(deltas, shift, t, T, U: tl.constexpr, SOFTPLUS: tl.constexpr):
    """U rows of dt. Past the end dt is 0, so that the state stays; a padding step inside the route has raw delta 0."""
    dts = ()
    for i in tl.static_range(U):
        dts = dts + (tl.where(t + i < T, step_size(deltas[i].to(tl.float32) + shift, SOFTPLUS), 0.0),)
    return dts


@triton.jit
def decay_steps(dts, t, T, segment, phase, U: tl.constexpr, RESTARTS: tl.constexpr):
    """U rows of dt as the decay shall see them: so large where the state restarts that exp(dt A) is 0."""
    if RESTARTS:
        rows = ()
        for i in tl.static_range(U):
            rows = rows + (tl.where((t + i < T) & ((t + i + phase) % segment == 0), 1e30, dts[i]),)
        return rows
    return dts


@triton.jit
def load_channels(pointer, offsets, mask):
    """A float32 row of per-channel parameters; None is zero."""
    zero = tl.zeros(offsets.shape, tl.float32)
    return zero if pointer is None else tl.load(pointer + offsets, mask=mask, other=0.0)


@triton.jit
def advance(h, decay, dt, u, b):
    """One step of the recurrence: (N, BD) state, `decay` = exp(dt A)."""
    return decay * h + (dt * u.to(tl.float32))[None, :] * b.to(tl.float32)
