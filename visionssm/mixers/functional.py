"""The kernels as mixers call them: one leaf in FX graphs, scriptable, with the fixed choices of this layer."""

from __future__ import annotations

from typing import Optional  # TorchScript reads these

import torch
from timm.models._features_fx import register_notrace_function
from torch import Tensor
from visionssm_kernels import route_conv, routed_scan

__all__ = ["conv_along_routes", "scan_routes"]


@register_notrace_function
def scan_routes(
    u_BLKD: Tensor,
    delta_BLKD: Tensor,
    A_KDN: Tensor,
    B_BLKN: Tensor,
    C_BLKN: Tensor,
    D_KD: Optional[Tensor],
    bias_KD: Optional[Tensor],
    order_KT: Optional[Tensor],
    merge: str,
) -> Tensor:
    """`visionssm_kernels.routed_scan` with softplus; merge "sum" -> (B, L, D), "none" -> (B, L, K, D)."""
    if not torch.jit.is_scripting():
        return routed_scan(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, order=order_KT, merge=merge)  # pyright: ignore
    else:
        return torch.ops.visionssm.routed_scan(
            u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, order_KT, True, merge, False, False, "auto"
        )[0]


@register_notrace_function
def conv_along_routes(x_BLKD: Tensor, weight_KDW: Tensor, bias_KD: Optional[Tensor], order_KT: Optional[Tensor]) -> Tensor:
    """`visionssm_kernels.route_conv` with SiLU: (B, L, 1 or K, D) -> (B, L, K, D)."""
    if not torch.jit.is_scripting():
        return route_conv(x_BLKD, weight_KDW, bias_KD, order=order_KT)
    else:
        return torch.ops.visionssm.route_conv(x_BLKD, weight_KDW, bias_KD, order_KT, True, "auto")
