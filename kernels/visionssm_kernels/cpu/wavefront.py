"""The two-dimensional scan and its gradient on the CPU: channels in lanes, cells row by row.

    h = a (gT h[i-1, j] + vT) + c (gL h[i, j-1] + vL)        g = exp(dt A)    v = dt B u    y = C . h + D u
    (a, c) = (0, 1) in the first row, (1, 0) in the first column, else (1/2, 1/2)

A task is one image and one vector of channels. Row by row is an order in which every cell finds both neighbours done, and one
line of states is all that the forward keeps: before a cell it holds the one above, after it the cell itself. The gradient
computes the states anew, keeps them for the task, and goes back the same way. Scanning from the other corner is the same with
negative strides. What a task computes depends on shapes alone, never on the number of threads.

Legend: B batch, H rows, W columns, D channels, N state, T from above, L from the left.
Layout: a line of W states, N vectors of channels each, in scratch.
Cost per cell and vector of channels: two exponentials and 8 more operations per state, two softplus; rows of u, both deltas and
y once. The gradient computes all states first, then takes each cell once more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from torch import Tensor

from .buffers import empty
from .rows import LANES_BYTES, compiled, to_columns, to_rows, zero
from .simd import (
    LANES,
    Emitter,
    add,
    atomic_next,
    fma,
    fresh_float_mode,
    load,
    load_f32_part,
    load_float,
    mul,
    operation,
    restore_float_mode,
    sigmoid,
    softplus,
    splat,
    store,
    store_f32_part,
    vec,
    zeros,
)  # fmt: skip
from .threads import Entry, reader, run_tasks

__all__ = ["backward", "forward"]

_LOG2E = math.log2(math.e)


@operation(vec, vec)
def exp2(e: Emitter, x: ir.Value) -> ir.Value:
    return e.exp2(x)


@operation(vec, types.int64)
def totals(e: Emitter, address: ir.Value) -> ir.Value:
    """The sums of as many vectors as a vector has lanes, which lie one after the other: one tree of shuffles for all."""
    step = ir.Constant(ir.IntType(64), LANES_BYTES)
    vectors = []
    for _ in range(LANES):
        vectors.append(e.load(address))
        address = e.b.add(address, step)
    return e.sums(vectors)


class Cells(NamedTuple):
    """A tensor (B, H, W, ...) of float32: where its first cell is, and strides in bytes."""

    data: int
    b: int
    h: int
    w: int


NOTHING = Cells(0, 0, 0, 0)


class WaveJob(NamedTuple):
    """Sizes, inputs, outputs. Of the backward: `y` holds grad_y; sums are kept per block of channels or per image."""

    batch: int
    rows: int
    columns: int
    channels: int
    states: int
    blocks: int
    u: Cells
    delta: Cells
    B: Cells
    C: Cells
    y: Cells
    A: int
    D: int
    bias: int
    du: Cells
    ddelta: Cells
    dB: Cells
    dC: Cells
    dA: int
    dD: int
    dbias: int
    counter: int


@compiled
def _cell(cells, b, i, j):
    return cells.data + b * cells.b + i * cells.h + j * cells.w


@compiled
def _row_or_zeros(source, left):
    return load_f32_part(source, left) if source != 0 else zeros()


@compiled
def _store_totals(vectors, count, target):
    """The sums of `count` vectors, as floats; what lies behind them in the last group is read, and not stored."""
    for k in range(0, count, LANES):
        store_f32_part(totals(vectors + k * LANES_BYTES), target + k * 4, min(LANES, count - k))


@compiled
def _weights(i, j):
    """What counts from above, and from the left."""
    if i == 0:
        return np.float32(0.0), np.float32(1.0)
    if j == 0:
        return np.float32(1.0), np.float32(0.0)
    return np.float32(0.5), np.float32(0.5)


@compiled
def _states(job, b, i, j, channel, left, a_log2, above, before, here, bias0, bias1, keep_y, skip):
    """The states of one cell from those above and to the left; writes the cell's output if asked."""
    N, one = job.states, LANES_BYTES
    x = load_f32_part(_cell(job.u, b, i, j) + channel * 4, left)
    delta = _cell(job.delta, b, i, j) + channel * 4
    dt0 = softplus(add(load_f32_part(delta, left), bias0))
    dt1 = softplus(add(load_f32_part(delta + job.channels * 4, left), bias1))
    x0, x1 = mul(dt0, x), mul(dt1, x)
    w0, w1 = _weights(i, j)
    top, left_ = splat(w0), splat(w1)
    at_B, at_C = _cell(job.B, b, i, j), _cell(job.C, b, i, j)
    y = mul(x, skip)
    for n in range(N):
        from_top = mul(x0, splat(load_float(at_B + n * 4)))
        from_top = fma(exp2(mul(dt0, load(a_log2 + n * one))), load(above + n * one), from_top)
        from_left = mul(x1, splat(load_float(at_B + (N + n) * 4)))
        from_left = fma(exp2(mul(dt1, load(a_log2 + (N + n) * one))), load(before + n * one), from_left)
        h = fma(top, from_top, mul(left_, from_left))
        store(h, here + n * one)
        y = fma(h, splat(load_float(at_C + n * 4)), y)
    if keep_y:
        store_f32_part(y, _cell(job.y, b, i, j) + channel * 4, left)


