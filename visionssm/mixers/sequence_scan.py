"""The sequence mixer: convolve causally along each of K routes, then scan along them (bidirectional Mamba).

Source: Vim, arXiv 2401.09417, algorithm 1; hustvl/Vim@dd0358a. Every route has its own convolution, x_proj, dt, A and D;
in_proj, the gate and out_proj are shared. The convolution sees its neighbours along the route, so u differs per route;
all else stays in image order and the kernel does the reading.

Legend: B batch, L tokens, C block width, D inner width, N state, K routes, R dt rank, W taps, T steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visionssm.layers import Linear, init_A_log, init_dt
from visionssm.scans import RouteTable, ScanOrder, WithSlots

from .core import RoutedScan
from .functional import (
    conv_along_routes,
    deal_channels,
    gated,
    join_groups,
    pad_to_slots,
    project_routes,
    projects_in_scan,
    segment_of,
    take_routes,
)
from .paths import Paths, conv_pieces

__all__ = ["SequenceScan"]


class SequenceScan(nn.Module):
    """Mamba along K routes over tokens: in_proj, causal conv, SiLU, selective scan, gate, out_proj.

    Args:
        dim: C, channels in and out.
        scan: order of the tokens, over the image that they make up; None for one raster route. From `visionssm.scans.with_slots`:
            positions behind the tokens are zero tokens, which the convolution fills.
        d_inner: D, channels of the scan.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        d_conv: W, taps of the causal convolution.
        scale: factor on the merged output (Vim averages its two routes: 0.5).
        merge: joins the gated routes, (B, L, K, D) -> (B, L, D); None adds them up inside the kernel.
        unscan: as a table over the routes, where `merge` finds the output for each token; None where the scan puts it.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder | None,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        d_conv: int = 4,
        scale: float = 1.0,
        merge: nn.Module | None = None,
        unscan: ScanOrder | None = None,
        local_scan: int | None = None,
    ) -> None:
        super().__init__()
        routes, groups = (1, 1) if scan is None else (scan.num_routes, scan.groups)
        if d_inner % groups:
            raise ValueError(f"{scan!r} splits the channels into {groups} groups, but d_inner is {d_inner}")
        if groups > 1 and merge is not None:
            raise ValueError(f"{scan!r} gives each group of routes channels of its own, so merge must be None")
        if unscan is not None and merge is None:
            raise ValueError("unscan moves the outputs of single routes, so it needs a merge")
        channels = d_inner // groups
        self.dims = (dt_rank, d_state, d_state)
        self.scale = scale
        self.routes, self.groups = routes, groups
        self.slots = isinstance(scan, WithSlots)
        self.paths = None if scan is None else Paths(scan, d_inner, d_state)
        self.unscan_table = None if unscan is None else RouteTable(unscan)
        self.in_proj = Linear(dim, 2 * d_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(routes, channels, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(routes, channels))
        self.x_proj = nn.Parameter(torch.empty(routes, sum(self.dims), channels))
        self.dt_proj = nn.Parameter(torch.empty(routes, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(routes, channels))
        self.A_log = nn.Parameter(torch.empty(routes, channels, d_state))
        self.D = nn.Parameter(torch.empty(routes, channels))
        self.merge = nn.Identity() if merge is None else merge
        self.merge_in_kernel = merge is None and groups == 1
        self.added = merge is None
        self.kernel: Any = RoutedScan(segment_of(local_scan))
        self.act = nn.SiLU()
        self.out_proj = Linear(d_inner, dim, bias=False)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """Draws the convolution, x_proj, dt, A and D anew, as Mamba does."""
        conv_limit, proj_limit = self.conv_weight.shape[-1] ** -0.5, self.x_proj.shape[-1] ** -0.5
        nn.init.uniform_(self.conv_weight, -conv_limit, conv_limit)
        nn.init.uniform_(self.conv_bias, -conv_limit, conv_limit)
        nn.init.uniform_(self.x_proj, -proj_limit, proj_limit)
        init_dt(self.dt_proj, self.dt_bias)
        with torch.no_grad():
            self.A_log.copy_(init_A_log(*self.A_log.shape))
            self.D.fill_(1.0)

    def forward(self, x_BLC: Tensor, image_BSC: Tensor | None) -> Tensor:
        """Mixes tokens.

        Args:
            x_BLC: (B, L, C).
            image_BSC: the image that they make up, of which only the sizes count; None without an order.

        Returns:
            (B, L, C).
        """
        x_BLD, z_BLD = self.in_proj(x_BLC).chunk(2, -1)
        u_BLKD, order_KT, prompt_BLN, pieces = x_BLD.unsqueeze(2), None, None, None
        if self.paths is not None:
            assert image_BSC is not None
            u_BLKD, order_KT, prompt_BLN, pieces = self.paths(x_BLD, image_BSC)
        if self.slots:
            assert order_KT is not None
            u_BLKD = pad_to_slots(x_BLD, order_KT).unsqueeze(2)
        if self.groups > 1:
            u_BLKD = deal_channels(u_BLKD, self.groups, self.routes)
        if pieces is not None:
            u_BLKD = conv_pieces(u_BLKD, self.conv_weight, self.conv_bias, pieces)
        else:
            u_BLKD = conv_along_routes(u_BLKD, self.conv_weight, self.conv_bias, order_KT)
        proj = project_routes(u_BLKD, self.x_proj)
        dt_low, B_BLKN, C_BLKN = proj.split(self.dims, -1)
        if prompt_BLN is not None:
            C_BLKN = C_BLKN + prompt_BLN.unsqueeze(2)
        inside = pieces is None and self.kernel.segment < 0 and projects_in_scan(u_BLKD, dt_low, self.dims[1])
        delta_BLKD = dt_low if inside else project_routes(dt_low, self.dt_proj)
        dt_weight = self.dt_proj if inside else None
        merge = "sum" if self.merge_in_kernel else "none"
        A_log, D, bias = self.A_log, self.D, self.dt_bias
        y = self.kernel(u_BLKD, delta_BLKD, A_log, B_BLKN, C_BLKN, D, bias, order_KT, merge, pieces, dt_weight)
        if self.slots:
            y = y[:, : x_BLC.shape[1]]
        if self.added:  # before the gate, which is the same for all
            y = y if self.merge_in_kernel else join_groups(y, self.groups)
            return self.out_proj(gated(y, z_BLD, self.scale))
        y = y.mul_((self.act(z_BLD) * self.scale).unsqueeze(2))  # an output which nothing else holds: no copy of K maps
        if self.unscan_table is not None:
            assert image_BSC is not None
            y = take_routes(y, self.unscan_table(image_BSC))
        return self.out_proj(self.merge(y))
