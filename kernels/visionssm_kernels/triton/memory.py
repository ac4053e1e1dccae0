"""What the launchers share: strides, buffers, the current device. Legend: B batch, L positions, K routes, D channels, T steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
from torch import Tensor

__all__ = ["image_buffer", "on_device", "row_strides", "table_strides", "unit_rows"]


@overload
def unit_rows(x: Tensor) -> Tensor: ...


@overload
def unit_rows(x: None) -> None: ...


def unit_rows(x: Tensor | None) -> Tensor | None:
    """x itself where its last dimension is contiguous, else a copy: the kernels take any other stride."""
    return x if x is None or x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def row_strides(x: Tensor, routes: int) -> tuple[int, int, int]:
    """(batch, position, route) strides of (B, L, K, D), of (B, L, 1, D) read by all routes, or of (B, L, D)."""
    shared = x.dim() == 3 or x.shape[2] != routes
    return x.stride(0), x.stride(1), 0 if shared else x.stride(2)


def table_strides(order: Tensor | None) -> tuple[int, int]:
    """(batch, route) strides of a route table (K, T) or (B, K, T)."""
    if order is None:
        return 0, 0
    return 0 if order.dim() == 2 else order.stride(0), order.stride(-2)


def image_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, order: Tensor | None) -> Tensor:
    """An output in image order: zeros where a table may miss positions (which only the device knows), else uninitialised."""
    make = torch.empty if order is None else torch.zeros
    return make(shape, dtype=dtype, device=device)


def on_device(x: Tensor) -> AbstractContextManager:
    """Launch where x is, not on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
