"""Non-causal state space duality: an order-free scan, which is two matrix products.

Without a causal mask every token sees one and the same state, the weighted sum over all tokens, so nothing is left to
scan: the state is B^T (weight x) and the readout C times it, both products of ordinary matrices. BLAS on CPUs and cuBLAS on
GPUs are at the limit there, so plain torch under its own autograd is the implementation for every device; it compiles, exports
and scripts as it stands, and torch's FLOP counter sees the products.

Source: VSSD, arXiv 2407.18559, section 3.2; EfficientViM's hidden-state mixer, arXiv 2411.15241, section 3.1.

Legend: B batch, L positions, H heads, P channels of a head, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["noncausal_ssd"]


def noncausal_ssd(
    x: Tensor, weight: Tensor | None, B: Tensor, C: Tensor | None = None, D: Tensor | None = None
) -> Tensor:
    """The sum over all tokens, read out at every token: y_l = C_l S + D x_l with S = sum_l B_l (weight_l x_l)^T per head.

    Both products are in the dtype of `x`, or of autocast, which BLAS adds up in float32; the weights are applied in their own.

    Args:
        x: (B, L, H, P), floating.
        weight: (B, L, H), what a token counts in a head, as VSSD's dt exp(A_log); of any dtype. None for 1.
        B: (B, L, N), shared by the heads.
        C: (B, L, N), shared by the heads. None for the state itself, for a caller that mixes it before reading it out.
        D: (H), the skip. None for none.

    Returns:
        (B, L, H, P) in the dtype of `x`; without C, S as (B, H, N, P).

    Raises:
        ValueError: shapes that do not belong together, or D without C.
    """
    _check(x, weight, B, C, D)
    weighted = x if weight is None else (x * weight.unsqueeze(-1)).to(x.dtype)
    state = torch.matmul(B.to(x.dtype).transpose(1, 2), weighted.flatten(2))
    if C is None:
        return state.unflatten(2, x.shape[2:]).transpose(1, 2)
    y = torch.matmul(C.to(x.dtype), state).unflatten(2, x.shape[2:])
    return y if D is None else (y + x * D.unsqueeze(-1)).to(y.dtype)


def _check(x: Tensor, weight: Tensor | None, B: Tensor, C: Tensor | None, D: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating (B, L, H, P), got {x.dtype} {x.shape}")
    if weight is not None and weight.shape != x.shape[:3]:
        raise ValueError(f"weight must be (B, L, H) = {x.shape[:3]} as x is {x.shape}, got {weight.shape}")
    if B.dim() != 3 or B.shape[:2] != x.shape[:2]:
        raise ValueError(f"B must be (B, L, N) with {x.shape[:2]} first as x is {x.shape}, got {B.shape}")
    if C is not None and C.shape != B.shape:
        raise ValueError(f"C must be shaped like B, {B.shape}, got {C.shape}")
    if D is not None and D.shape != x.shape[2:3]:
        raise ValueError(f"D must be (H) = {x.shape[2:3]} as x is {x.shape}, got {D.shape}")
    if D is not None and C is None:
        raise ValueError("D is part of the readout, so it needs C")
