"""The wavefront mixer: one scan over rows and columns at once, from one corner to the opposite one (Mamba2D).

Source: Mamba2D, arXiv 2412.16146, section 3.2; cocoalex00/Mamba2D@9acb361. There is no gate and no convolution before the scan;
step sizes, A and B are given once for what comes from above and once for what comes from the left.

Legend: B batch, H rows, W columns, C width, D channels of the scan (= C), N state, R dt rank, G = 2 (top, left).
"""

# ruff: noqa: RET505  (TorchScript leaves out the branch of `else` only if there is one)

from __future__ import annotations

import torch
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from visionssm.layers import Linear, init_A_log, init_dt
from visionssm.scans import ScanOrder
from visionssm_kernels import wavefront_scan

from .core import ScanCore
from .functional import deal_channels, decay_rate, join_groups
from .paths import Paths

__all__ = ["WavefrontScan"]


@register_notrace_function  # one leaf in FX graphs
def scan_wavefront(
    u_BHWD: Tensor,
    delta_BHWGD: Tensor,
    A_GDN: Tensor,
    B_BHWGN: Tensor,
    C_BHWN: Tensor,
    D_D: Tensor,
    bias_GD: Tensor,
    reverse: bool,
) -> Tensor:
    """`visionssm_kernels.wavefront.wavefront_scan`: (B, H, W, D) -> (B, H, W, D)."""
    if not torch.jit.is_scripting():
        return wavefront_scan(u_BHWD, delta_BHWGD, A_GDN, B_BHWGN, C_BHWN, D_D, bias_GD, reverse=reverse)
    else:
        return torch.ops.visionssm.wavefront_scan(
            u_BHWD, delta_BHWGD, A_GDN, B_BHWGN, C_BHWN, D_D, bias_GD, reverse, "auto"
        )


class WavefrontCore(nn.Module):
    """The projections of the scan, and the scan.

    Args:
        channels: D.
        d_state: N.
        dt_rank: R.
        reverse: from the bottom right corner instead of the top left one.
    """

    def __init__(self, channels: int, *, d_state: int, dt_rank: int, reverse: bool) -> None:
        super().__init__()
        self.dims = (2 * dt_rank, 2 * d_state, d_state)
        self.reverse = reverse
        self.x_proj = Linear(channels, sum(self.dims), bias=False)
        self.dt_proj = nn.Parameter(torch.empty(2, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(2, channels))
        self.A_log = nn.Parameter(init_A_log(2, channels, d_state))
        self.D = nn.Parameter(torch.ones(channels))
        init_dt(self.dt_proj, self.dt_bias)
        with torch.no_grad():
            self.dt_bias[1] = self.dt_bias[0]  # one draw for both, as published

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        dt_low, B_low, C_BHWN = self.x_proj(x).split(self.dims, -1)
        delta_BHWGD = torch.einsum("bhwgr,gdr->bhwgd", dt_low.unflatten(-1, (2, -1)), self.dt_proj)
        # A, D and the bias are parameters in float32 and stay so under autocast; so is the kernel's state
        return scan_wavefront(
            x,
            delta_BHWGD,
            decay_rate(self.A_log),
            B_low.unflatten(-1, (2, -1)),
            C_BHWN,
            self.D,
            self.dt_bias,
            self.reverse,
        )


class OrderedCore(ScanCore):
    """The same along the routes of any scan order instead.

    Args:
        channels: D.
        scan: order of the routes.
        d_state: N.
        dt_rank: R.
    """

    def __init__(self, channels: int, *, scan: ScanOrder, d_state: int, dt_rank: int) -> None:
        if channels % scan.groups:
            raise ValueError(f"{scan!r} splits the channels into {scan.groups} groups, but there are {channels}")
        super().__init__(routes=scan.num_routes, channels=channels // scan.groups, d_state=d_state, dt_rank=dt_rank)
        self.groups = scan.groups
        self.paths = Paths(scan, channels, d_state)
        self.reset_scan_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(x.flatten(1, 2), x)
        if self.groups > 1:
            u_BLKD = deal_channels(u_BLKD, self.groups, self.x_proj.shape[0])
            y = self.scan_tokens(u_BLKD, order_KT, "none", False, prompt_BLN, pieces)
            return join_groups(y, self.groups).view_as(x)
        return self.scan_tokens(u_BLKD, order_KT, "sum", self.paths.shared, prompt_BLN, pieces).view_as(x)


class WavefrontScan(nn.Module):
    """out_proj(GELU(scan(GELU(in_proj x)))).

    Args:
        dim: C.
        d_state: N.
        dt_rank: R, rank of the step-size projections.
        reverse: from the bottom right corner instead of the top left one.
        scan: routes to scan along instead of the wavefront, which then goes from no corner.
    """

    def __init__(
        self, dim: int, *, d_state: int, dt_rank: int, reverse: bool = False, scan: ScanOrder | None = None
    ) -> None:
        super().__init__()
        self.in_proj = Linear(dim, dim)
        self.act = nn.GELU()
        if scan is None:
            self.scan: nn.Module = WavefrontCore(dim, d_state=d_state, dt_rank=dt_rank, reverse=reverse)
        else:
            self.scan = OrderedCore(dim, scan=scan, d_state=d_state, dt_rank=dt_rank)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.out_proj(self.act(self.scan(self.act(self.in_proj(x)))))
