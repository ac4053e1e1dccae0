"""The Haar wavelet of maps, one level: four sub-bands of half the size from every channel, and back.

The transform is orthonormal, so its inverse has the same four sums. Of the 2 x 2 pixels a b / c d: band 0 is (a + b + c + d) / 2,
band 1 (a + b - c - d) / 2, band 2 (a - b + c - d) / 2, band 3 (a - b - c + d) / 2.

Legend: B batch, C channels, H height, W width, h = ceil(H / 2), w = ceil(W / 2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["haar", "inverse_haar"]


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return (top + bottom) / 2, (top - bottom) / 2, (left + right) / 2, (left - right) / 2


def haar(x: Tensor) -> Tensor:
    """Sub-bands of a map, which is zero-padded at the bottom and right to an even size: (B, C, H, W) -> (B, C, 4, h, w)."""
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    rows, others = x[:, :, 0::2], x[:, :, 1::2]
    bands = _butterfly(rows[..., 0::2], rows[..., 1::2], others[..., 0::2], others[..., 1::2])
    return torch.stack(bands, 2)


def inverse_haar(bands: Tensor) -> Tensor:
    """The map that has these sub-bands: (B, C, 4, h, w) -> (B, C, 2 h, 2 w)."""
    low, rows, columns, both = bands.unbind(2)
    a, b, c, d = _butterfly(low, rows, columns, both)
    top = torch.stack([a, b], -1).flatten(-2)
    bottom = torch.stack([c, d], -1).flatten(-2)
    return torch.stack([top, bottom], 3).flatten(2, 3)
