"""The state-fusion mixer: scan, mix the states with their neighbours in the image, and only then read them out.

Source: Spatial-Mamba, arXiv 2410.15091; EdwardChasel/Spatial-Mamba@71221eb.

Legend: B batch, H height, W width, L = H W, C block width, D inner width, K routes, R dt rank, N = 1: one state per channel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from visionssm.layers import Linear, init_dt, project
from visionssm.scans import ScanOrder

from .functional import decay_rate, fuse_dilated, gated_norm, projects_in_scan
from .paths import Paths, scan_shared

__all__ = ["FuseStates", "StateFusion"]


@register_notrace_module
class FuseStates(nn.Module):
    """Sum of three depthwise 3x3 convolutions of dilation 1, 3 and 5, each with a factor; borders are replicated.

    On CPUs a kernel reads the 27 taps in one pass. Elsewhere, without gradients, the three become one 11x11 convolution, made
    anew at every call, so it is never stale; with gradients the three are faster. All weights start as ones.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.ones(3 * dim, 1, 3, 3))  # 4-D, as memory_format=channels_last asks of a model
        self.alpha = nn.Parameter(torch.ones(3))

    def scaled_kernels(self) -> Tensor:
        """Each kernel times its factor: (3, D, 3, 3)."""
        return self.alpha.view(3, 1, 1, 1) * self.kernels.view(3, -1, 3, 3)

    def merged_kernel(self) -> Tensor:
        """The three kernels as one: (D, 1, 11, 11)."""
        scaled = self.scaled_kernels()
        merged = scaled.new_zeros(scaled.shape[1], 1, 11, 11)
        for i, d in enumerate((1, 3, 5)):
            merged[:, 0, 5 - d : 6 + d : d, 5 - d : 6 + d : d] += scaled[i]
        return merged

    def forward(self, h_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        if torch.is_grad_enabled() or h_BHWD.device.type == "cpu":
            return fuse_dilated(h_BHWD, self.scaled_kernels())
        padded = F.pad(h_BHWD.permute(0, 3, 1, 2), (5, 5, 5, 5), mode="replicate")
        return F.conv2d(padded, self.merged_kernel(), groups=h_BHWD.shape[3]).permute(0, 2, 3, 1)


class StateFusion(nn.Module):
    """Spatial-Mamba's mixer: in_proj, depthwise conv, SiLU, scan, state fusion, readout, norm, gate, out_proj.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t along the route; on the image of h, h' = fusion(h); y = C h' + D x. All routes of an
    order share one set of parameters, and their states are added up.

    Args:
        dim: C, channels in and out.
        scan: order of the routes over an image.
        d_inner: D, channels of the scan.
        dt_rank: R, rank of the step-size projection.
        conv_size: side of the depthwise kernel, odd.

    Raises:
        ValueError: an order that this cannot read.
    """

    def __init__(self, dim: int, *, scan: ScanOrder, d_inner: int, dt_rank: int, conv_size: int = 3) -> None:
        super().__init__()
        if scan.ndim != 2:
            raise ValueError(f"StateFusion reads images, which {scan!r} does not do")
        if d_inner % scan.groups:
            raise ValueError(f"{scan!r} splits the channels into {scan.groups} groups, but d_inner is {d_inner}")
        self.routes, self.groups = scan.num_routes, scan.groups
        self.dims = (dt_rank, 1, 1)
        self.in_proj = Linear(dim, 2 * d_inner, bias=False)
        self.conv = nn.Conv2d(d_inner, d_inner, conv_size, padding=conv_size // 2, groups=d_inner)
        self.act = nn.SiLU()
        self.paths = Paths(scan, d_inner, 1)
        self.x_proj = nn.Parameter(torch.empty(sum(self.dims), d_inner))
        self.dt_proj = nn.Parameter(torch.empty(d_inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, 1))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.fusion = FuseStates(d_inner)
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = Linear(d_inner, dim, bias=False)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """Draws x_proj, dt, A and D anew, as Mamba does."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[-1] ** -0.5), self.x_proj.shape[-1] ** -0.5)
        init_dt(self.dt_proj, self.dt_bias)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, x_BHWD: Tensor) -> Tensor:
        """Scan, fusion and readout: (B, H, W, D) -> (B, H, W, D)."""
        x_BLD = x_BHWD.flatten(1, 2)
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(x_BLD, x_BHWD)
        dt_low, B_BLK1, C_BLK1 = project(u_BLKD, self.x_proj).split(self.dims, -1)
        C_BL1 = C_BLK1.mean(2)
        if prompt_BLN is not None:
            C_BL1 = C_BL1 + prompt_BLN
        B_BLKN = B_BLK1.expand(-1, -1, self.routes, -1)
        inside = pieces is None and self.groups == 1 and projects_in_scan(u_BLKD, dt_low, 1)
        # With one value per state, C = 1 and no D, the scan's output is the state itself. A and the bias are parameters in
        # float32 and stay so under autocast; the kernel's state is float32 too.
        h_BLD = scan_shared(
            u_BLKD,
            dt_low if inside else F.linear(dt_low, self.dt_proj),
            decay_rate(self.A_log),
            B_BLKN,
            torch.ones_like(B_BLKN),
            None,
            self.dt_bias,
            order_KT,
            pieces,
            self.routes,
            self.groups,
            dt_weight_DR=self.dt_proj if inside else None,
        )
        h_BHWD = self.fusion(h_BLD.view_as(x_BHWD))
        return h_BHWD * C_BL1.unflatten(1, x_BHWD.shape[1:3]) + x_BHWD * self.D

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x, z = self.in_proj(x).chunk(2, -1)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.out_proj(gated_norm(self.scan(x), z, self.out_norm.weight, self.out_norm.bias))
