"""Downsampling between stages, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from .conv_norm import ConvNorm
from .linear import Linear

__all__ = ["ConvDownsample", "InvertedMerging", "PatchMerging"]


@register_notrace_function  # its branch depends on sizes, which FX does not know
def cheaper_format(x: Tensor, weight: Tensor) -> Tensor:
    """A channels-last map on its way to a convolution on the CPU, as NCHW if that is less to copy.

    torch brings map and weight to one memory format at every call, which for a channels-last map means the weight: on small
    maps of many channels that takes longer than the convolution.
    """
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        return x
    return x.contiguous() if x.device.type == "cpu" and weight.numel() > x.numel() else x


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
        x = cheaper_format(x.permute(0, 3, 1, 2), self.conv.weight)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


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
