"""dt's projection as products of matrices: for implementations whose scan does not project, and for gradients.

    delta = low W^T        dlow = ddelta W        dW = ddelta^T low        one W per route

Products are added up in float32 (float64 for float64 factors), under autocast too; W is rounded to low's dtype where that is half
precision, as autocast does.

Legend: B batch, L image positions, D channels, K routes, R rank.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from .reference import compute_dtype

__all__ = ["project", "project_backward"]


def project(low: Tensor, weight: Tensor) -> Tensor:
    """delta (B, L, K, D), float32 or float64, of rows (B, L, K, R) and a weight (K, D, R)."""
    return _einsum("blkr,kdr->blkd", low, _rounded(weight, low))


def project_backward(grad: Tensor, low: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `project`'s rows and weight, in their dtypes, from delta's."""
    dlow = _einsum("blkd,kdr->blkr", grad, _rounded(weight, low))
    return dlow.to(low.dtype), _einsum("blkd,blkr->kdr", grad, low).to(weight.dtype)


def _rounded(weight: Tensor, low: Tensor) -> Tensor:
    return weight.to(low.dtype) if low.dtype in (torch.float16, torch.bfloat16) else weight


def _einsum(equation: str, left: Tensor, right: Tensor) -> Tensor:
    dtype, device = compute_dtype(left, right), left.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):  # there is none for meta tensors
        return torch.einsum(equation, left.to(dtype), right.to(dtype))
