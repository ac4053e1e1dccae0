"""The scan kernels on the CPU: numba with explicit SIMD.

Legend: B batch, L image positions, D channels, N state, K routes, Ku 1 or K, T steps of a route, W taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conv import ConvJob, conv_backward, conv_forward
from .rows import refer
from .scan import CHUNK, BackwardJob, ForwardJob, Problem, backward, forward, reduce
from .simd import HAS_HALF, LANES
from .threads import run_tasks

__all__ = [
    "CHUNK", "route_conv_backward", "route_conv_forward", "routed_scan_backward", "routed_scan_forward", "warmup", "why_not"
]  # fmt: skip


def why_not(device: torch.device, dtype: torch.dtype, d_state: int) -> str | None:
    """None if these kernels can run such inputs, else the reason."""
    if device.type != "cpu":
        return f"runs on CPUs only, the tensors are on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"has no {dtype} kernels (float32, bfloat16, float16)"
    if dtype == torch.float16 and not HAS_HALF:
        return "this CPU cannot convert float16 (no F16C)"
    return None


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().float().contiguous()


def _data(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _width(batch: int, channels: int, tasks_per_block: int) -> int:
    """Vectors per task: wide rows use memory best, but leave enough tasks for the threads of a large machine."""
    for width in (4, 2):
        if batch * tasks_per_block * -(-channels // (width * LANES)) >= 16:
            return width
    return 1


def _sum_parts(parts: Tensor) -> Tensor:
    """Sum over the first dimension in a fixed order, whatever the number of threads."""
    if parts.shape[0] == 1 or parts.numel() == 0:
        return parts[0] if parts.shape[0] else parts.sum(0)
    total = torch.empty_like(parts[0])
    count = total.numel()
    run_tasks(
        reduce, lambda counter: (parts.data_ptr(), total.data_ptr(), count, parts.shape[0], counter), -(-count // 4096)
    )
    return total


def _table(order: Tensor | None) -> tuple[int, int, int, int]:
    """Address of the route table and its strides in bytes."""
    if order is None:
        return 0, 0, 0, 0
    return order.data_ptr(), *(4 * s for s in (order.stride() if order.dim() == 3 else (0, *order.stride())))


def _problem(
    A: Tensor, D: Tensor | None, bias: Tensor | None, order: Tensor | None, shape: tuple[int, int, int], softplus: bool,
    counter: int,
) -> Problem:  # fmt: skip
    batch, positions, split_routes = shape
    K, channels, N = A.shape
    steps = positions if order is None else order.shape[-1]
    width = _width(batch, channels, split_routes)
    return Problem(
        batch, positions, channels, N, K, steps, int(softplus), _data(A), _data(D), _data(bias), *_table(order),
        width, -(-channels // (width * LANES)), int(split_routes == K), counter,
    )  # fmt: skip


def routed_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, order: Tensor | None,
    softplus: bool, merge: str, save_checkpoints: bool, save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, checkpoints, states: see the contract in `visionssm_kernels.ops`."""
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    A, D, bias = _float(A), _float(D), _float(bias)
    assert A is not None
    (batch, positions), (K, channels, N) = u.shape[:2], A.shape
    steps = positions if order is None else order.shape[-1]
    merged = merge == "sum" and K > 1
    if merged:
        y = torch.empty(batch, positions, 1, channels)
    else:
        y = torch.empty(batch, positions, K, channels, dtype=u.dtype)
    checkpoints = torch.empty(batch, K, -(-steps // CHUNK), channels, N) if save_checkpoints else torch.empty(0)
    states = torch.empty(batch, positions, K, channels, N) if save_states else torch.empty(0)

    def arguments(counter: int) -> tuple[ForwardJob, int | None]:
        shape = (batch, positions, 1 if merged else K)
        problem = _problem(A, D, bias, order, shape, softplus, counter)
        job = ForwardJob(
            problem, refer(u, shared=u.shape[2] == 1), refer(delta), refer(B), refer(C), refer(y, shared=merged),
            _data(checkpoints) if save_checkpoints else 0,
        )  # fmt: skip
        return job, _data(states) if save_states else None

    if y.numel() > 0:
        blocks = -(-channels // LANES)
        run_tasks(forward, arguments, batch * blocks * (1 if merged else K))
    y = y.to(u.dtype)
    return (y.squeeze(2) if merge == "sum" else y), checkpoints, states


def routed_scan_backward(
    grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of all inputs: see the contract in `visionssm_kernels.ops`."""
    grad_y = _rows(grad_y).unsqueeze(2) if merge == "sum" else _rows(grad_y)
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    A_, D_, bias_ = _float(A), _float(D), _float(bias)
    assert A_ is not None
    (batch, positions), (K, channels, N) = u.shape[:2], A.shape
    shared = u.shape[2] == 1 and K > 1
    du = torch.empty(u.shape, dtype=torch.float32 if shared else u.dtype)
    ddelta = torch.empty(delta.shape, dtype=delta.dtype)
    split_routes = 1 if shared else K
    width = _width(batch, channels, split_routes)
    blocks = -(-channels // (width * LANES))
    dB, dC = (torch.empty(blocks, batch, positions, K, N) for _ in range(2))  # an op returns no two views of one memory
    dA = torch.empty(batch, K, channels, N)
    dD = None if D is None else torch.empty(batch, K, channels)
    dbias = None if bias is None else torch.empty(batch, K, channels)
    grad_states = None if grad_states is None else grad_states.float().contiguous()

    def arguments(counter: int) -> tuple[BackwardJob, int | None]:
        problem = _problem(A_, D_, bias_, order, (batch, positions, split_routes), softplus, counter)
        job = BackwardJob(
            problem, refer(u, shared=u.shape[2] == 1), refer(delta), refer(B), refer(C), refer(grad_y, shared=merge == "sum"),
            refer(du, shared=u.shape[2] == 1), refer(ddelta), refer(dB[0]), refer(dC[0]), 4 * batch * positions * K * N,
            _data(dA), _data(dD), _data(dbias), _data(checkpoints),
        )  # fmt: skip
        return job, None if grad_states is None else _data(grad_states)

    if batch > 0 and channels > 0:
        run_tasks(backward, arguments, batch * blocks * split_routes)
        dB, dC = _sum_parts(dB), _sum_parts(dC)
    else:
        dB, dC = B.new_zeros(B.shape), C.new_zeros(C.shape)
    dA, dD, dbias = (None if x is None else _sum_parts(x) for x in (dA, dD, dbias))
    assert dA is not None
    return (
        du.to(u.dtype), ddelta, dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype),
        None if dD is None else dD.to(D.dtype), None if dbias is None else dbias.to(bias.dtype),
    )  # fmt: skip


def _conv_job(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool, u: Tensor, dx: Tensor | None,
    dweight: Tensor | None, dbias: Tensor | None, counter: int,
) -> ConvJob:  # fmt: skip
    (batch, positions), (K, channels, taps) = x.shape[:2], weight.shape
    split_routes = 1 if dx is not None and x.shape[2] == 1 else K
    width = _width(batch, channels, split_routes)
    shared = x.shape[2] == 1
    return ConvJob(
        batch, positions, channels, taps, K, positions if order is None else order.shape[-1], int(silu), _data(weight),
        _data(bias), *_table(order), width, -(-channels // (width * LANES)), int(split_routes == K), counter,
        refer(x, shared=shared), refer(u), refer(dx, shared=shared), _data(dweight), _data(dbias),
    )  # fmt: skip


def route_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """u: see the contract in `visionssm_kernels.ops`."""
    x, weight_, bias = _rows(x), _float(weight), _float(bias)
    assert weight_ is not None
    K, channels, _ = weight.shape
    u = torch.empty(x.shape[0], x.shape[1], K, channels, dtype=x.dtype)
    if u.numel() > 0:
        run_tasks(
            conv_forward,
            lambda counter: (_conv_job(x, weight_, bias, order, silu, u, None, None, None, counter),),
            x.shape[0] * K * -(-channels // LANES),
        )
    return u


def route_conv_backward(
    grad_u: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias: see the contract in `visionssm_kernels.ops`."""
    grad_u, x, weight_, bias_ = _rows(grad_u), _rows(x), _float(weight), _float(bias)
    assert weight_ is not None
    K, channels, taps = weight.shape
    shared = x.shape[2] == 1 and K > 1
    dx = torch.empty(x.shape, dtype=torch.float32 if shared else x.dtype)
    dweight, dbias = torch.empty(x.shape[0], K, channels, taps), torch.empty(x.shape[0], K, channels)
    if x.shape[0] > 0 and channels > 0:
        run_tasks(
            conv_backward,
            lambda counter: (_conv_job(x, weight_, bias_, order, silu, grad_u, dx, dweight, dbias, counter),),
            x.shape[0] * (1 if shared else K) * -(-channels // LANES),
        )
    dweight, dbias = _sum_parts(dweight), _sum_parts(dbias)
    return dx.to(x.dtype), dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype)


def warmup(d_state: int = 16) -> None:
    """Compiles all kernels now (or loads them from numba's cache), instead of at their first use.

    Args:
        d_state: unused by the compiler (one kernel serves every N), only the size of what is run.
    """
    u, A = torch.zeros(1, 2, 1, 4), -torch.ones(1, 4, d_state)
    m = torch.zeros(1, 2, 1, d_state)
    y, checkpoints, _ = routed_scan_forward(u, u, A, m, m, None, None, None, True, "sum", True, False)
    routed_scan_backward(y, None, u, u, A, m, m, None, None, None, True, "sum", checkpoints)
    weight = torch.zeros(1, 4, 4)
    route_conv_backward(route_conv_forward(u, weight, None, None, True), u, weight, None, None, True)
