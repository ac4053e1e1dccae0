"""Linear layers whose products are `visionssm_kernels.linear`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

import visionssm_kernels

__all__ = ["Linear", "Mlp", "project"]


@register_notrace_function  # its branch depends on modes and sizes, which FX does not know
def project(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weight^T + bias, or its GELU: (..., C), (C', C), (C',) -> (..., C')."""
    if not torch.jit.is_scripting():
        return visionssm_kernels.linear(x, weight, bias, gelu=gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


class Linear(nn.Linear):
    """`nn.Linear`, faster in inference on some CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return project(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Linear, GELU, linear.

    Args:
        dim: channels in and out.
        hidden: channels in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(project(x, self.fc1.weight, self.fc1.bias, True))
