"""Launches of the routed scan: buffers and grids.

Legend: B batch, L positions, Ku 1 or K, K routes, D channels, N state, R rank of dt's projection, T steps,
chunks = ceil(T / CHUNK).
Everything is decided from shapes: no measurement at the first call, no copy to the host, so a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import CHUNK
from .common import product_type
from .memory import clear_unvisited, image_buffer, on_device, row_strides, table_strides, unit_rows, vector_rows
from .scan_backward import chunk_carry_kernel, scan_backward_kernel
from .scan_forward import chunk_pass_kernel, chunk_state_kernel, scan_forward_kernel
from .tuning import device_of, fold_stages, table_for

__all__ = ["routed_scan_backward", "routed_scan_forward"]


def _split(programs: int, chunks: int, device: torch.device) -> bool:
    """Whether chunks run in parallel: where programs, of one warp each, would leave the schedulers idle."""
    table = table_for(device)
    return programs < table.programs_per_sm * device_of(device).multiprocessors and chunks >= table.chunks


def _route_dtype(u: Tensor, routes: int) -> torch.dtype:
    """In what K routes that will be summed are kept: float32 where that stays in the L2 cache. Where it does not, rounding each
    route first costs at most sqrt(2) of the error of rounding the sum and halves the traffic of the merge."""
    batch, length, _, dim = u.shape
    size = 4 * batch * length * routes * dim
    return torch.float32 if routes > 1 and size <= device_of(u.device).l2_bytes else u.dtype


def routed_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
    order: Tensor | None, softplus: bool, merge: str, save_checkpoints: bool, save_states: bool,
    segment: int = 0, phase: int = 0, dt_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `visionssm_kernels.routed_scan`; with `dt_weight` (K, D, R) no delta is ever in memory.

    Returns:
        y (B, L, D) or (B, L, K, D) of u's dtype; checkpoints float32 (B, K, chunks, D, N), the states after
        every CHUNK steps and after the last one; states float32 (B, L, K, D, N). What was not asked for is
        torch.empty(0).
    """
    u, delta, order, B, C = *(unit_rows(x) for x in (u, delta, order)), vector_rows(B), vector_rows(C)
    A, D, bias, dt_weight = (x if x is None else x.contiguous() for x in (A, D, bias, dt_weight))
    (batch, length), (routes, dim, d_state) = u.shape[:2], A.shape
    rank = 0 if dt_weight is None else dt_weight.shape[-1]
    steps = length if order is None else order.shape[-1]
    chunks = triton.cdiv(steps, CHUNK)
    block, group, limit = table_for(u.device).scan[d_state]
    grid = batch * routes * triton.cdiv(dim, block)
    split = _split(grid, chunks, u.device)
    floats = {"dtype": torch.float32, "device": u.device}

    kind = _route_dtype(u, routes if merge == "sum" else 1)
    y = image_buffer((batch, length, routes, dim), kind, u, order)
    shape = (batch, length, routes, dim, d_state)
    states = image_buffer(shape, torch.float32, u, order) if save_states else None
    checkpoints = torch.empty((batch, routes, chunks, dim, d_state), **floats) if save_checkpoints or split else None
    if y.numel() and steps:
        u_strides, delta_strides, B_strides, C_strides = (row_strides(x, routes) for x in (u, delta, B, C))
        fixed = {"N": d_state, "BD": block, "U": group, "CHUNK": CHUNK, "SOFTPLUS": softplus, "RESTARTS": segment > 0}
        fixed |= {"R": max(16, triton.next_power_of_2(rank)), "HALVINGS": group.bit_length() - 1}
        fixed |= {"TYPE": product_type(delta.dtype), "num_warps": 1, "maxnreg": limit}
        with on_device(u):
            if split:
                dt_sums = torch.empty((batch, routes, chunks, dim), **floats)
                chunk_state_kernel[grid * chunks,](
                    u, delta, dt_weight, A, B, bias, order, checkpoints, dt_sums, steps, dim, rank, routes, chunks,
                    segment, phase,
                    *u_strides, *delta_strides, *B_strides, *table_strides(order), **fixed,
                )  # fmt: skip
                chunk_pass_kernel[grid,](
                    A,
                    checkpoints,
                    dt_sums,
                    dim,
                    routes,
                    chunks,
                    N=d_state,
                    BD=block,
                    REVERSE=False,
                    num_warps=1,
                )
            scan_forward_kernel[grid * (chunks if split else 1),](
                u, delta, dt_weight, A, B, C, D, bias, order, y, checkpoints, states, length, steps, dim, rank, routes, chunks,
                segment, phase,
                *u_strides, *delta_strides, *B_strides, *C_strides, *table_strides(order), SPLIT=split, **fixed,
            )  # fmt: skip
    elif checkpoints is not None:
        checkpoints.zero_()
    clear_unvisited(order, y, *(() if states is None else (states,)))
    if merge == "sum":
        y = y.sum(2).to(u.dtype) if routes > 1 else y.squeeze(2)
    # no tensor twice: results of a custom operator may not share memory
    kept = checkpoints if save_checkpoints else torch.empty(0, **floats)
    return y, kept, torch.empty(0, **floats) if states is None else states


