"""Downsampling between stages, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

# ruff: noqa: SIM102  (TorchScript leaves out a branch for `is_scripting` alone)

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from visionssm_kernels.backends import is_plain_inference

from .conv_norm import ConvNorm
from .linear import Linear, project

__all__ = ["ConvDownsample", "InvertedMerging", "PatchMerging"]

_HEAVY = 8  # times as many weights as values of the map


@register_notrace_function  # its branches depend on sizes and modes, which FX does not know
def halve(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C').

    torch brings map and weight to one memory format at every call, which for a channels-last map means the weight: on small
    maps of many channels that takes longer than the convolution. There the map is brought to NCHW, or in inference the
    neighbourhoods are collected for one product with the weight as it is.
    """
    x = x_BHWC.permute(0, 3, 1, 2)
    if not torch.jit.is_scripting():
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and weight.numel() > x.numel():
            heavy = weight.numel() > _HEAVY * x.numel() and x.dtype == weight.dtype == torch.float32
            if heavy and is_plain_inference(x, weight, bias):
                rows_BLC = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2)
                return project(rows_BLC, weight.flatten(1), bias).unflatten(1, ((x.shape[2] + 1) // 2, -1))
            x = x.contiguous()
    return F.conv2d(x, weight, bias, 2, 1).permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Joins 2x2 neighbours and projects them: LayerNorm(4C), Linear 4C -> C' (Swin, arXiv 2103.14030).

    Odd sizes are zero-padded at the bottom and right. The four neighbours are joined in the order (even row, even
    column), (odd, even), (even, odd), (odd, odd).

    Args:
        dim: channels in.
        out_dim: channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class ConvDownsample(nn.Module):
    """A 3x3 convolution of stride 2, then LayerNorm.

    Args:
        dim: channels in.
        out_dim: channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        return self.norm(halve(x, self.conv.weight, self.conv.bias))


class InvertedMerging(nn.Module):
    """An inverted residual without its residual, strided and with squeeze-excitation (EfficientViT, arXiv 2305.07027), NCHW.

    Args:
        dim: channels in.
        out_dim: channels out.
        hidden: channels in between.
    """

    def __init__(self, dim: int, out_dim: int, *, hidden: int) -> None:
        super().__init__()
        self.expand = ConvNorm(dim, hidden)
        self.local = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden)
        self.squeeze_excite = SqueezeExcite(hidden, rd_ratio=0.25)
        self.reduce = ConvNorm(hidden, out_dim)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, out_dim, ceil(H/2), ceil(W/2))."""
        x = self.act(self.local(self.act(self.expand(x))))
        return self.reduce(self.squeeze_excite(x))
