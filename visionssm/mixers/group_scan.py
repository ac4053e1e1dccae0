"""The mixer of channel groups: every group is projected, convolved, scanned, normed and gated for itself, in one scan.

Source: GroupMamba, arXiv 2407.13772; Amshaker/GroupMamba@c1800ed, which runs a module per group.

Legend: B batch, S spatial sizes, L = prod(S), G groups, C block width of a group, D inner width of a group, K routes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.scans import ScanOrder, deal

from .core import ScanCore
from .functional import deal_channels
from .paths import Paths

__all__ = ["GroupLinear", "GroupNorm", "GroupScan"]


class GroupLinear(nn.Module):
    """A linear layer per group, without bias: (B, L, G, C) -> (B, L, G, C').

    Args:
        groups: G.
        dim: C.
        out_dim: C'.
    """

    def __init__(self, groups: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_dim, dim))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, G, C) -> (B, L, G, C')."""
        return torch.einsum("blgc,gdc->blgd", x, self.weight)


class GroupNorm(nn.Module):
    """A LayerNorm over the channels of each group, with its own scale and shift: (B, L, G, D).

    Args:
        groups: G.
        dim: D.
    """

    def __init__(self, groups: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, G, D) -> (B, L, G, D)."""
        return F.layer_norm(x, [x.shape[-1]]) * self.weight + self.bias


class GroupScan(ScanCore):
    """`ImageScan` for every channel group alone, with the groups side by side in one scan.

    Args:
        dim: G * C, channels in and out.
        scan: order of the routes; one with fewer channel groups, or none, is dealt out to them (`visionssm.scans.deal`).
        groups: G.
        d_state: N.
        dt_rank: R, rank of the step-size projections.
        expand: D over C.
        conv_size: side of the depthwise kernel, odd.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.

    Raises:
        ValueError: the channels cannot be split, or an order that this cannot read.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        groups: int,
        d_state: int,
        dt_rank: int,
        expand: int = 1,
        conv_size: int = 3,
        local_scan: int | None = None,
    ) -> None:
        if dim % groups:
            raise ValueError(f"dim={dim} does not split into {groups} groups")
        if scan.ndim != 2:
            raise ValueError(f"GroupScan reads images, which {scan!r} does not do")
        scan = deal(scan, groups)
        width = dim // groups
        inner = expand * width
        super().__init__(
            routes=scan.num_routes, channels=inner, d_state=d_state, dt_rank=dt_rank, local_scan=local_scan
        )
        self.groups = groups
        self.in_proj = GroupLinear(groups, width, 2 * inner)
        self.conv = nn.Conv2d(groups * inner, groups * inner, conv_size, padding=conv_size // 2, groups=groups * inner)
        self.act = nn.SiLU()
        self.paths = Paths(scan, groups * inner, d_state)
        self.out_norm = GroupNorm(groups, inner)
        self.out_proj = GroupLinear(groups, inner, width)
        self.per_group = scan.num_routes // groups
        self.reset_scan_parameters()

    def forward(self, x_BSC: Tensor) -> Tensor:
        """(B, H, W, G * C) -> (B, H, W, G * C)."""
        x_BLGD, z_BLGD = self.in_proj(x_BSC.flatten(1, 2).unflatten(-1, (self.groups, -1))).chunk(2, -1)
        maps = x_BLGD.flatten(2).unflatten(1, (x_BSC.shape[1], x_BSC.shape[2]))
        maps = self.act(self.conv(maps.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(maps.flatten(1, 2), x_BSC)
        u_BLKD = deal_channels(u_BLKD, self.groups, self.groups * self.per_group)
        y = self.scan_tokens(u_BLKD, order_KT, "none", False, prompt_BLN, pieces)
        if self.per_group > 1:
            y = y.unflatten(2, (self.groups, -1)).sum(3)
        y = self.out_norm(y) * self.act(z_BLGD)
        return self.out_proj(y).flatten(2).view_as(x_BSC)
