"""Stems: NCHW images to (B, H/4, W/4, C). The first convolution of each is `conv1`, as timm's `first_conv` names it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ConvStem", "PatchStem"]


class PatchStem(nn.Module):
    """Non-overlapping patches by one strided convolution, then LayerNorm (Swin, VMamba's first generation).

    Args:
        in_chans: channels of the image.
        dim: channels out.
        patch_size: side of a patch in pixels; sizes that are no multiple lose their last rows or columns.
    """

    def __init__(self, in_chans: int, dim: int, *, patch_size: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm1 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H / patch_size, W / patch_size, dim)."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        return self.norm1(x.permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each followed by LayerNorm, GELU between (VMamba's second generation).

    Args:
        in_chans: channels of the image.
        dim: channels out; half as many in between.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(dim // 2)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        x = self.act(self.norm1(x)).permute(0, 3, 1, 2)
        return self.norm2(self.conv2(x).permute(0, 2, 3, 1))
