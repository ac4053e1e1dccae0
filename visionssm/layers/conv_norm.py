"""A linear map and its BatchNorm, which become one for inference: `timm.models.reparameterize_model` calls `fuse` on a copy.

Nothing here fuses by itself, so a fused weight is never out of date.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .linear import Linear

__all__ = ["ConvNorm", "LinearNorm", "Residual"]


def _fold(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the map and the norm in one; the first dimension of `weight` is the channels out."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = norm.weight / (var + norm.eps).sqrt()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), norm.bias - mean * scale


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm: (B, C, H, W) -> (B, C', H', W').

    Args:
        dim: C.
        out_dim: C'.
        kernel_size: side of the kernel, odd; the padding keeps the size at stride 1.
        stride: of the convolution.
        groups: of the convolution.
    """

    def __init__(self, dim: int, out_dim: int, kernel_size: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.norm(self.conv(x))

    @torch.jit.unused
    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """One convolution that does the same in evaluation mode."""
        fused = copy.deepcopy(self.conv)
        weight, bias = _fold(fused.weight, self.norm)
        fused.weight.copy_(weight)
        fused.bias = nn.Parameter(bias)
        return fused


class LinearNorm(nn.Module):
    """A linear layer without bias, then BatchNorm, channels last: (B, H, W, C) -> (B, H, W, C').

    Args:
        dim: C.
        out_dim: C'.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = Linear(dim, out_dim, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C')."""
        return self.norm(self.linear(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    @torch.jit.unused
    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """One linear layer that does the same in evaluation mode."""
        old = self.linear
        fused = Linear(old.in_features, old.out_features, device=old.weight.device, dtype=old.weight.dtype)
        weight, bias = _fold(old.weight, self.norm)
        fused.weight.copy_(weight)
        fused.bias.copy_(bias)
        return fused


class Residual(nn.Module):
    """x + inner(x).

    Args:
        inner: keeps the shape.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that `inner` takes."""
        return x + self.inner(x)
