"""The loops over the steps of a tile, for a few states of one vector of channels: everything the scan spends its time in.

A group of G states is held in registers; `scan_forward.py` and `scan_backward.py` call these for the groups of 8, 4, 2, 1 that
make up N, so that any N is served by the same code. All arguments are addresses of scratch memory and byte strides:

    dt, x, y, ...   one vector per step, contiguous (x = dt * u)
    b, c            one float per state and step, `pitch` bytes apart
    a_log2, a       one vector per state, contiguous: A * log2(e) and A
    h, carry, da    one vector per state, contiguous: read before and written after the loop
    kept, decays    (steps, G) vectors, contiguous: the states after, and the decays of, every step

Those named after rows work on the rows of float32 tensors themselves, for W whole vectors of channels or for `left` channels of
one: a row of step t is at `..._at + positions[t] * ..._stride` bytes. Rows needed soon, at the positions `following`, are asked
for on the way, one by one between arithmetic: asked for all at once, they would be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import BF16, F32, LANES, MASKS, Emitter, positional

__all__ = [
    "KEPT", "LONG_TAPS", "LONG_WIDTHS", "NARROW", "TOGETHER", "WIDTHS", "convolve_along", "convolve_along_silu", "copy_rows",
    "enter_back_rows", "enter_rows", "leave_back_rows", "project_steps", "replay_rows", "retreat_rows", "scan_backward",
    "scan_backward_dh", "scan_end", "scan_fade", "scan_forward", "scan_forward_keep", "scan_forward_rows", "scan_replay",
    "scan_rows", "scan_rows_adding", "sum_taps",
]  # fmt: skip

_BYTES = 4 * LANES
WIDTHS = (6, 4, 3, 2, 1)  # vectors of channels that a task may have
TOGETHER = 16 if MASKS else 8  # steps that `project_steps` has in registers
NARROW = (3, 2, 1)  # as many as the gradient of one state takes at a time: what it keeps stays in the L1 cache


def _advance(
    size: int, e: Emitter, dt: ir.Value, x: ir.Value, b: ir.Value, pitch: ir.Value, a_log2: ir.Value, h: ir.Value,
    steps: ir.Value, *, y: ir.Value | None = None, c: ir.Value | None = None, kept: ir.Value | None = None,
    decays: ir.Value | None = None, out: _Column | None = None, asked: Sequence[ir.Value] = (),
) -> None:  # fmt: skip
    rates, start = ([e.load(e.offset(at, n, _BYTES)) for n in range(size)] for at in (a_log2, h))

    def step(t: ir.Value, *h: ir.Value) -> list[ir.Value]:
        _ask(e, t, asked)
        here, there = e.offset(dt, t, _BYTES), e.b.mul(t, pitch)
        dt_t, x_t, b_t = e.load(here), e.load(e.offset(x, t, _BYTES)), e.b.add(b, there)
        decay = e.interleaved([partial(e.exp2, dt_t, rate) for rate in rates])
        input_ = [e.b.fmul(x_t, e.load_splat(e.offset(b_t, n, 4))) for n in range(size)]
        h = [e.fma(decay[n], h[n], input_[n]) for n in range(size)]
        if y is not None and c is not None:
            y_t, c_t = e.offset(y, t, _BYTES), e.b.add(c, there)
            parts = [e.load(y_t), e.constant(0.0)][: 2 if size > 2 else 1]  # two chains
            for n in range(size):
                parts[n % len(parts)] = e.fma(h[n], e.load_splat(e.offset(c_t, n, 4)), parts[n % len(parts)])
            total = parts[0] if len(parts) == 1 else e.b.fadd(*parts)
            if out is None:
                e.store(total, y_t)
            else:
                out.add(total, t)
        for at, values in ((kept, h), (decays, decay)):
            if at is not None:
                e.store_all(values, e.offset(at, t, size * _BYTES))
        return h

    for n, value in enumerate(e.loop(steps, start, step)):
        e.store(value, e.offset(h, n, _BYTES))


def _forward(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    dt, x, y, b, c, pitch, a_log2, h, *asked, steps = arguments
    _advance(size, e, dt, x, b, pitch, a_log2, h, steps, y=y, c=c, asked=asked)


def _forward_rows(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    (dt, x, y, b, c, pitch, a_log2, h, left, out, out_stride, positions, adding, u, u_stride, delta, delta_stride, following,
     steps) = arguments  # fmt: skip
    asked = (u, u_stride, delta, delta_stride, out, out_stride, following)
    column = _Column(e, out, out_stride, positions, left, adding)
    _advance(size, e, dt, x, b, pitch, a_log2, h, steps, y=y, c=c, out=column, asked=asked)


def _forward_keep(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    dt, x, y, b, c, pitch, a_log2, h, kept, steps = arguments
    _advance(size, e, dt, x, b, pitch, a_log2, h, steps, y=y, c=c, kept=kept)


def _replay(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    dt, x, b, pitch, a_log2, h, kept, decays, *asked, steps = arguments
    _advance(size, e, dt, x, b, pitch, a_log2, h, steps, kept=kept, decays=decays, asked=asked)


def _end(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    dt, x, b, pitch, a_log2, h, steps = arguments
    _advance(size, e, dt, x, b, pitch, a_log2, h, steps)


def _retreat(size: int, e: Emitter, arguments: Sequence[ir.Value], *, with_dh: bool) -> None:
    (dt_at, x_at, dy_at, dx_at, ddt_at, b_at, c_at, db_at, dc_at, pitch, a_at, carry_at, da_at, before_at, kept_at,
     decays_at, dh_at, *asked, steps) = arguments  # fmt: skip
    rates = [e.load(e.offset(a_at, n, _BYTES)) for n in range(size)]
    start = [e.load(e.offset(at, n, _BYTES)) for at in (carry_at, da_at) for n in range(size)]
    sums_kind = ir.VectorType(ir.FloatType(), size)

    def step(t: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        _ask(e, t, asked)
        carry, da = carried[:size], list(carried[size:])
        here, states = (e.b.mul(t, ir.Constant(t.type, count * _BYTES)) for count in (1, size))
        there = e.b.mul(t, pitch)
        dt, x, dy = (e.load(e.b.add(at, here)) for at in (dt_at, x_at, dy_at))
        dx, ddt = (e.load(e.b.add(at, here)) for at in (dx_at, ddt_at))
        new, to_b, to_c = [], [], []
        for n in range(size):
            h, before, decay = (
                e.load(e.offset(e.b.add(at, states), n, _BYTES)) for at in (kept_at, before_at, decays_at)
            )
            b, c = (e.load_splat(e.offset(e.b.add(at, there), n, 4)) for at in (b_at, c_at))
            g = carry[n]
            if with_dh:
                g = e.b.fadd(g, e.load(e.offset(e.b.add(dh_at, states), n, _BYTES)))
            g = e.fma(dy, c, g)
            to_c.append(e.b.fmul(h, dy))
            to_b.append(e.b.fmul(g, x))
            dx = e.fma(g, b, dx)
            g = e.b.fmul(g, decay)
            new.append(g)
            g = e.b.fmul(g, before)
            ddt = e.fma(g, rates[n], ddt)
            da[n] = e.fma(g, dt, da[n])
        e.store(dx, e.b.add(dx_at, here))
        e.store(ddt, e.b.add(ddt_at, here))
        totals = e.sums([*to_b, *to_c])
        for at, first in ((db_at, 0), (dc_at, size)):
            target = e.b.add(at, there)
            part = e.shuffle(totals, totals, range(first, first + size))
            e.store(e.b.fadd(part, e.load(target, sums_kind)), target)
        return [*new, *da]

    end = e.loop(steps, start, step, backwards=True)
    for n in range(size):
        e.store(end[n], e.offset(carry_at, n, _BYTES))
        e.store(end[size + n], e.offset(da_at, n, _BYTES))


def _fade(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    dt_at, dy_at, c_at, pitch, a_at, carry_at, steps = arguments
    rates, start = ([e.load(e.offset(at, n, _BYTES)) for n in range(size)] for at in (a_at, carry_at))

    def step(t: ir.Value, *carry: ir.Value) -> list[ir.Value]:
        dt, dy, c_t = e.load(e.offset(dt_at, t, _BYTES)), e.load(e.offset(dy_at, t, _BYTES)), e.offset(c_at, t, pitch)
        g = [e.fma(dy, e.load_splat(e.offset(c_t, n, 4)), carry[n]) for n in range(size)]
        return [e.b.fmul(g[n], e.exp2(dt, rate)) for n, rate in enumerate(rates)]

    for n, value in enumerate(e.loop(steps, start, step, backwards=True)):
        e.store(value, e.offset(carry_at, n, _BYTES))


def _ask(e: Emitter, t: ir.Value, asked: Sequence[ir.Value]) -> None:
    """Asks for vectors of the rows (address, stride, ...) that are needed soon, at the position `following[t]`."""
    *rows, following = asked or (None,)
    for at, stride in zip(rows[::2], rows[1::2], strict=True):
        e.prefetch(e.offset(at, *_positions(e, t, following), stride))


def _copy_rows(kind: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    left, source, stride, target, pitch, positions, following, asked, steps = arguments
    none = ir.Constant(left.type, 0)
    size = ir.Constant(left.type, 4 if kind == F32 else 2)
    lanes = ir.Constant(left.type, LANES)
    there = e.b.select(e.b.icmp_signed("<", left, lanes), left, lanes)
    end = e.b.add(source, e.b.sub(e.b.mul(there, size), ir.Constant(left.type, 1)))

    def copy(t: ir.Value) -> None:
        (here,) = _positions(e, t, positions)
        mask = e.mask(e.b.select(e.b.icmp_signed("<", here, none), none, left))
        e.store(e.load_as(kind, e.offset(source, here, stride), mask), e.offset(target, t, pitch))

    def copy_and_ask(t: ir.Value) -> list[ir.Value]:
        copy(t)
        row = e.b.mul(*_positions(e, t, following), stride)
        for at in (source, end):  # a row may begin within a cache line
            e.prefetch(e.b.add(at, row))
        return []

    def copy_rest(t: ir.Value) -> list[ir.Value]:
        copy(e.b.add(asked, t))
        return []

    e.loop(asked, [], copy_and_ask)
    e.loop(e.b.sub(steps, asked), [], copy_rest)


class _Column:
    """One vector of every row of a tensor: `left` channels of it, if masks cost nothing here, else all. Writes float32 only."""

    def __init__(
        self, e: Emitter, at: ir.Value, stride: ir.Value, positions: ir.Value, left: ir.Value, adding: ir.Value | None = None,
        kind: int = F32,
    ) -> None:  # fmt: skip
        self.e, self.at, self.stride, self.positions, self.kind = e, at, stride, positions, kind
        self.mask = e.mask(left) if MASKS else None
        if adding is not None:
            yes = e.b.icmp_signed("!=", adding, ir.Constant(adding.type, 0))
            self.adding = e.mask(e.b.select(yes, left, adding))

    def _address(self, t: ir.Value) -> ir.Value:
        return self.e.offset(self.at, *_positions(self.e, t, self.positions), self.stride)

    def load(self, t: ir.Value) -> ir.Value:
        return self.e.load_as(self.kind, self._address(t), self.mask)

    def store(self, value: ir.Value, t: ir.Value) -> None:
        self._store(value, self._address(t))

    def add(self, value: ir.Value, t: ir.Value) -> None:
        """Adds to what is there if `adding` is not 0, else replaces it."""
        at = self._address(t)
        self._store(self.e.b.fadd(value, self.e.load_part(at, self.adding)), at)

    def _store(self, value: ir.Value, at: ir.Value) -> None:
        if self.mask is None:
            self.e.store(value, at)
        else:
            self.e.store_part(value, at, self.mask)


class _Rows:
    """The rows of W vectors of one tensor, and those of the next tile."""

    def __init__(self, e: Emitter, at: ir.Value, stride: ir.Value, *, write: bool = False) -> None:
        self.e, self.at, self.stride, self.write = e, at, stride, write

    def go(self, here: ir.Value, next_: ir.Value) -> None:
        self.row, self.coming = (self.e.offset(self.at, position, self.stride) for position in (here, next_))

    def ask(self, v: int) -> None:
        self.e.prefetch(self.e.offset(self.coming, v, _BYTES), write=self.write)

    def load(self, v: int) -> ir.Value:
        return self.e.load(self.e.offset(self.row, v, _BYTES))


def _positions(e: Emitter, t: ir.Value, *tables: ir.Value) -> list[ir.Value]:
    return [e.load(e.offset(table, t, 8), ir.IntType(64)) for table in tables]


def _begin_steps(
    e: Emitter, delta: _Column, bias_at: ir.Value, small_at: ir.Value, raw_at: ir.Value, steps: ir.Value
) -> None:  # fmt: skip
    """The first half of softplus in a loop of its own: a processor looks too few ahead to overlap chains as long as both."""
    bias = e.load(bias_at)

    def begin(t: ir.Value) -> list[ir.Value]:
        raw = e.b.fadd(delta.load(t), bias)
        e.store(raw, e.offset(raw_at, t, _BYTES))
        e.store(e.exp_of_minus_abs(raw), e.offset(small_at, t, _BYTES))
        return []

    e.loop(steps, [], begin)


def _enter(kind: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    (left, u_at, u_stride, delta_at, delta_stride, bias_at, skip_at, x_at, dt_at, y_at, positions, delta_positions,
     steps) = arguments  # fmt: skip
    u_rows = _Column(e, u_at, u_stride, positions, left, kind=kind)
    delta_rows = _Column(e, delta_at, delta_stride, delta_positions, left, kind=kind)
    _begin_steps(e, delta_rows, bias_at, x_at, dt_at, steps)
    skip = e.load(skip_at)

    def finish(t: ir.Value) -> list[ir.Value]:
        u, x_t, dt_t = u_rows.load(t), e.offset(x_at, t, _BYTES), e.offset(dt_at, t, _BYTES)
        dt = e.softplus_of(e.load(dt_t), e.load(x_t))
        for value, at in ((dt, dt_t), (e.b.fmul(u, dt), x_t), (e.b.fmul(u, skip), e.offset(y_at, t, _BYTES))):
            e.store(value, at)
        return []

    e.loop(steps, [], finish)


def _enter_back(kind: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    (left, u_at, u_stride, delta_at, delta_stride, dy_at, dy_stride, bias_at, x_at, dt_at, dy_to, slope_at, positions,
     steps) = arguments  # fmt: skip
    u_rows, delta_rows, dy_rows = (
        _Column(e, at, stride, positions, left, kind=kind)
        for at, stride in ((u_at, u_stride), (delta_at, delta_stride), (dy_at, dy_stride))
    )
    _begin_steps(e, delta_rows, bias_at, x_at, dt_at, steps)

    def finish(t: ir.Value) -> list[ir.Value]:
        x_t, dt_t = e.offset(x_at, t, _BYTES), e.offset(dt_at, t, _BYTES)
        raw, small = e.load(dt_t), e.load(x_t)
        dt = e.softplus_of(raw, small)
        for value, at in (
            (dt, dt_t),
            (e.b.fmul(u_rows.load(t), dt), x_t),
            (e.sigmoid_of(raw, small), e.offset(slope_at, t, _BYTES)),
            (dy_rows.load(t), e.offset(dy_to, t, _BYTES)),
        ):
            e.store(value, at)
        return []

    e.loop(steps, [], finish)


def _leave_back(_: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    (left, u_at, u_stride, dy_at, du_at, du_stride, ddelta_at, ddelta_stride, dt_at, slope_at, dx_at, ddt_at, skip_at,
     dskip_at, dbias_at, positions, adding, steps) = arguments  # fmt: skip
    u_rows, ddelta_rows = (
        _Column(e, at, stride, positions, left) for at, stride in ((u_at, u_stride), (ddelta_at, ddelta_stride))
    )
    du_rows, skip = _Column(e, du_at, du_stride, positions, left, adding), e.load(skip_at)

    def step(t: ir.Value, dskip: ir.Value, dbias: ir.Value) -> list[ir.Value]:
        dt, slope, dx, ddt, dy = (e.load(e.offset(at, t, _BYTES)) for at in (dt_at, slope_at, dx_at, ddt_at, dy_at))
        u = u_rows.load(t)
        du_rows.add(e.fma(dx, dt, e.b.fmul(dy, skip)), t)
        raw = e.b.fmul(e.fma(dx, u, ddt), slope)
        ddelta_rows.store(raw, t)
        return [e.fma(dy, u, dskip), e.b.fadd(dbias, raw)]

    for value, at in zip(e.loop(steps, [e.load(dskip_at), e.load(dbias_at)], step), (dskip_at, dbias_at), strict=True):
        e.store(value, at)


def _project_steps(size: int, e: Emitter, arguments: Sequence[ir.Value]) -> None:
    low, low_pitch, weight, rank, target, pitch = arguments

    def add(r: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        factor, row = e.load(e.offset(weight, r, _BYTES)), e.offset(low, r, low_pitch)
        return [e.fma(factor, e.load_splat(e.offset(row, t, 4)), total) for t, total in enumerate(totals)]

    for t, total in enumerate(e.loop(rank, [e.constant(0.0)] * size, add)):
        e.store(total, e.offset(target, t, pitch))


def _scan_rows(width: int, e: Emitter, arguments: Sequence[ir.Value], *, adding: bool) -> None:
    (u_at, u_stride, delta_at, delta_stride, y_at, y_stride, b_at, b_stride, c_at, c_stride, bias_at, skip_at, a_at, h_at,
     small_at, dt_at, positions, following, delta_positions, delta_following, steps) = arguments  # fmt: skip
    u_rows, delta_rows = _Rows(e, u_at, u_stride), _Rows(e, delta_at, delta_stride)
    y_rows = _Rows(e, y_at, y_stride, write=True)
    bias, skip, rate, start = (
        [e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (bias_at, skip_at, a_at, h_at)
    )

    def place(at: ir.Value, t: ir.Value, v: int) -> ir.Value:
        return e.offset(e.offset(at, t, width * _BYTES), v, _BYTES)

    # three loops, as a processor looks too few steps ahead to overlap chains as long as all of it
    def begin(t: ir.Value) -> list[ir.Value]:
        delta_rows.go(*_positions(e, t, delta_positions, delta_following))
        for v in range(width):
            delta_rows.ask(v)
            raw = e.b.fadd(delta_rows.load(v), bias[v])
            e.store(raw, place(dt_at, t, v))
            e.store(e.exp_of_minus_abs(raw), place(small_at, t, v))
        return []

    def go_on(t: ir.Value) -> list[ir.Value]:
        u_rows.go(*_positions(e, t, positions, following))
        for v in range(width):
            u_rows.ask(v)
            e.store(e.softplus_of(e.load(place(dt_at, t, v)), e.load(place(small_at, t, v))), place(dt_at, t, v))
        return []

    def finish(t: ir.Value, *h: ir.Value) -> list[ir.Value]:
        here, next_ = _positions(e, t, positions, following)
        u_rows.go(here, next_), y_rows.go(here, next_)
        b, c = (e.load_splat(e.offset(at, here, stride)) for at, stride in ((b_at, b_stride), (c_at, c_stride)))
        states = []
        for v in range(width):
            y_rows.ask(v)
            u, dt = u_rows.load(v), e.load(place(dt_at, t, v))
            state = e.fma(e.exp2(dt, rate[v]), h[v], e.b.fmul(e.b.fmul(dt, u), b))
            y = e.fma(state, c, e.b.fmul(u, skip[v]))
            e.store(e.b.fadd(y, y_rows.load(v)) if adding else y, e.offset(y_rows.row, v, _BYTES))
            states.append(state)
        return states

    e.loop(steps, [], begin)
    e.loop(steps, [], go_on)
    for v, value in enumerate(e.loop(steps, start, finish)):
        e.store(value, e.offset(h_at, v, _BYTES))


KEPT = 4  # vectors that `replay_rows` leaves of a step: time step, its slope, decay, state


def _replay_rows(width: int, e: Emitter, arguments: tuple[ir.Value, ...]) -> None:
    (u_at, u_stride, delta_at, delta_stride, dy_at, dy_stride, du_at, du_stride, ddelta_at, ddelta_stride, b_at, b_stride,
     bias_at, a_at, h_at, kept_at, positions, following, steps) = arguments  # fmt: skip
    u_rows, delta_rows = _Rows(e, u_at, u_stride), _Rows(e, delta_at, delta_stride)
    needed = (
        _Rows(e, dy_at, dy_stride), _Rows(e, du_at, du_stride, write=True), _Rows(e, ddelta_at, ddelta_stride, write=True)
    )  # fmt: skip
    bias, rate, start = ([e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (bias_at, a_at, h_at))
    for v in range(width):  # the state before the first step lies where that after step -1 would
        e.store(start[v], e.offset(kept_at, KEPT * (v - width) + 3, _BYTES))

    def step(t: ir.Value, *h: ir.Value) -> list[ir.Value]:
        here, next_ = _positions(e, t, positions, following)
        u_rows.go(here, next_), delta_rows.go(here, next_)
        for rows in needed:
            rows.go(here, here)
        b = e.load_splat(e.offset(b_at, here, b_stride))
        row = e.offset(kept_at, t, width * KEPT * _BYTES)

        def advance(v: int) -> ir.Value:
            for rows in (u_rows, delta_rows, *needed):
                rows.ask(v)
            x = e.b.fadd(delta_rows.load(v), bias[v])
            small = e.exp_of_minus_abs(x)
            dt = e.softplus_of(x, small)
            decay = e.exp2(dt, rate[v])
            state = e.fma(decay, h[v], e.b.fmul(e.b.fmul(dt, u_rows.load(v)), b))
            for i, value in enumerate((dt, e.sigmoid_of(x, small), decay, state)):
                e.store(value, e.offset(row, v * KEPT + i, _BYTES))
            return state

        return e.interleaved([partial(advance, v) for v in range(width)])

    e.loop(steps, start, step)


def _retreat_rows(width: int, e: Emitter, arguments: tuple[ir.Value, ...]) -> None:
    (u_at, u_stride, dy_at, dy_stride, du_at, du_stride, ddelta_at, ddelta_stride, b_at, b_stride, c_at, c_stride, db_at,
     dc_at, skip_at, a_at, carry_at, da_at, dskip_at, dbias_at, kept_at, positions, adding, steps) = arguments  # fmt: skip
    u_rows, dy_rows = _Rows(e, u_at, u_stride), _Rows(e, dy_at, dy_stride)
    du_rows, ddelta_rows = _Rows(e, du_at, du_stride), _Rows(e, ddelta_at, ddelta_stride)
    skip, rate = ([e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (skip_at, a_at))
    sums = (carry_at, da_at, dskip_at, dbias_at)
    start = [e.load(e.offset(at, v, _BYTES)) for at in sums for v in range(width)]
    there = e.mask(adding)

    def step(t: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        (here,) = _positions(e, t, positions)
        for rows in (u_rows, dy_rows, du_rows, ddelta_rows):
            rows.go(here, here)
        b, c = (e.load_splat(e.offset(at, here, stride)) for at, stride in ((b_at, b_stride), (c_at, c_stride)))
        row = e.offset(kept_at, t, width * KEPT * _BYTES)
        to_b = to_c = None
        new = list(carried)
        for v in range(width):
            carry, da, dskip, dbias = carried[v::width]
            dt, slope, decay, state = (e.load(e.offset(row, v * KEPT + i, _BYTES)) for i in range(KEPT))
            before = e.load(e.offset(row, KEPT * (v - width) + 3, _BYTES))
            u, dy = u_rows.load(v), dy_rows.load(v)
            g = e.fma(dy, c, carry)
            x = e.b.fmul(dt, u)
            to_c = e.b.fmul(state, dy) if to_c is None else e.fma(state, dy, to_c)
            to_b = e.b.fmul(g, x) if to_b is None else e.fma(g, x, to_b)
            dx, carry = e.b.fmul(g, b), e.b.fmul(g, decay)
            faded = e.b.fmul(carry, before)
            raw = e.b.fmul(e.fma(dx, u, e.b.fmul(faded, rate[v])), slope)
            at = e.offset(du_rows.row, v, _BYTES)
            e.store(e.b.fadd(e.fma(dx, dt, e.b.fmul(dy, skip[v])), e.load_part(at, there)), at)
            e.store(raw, e.offset(ddelta_rows.row, v, _BYTES))
            new[v::width] = carry, e.fma(faded, dt, da), e.fma(dy, u, dskip), e.b.fadd(dbias, raw)
        totals = e.sums([to_b, to_c])
        for at, lane in ((db_at, 0), (dc_at, 1)):
            target = e.offset(at, t, 4)
            one = e.b.extract_element(totals, ir.Constant(ir.IntType(32), lane))
            e.store(e.b.fadd(one, e.load(target, ir.FloatType())), target)
        return new

    end = e.loop(steps, start, step, backwards=True)
    for i, at in enumerate(sums):
        for v in range(width):
            e.store(end[i * width + v], e.offset(at, v, _BYTES))


def _sum_taps(width: int, e: Emitter, arguments: tuple[ir.Value, ...]) -> None:
    rows, shifts, places, weights, pitch, target, taps = arguments

    def tap(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        row, shift = _positions(e, i, rows, shifts)
        place = e.load(e.b.add(places, shift), ir.IntType(64))
        source, weight = e.b.add(row, place), e.offset(weights, i, pitch)
        values, factors = ([e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (source, weight))
        return [e.fma(value, factor, total) for value, factor, total in zip(values, factors, totals, strict=True)]

    for v, total in enumerate(e.loop(taps, [e.constant(0.0)] * width, tap)):
        e.store(total, e.offset(target, v, _BYTES))


class _Columns:
    """The W vectors of a row, all of them whole, or the first `left` channels of it."""

    def __init__(self, e: Emitter, width: int, i_left: ir.Value | None) -> None:
        self.e, self.width = e, width
        self.masks = None if i_left is None else [e.mask(e.offset(i_left, v, -LANES)) for v in range(width)]

    def load(self, i_address: ir.Value) -> list[ir.Value]:
        at = [self.e.offset(i_address, v, _BYTES) for v in range(self.width)]
        if self.masks is None:
            return [self.e.load(x) for x in at]
        return [self.e.load_part(x, mask) for x, mask in zip(at, self.masks, strict=True)]

    def store(self, values: Sequence[ir.Value], i_address: ir.Value) -> None:
        for v, value in enumerate(values):
            at = self.e.offset(i_address, v, _BYTES)
            if self.masks is None:
                self.e.store(value, at)
            else:
                self.e.store_part(value, at, self.masks[v])


def _convolve_along(columns: _Columns, e: Emitter, arguments: tuple[ir.Value, ...], *, silu: bool, taps: int) -> None:
    x_at, x_stride, out_at, out_stride, weight_at, bias_at, history_at, positions, following, steps = arguments
    pitch = columns.width * _BYTES
    scratch = _Columns(e, columns.width, None)
    weights = [scratch.load(e.offset(weight_at, j, pitch)) for j in range(taps)]
    bias = scratch.load(bias_at)
    history = [x for j in range(taps - 1) for x in scratch.load(e.offset(history_at, j, pitch))]

    def step(t: ir.Value, *before: ir.Value) -> list[ir.Value]:
        here, next_ = _positions(e, t, positions, following)
        for v in range(columns.width):
            e.prefetch(e.offset(e.offset(x_at, next_, x_stride), v, _BYTES))
        newest = columns.load(e.offset(x_at, here, x_stride))
        rows = [*before, *newest]
        totals = bias
        for j in range(taps):
            row = rows[j * columns.width : (j + 1) * columns.width]
            totals = [e.fma(x, w, total) for x, w, total in zip(row, weights[j], totals, strict=True)]
        columns.store([e.silu(x) for x in totals] if silu else totals, e.offset(out_at, here, out_stride))
        return rows[columns.width :]

    end = e.loop(steps, history, step)
    for j in range(taps - 1):
        scratch.store(end[j * columns.width : (j + 1) * columns.width], e.offset(history_at, j, pitch))


def _sized(name: str, count: int, emit: Callable[..., None], sizes: Sequence[int]) -> Any:
    """A numba intrinsic name(size, *addresses) for any of these sizes: of states, of vectors, or how rows are stored."""

    def typed(typingctx: Any, *parameters: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            for size in sizes:
                with builder.if_then(builder.icmp_signed("==", values[0], ir.Constant(values[0].type, size))):
                    emit(size, Emitter(builder), values[1:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * (1 + count)), codegen

    typed.__name__ = typed.__qualname__ = name
    typed.__signature__ = positional(1 + count)  # type: ignore[attr-defined]
    return intrinsic(typed)


def _columns(name: str, count: int, emit: Callable[..., None], widths: Sequence[int] = WIDTHS) -> Any:
    """A numba intrinsic name(W, left, *addresses) for rows of W vectors of which `left` channels are there."""

    def typed(typingctx: Any, *parameters: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            width, left = values[:2]
            for each in widths:
                full = ir.Constant(left.type, each * LANES)
                with (
                    builder.if_then(builder.icmp_signed("==", width, ir.Constant(width.type, each))),
                    builder.if_else(builder.icmp_signed(">=", left, full)) as (whole, part),
                ):
                    e = Emitter(builder)
                    with whole:
                        emit(_Columns(e, each, None), e, values[2:])
                    with part:
                        emit(_Columns(e, each, left), e, values[2:])
            return context.get_dummy_value()

        return types.void(*[types.int64] * (2 + count)), codegen

    typed.__name__ = typed.__qualname__ = name
    typed.__signature__ = positional(2 + count)  # type: ignore[attr-defined]
    return intrinsic(typed)


# (G, dt, x, y, b, c, pitch, a_log2, h, u, u_stride, delta, delta_stride, out, out_stride, following, steps): y gains C . h
scan_forward = _sized("scan_forward", 16, _forward, (8, 4, 2, 1))
# (G, ..., h, left, out, out_stride, positions, adding, u, u_stride, delta, delta_stride, following, steps): the sum of y and
# C . h goes to the rows of a float32 tensor, where it is added to what is there unless `adding` is 0
scan_forward_rows = _sized("scan_forward_rows", 19, _forward_rows, (8,))
# (G, ..., h, kept, steps)
scan_forward_keep = _sized("scan_forward_keep", 10, _forward_keep, (4, 1))
# (G, dt, x, b, pitch, a_log2, h, kept, decays, u, u_stride, delta, delta_stride, dy, dy_stride, following, steps)
scan_replay = _sized("scan_replay", 16, _replay, (4, 2, 1))
# (G, dt, x, b, pitch, a_log2, h, steps): only the states after the last step
scan_end = _sized("scan_end", 7, _end, (4, 1))
# (G, dt, dy, c, pitch, a_log2, carry, steps): the steps in reverse, only what passes to the states before the first
scan_fade = _sized("scan_fade", 7, _fade, (4, 1))
# (G, dt, x, dy, dx, ddt, b, c, db, dc, pitch, a, carry, da, before, kept, decays, dh, du, du_stride, ddelta, ddelta_stride,
# following, steps): the steps in reverse; dx, ddt, db, dc gain their sums over these states; `before` are the states ahead of
# every step
scan_backward = _sized("scan_backward", 23, partial(_retreat, with_dh=False), (4, 2, 1))
scan_backward_dh = _sized("scan_backward_dh", 23, partial(_retreat, with_dh=True), (4, 2, 1))
# (kind, left, source, stride, target, pitch, positions, following, asked, steps): one vector of every row to scratch, as float32,
# zero beyond and at padding steps; asks for as many rows as `asked`. Needs MASKS
copy_rows = _sized("copy_rows", 9, _copy_rows, (F32, BF16))
# (TOGETHER, low, low_pitch, weight, rank, target, pitch): vectors of channels of as many steps: the sums over r of weight r times
# float r of a step, which lie next to those of the other steps in row r of `low`
project_steps = _sized("project_steps", 6, _project_steps, (TOGETHER,))
# (kind, left, u, u_stride, delta, delta_stride, bias, skip, x, dt, y, positions, delta_positions, steps): reads the rows of u and
# delta into scratch: dt = softplus(delta + bias), x = dt * u, y = skip * u. Rows of delta may lie at dt
enter_rows = _sized("enter_rows", 13, _enter, (F32, BF16))
# (kind, left, u, u_stride, delta, delta_stride, dy, dy_stride, bias, x, dt, dy, slope, positions, steps): the same for the
# gradient, and dt's slope
enter_back_rows = _sized("enter_back_rows", 14, _enter_back, (F32, BF16))
# (F32, left, u, u_stride, dy, du, du_stride, ddelta, ddelta_stride, dt, slope, dx, ddt, skip, dskip, dbias, positions, adding,
# steps): from the gradients of x and dt to the rows of those of u and delta, and the sums for D and bias
leave_back_rows = _sized("leave_back_rows", 18, _leave_back, (F32,))
# (W, u, u_stride, delta, delta_stride, y, y_stride, b, b_stride, c, c_stride, bias, skip, a_log2, h, small, dt, positions,
# following, delta_positions, delta_following, steps): everything for one state, from rows to rows; `small` and `dt` are scratch
# for W vectors of every step, and rows of delta may lie at dt
scan_rows = _sized("scan_rows", 21, partial(_scan_rows, adding=False), WIDTHS)
scan_rows_adding = _sized("scan_rows_adding", 21, partial(_scan_rows, adding=True), WIDTHS)
# (W, u, u_stride, delta, delta_stride, dy, dy_stride, du, du_stride, ddelta, ddelta_stride, b, b_stride, bias, a_log2, h, kept,
# positions, following, steps): one state's steps again, keeping (W, 4) vectors of each: dt, its slope, decay, state; ahead of
# `kept` goes the state before the first step. Asks for the rows that the steps in reverse will need
replay_rows = _sized("replay_rows", 19, _replay_rows, NARROW)
# (W, u, u_stride, dy, dy_stride, du, du_stride, ddelta, ddelta_stride, b, b_stride, c, c_stride, db, dc, skip, a, carry, da,
# dskip, dbias, kept, positions, adding, steps): the steps in reverse, rows to rows; db and dc, a float per step, gain their sums
# over these channels, and du is added to what is there if `adding` is LANES, not if it is 0
retreat_rows = _sized("retreat_rows", 24, _retreat_rows, NARROW)
# (W, rows, shifts, places, weights, pitch, target, taps): target = the sum over the taps of weight i, `pitch` bytes apart, times
# what lies at rows[i] + places[shifts[i]], a shift in bytes; W vectors each
sum_taps = _sized("sum_taps", 7, _sum_taps, WIDTHS)
# (W, left, x, x_stride, out, out_stride, weight, bias, history, positions, following, steps): four taps along a route from rows
# to rows, then SiLU; `history` is the three rows before, and after it those before the next step; weight j times row t + j - 3
LONG_TAPS, LONG_WIDTHS = 4, (2, 1)
convolve_along = _columns("convolve_along", 10, partial(_convolve_along, silu=False, taps=LONG_TAPS), LONG_WIDTHS)
convolve_along_silu = _columns(
    "convolve_along_silu", 10, partial(_convolve_along, silu=True, taps=LONG_TAPS), LONG_WIDTHS
)
