"""The scan kernels on the CPU: numba with explicit SIMD.

Legend: B batch, L image positions, D channels, N state, K routes, Ku 1 or K, T steps of a route, W taps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..projection import project
from . import wavefront
from .buffers import empty, zeros
from .conv import ConvJob, convolve
from .instance_norm import instance_norm
from .loops import WIDTHS
from .norm_gate import norm_gate
from .probe import why_broken
from .rows import NOTHING, Rows, refer
from .scan_backward import BackwardJob, backward, backward_with_states
from .scan_forward import ForwardJob, forward, forward_with_states
from .scan_tasks import CHUNK, Problem
from .simd import F32, LANES
from .state_fusion import fuse_states
from .sums import PIECE, ReduceJob, reduce
from .threads import Entry, run_tasks

__all__ = [
    "CHUNK", "fuse_states", "instance_norm", "norm_gate", "route_conv_backward", "route_conv_forward", "routed_scan_backward",
    "routed_scan_forward", "warmup", "why_not",
]  # fmt: skip


def why_not(device: torch.device, dtype: torch.dtype, d_state: int) -> str | None:
    """None if these kernels can run such inputs, else the reason."""
    if device.type != "cpu":
        return f"runs on CPUs only, the tensors are on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"has no {dtype} kernels (float32, bfloat16, float16)"
    # while torch.export replaces parts of torch, nothing can be compiled; what runs the program will probe
    return None if torch.compiler.is_exporting() else why_broken()


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _float(x: Tensor | None) -> Tensor | None:
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return x
    return x.detach().float().contiguous()


def _data(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


class Plan(NamedTuple):
    """How the work is cut: vectors of channels per task, blocks of channels, whether every route, or piece of one, is a task."""

    width: int
    blocks: int
    split: bool
    tasks: int
    pieces: int = 1
    chunks: int = 0  # in a piece

    def rows(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """For a row of every position; a task that has a whole route zeroes those that it does not visit."""
        return empty(*shape, dtype=dtype) if self.pieces == 1 else zeros(*shape, dtype=dtype)


# Widths for more than one state: rows of B and C, which cost a task the same whatever its width, then serve more channels.
_WIDE = (24, 12, 8)
_WIDE_TASKS = 64  # as many they must leave, where their number must not depend on that of the threads


@lru_cache(maxsize=1024)
def _plan(
    batch: int, channels: int, routes: int, *, adding: bool, threads: int, fixed: bool = False, wide: bool = False
) -> Plan:
    """The widest tasks (whole cache lines, fewest partial sums) that keep the threads busy.

    Args:
        batch, channels, routes: of the problem.
        adding: the routes add up to one output, so splitting them costs a buffer.
        threads: there are.
        fixed: the width decides how sums are grouped, and so must depend on shapes alone.
        wide: tasks may be wider than `WIDTHS`.
    """
    vectors = -(-channels // LANES)

    def tasks(width: int, split: bool) -> int:
        return batch * -(-vectors // width) * (routes if split else 1)

    def busy(width: int, split: bool, threads: int) -> float:
        count = tasks(width, split)
        if count == 0:
            return 1.0
        return batch * vectors * (routes if split else 1) / (-(-count // threads) * threads * width)

    def best(split: bool) -> int:
        count = 2 if fixed else threads
        widths = [w for w in _WIDE if wide and (not fixed or tasks(w, split) >= _WIDE_TASKS)] + list(WIDTHS)
        return next(
            (w for w in widths if busy(w, split, count) > 0.85), max(widths, key=lambda w: busy(w, split, count))
        )

    width = best(split=not adding)
    split = not adding or routes == 1
    if not split and busy(width, False, threads) < 0.6:
        split = True
        width = width if fixed else best(split=True)
    return Plan(width, -(-vectors // width), split, tasks(width, split))


_PIECE_WORK = 1 << 15  # steps times (states + 4) below which a piece costs more than it gains


def _plan_scan(batch: int, steps: int, A: Tensor, *, adding: bool, whole: bool, fixed: bool) -> Plan:
    """`_plan`, or pieces of routes where even a vector of channels per task leaves half of the threads without one.

    Two passes over n + 1 pieces take n threads 2 / (n + 1) of the time of one. Only here results depend, in their rounding, on
    the number of threads.

    Args:
        batch, adding, fixed: see `_plan`.
        steps: T.
        A: (K, D, N).
        whole: do not cut routes, whose states are asked for or start anew on the way.
    """
    routes, channels, states = A.shape
    vectors, chunks, threads = -(-channels // LANES), -(-steps // CHUNK), torch.get_num_threads()
    tasks = batch * vectors * routes
    spare = threads // tasks if tasks else 0
    pieces = min(spare + 1, steps * (states + 4) // _PIECE_WORK, chunks)
    if whole or spare < 2 or pieces < 3:
        return _plan(batch, channels, routes, adding=adding, threads=threads, fixed=fixed, wide=states > 1)
    each = -(-chunks // pieces)
    pieces = -(-chunks // each)
    return Plan(1, vectors, True, tasks * (pieces - 1), pieces, each)


class Pass(NamedTuple):
    """What is known of pieces of routes in a pass over them, and where to: see `scan_tasks.py`."""

    opening: int = 0
    starts: int = 0
    ends: int = 0
    sums: int = 0


def _run_scan(
    entry: Entry, job: Callable[[int, Pass], NamedTuple], plan: Plan, batch: int, A: Tensor, *, backwards: bool = False
) -> None:  # fmt: skip
    """Runs the tasks of a plan, in two passes where routes are cut into pieces."""
    if plan.pieces == 1:
        run_tasks(entry, lambda counter: job(counter, Pass()), plan.tasks)
        return
    ends, sums = empty(plan.pieces, batch, *A.shape), empty(plan.pieces, batch, *A.shape[:2], 1)
    opening = Pass(1, 0, _data(ends), _data(sums))
    run_tasks(entry, lambda counter: job(counter, opening), plan.tasks)
    starts, pieces = torch.empty_like(ends), list(range(plan.pieces))
    if backwards:
        pieces.reverse()
    state = ends[pieces[0]]
    for piece in pieces[1:]:
        starts[piece] = state
        state = torch.exp(sums[piece] * A) * state + ends[piece]
    run_tasks(entry, lambda counter: job(counter, Pass(starts=_data(starts))), plan.tasks)


def _sum_parts(parts: Tensor) -> Tensor:
    """Sum over the first dimension in a fixed order, whatever the number of threads."""
    if parts.shape[0] == 0:
        return parts.sum(0)
    if parts.shape[0] == 1:
        return parts[0]
    total = torch.empty_like(parts[0])
    count, pieces = total.numel(), -(-total.numel() // PIECE)
    run_tasks(
        reduce, lambda counter: ReduceJob(parts.data_ptr(), total.data_ptr(), count, parts.shape[0], counter), pieces
    )
    return total


def _table(order: Tensor | None) -> tuple[int, int, int, int]:
    """Address of the route table and its strides in bytes."""
    if order is None:
        return 0, 0, 0, 0
    return order.data_ptr(), *(4 * s for s in (order.stride() if order.dim() == 3 else (0, *order.stride())))


def _problem(
    plan: Plan, batch: int, positions: int, A: Tensor, D: Tensor | None, bias: Tensor | None, order: Tensor | None,
    softplus: bool, counter: int, segment: int, phase: int, of_pass: Pass,
) -> Problem:  # fmt: skip
    K, channels, N = A.shape
    steps = positions if order is None else order.shape[-1]
    return Problem(
        batch, positions, channels, N, K, steps, int(softplus), _data(A), _data(D), _data(bias), *_table(order),
        plan.width, plan.blocks, int(plan.split), counter, segment, phase, plan.pieces, plan.chunks or -(-steps // CHUNK),
        *of_pass,
    )  # fmt: skip


def _sink(shape: tuple[int, int, int, int], plan: Plan, adding: bool, dtype: torch.dtype) -> tuple[Tensor, Rows]:
    """An output (B, L, K, D); the sum over its routes, float32 (B, L, D); or its terms (K, B, L, D) if a plan splits them."""
    batch, positions, routes, channels = shape
    if not adding:
        out = plan.rows(*shape, dtype=dtype)
        return out, refer(out)
    out = plan.rows(routes, *shape[:2], channels) if plan.split else plan.rows(*shape[:2], channels)
    row, image = 4 * channels, 4 * channels * positions
    return out, Rows(out.data_ptr(), F32, 4, image, row, batch * image if plan.split else 0)


def _added(out: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """What `_sink` gave for a sum, filled, as that sum."""
    total = _sum_parts(out) if plan.split else out
    return total if total.dtype == dtype else total.to(dtype)


def routed_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, order: Tensor | None,
    softplus: bool, merge: str, save_checkpoints: bool, save_states: bool, segment: int = 0, phase: int = 0,
    dt_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, checkpoints, states: see the contract in `visionssm_kernels.ops`."""
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    A, D, bias = _float(A), _float(D), _float(bias)
    assert A is not None
    (batch, positions), (K, channels, N) = u.shape[:2], A.shape
    steps = positions if order is None else order.shape[-1]
    adding = merge == "sum" and K > 1
    plan = _plan_scan(batch, steps, A, adding=adding, whole=save_states or segment > 0, fixed=False)
    if dt_weight is not None and (plan.pieces > 1 or not u.dtype == delta.dtype == torch.float32):
        delta, dt_weight = project(delta, dt_weight), None  # the kernel's is one of float32, and of whole routes
    weight, rank = _float(dt_weight), 0 if dt_weight is None else delta.shape[-1]
    y, sink = _sink((batch, positions, K, channels), plan, adding, u.dtype)
    checkpoints = empty(batch, K, -(-steps // CHUNK), channels, N) if save_checkpoints else empty(0)
    states = empty(batch, positions, K, channels, N) if save_states else empty(0)

    def job(counter: int, of_pass: Pass) -> ForwardJob:
        return ForwardJob(
            _problem(plan, batch, positions, A, D, bias, order, softplus, counter, segment, phase, of_pass),
            refer(u, shared=u.shape[2] == 1), refer(delta), refer(B), refer(C), sink, _data(checkpoints),
            _data(states), _data(weight), rank,
        )  # fmt: skip

    _run_scan(forward_with_states if save_states else forward, job, plan, batch, A)
    if adding:
        return _added(y, plan, u.dtype), checkpoints, states
    return (y.squeeze(2) if merge == "sum" else y), checkpoints, states


def routed_scan_backward(
    grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
    segment: int = 0, phase: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of all inputs: see the contract in `visionssm_kernels.ops`."""
    grad_y = _rows(grad_y).unsqueeze(2) if merge == "sum" else _rows(grad_y)
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    A_, D_, bias_ = _float(A), _float(D), _float(bias)
    assert A_ is not None
    (batch, positions), (K, channels, N) = u.shape[:2], A.shape
    adding, whole = u.shape[2] == 1 and K > 1, grad_states is not None or segment > 0
    steps = positions if order is None else order.shape[-1]
    plan = _plan_scan(batch, steps, A_, adding=adding, whole=whole, fixed=True)
    du, du_sink = _sink((batch, positions, K, channels), plan, adding, u.dtype)
    ddelta = plan.rows(*delta.shape, dtype=delta.dtype)
    dB, dC = (plan.rows(plan.blocks, batch, positions, K, N) for _ in range(2))
    dA = empty(plan.pieces * batch, K, channels, N)
    dD = None if D is None else empty(plan.pieces * batch, K, channels)
    dbias = None if bias is None else empty(plan.pieces * batch, K, channels)
    grad_states = None if grad_states is None else grad_states.float().contiguous()

    def job(counter: int, of_pass: Pass) -> BackwardJob:
        return BackwardJob(
            _problem(plan, batch, positions, A_, D_, bias_, order, softplus, counter, segment, phase, of_pass),
            refer(u, shared=u.shape[2] == 1), refer(delta), refer(B), refer(C), refer(grad_y, shared=merge == "sum"),
            du_sink, refer(ddelta), refer(dB.flatten(0, 1)), refer(dC.flatten(0, 1)), 4 * batch * positions * K * N,
            _data(dA), _data(dD), _data(dbias), _data(checkpoints), _data(grad_states),
        )  # fmt: skip

    _run_scan(backward if grad_states is None else backward_with_states, job, plan, batch, A_, backwards=True)
    dA, dB, dC = _sum_parts(dA), _sum_parts(dB), _sum_parts(dC)
    return (
        _added(du, plan, u.dtype).unsqueeze(2) if adding else du, ddelta, dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype),
        None if D is None or dD is None else _sum_parts(dD).to(D.dtype),
        None if bias is None or dbias is None else _sum_parts(dbias).to(bias.dtype),
    )  # fmt: skip


def route_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """u: see the contract in `visionssm_kernels.ops`."""
    x, weight_, bias = _rows(x), _float(weight), _float(bias)
    assert weight_ is not None
    (batch, positions), (K, channels, taps) = x.shape[:2], weight.shape
    plan = _plan(batch, channels, K, adding=False, threads=torch.get_num_threads())
    u = empty(batch, positions, K, channels, dtype=x.dtype)

    def job(counter: int) -> ConvJob:
        steps = positions if order is None else order.shape[-1]
        return ConvJob(
            batch, positions, channels, taps, K, steps, int(silu), 0, _data(weight_), _data(bias), *_table(order), plan.width,
            plan.blocks, 1, counter, refer(x, shared=x.shape[2] == 1), refer(u), NOTHING, 0, 0,
        )  # fmt: skip

    run_tasks(convolve, job, plan.tasks)
    return u


def route_conv_backward(
    grad_u: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias: see the contract in `visionssm_kernels.ops`."""
    grad_u, x, weight_, bias_ = _rows(grad_u), _rows(x), _float(weight), _float(bias)
    assert weight_ is not None
    (batch, positions), (K, channels, taps) = x.shape[:2], weight.shape
    adding = x.shape[2] == 1 and K > 1
    plan = _plan(batch, channels, K, adding=adding, threads=torch.get_num_threads(), fixed=True)
    dx, sink = _sink((batch, positions, K, channels), plan, adding, x.dtype)
    dweight, dbias = empty(batch, K, channels, taps), empty(batch, K, channels)

    def job(counter: int) -> ConvJob:
        steps = positions if order is None else order.shape[-1]
        return ConvJob(
            batch, positions, channels, taps, K, steps, int(silu), 1, _data(weight_), _data(bias_), *_table(order), plan.width,
            plan.blocks, int(plan.split), counter, refer(x, shared=x.shape[2] == 1), refer(grad_u), sink, _data(dweight),
            _data(dbias),
        )  # fmt: skip

    run_tasks(convolve, job, plan.tasks)
    dweight, dbias = _sum_parts(dweight), _sum_parts(dbias)
    dx = _added(dx, plan, x.dtype).unsqueeze(2) if adding else dx
    return dx, dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype)


def warmup() -> None:
    """Compiles all kernels, or loads them from numba's cache: the smallest problem that reaches each."""
    u, A, m = zeros(1, 2, 1, 4), zeros(1, 4, 2) - 1, zeros(1, 2, 1, 2)
    for save_states in (False, True):
        y, checkpoints, states = routed_scan_forward(u, u, A, m, m, None, None, None, True, "sum", True, save_states)
        grad_states = states if save_states else None
        routed_scan_backward(y, grad_states, u, u, A, m, m, None, None, None, True, "sum", checkpoints)
    weight = zeros(1, 4, 4)
    route_conv_backward(route_conv_forward(u, weight, None, None, True), u, weight, None, None, True)
    _sum_parts(zeros(2, 4))
    norm_gate(u, u, None, None, True, 1e-5, 1.0)
    instance_norm(u[0], None, None, 1e-5)
    fuse_states(u, zeros(1, 4), zeros(1, 2, dtype=torch.int64), 0)
    u, m = zeros(1, 1, 1, 4), zeros(1, 1, 1, 2)
    delta, A, B = zeros(1, 1, 1, 2, 4), zeros(2, 4, 2) - 1, zeros(1, 1, 1, 2, 2)
    wavefront.backward(wavefront.forward(u, delta, A, B, m, None, None, False), u, delta, A, B, m, None, None, False)
