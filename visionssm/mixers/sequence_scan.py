"""The sequence mixer: convolve causally along each of K routes, then scan along them (bidirectional Mamba).

Source: Vim, arXiv 2401.09417, algorithm 1; hustvl/Vim@dd0358a. Every route has its own convolution, x_proj, dt, A and D;
in_proj, the gate and out_proj are shared. The convolution sees its neighbours along the route, so u differs per route;
all else stays in image order and the kernel does the reading.

Legend: B batch, L tokens, C block width, D inner width, N state, K routes, R dt rank, W taps, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionssm.layers import init_A_log, init_dt

from .functional import (
    conv_along_routes,
    decay_rate,
    pad_to_slots,
    project_routes,
    scan_routes,
    segment_of,
    take_routes,
)

__all__ = ["SequenceScan"]


class SequenceScan(nn.Module):
    """Mamba along K routes over tokens: in_proj, causal conv, SiLU, selective scan, gate, out_proj.

    Args:
        dim: C, channels in and out.
        routes: K.
        d_inner: D, channels of the scan.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        d_conv: W, taps of the causal convolution.
        scale: factor on the merged output (Vim averages its two routes: 0.5).
        merge: joins the gated routes, (B, L, K, D) -> (B, L, D); None adds them up inside the kernel.
        slots: orders may come from `visionssm.scans.with_slots`: positions behind the tokens are zero tokens, which the
            convolution fills.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.
    """

    def __init__(
        self,
        dim: int,
        *,
        routes: int,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        d_conv: int = 4,
        scale: float = 1.0,
        merge: nn.Module | None = None,
        slots: bool = False,
        local_scan: int | None = None,
    ) -> None:
        super().__init__()
        self.segment = segment_of(local_scan)
        self.dims = (dt_rank, d_state, d_state)
        self.scale = scale
        self.slots = slots
        self.in_proj = nn.Linear(dim, 2 * d_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(routes, d_inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(routes, d_inner))
        self.x_proj = nn.Parameter(torch.empty(routes, sum(self.dims), d_inner))
        self.dt_proj = nn.Parameter(torch.empty(routes, d_inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(routes, d_inner))
        self.A_log = nn.Parameter(torch.empty(routes, d_inner, d_state))
        self.D = nn.Parameter(torch.empty(routes, d_inner))
        self.merge = nn.Identity() if merge is None else merge
        self.merge_in_kernel = merge is None
        self.act = nn.SiLU()
        self.out_proj = nn.Linear(d_inner, dim, bias=False)
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

    def forward(self, x_BLC: Tensor, order_KT: Tensor | None, unscan_KL: Tensor | None = None) -> Tensor:
        """Mixes tokens.

        Args:
            x_BLC: (B, L, C).
            order_KT: integer (K, T), the token visited at each step; -1 is a padding step. None for one raster route.
            unscan_KL: where `merge` finds the output of each route for each token; None where the scan puts it.

        Returns:
            (B, L, C).
        """
        x_BLD, z_BLD = self.in_proj(x_BLC).chunk(2, -1)
        if self.slots:
            assert order_KT is not None
            x_BLD = pad_to_slots(x_BLD, order_KT)
        u_BLKD = conv_along_routes(x_BLD.unsqueeze(2), self.conv_weight, self.conv_bias, order_KT)
        proj = project_routes(u_BLKD, self.x_proj)
        dt_low, B_BLKN, C_BLKN = proj.split(self.dims, -1)
        delta_BLKD = project_routes(dt_low, self.dt_proj)
        # A, D and the bias are parameters in float32 and stay so under autocast; the kernel's state is float32 too.
        A_KDN = decay_rate(self.A_log)
        merge = "sum" if self.merge_in_kernel else "none"
        y = scan_routes(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, self.D, self.dt_bias, order_KT, merge, self.segment)
        if self.slots:
            y = y[:, : x_BLC.shape[1]]
        gate_BLD = self.act(z_BLD) * self.scale
        if self.merge_in_kernel:
            assert unscan_KL is None, "the routes are added up inside the kernel"
            return self.out_proj(y * gate_BLD)
        y = y.mul_(gate_BLD.unsqueeze(2))  # the kernel's own output, which nothing else holds: no copy of K maps
        if unscan_KL is not None:
            y = take_routes(y, unscan_KL)
        return self.out_proj(self.merge(y))