def routed_scan_backward(
    grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
    segment: int = 0, phase: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D and bias in the shapes and dtypes of these; None for a D or bias that is None."""
    grad_y, u, delta, order = (unit_rows(x) for x in (grad_y, u, delta, order))
    B, C = vector_rows(B), vector_rows(C)
    A, D, bias, grad_states = (x if x is None else x.contiguous() for x in (A, D, bias, grad_states))
    (batch, length, routes, dim), d_state = delta.shape, A.shape[-1]
    steps = length if order is None else order.shape[-1]
    if not (delta.numel() and steps):
        return tuple(x if x is None else torch.zeros_like(x) for x in (u, delta, A, B, C, D, bias))
    chunks = triton.cdiv(steps, CHUNK)
    block, group, limit = table_for(u.device).scan_backward[d_state]
    blocks = triton.cdiv(dim, block)
    grid = batch * routes * blocks
    parts = chunks if _split(grid, chunks, u.device) else 1
    floats = {"dtype": torch.float32, "device": u.device}

    kind = _route_dtype(u, routes if u.shape[2] != routes else 1)
    du = image_buffer((batch, length, routes, dim), kind, u, order)
    ddelta = image_buffer((batch, length, routes, dim), delta.dtype, u, order)
    dBC = image_buffer((batch, length, routes, 2, d_state), torch.float32, u, order, copies=blocks)
    dA = torch.empty((batch, routes, parts, dim, d_state), **floats)
    dD, dbias = (None if x is None else torch.empty((batch, routes, parts, dim), **floats) for x in (D, bias))
    parked = torch.empty((grid * parts, CHUNK // group, d_state, block), **floats)
    carries = None
    grad_strides, u_strides, delta_strides, B_strides, C_strides = (
        row_strides(x, routes if x is not grad_y or merge == "none" else -1) for x in (grad_y, u, delta, B, C)
    )
    fixed = {"N": d_state, "BD": block, "U": group, "CHUNK": CHUNK, "SOFTPLUS": softplus, "RESTARTS": segment > 0}
    fixed |= {"num_warps": 1, "maxnreg": limit}
    with on_device(u):
        if parts > 1:
            carries = torch.empty((batch, routes, chunks, dim, d_state), **floats)
            dt_sums = torch.empty((batch, routes, chunks, dim), **floats)
            chunk_carry_kernel[grid * chunks,](
                grad_y, grad_states, delta, A, C, bias, order, carries, dt_sums, length, steps, dim, routes, chunks,
                segment, phase,
                *grad_strides, *delta_strides, *C_strides, *table_strides(order), **fixed,
            )  # fmt: skip
            chunk_pass_kernel[grid,](
                A, carries, dt_sums, dim, routes, chunks, N=d_state, BD=block, REVERSE=True, num_warps=1
            )
        scan_backward_kernel[grid * parts,](
            grad_y, grad_states, u, delta, A, B, C, D, bias, order, checkpoints, carries, parked,
            du, ddelta, dA, dBC, dD, dbias, length, steps, dim, batch, routes, chunks, segment, phase,
            *grad_strides, *u_strides, *delta_strides, *B_strides, *C_strides, *table_strides(order),
            STAGES=fold_stages(d_state, block), **fixed,
        )  # fmt: skip
    dBC = dBC.sum(0) if blocks > 1 else dBC
    clear_unvisited(order, du, ddelta, dBC)
    if u.shape[2] != routes:
        du = du.sum(2, keepdim=True).to(u.dtype)
    dB, dC = (  # no views of one buffer: results of a custom operator may not share memory
        part.to(x.dtype, copy=True, memory_format=torch.contiguous_format)
        for part, x in zip(dBC.unbind(-2), (B, C), strict=True)
    )
    return (
        du, ddelta, dA.sum((0, 2)), dB, dC,
        None if dD is None else dD.sum((0, 2)), None if dbias is None else dbias.sum((0, 2)),
    )  # fmt: skip
