"""Memory that kernels know by its address: on the CPU and of a stated dtype, whatever torch's defaults for new tensors are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["empty", "zeros"]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cpu")
