"""Downsampling between stages, (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvDownsample", "PatchMerging"]


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
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

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
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
