"""Stems: NCHW images to maps (B, H', W', C). The first convolution of each is `conv1`, as timm's `first_conv` names it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv_norm import ConvNorm
from .plain import add_positions
from .typing import unscripted

__all__ = ["ConvNormStem", "ConvStem", "PatchStem", "PositionStem"]


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


class ConvNormStem(nn.Module):
    """Four 3x3 convolutions of stride 2 with BatchNorm, ReLU between (LeViT, arXiv 2104.01136): EfficientViM, MobileMamba.

    Args:
        in_chans: channels of the image.
        dim: channels out, a multiple of 8; an eighth, a quarter and half as many in between.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, dim // 8, 3, stride=2)
        self.conv2 = ConvNorm(dim // 8, dim // 4, 3, stride=2)
        self.conv3 = ConvNorm(dim // 4, dim // 2, 3, stride=2)
        self.conv4 = ConvNorm(dim // 2, dim, 3, stride=2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / 16), ceil(W / 16), dim)."""
        x = self.act(self.conv1(x.contiguous(memory_format=torch.channels_last)))
        x = self.act(self.conv3(self.act(self.conv2(x))))
        return self.conv4(x).permute(0, 2, 3, 1)


class PositionStem(nn.Module):
    """Patches by one strided convolution, positions added (ViT, arXiv 2010.11929), as a map.

    Images are zero-padded at the bottom and right to whole patches; for another size than `img_size` the table is resized
    on the way.

    Args:
        in_chans: channels of the image.
        dim: channels out.
        patch_size: side of a patch in pixels.
        img_size: side or (H, W) that the position table is made for.
        drop_rate: dropout after the positions.
    """

    def __init__(
        self, in_chans: int, dim: int, *, patch_size: int, img_size: int | tuple[int, int], drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = self.grid_of(img_size)
        self.conv1 = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dim))
        self.drop = nn.Dropout(drop_rate)

    @unscripted
    def grid_of(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        """Patches along (H, W) of an image."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / patch_size), ceil(W / patch_size), dim)."""
        x = F.pad(x, (0, -x.shape[3] % self.patch_size, 0, -x.shape[2] % self.patch_size))
        x = self.conv1(x).permute(0, 2, 3, 1)
        return self.drop(add_positions(x.flatten(1, 2), self.pos_embed, x, self.grid_size, False).view_as(x))
