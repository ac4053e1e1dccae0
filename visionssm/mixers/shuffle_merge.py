"""A way to join the routes of a mixer: gates that compare the routes channel by channel.

Source: MaIR, arXiv 2412.20066, section 3.3 (sequence shuffle attention); XLearning-SCU/2025-CVPR-MaIR@2fb433e.

Legend: B batch, L positions, K routes, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ShuffleMerge"]


class ShuffleMerge(nn.Module):
    """The sum of the routes, each channel of each gated by the means of that channel over all routes.

    What the published code does by shuffling channels around a grouped convolution is one K x K matrix per channel.

    Args:
        dim: D.
        routes: K.
    """

    def __init__(self, dim: int, routes: int) -> None:
        super().__init__()
        bound = routes**-0.5  # as torch draws a convolution's weights
        self.weight = nn.Parameter(torch.empty(dim, routes, routes).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim, routes).uniform_(-bound, bound))

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        mean_BKD = y_BLKD.mean(1)
        scores_BDK = torch.einsum("bkd,djk->bdj", mean_BKD, self.weight.to(mean_BKD.dtype)) + self.bias
        gate_BKD = torch.sigmoid(scores_BDK).transpose(1, 2)
        return (y_BLKD * gate_BKD.unsqueeze(1)).sum(2)
