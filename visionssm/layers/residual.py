"""Global residual connections of hierarchical models: past all blocks of a stage and the downsampling behind them.

Source: Res-VMamba, arXiv 2402.15761; ChiShengChen/ResVMamba@b7a080d. There the 1x1 convolutions are drawn anew in every forward
pass and so never learned; here they are layers. Maps of odd sides are pooled to the sides of the next stage's.

Legend: B batch, S spatial sizes, C channels of a stage, C' of the next.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from .linear import Linear

__all__ = ["GlobalResidual"]


@register_notrace_module
class PooledLinear(nn.Module):
    """Max pooling to another map's sides, then a linear layer over channels.

    Args:
        dim: C.
        out_dim: C'.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, out_dim)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(B, H, W, C), (B, H', W', C') -> (B, H', W', C')."""
        pooled = F.adaptive_max_pool2d(x.permute(0, 3, 1, 2), [like.shape[1], like.shape[2]])
        return self.proj(pooled.permute(0, 2, 3, 1))


class GlobalResidual(nn.Module):
    """x + linear(max_pool(what entered the blocks of the stage before)).

    Args:
        dims: channels of every stage; empty for no residuals.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.on = len(dims) > 0
        self.skips = nn.ModuleList([PooledLinear(*pair) for pair in itertools.pairwise(dims)])

    def forward(self, x: Tensor, entry: Tensor, stage: int) -> Tensor:
        """What enters the blocks of stage number `stage`; nothing is added in the first.

        Args:
            x: (B, H', W', C'), downsampled.
            entry: (B, H, W, C), what this returned for the stage before.
            stage: from 0.
        """
        for i, skip in enumerate(self.skips):
            if i == stage - 1:
                x = x + skip(entry, x)
        return x
