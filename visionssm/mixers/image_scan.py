"""The image mixer: convolve in image space, then scan along K routes (SS2D).

Source: VMamba, arXiv 2401.10166, figure 3; MzeroMiko/VMamba@2ed52ea.

Legend: B batch, S spatial sizes, L = prod(S), C block width, D inner width, N state, K routes, R dt rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from visionssm.layers import Linear
from visionssm.scans import RouteTable, ScanOrder

from .core import ScanCore
from .functional import deal_channels, gated_norm, join_groups, take_routes
from .merges import create_merge
from .paths import Paths

__all__ = ["ImageScan"]

_CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
_linear = partial(Linear, bias=False)


class ImageScan(ScanCore):
    """SS2D over images or volumes: in_proj, depthwise conv, SiLU, selective scan, norm, (gate,) out_proj.

    Args:
        dim: C, channels in and out.
        scan: order of the routes; its rank says whether this reads images or volumes. An order with channel groups
            (GroupMamba, MHS-VM) gives each group of routes its share of the channels.
        d_inner: D, channels of the scan.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        conv_size: side of the depthwise kernel, odd.
        conv_bias: whether the depthwise convolution has a bias.
        gate: whether in_proj also gives a gate z that multiplies the normed output by SiLU(z).
        merge: joins the routes, (B, L, K, D) -> (B, L, D); a module or a name of `MERGES`. None and "sum" add them up inside
            the kernel. With channel groups it joins the routes of each group, one module for all, and groups are concatenated.
        project: makes in_proj and out_proj from their numbers of channels, (B, *S, C) -> (B, *S, C').
        unscan: as a table over the routes, where `merge` finds the output for each position; None where the scan puts it.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.
        low_rank: rank of the state transition (low-rank SS2D, see `ScanCore`), 1..N; None for all of it.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        conv_size: int = 3,
        conv_bias: bool = True,
        gate: bool = True,
        project: Callable[[int, int], nn.Module] = _linear,
        merge: nn.Module | str | None = None,
        unscan: ScanOrder | None = None,
        local_scan: int | None = None,
        low_rank: int | None = None,
    ) -> None:
        if scan.ndim not in _CONVS:
            raise ValueError(f"ImageScan reads images and volumes, but {scan!r} reads rank {scan.ndim}")
        if d_inner % scan.groups:
            raise ValueError(f"{scan!r} splits the channels into {scan.groups} groups, but d_inner is {d_inner}")
        if isinstance(merge, str):
            joined = scan.num_routes // scan.groups
            merge = None if merge == "sum" else create_merge(merge, d_inner // scan.groups, joined)
        super().__init__(
            routes=scan.num_routes,
            channels=d_inner // scan.groups,
            d_state=d_state,
            dt_rank=dt_rank,
            local_scan=local_scan,
            low_rank=low_rank,
        )
        self.groups = scan.groups
        self.gated = gate
        self.in_proj = project(dim, 2 * d_inner if gate else d_inner)
        self.conv = _CONVS[scan.ndim](
            d_inner, d_inner, conv_size, padding=conv_size // 2, groups=d_inner, bias=conv_bias
        )
        self.act = nn.SiLU()
        self.paths = Paths(scan, d_inner, d_state)
        self.shared = scan.groups == 1 and self.paths.shared
        if unscan is not None and merge is None:
            raise ValueError("unscan moves the outputs of single routes, so it needs a merge")
        self.unscan_table = None if unscan is None else RouteTable(unscan)
        self.grouped_merge = merge is not None and scan.groups > 1
        self.merge = nn.Identity() if merge is None else merge
        self.merge_in_kernel = merge is None and scan.groups == 1
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = project(d_inner, dim)
        self.reset_scan_parameters()

    def scan(self, x_BSD: Tensor) -> Tensor:
        """The selective scan alone: (B, *S, D) -> (B, *S, D)."""
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(x_BSD.flatten(1, -2), x_BSD)
        if self.groups > 1:
            u_BLKD = deal_channels(u_BLKD, self.groups, self.x_proj.shape[0])
        merge = "sum" if self.merge_in_kernel else "none"
        y = self.scan_tokens(u_BLKD, order_KT, merge, self.shared, prompt_BLN, pieces)
        if self.unscan_table is not None:
            y = take_routes(y, self.unscan_table(x_BSD))
        if self.grouped_merge:
            y_GLKD = y.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
            y = self.merge(y_GLKD).unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(2)
        elif not self.merge_in_kernel:
            # groups are concatenated, the routes within a group added up
            y = self.merge(y) if self.groups == 1 else join_groups(y, self.groups)
        return y.view_as(x_BSD)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S, C) -> (B, *S, C)."""
        x = self.in_proj(x)
        z = x
        if self.gated:
            x, z = x.chunk(2, -1)
        x = self.act(self.conv(x.movedim(-1, 1))).movedim(1, -1)
        y = self.scan(x)
        if self.gated:
            return self.out_proj(gated_norm(y, z, self.out_norm.weight, self.out_norm.bias))
        return self.out_proj(self.out_norm(y))
