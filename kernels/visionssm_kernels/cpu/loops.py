"""The loops over the steps of a tile, for a few states of one vector of channels: everything the scan spends its time in.

A group of G states is held in registers; `scan.py` calls these for the groups of 8, 4, 2, 1 that make up N, so that any N
is served by the same code. All arguments are addresses of scratch memory and byte strides:

    dt, x, y, ...   one vector per step, `row` bytes apart (x = dt * u)
    b, c            one float per state and step, `pitch` bytes apart
    a_log2, a       one vector per state, contiguous: A * log2(e) and A
    h, carry, da    one vector per state, contiguous: read before and written after the loop
    kept, decays    (steps, G) vectors, contiguous: the states after, and the decays of, every step

Two more work on the rows of float32 tensors themselves, for W whole vectors of channels: a row of step t is at
`..._at + positions[t] * ..._stride` bytes. They ask for the rows of the next tile, at the positions `following`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import LANES, Emitter, positional

__all__ = [
    "LONG_TAPS", "LONG_WIDTHS", "WIDTHS", "convolve_along", "convolve_along_silu", "enter_rows", "scan_backward",
    "scan_backward_dh", "scan_forward", "scan_forward_keep", "scan_forward_rows", "scan_replay", "scan_rows",
    "scan_rows_adding", "sum_taps",
]  # fmt: skip

_BYTES = 4 * LANES
WIDTHS = (6, 4, 3, 2, 1)  # vectors of channels that a task may have


def _advance(
    size: int, e: Emitter, arguments: tuple[ir.Value, ...], *, y: bool, keep: bool, decays: bool, rows: bool = False
) -> None:
    dt_at, x_at, y_at, row, b_at, c_at, pitch, a_at, h_at, *more, steps = arguments
    kept_at, decays_at = (None, None) if rows else more
    rates = [e.load(e.offset(a_at, n, _BYTES)) for n in range(size)]
    start = [e.load(e.offset(h_at, n, _BYTES)) for n in range(size)]

    def step(t: ir.Value, *h: ir.Value) -> list[ir.Value]:
        here, there = e.b.mul(t, row), e.b.mul(t, pitch)
        dt, x = e.load(e.b.add(dt_at, here)), e.load(e.b.add(x_at, here))
        b_t, c_t = e.b.add(b_at, there), e.b.add(c_at, there)
        decay = [e.exp2(e.b.fmul(dt, rate)) for rate in rates]
        input_ = [e.b.fmul(x, e.load_splat(e.offset(b_t, n, 4))) for n in range(size)]
        h = [e.fma(decay[n], h[n], input_[n]) for n in range(size)]
        if y:
            parts = [e.load(e.b.add(y_at, here)), e.constant(0.0)][: 2 if size > 2 else 1]  # two chains
            for n in range(size):
                parts[n % len(parts)] = e.fma(h[n], e.load_splat(e.offset(c_t, n, 4)), parts[n % len(parts)])
            total = parts[0] if len(parts) == 1 else e.b.fadd(*parts)
            if rows:
                out_at, out_stride, positions, adding = more
                target = e.offset(out_at, _positions(e, t, positions)[0], out_stride)
                e.store(e.b.fadd(total, e.load_part(target, e.mask(adding))), target)
            else:
                e.store(total, e.b.add(y_at, here))
        for wanted, at, values in ((keep, kept_at, h), (decays, decays_at, decay)):
            for n in range(size if wanted else 0):
                e.store(values[n], e.offset(e.offset(at, t, size * _BYTES), n, _BYTES))
        return h

    for n, value in enumerate(e.loop(steps, start, step)):
        e.store(value, e.offset(h_at, n, _BYTES))


def _retreat(size: int, e: Emitter, arguments: tuple[ir.Value, ...], *, with_dh: bool) -> None:
    (dt_at, x_at, dy_at, dx_at, ddt_at, row, b_at, c_at, db_at, dc_at, pitch,
     a_at, carry_at, da_at, before_at, kept_at, decays_at, dh_at, steps) = arguments  # fmt: skip
    rates = [e.load(e.offset(a_at, n, _BYTES)) for n in range(size)]
    start = [e.load(e.offset(at, n, _BYTES)) for at in (carry_at, da_at) for n in range(size)]
    sums_kind = ir.VectorType(ir.FloatType(), size)

    def step(t: ir.Value, *carried: ir.Value) -> list[ir.Value]:
        carry, da = carried[:size], list(carried[size:])
        here, there, states = e.b.mul(t, row), e.b.mul(t, pitch), e.b.mul(t, ir.Constant(t.type, size * _BYTES))
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


def _enter(width: int, e: Emitter, arguments: tuple[ir.Value, ...]) -> None:
    (u_at, u_stride, delta_at, delta_stride, y_at, y_stride, bias_at, skip_at, x_at, dt_at, to_at, positions, following,
     steps) = arguments  # fmt: skip
    u_rows, delta_rows = _Rows(e, u_at, u_stride), _Rows(e, delta_at, delta_stride)
    y_rows = _Rows(e, y_at, y_stride, write=True)
    bias, skip = ([e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (bias_at, skip_at))

    def step(t: ir.Value) -> list[ir.Value]:
        here, next_ = _positions(e, t, positions, following)
        u_rows.go(here, next_), delta_rows.go(here, next_), y_rows.go(here, here)
        row = e.b.mul(t, ir.Constant(t.type, width * _BYTES))

        def enter(v: int) -> None:
            u_rows.ask(v), delta_rows.ask(v), y_rows.ask(v)
            at = e.offset(row, v, _BYTES)
            u, dt = u_rows.load(v), e.softplus(e.b.fadd(delta_rows.load(v), bias[v]))
            e.store(dt, e.b.add(dt_at, at))
            e.store(e.b.fmul(u, dt), e.b.add(x_at, at))
            e.store(e.b.fmul(u, skip[v]), e.b.add(to_at, at))

        for v in range(0, width, 2):  # more at once were slower
            e.interleaved([partial(enter, w) for w in range(v, min(v + 2, width))])
        return []

    e.loop(steps, [], step)


def _scan_rows(width: int, e: Emitter, arguments: tuple[ir.Value, ...], *, adding: bool) -> None:
    (u_at, u_stride, delta_at, delta_stride, y_at, y_stride, b_at, b_stride, c_at, c_stride, bias_at, skip_at, a_at, h_at,
     positions, following, steps) = arguments  # fmt: skip
    u_rows, delta_rows = _Rows(e, u_at, u_stride), _Rows(e, delta_at, delta_stride)
    y_rows = _Rows(e, y_at, y_stride, write=True)
    bias, skip, rate, start = (
        [e.load(e.offset(at, v, _BYTES)) for v in range(width)] for at in (bias_at, skip_at, a_at, h_at)
    )

    def step(t: ir.Value, *h: ir.Value) -> list[ir.Value]:
        here, next_ = _positions(e, t, positions, following)
        u_rows.go(here, next_), delta_rows.go(here, next_), y_rows.go(here, next_)
        b, c = (e.load_splat(e.offset(at, here, stride)) for at, stride in ((b_at, b_stride), (c_at, c_stride)))

        def advance(v: int) -> tuple[ir.Value, ir.Value]:
            u_rows.ask(v), delta_rows.ask(v), y_rows.ask(v)
            u, dt = u_rows.load(v), e.softplus(e.b.fadd(delta_rows.load(v), bias[v]))
            state = e.fma(e.exp2(e.b.fmul(dt, rate[v])), h[v], e.b.fmul(e.b.fmul(dt, u), b))
            y = e.fma(state, c, e.b.fmul(u, skip[v]))
            e.store(e.b.fadd(y, y_rows.load(v)) if adding else y, e.offset(y_rows.row, v, _BYTES))
            return state

        return e.interleaved([partial(advance, v) for v in range(width)])

    for v, value in enumerate(e.loop(steps, start, step)):
        e.store(value, e.offset(h_at, v, _BYTES))


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


def _intrinsic(name: str, count: int, emit: Callable[..., None]) -> Any:
    """A numba intrinsic name(G, *addresses) for a literal number of states G."""

    def typed(typingctx: Any, *parameters: types.Type) -> Any:
        size = parameters[0]
        if not isinstance(size, types.IntegerLiteral):
            return None

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            emit(size.literal_value, Emitter(builder), values[1:])
            return context.get_dummy_value()

        return types.void(size, *[types.int64] * count), codegen

    typed.__name__ = typed.__qualname__ = name
    typed.__signature__ = positional(1 + count)  # type: ignore[attr-defined]
    return intrinsic(prefer_literal=True)(typed)


def _wide(name: str, count: int, emit: Callable[..., None]) -> Any:
    """A numba intrinsic name(W, *addresses) for any number of vectors W of `WIDTHS`."""

    def typed(typingctx: Any, *parameters: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
            for width in WIDTHS:
                with builder.if_then(builder.icmp_signed("==", values[0], ir.Constant(values[0].type, width))):
                    emit(width, Emitter(builder), values[1:])
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


# (G, dt, x, y, row, b, c, pitch, a_log2, h, kept, decays, steps): y gains C . h
scan_forward = _intrinsic("scan_forward", 12, partial(_advance, y=True, keep=False, decays=False))
# (G, ..., h, out, out_stride, positions, adding, steps): the sum of y and C . h goes to the rows of a float32 tensor, where it is
# added to what is there if `adding` is LANES, not if it is 0
scan_forward_rows = _intrinsic("scan_forward_rows", 14, partial(_advance, y=True, keep=False, decays=False, rows=True))
scan_forward_keep = _intrinsic("scan_forward_keep", 12, partial(_advance, y=True, keep=True, decays=False))
scan_replay = _intrinsic("scan_replay", 12, partial(_advance, y=False, keep=True, decays=True))
# (G, dt, x, dy, dx, ddt, row, b, c, db, dc, pitch, a, carry, da, before, kept, decays, dh, steps): the steps in reverse;
# dx, ddt, db, dc gain their sums over these states; `before` are the states ahead of every step
scan_backward = _intrinsic("scan_backward", 19, partial(_retreat, with_dh=False))
scan_backward_dh = _intrinsic("scan_backward_dh", 19, partial(_retreat, with_dh=True))
# (W, u, u_stride, delta, delta_stride, y, y_stride, bias, skip, x, dt, y, positions, following, steps): reads the rows of u and
# delta into scratch: dt = softplus(delta + bias), x = dt * u, y = skip * u
enter_rows = _wide("enter_rows", 14, _enter)
# (W, u, u_stride, delta, delta_stride, y, y_stride, b, b_stride, c, c_stride, bias, skip, a_log2, h, positions, following,
# steps): everything at once for one state, from rows to rows
scan_rows = _wide("scan_rows", 17, partial(_scan_rows, adding=False))
scan_rows_adding = _wide("scan_rows_adding", 17, partial(_scan_rows, adding=True))
# (W, rows, shifts, places, weights, pitch, target, taps): target = the sum over the taps of weight i, `pitch` bytes apart, times
# what lies at rows[i] + places[shifts[i]], a shift in bytes; W vectors each
sum_taps = _wide("sum_taps", 7, _sum_taps)
# (W, left, x, x_stride, out, out_stride, weight, bias, history, positions, following, steps): four taps along a route from rows
# to rows, then SiLU; `history` is the three rows before, and after it those before the next step; weight j times row t + j - 3
LONG_TAPS, LONG_WIDTHS = 4, (2, 1)
convolve_along = _columns("convolve_along", 10, partial(_convolve_along, silu=False, taps=LONG_TAPS), LONG_WIDTHS)
convolve_along_silu = _columns(
    "convolve_along_silu", 10, partial(_convolve_along, silu=True, taps=LONG_TAPS), LONG_WIDTHS
)