@compiled
def _enter(job, channel, left, a, scale):
    """A of both directions as columns."""
    for g in range(2):
        source = job.A + (g * job.channels + channel) * job.states * 4
        to_columns(a + g * job.states * LANES_BYTES, source, left, job.states, scale)


_read_job = reader(WaveJob)


@Entry
def _forward(at):
    """Takes tasks until none is left."""
    job = _read_job(at)
    mode = fresh_float_mode()
    one, column = LANES_BYTES, job.states * LANES_BYTES
    memory = np.empty((2 + job.columns + 1) * column + 64, np.uint8)
    a = (memory.ctypes.data + 63) // 64 * 64
    line = a + 2 * column  # the first column lies left of the image: zeros
    task = atomic_next(job.counter)
    while task < job.batch * job.blocks:
        b, channel = task // job.blocks, task % job.blocks * LANES
        left = min(job.channels - channel, LANES)
        _enter(job, channel, left, a, _LOG2E)
        zero(line, (job.columns + 1) * column // one)
        skip = _row_or_zeros(job.D + channel * 4 if job.D else 0, left)
        bias0 = _row_or_zeros(job.bias + channel * 4 if job.bias else 0, left)
        bias1 = _row_or_zeros(job.bias + (job.channels + channel) * 4 if job.bias else 0, left)
        for i in range(job.rows):
            for j in range(job.columns):
                here = line + (j + 1) * column
                _states(job, b, i, j, channel, left, a, here, here - column, here, bias0, bias1, True, skip)
        task = atomic_next(job.counter)
    restore_float_mode(mode)
    memory[0] = 0  # numba frees an array after its last use: this is it


@compiled
def _retreat(job, b, block, i, j, channel, left, a, a_log2, da, above, before, here, below, right, skip, sums, parts):
    """One cell of the backward. `below` and `right` hold what the states' gradient gets from there; after it, what goes on.

    `sums` holds bias 0 and 1, then gathers the gradients of bias 0, bias 1 and D. `parts` has room for those of B and C by lane.
    """
    N, one = job.states, LANES_BYTES
    x = load_f32_part(_cell(job.u, b, i, j) + channel * 4, left)
    dy = load_f32_part(_cell(job.y, b, i, j) + channel * 4, left)
    delta = _cell(job.delta, b, i, j) + channel * 4
    raw0 = add(load_f32_part(delta, left), load(sums))
    raw1 = add(load_f32_part(delta + job.channels * 4, left), load(sums + one))
    dt0, dt1 = softplus(raw0), softplus(raw1)
    x0, x1 = mul(dt0, x), mul(dt1, x)
    w0, w1 = _weights(i, j)
    top, left_ = splat(w0), splat(w1)
    at_B, at_C = _cell(job.B, b, i, j), _cell(job.C, b, i, j)
    at_dB = _cell(job.dB, block * job.batch + b, i, j)
    at_dC = _cell(job.dC, block * job.batch + b, i, j)
    ddt0, ddt1, in0, in1 = zeros(), zeros(), zeros(), zeros()
    for n in range(N):
        g = fma(dy, splat(load_float(at_C + n * 4)), add(load(below + n * one), load(right + n * one)))
        store(mul(load(here + n * one), dy), parts + (2 * N + n) * one)
        g0, g1 = mul(top, g), mul(left_, g)
        store(mul(g0, x0), parts + n * one)
        store(mul(g1, x1), parts + (N + n) * one)
        in0 = fma(g0, splat(load_float(at_B + n * 4)), in0)
        in1 = fma(g1, splat(load_float(at_B + (N + n) * 4)), in1)
        g0 = mul(g0, exp2(mul(dt0, load(a_log2 + n * one))))
        g1 = mul(g1, exp2(mul(dt1, load(a_log2 + (N + n) * one))))
        store(g0, below + n * one)
        store(g1, right + n * one)
        g0, g1 = mul(g0, load(above + n * one)), mul(g1, load(before + n * one))
        ddt0, ddt1 = fma(g0, load(a + n * one), ddt0), fma(g1, load(a + (N + n) * one), ddt1)
        store(fma(g0, dt0, load(da + n * one)), da + n * one)
        store(fma(g1, dt1, load(da + (N + n) * one)), da + (N + n) * one)
    _store_totals(parts, 2 * N, at_dB)
    _store_totals(parts + 2 * N * one, N, at_dC)
    dx = fma(in0, dt0, fma(in1, dt1, mul(dy, skip)))
    store_f32_part(dx, _cell(job.du, b, i, j) + channel * 4, left)
    d0, d1 = mul(fma(in0, x, ddt0), sigmoid(raw0)), mul(fma(in1, x, ddt1), sigmoid(raw1))
    ddelta = _cell(job.ddelta, b, i, j) + channel * 4
    store_f32_part(d0, ddelta, left)
    store_f32_part(d1, ddelta + job.channels * 4, left)
    store(add(load(sums + 2 * one), d0), sums + 2 * one)
    store(add(load(sums + 3 * one), d1), sums + 3 * one)
    store(fma(dy, x, load(sums + 4 * one)), sums + 4 * one)


@Entry
def _backward(at):
    """Takes tasks until none is left."""
    job = _read_job(at)
    mode = fresh_float_mode()
    one, column = LANES_BYTES, job.states * LANES_BYTES
    pitch = (job.columns + 1) * column
    memory = np.empty((9 + job.columns + 1) * column + (job.rows + 1) * pitch + (5 + LANES) * one + 64, np.uint8)
    a = (memory.ctypes.data + 63) // 64 * 64
    a_log2, da, right = a + 2 * column, a + 4 * column, a + 6 * column
    below = right + column
    sums = below + job.columns * column
    parts = sums + 5 * one  # three columns, and what `totals` reads behind them
    kept = parts + 3 * column + LANES * one  # the states, with a row above and a column to the left of zeros
    task = atomic_next(job.counter)
    while task < job.batch * job.blocks:
        b, block = task // job.blocks, task % job.blocks
        channel = block * LANES
        left = min(job.channels - channel, LANES)
        _enter(job, channel, left, a, 1.0)
        _enter(job, channel, left, a_log2, _LOG2E)
        zero(da, 2 * job.states)
        zero(below, job.columns * job.states)
        zero(sums, 5)
        skip = _row_or_zeros(job.D + channel * 4 if job.D else 0, left)
        bias0 = _row_or_zeros(job.bias + channel * 4 if job.bias else 0, left)
        bias1 = _row_or_zeros(job.bias + (job.channels + channel) * 4 if job.bias else 0, left)
        store(bias0, sums)
        store(bias1, sums + one)
        zero(kept, pitch // one)
        for i in range(job.rows):
            line = kept + (i + 1) * pitch
            zero(line, job.states)
            for j in range(job.columns):
                here = line + (j + 1) * column
                _states(
                    job, b, i, j, channel, left, a_log2, here - pitch, here - column, here, bias0, bias1, False, skip
                )
        for back in range(job.rows):
            i = job.rows - 1 - back
            zero(right, job.states)
            for other in range(job.columns):
                j = job.columns - 1 - other
                here = kept + (i + 1) * pitch + (j + 1) * column
                _retreat(
                    job, b, block, i, j, channel, left, a, a_log2, da, here - pitch, here - column, here,
                    below + j * column, right, skip, sums, parts,
                )  # fmt: skip
        for g in range(2):
            target = job.dA + ((b * 2 + g) * job.channels + channel) * job.states * 4
            to_rows(da + g * column, one, target, left, job.states, job.states)
            store_f32_part(load(sums + (2 + g) * one), job.dbias + ((b * 2 + g) * job.channels + channel) * 4, left)
        store_f32_part(load(sums + 4 * one), job.dD + (b * job.channels + channel) * 4, left)
        task = atomic_next(job.counter)
    restore_float_mode(mode)
    memory[0] = 0  # numba frees an array after its last use: this is it


def _refer(x: Tensor, reverse: bool) -> Cells:
    """Describes (B, H, W, ...), from the corner where the scan begins."""
    b, h, w = (4 * stride for stride in x.stride()[:3])
    if not reverse:
        return Cells(x.data_ptr(), b, h, w)
    return Cells(x.data_ptr() + (x.shape[1] - 1) * h + (x.shape[2] - 1) * w, b, -h, -w)


def _dense(x: Tensor) -> Tensor:
    """float32, cells contiguous within."""
    x = x.float()
    inner = x[:1, :1, :1]
    return x if inner.is_contiguous() else x.contiguous()


def _data(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, reverse: bool
) -> Tensor:
    """y: see `visionssm_kernels.wavefront`."""
    batch, rows, columns, channels = u.shape
    inputs = [_dense(x) for x in (u, delta, B, C)]
    A, D, bias = A.float().contiguous(), *(None if x is None else x.float().contiguous() for x in (D, bias))
    y = empty(*u.shape)
    blocks = -(-channels // LANES)

    def job(counter: int) -> WaveJob:
        return WaveJob(
            batch, rows, columns, channels, A.shape[2], blocks, *(_refer(x, reverse) for x in (*inputs, y)),
            _data(A), _data(D), _data(bias), NOTHING, NOTHING, NOTHING, NOTHING, 0, 0, 0, counter,
        )  # fmt: skip

    run_tasks(_forward, job, batch * blocks)
    return y.to(u.dtype)


def backward(
    grad: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of all inputs: see `visionssm_kernels.wavefront`."""
    batch, rows, columns, channels = u.shape
    states, blocks = A.shape[2], -(-channels // LANES)
    inputs = [_dense(x) for x in (u, delta, B, C, grad)]
    A_, D_, bias_ = A.float().contiguous(), *(None if x is None else x.float().contiguous() for x in (D, bias))
    du, ddelta = empty(*u.shape), empty(*delta.shape)
    dB = empty(blocks, batch, rows, columns, 2, states)
    dC = empty(blocks, batch, rows, columns, states)
    dA, dD, dbias = empty(batch, *A.shape), empty(batch, channels), empty(batch, 2, channels)

    def job(counter: int) -> WaveJob:
        outputs = (_refer(x, reverse) for x in (du, ddelta, dB.flatten(0, 1), dC.flatten(0, 1)))
        return WaveJob(
            batch, rows, columns, channels, states, blocks, *(_refer(x, reverse) for x in inputs),
            _data(A_), _data(D_), _data(bias_), *outputs, _data(dA), _data(dD), _data(dbias), counter,
        )  # fmt: skip

    run_tasks(_backward, job, batch * blocks)
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.sum(0).to(A.dtype),
        dB.sum(0).to(B.dtype),
        dC.sum(0).to(C.dtype),
        None if D is None else dD.sum(0).to(D.dtype),
        None if bias is None else dbias.sum(0).to(bias.dtype),
    )
