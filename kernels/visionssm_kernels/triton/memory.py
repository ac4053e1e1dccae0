"""What the launchers share: strides, output buffers, the current device.

Legend: B batch, L positions, K routes, D channels, T steps, width elements of one route at one position.
An output in image order is complete where a table is a permutation; whether it is, only the device knows.
Zeroing every output first would cost a quarter of the memory traffic of a scan with N = 1, so large outputs
are left uninitialised and the positions that no step visited are zeroed afterwards: B K L bytes of marks to
read and, usually, nothing to write.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import SIZES

__all__ = ["clear_unvisited", "image_buffer", "on_device", "row_strides", "table_strides", "unit_rows", "vector_rows"]

# Elements from which an output is worth the two further launches; smaller ones are zeroed at once.
LARGE = 1 << 18
BLOCK_L, BLOCK_WIDTH = 64, 64


@triton.jit(do_not_specialize=SIZES)
def mark_kernel(order, visited, L, T, routes, order_b, order_k, BL: tl.constexpr):
    """visited[b, k, order[b, k, t]] = 1. Grid (tables x routes x blocks of steps)."""
    parts = tl.cdiv(T, BL)
    pid = tl.program_id(0) // parts
    table = (pid // routes).to(tl.int64)
    k = (pid % routes).to(tl.int64)
    t = (tl.program_id(0) % parts) * BL + tl.arange(0, BL)
    position = tl.load(order + table * order_b + k * order_k + t, mask=t < T, other=-1)
    tl.store(visited + (table * routes + k) * L + position, 1, mask=position >= 0)


@triton.jit(do_not_specialize=SIZES)
def clear_kernel(x, visited, L, routes, width, visited_b, BL: tl.constexpr, BW: tl.constexpr):
    """x (B, L, K, width) = 0 where not visited. Grid (B x K x blocks of positions)."""
    parts = tl.cdiv(L, BL)
    pid = tl.program_id(0) // parts
    b = (pid // routes).to(tl.int64)
    k = (pid % routes).to(tl.int64)
    position = (tl.program_id(0) % parts) * BL + tl.arange(0, BL)
    mark = tl.load(visited + b * visited_b + k * L + position, mask=position < L, other=1)
    if tl.min(mark.to(tl.int32), axis=0) == 0:
        rows = ((b * L + position) * routes + k) * width
        for start in range(0, width, BW):
            offset = start + tl.arange(0, BW)
            missing = (mark == 0)[:, None] & (offset < width)[None, :]
            tl.store(x + rows[:, None] + offset[None, :], tl.zeros((BL, BW), x.dtype.element_ty), mask=missing)


@overload
def unit_rows(x: Tensor) -> Tensor: ...


@overload
def unit_rows(x: None) -> None: ...


def unit_rows(x: Tensor | None) -> Tensor | None:
    """x itself where its last dimension is contiguous, else a copy: the kernels take any other stride."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


VECTOR = 16  # elements


def vector_rows(x: Tensor) -> Tensor:
    """x itself where its rows can be read in vectors, else a copy at a pitch of 16 elements.

    Every warp reads whole rows of B and C; one load for each of the N values would cost more than the exponentials. Of strides
    Triton knows whether 16 divides them.
    """
    states = x.shape[-1]
    strides = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    fits = x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(stride % VECTOR == 0 for stride in strides)
    if states <= 2 or fits:
        return unit_rows(x)
    pitch = triton.cdiv(states, VECTOR) * VECTOR
    return torch.empty((*x.shape[:-1], pitch), dtype=x.dtype, device=x.device)[..., :states].copy_(x)


def row_strides(x: Tensor, routes: int) -> tuple[int, int, int]:
    """(batch, position, route) strides of (B, L, K, D), of (B, L, 1, D) read by all routes, or of (B, L, D)."""
    shared = x.dim() == 3 or x.shape[2] != routes
    return x.stride(0), x.stride(1), 0 if shared else x.stride(2)


def table_strides(order: Tensor | None) -> tuple[int, int]:
    """(batch, route) strides of a route table (K, T) or (B, K, T)."""
    if order is None:
        return 0, 0
    return 0 if order.dim() == 2 else order.stride(0), order.stride(-2)


def image_buffer(
    shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, order: Tensor | None, copies: int = 1
) -> Tensor:
    """An output (B, L, K, ...) for `clear_unvisited` once the kernels have written it, or (copies, B, L, K,
    ...) whose sum is one."""
    x = torch.empty(shape if copies == 1 else (copies, *shape), dtype=dtype, device=like.device)
    return x if order is None or x.numel() >= LARGE * copies else x.zero_()


def clear_unvisited(order: Tensor | None, *buffers: Tensor) -> None:
    """Zeroes the positions of (B, L, K, ...) buffers to which their route never came, where they are not zero already."""
    large = [x for x in buffers if x.numel() >= LARGE]
    if order is None or not large:
        return
    batch, length, routes = large[0].shape[:3]
    tables, steps = order.shape[0] if order.dim() == 3 else 1, order.shape[-1]
    visited = torch.zeros((tables, routes, length), dtype=torch.int8, device=order.device)
    with on_device(visited):
        mark_kernel[tables * routes * triton.cdiv(steps, BLOCK_L),](
            order, visited, length, steps, routes, *table_strides(order), BL=BLOCK_L, num_warps=1
        )
        for x in large:
            clear_kernel[batch * routes * triton.cdiv(length, BLOCK_L),](
                x, visited, length, routes, x.numel() // (batch * length * routes), 0 if tables == 1 else routes * length,
                BL=BLOCK_L, BW=BLOCK_WIDTH, num_warps=4,
            )  # fmt: skip


def on_device(x: Tensor) -> AbstractContextManager:
    """Launch where x is, not on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
