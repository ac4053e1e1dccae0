"""Launches of the routed scan: buffers, grids and the table of configurations.

Legend: B batch, L positions, Ku 1 or K, K routes, D channels, N state, T steps, chunks = ceil(T / CHUNK).
Everything is decided from shapes: no measurement at the first call, no copy to the host, so a call can be
captured in a CUDA graph.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from . import CHUNK
from .memory import clear_unvisited, image_buffer, on_device, row_strides, table_strides, unit_rows
from .scan_backward import chunk_carry_kernel, scan_backward_kernel
from .scan_forward import chunk_pass_kernel, chunk_state_kernel, scan_forward_kernel

__all__ = ["BACKWARD", "FORWARD", "routed_scan_backward", "routed_scan_forward"]

# N: (channels of a block, steps loaded together, register limit). Chosen ahead of time, on what the compiler
# reports for sm_80 and sm_90: the largest that do not spill (the compile test holds them to it). The limit
# keeps ptxas from spilling for the sake of occupancy.
FORWARD = {
    1: (32, 8, None), 2: (32, 8, None), 4: (32, 8, None), 8: (32, 4, None),
    16: (16, 4, 255), 32: (16, 2, 255), 64: (8, 2, 255),
}  # fmt: skip
BACKWARD = {
    1: (32, 4, None), 2: (32, 4, None), 4: (32, 4, None), 8: (32, 2, 255),
    16: (16, 2, 255), 32: (8, 2, 255), 64: (8, 1, 255),
}  # fmt: skip

# Fewer one-warp programs than this leave a large GPU's schedulers idle (132 x 4 on an H200): then chunks run
# in parallel, at the price of computing every step about twice. Below a few chunks there is nothing to gain.
SPLIT_BELOW = 1024
SPLIT_CHUNKS = 4


def fold_stages(d_state: int, block: int) -> int:
    """Halving stages of `fold_channels`: until one value is left, or one channel."""
    return min(2 * d_state, block).bit_length() - 1


def _split(programs: int, chunks: int) -> bool:
    return programs < SPLIT_BELOW and chunks >= SPLIT_CHUNKS


def routed_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
    order: Tensor | None, softplus: bool, merge: str, save_checkpoints: bool, save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `visionssm_kernels.routed_scan`.

    Returns:
        y (B, L, D) or (B, L, K, D) of u's dtype; checkpoints float32 (B, K, chunks, D, N), the states after
        every CHUNK steps and after the last one; states float32 (B, L, K, D, N). What was not asked for is
        torch.empty(0).
    """
    u, delta, B, C, order = (unit_rows(x) for x in (u, delta, B, C, order))
    A, D, bias = (x if x is None else x.contiguous() for x in (A, D, bias))
    (batch, length, routes, dim), d_state = delta.shape, A.shape[-1]
    steps = length if order is None else order.shape[-1]
    chunks = triton.cdiv(steps, CHUNK)
    block, group, limit = FORWARD[d_state]
    grid = batch * routes * triton.cdiv(dim, block)
    split = _split(grid, chunks)
    floats = {"dtype": torch.float32, "device": u.device}
    nothing = torch.empty(0, **floats)

    y = image_buffer((batch, length, routes, dim), u.dtype, u, order)
    shape = (batch, length, routes, dim, d_state)
    states = image_buffer(shape, torch.float32, u, order) if save_states else None
    checkpoints = torch.empty((batch, routes, chunks, dim, d_state), **floats) if save_checkpoints or split else None
    if y.numel() and steps:
        u_strides, delta_strides, B_strides, C_strides = (row_strides(x, routes) for x in (u, delta, B, C))
        fixed = {"N": d_state, "BD": block, "U": group, "CHUNK": CHUNK, "SOFTPLUS": softplus}
        fixed |= {"num_warps": 1, "maxnreg": limit}
        with on_device(u):
            if split:
                dt_sums = torch.empty((batch, routes, chunks, dim), **floats)
                chunk_state_kernel[grid * chunks,](
                    u, delta, A, B, bias, order, checkpoints, dt_sums, steps, dim, routes, chunks,
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
                u, delta, A, B, C, D, bias, order, y, checkpoints, states, length, steps, dim, routes, chunks,
                *u_strides, *delta_strides, *B_strides, *C_strides, *table_strides(order), SPLIT=split, **fixed,
            )  # fmt: skip
    elif checkpoints is not None:
        checkpoints.zero_()
    clear_unvisited(order, y, *(() if states is None else (states,)))
    if merge == "sum":
        y = y.sum(2) if routes > 1 else y.squeeze(2)
    return y, checkpoints if save_checkpoints else nothing, nothing if states is None else states


