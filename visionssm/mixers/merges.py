"""Ways to join the routes of a mixer, beyond the plain sum inside the kernel.

Source: LocalMamba, arXiv 2403.09338, sections 4.2 and 4.3; hunto/LocalMamba@75e5d1f.

Legend: B batch, L positions, K routes, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.scans import ScanOrder

__all__ = ["GatedMerge", "RouteGate", "SearchMerge"]


class RouteGate(nn.Module):
    """A gate per image, route and channel, from the mean of the normed output of that route; one module for all routes.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduce = nn.Linear(dim, dim // 8)
        self.act = nn.GELU()
        self.select = nn.Linear(dim // 8, dim)

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, K, D)."""
        mean_BKD = self.norm(y_BLKD).mean(1)
        gate_BKD = torch.sigmoid(self.select(self.act(self.reduce(mean_BKD))))
        return y_BLKD * gate_BKD.unsqueeze(1)


class GatedMerge(nn.Module):
    """The sum of the gated routes.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = RouteGate(dim)

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        return self.gate(y_BLKD).sum(2)


class SearchMerge(nn.Module):
    """A learned mixture of the gated routes: which of them a layer needs is read off the weights after training.

    Every route is normed without affine parameters, so that its weight and nothing else says how much it counts.

    Args:
        dim: D.
        scan: the order whose K routes are mixed.
    """

    def __init__(self, dim: int, scan: ScanOrder) -> None:
        super().__init__()
        self.scan = scan
        self.gate = RouteGate(dim)
        self.weights = nn.Parameter(1e-3 * torch.randn(scan.num_routes))

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        y_BLKD = self.gate(y_BLKD)
        normed = F.layer_norm(y_BLKD, y_BLKD.shape[-1:])
        return (normed * self.weights.softmax(0).to(normed.dtype).unsqueeze(-1)).sum(2)
