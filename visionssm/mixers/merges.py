"""Ways to join the routes of a mixer, beyond the plain sum inside the kernel; by name with `create_merge`.

Gates: LocalMamba, arXiv 2403.09338, sections 4.2 and 4.3; hunto/LocalMamba@75e5d1f. Route attention: MHS-VM, arXiv 2406.05992;
PixDeep/MHS-VM@3e4241e (its gated fusion unit).

Legend: B batch, L positions, K routes, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from visionssm.layers import Linear
from visionssm.scans import ScanOrder

from .functional import widened
from .shuffle_merge import ShuffleMerge

__all__ = [
    "MERGES",
    "ConcatMerge",
    "GatedMerge",
    "MeanMerge",
    "RouteAttention",
    "RouteGate",
    "SearchMerge",
    "SumMerge",
    "create_merge",
]


class SumMerge(nn.Module):
    """The sum of the routes; without parameters, and the same as the kernel's own."""

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        return y_BLKD.sum(2)


class MeanMerge(nn.Module):
    """The mean of the routes."""

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        return y_BLKD.mean(2)


class ConcatMerge(nn.Module):
    """The routes side by side, brought back to D channels by one linear layer, which begins as the sum.

    Args:
        dim: D.
        routes: K.
    """

    def __init__(self, dim: int, routes: int) -> None:
        super().__init__()
        self.proj = Linear(routes * dim, dim, bias=False)
        with torch.no_grad():
            self.proj.weight.copy_(torch.eye(dim).repeat(1, routes))

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        return self.proj(y_BLKD.flatten(2))


class RouteAttention(nn.Module):
    """The sum of the routes, weighed at every position and channel by how much they disagree; without parameters.

    The weight is the coefficient of variation over the routes, their standard deviation over their mean above the least, less
    a threshold below which it is zero.

    Args:
        threshold: t.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> (B, L, D)."""
        # the square root has no gradient at zero, where all routes agree
        deviation_BLD = (y_BLKD.var(2) + 1e-12).sqrt()
        mean_BLD = y_BLKD.mean(2) - y_BLKD.amin(2)
        return y_BLKD.sum(2) * F.relu(deviation_BLD / (mean_BLD + 1e-5) - self.threshold)


@register_notrace_function  # its loop runs over the routes, whose number FX does not know
def weighted_sum(y_BLKD: Tensor, weight_BKD: Tensor) -> Tensor:
    """The sum of the routes, each times its weight; a route at a time, in at least float32: (B, L, K, D) -> (B, L, D)."""
    weight_BKD = widened(weight_BKD)
    total = y_BLKD[:, :, 0] * weight_BKD[:, None, 0]
    for k in range(1, y_BLKD.shape[2]):
        total = torch.addcmul(total, y_BLKD[:, :, k].to(total.dtype), weight_BKD[:, None, k])
    return total.to(y_BLKD.dtype)


@register_notrace_module  # for the same reason
class RouteGate(nn.Module):
    """A gate per image, route and channel, from the mean of the normed output of that route; one module for all routes.

    Routes are normed one at a time: a second tensor as large as all of them is never made.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.reduce = Linear(dim, dim // 8)
        self.act = nn.GELU()
        self.select = Linear(dim // 8, dim)

    def forward(self, y_BLKD: Tensor) -> Tensor:
        """(B, L, K, D) -> the gates, (B, K, D)."""
        means = [self.norm(y_BLKD[:, :, k]).mean(1) for k in range(y_BLKD.shape[2])]
        return torch.sigmoid(self.select(self.act(self.reduce(torch.stack(means, 1)))))


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
        return weighted_sum(y_BLKD, self.gate(y_BLKD))


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
        y_BLKD = y_BLKD * self.gate(y_BLKD).unsqueeze(1)
        normed = F.layer_norm(y_BLKD, y_BLKD.shape[-1:])
        return (normed * self.weights.softmax(0).to(normed.dtype).unsqueeze(-1)).sum(2)


MERGES = ("sum", "mean", "gated", "shuffle", "route", "concat")


def create_merge(name: str, dim: int, routes: int) -> nn.Module:
    """A merge by name.

    Args:
        name: "sum", "mean", "gated" (LocalMamba), "shuffle" (MaIR's sequence shuffle attention), "route" (MHS-VM's route
            attention) or "concat".
        dim: D.
        routes: K.

    Raises:
        ValueError: unknown name, or a merge that needs more routes or channels.
    """
    if name == "sum":
        return SumMerge()
    if name == "mean":
        return MeanMerge()
    if name == "gated":
        if dim < 8:
            raise ValueError(f"merge 'gated' needs at least 8 channels, got {dim}")
        return GatedMerge(dim)
    if name == "shuffle":
        return ShuffleMerge(dim, routes)
    if name == "route":
        if routes < 2:
            raise ValueError("merge 'route' compares the routes, so it needs at least 2")
        return RouteAttention()
    if name == "concat":
        return ConcatMerge(dim, routes)
    raise ValueError(f"unknown merge {name!r}: choose one of {', '.join(map(repr, MERGES))}")
