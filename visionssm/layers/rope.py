"""Rotary positions over a grid, applied to whole tokens (LocalVim).

Legend: B batch, L tokens, H, W sides of the grid, C channels.
"""

from __future__ import annotations

import torch
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from .plain import _is_open, resize_positions
from .typing import unscripted

__all__ = ["GridRope", "rope_tables"]

_TRAINED_SIDE = 14  # positions along any grid run from 0 to this


def rope_tables(grid: tuple[int, int], dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a grid, float32 (H * W, C): half of the channels turn with the row, half with the column.

    Args:
        grid: (H, W).
        dim: C, a multiple of 4.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"rotary positions over rows and columns need a width that is a multiple of 4, got {dim}")
    half = dim // 2
    freqs = 1.0 / 10000 ** (torch.arange(0, half, 2).float() / half)

    def angles(side: int) -> Tensor:
        turns = torch.arange(side) / side * _TRAINED_SIDE
        return (turns[:, None] * freqs).repeat_interleave(2, 1)

    rows = angles(grid[0])[:, None].expand(*grid, half)
    columns = angles(grid[1])[None].expand(*grid, half)
    table = torch.cat([rows, columns], -1).flatten(0, 1)
    return table.cos(), table.sin()


@register_notrace_module  # its branch depends on the size, which FX does not know
class GridRope(nn.Module):
    """Turns neighbouring channels (x0, x1) by an angle that grows with row or column.

    Source: hunto/LocalMamba@75e5d1f, VisionRotaryEmbeddingFast. For patches of another grid the cosines and sines
    themselves are resized, bicubic, as there; the result is no exact rotation. They are made from the grid and not stored.

    Args:
        grid: (H, W) that the tables are made for.
        dim: C, a multiple of 4.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.grid = grid
        cos, sin = rope_tables(grid, dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @unscripted
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Makes the tables anew for another grid."""
        self.grid = grid
        cos, sin = rope_tables(grid, self.cos.shape[1])
        self.cos, self.sin = cos.to(self.cos), sin.to(self.sin)

    def forward(self, tokens_BLC: Tensor, patches_BHWC: Tensor) -> Tensor:
        """Tokens turned by their place; the patches only tell the grid."""
        cos, sin = self.cos, self.sin
        height, width = patches_BHWC.shape[1], patches_BHWC.shape[2]
        if _is_open(height, width) or height != self.grid[0] or width != self.grid[1]:
            cos = resize_positions(cos.unsqueeze(0), self.grid, (height, width))[0]
            sin = resize_positions(sin.unsqueeze(0), self.grid, (height, width))[0]
        pairs = tokens_BLC.unflatten(-1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
        return tokens_BLC * cos.to(tokens_BLC.dtype) + turned * sin.to(tokens_BLC.dtype)