def routed_scan_backward(
    grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of u, delta, A, B, C, D and bias in the shapes and dtypes of these; None for a D or bias that is None."""
    grad_y, u, delta, B, C, order = (unit_rows(x) for x in (grad_y, u, delta, B, C, order))
    A, D, bias, grad_states = (x if x is None else x.contiguous() for x in (A, D, bias, grad_states))
    (batch, length, routes, dim), d_state = delta.shape, A.shape[-1]
    steps = length if order is None else order.shape[-1]
    if not (delta.numel() and steps):
        return tuple(x if x is None else torch.zeros_like(x) for x in (u, delta, A, B, C, D, bias))
    chunks = triton.cdiv(steps, CHUNK)
    block, group, limit = BACKWARD[d_state]
    blocks = triton.cdiv(dim, block)
    grid = batch * routes * blocks
    parts = chunks if _split(grid, chunks) else 1
    floats = {"dtype": torch.float32, "device": u.device}

    du = image_buffer((batch, length, routes, dim), u.dtype, u, order)
    ddelta = image_buffer((batch, length, routes, dim), delta.dtype, u, order)
    dBC = image_buffer((batch, length, routes, 2, d_state), torch.float32, u, order, copies=blocks)
    dA = torch.empty((batch, routes, parts, dim, d_state), **floats)
    dD, dbias = (None if x is None else torch.empty((batch, routes, parts, dim), **floats) for x in (D, bias))
    parked = torch.empty((grid * parts, CHUNK // group, d_state, block), **floats)
    carries = None
    grad_strides, u_strides, delta_strides, B_strides, C_strides = (
        row_strides(x, routes if x is not grad_y or merge == "none" else -1) for x in (grad_y, u, delta, B, C)
    )
    fixed = {"N": d_state, "BD": block, "U": group, "CHUNK": CHUNK, "SOFTPLUS": softplus}
    fixed |= {"num_warps": 1, "maxnreg": limit}
    with on_device(u):
        if parts > 1:
            carries = torch.empty((batch, routes, chunks, dim, d_state), **floats)
            dt_sums = torch.empty((batch, routes, chunks, dim), **floats)
            chunk_carry_kernel[grid * chunks,](
                grad_y, grad_states, delta, A, C, bias, order, carries, dt_sums, length, steps, dim, routes, chunks,
                *grad_strides, *delta_strides, *C_strides, *table_strides(order), **fixed,
            )  # fmt: skip
            chunk_pass_kernel[grid,](
                A, carries, dt_sums, dim, routes, chunks, N=d_state, BD=block, REVERSE=True, num_warps=1
            )
        scan_backward_kernel[grid * parts,](
            grad_y, grad_states, u, delta, A, B, C, D, bias, order, checkpoints, carries, parked,
            du, ddelta, dA, dBC, dD, dbias, length, steps, dim, batch, routes, chunks,
            *grad_strides, *u_strides, *delta_strides, *B_strides, *C_strides, *table_strides(order),
            STAGES=fold_stages(d_state, block), **fixed,
        )  # fmt: skip
    dBC = dBC.sum(0) if blocks > 1 else dBC
    clear_unvisited(order, du, ddelta, dBC)
    if u.shape[2] != routes:
        du = du.sum(2, keepdim=True)
    dB, dC = (  # no views of one buffer: results of a custom operator may not share memory
        part.to(x.dtype, copy=True, memory_format=torch.contiguous_format)
        for part, x in zip(dBC.unbind(-2), (B, C), strict=True)
    )
    return (
        du, ddelta, dA.sum((0, 2)), dB, dC,
        None if dD is None else dD.sum((0, 2)), None if dbias is None else dbias.sum((0, 2)),
    )  # fmt: skip
