"""The mixer of two scales: one scan of the whole map, the others of a map at half its size.

Source: MSVMamba, arXiv 2405.14174; YuHengsss/MSVMamba@c394019.

Legend: B batch, H height, W width, h and w those of the coarse map, C block width, D inner width, M copies of a map.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import Linear
from visionssm.scans import Chain, ScanOrder, split_scales

from .core import ScanCore
from .paths import Paths

__all__ = ["MapScan", "MultiScaleScan", "SqueezeExcite"]


class SqueezeExcite(nn.Module):
    """Weighs the channels by their means over the map (arXiv 1709.01507), channels last, without biases.

    Args:
        dim: D.
        ratio: D over the width in between.
    """

    def __init__(self, dim: int, *, ratio: int = 8) -> None:
        super().__init__()
        self.reduce = Linear(dim, dim // ratio, bias=False)
        self.act = nn.ReLU()
        self.expand = Linear(dim // ratio, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        return x * torch.sigmoid(self.expand(self.act(self.reduce(x.mean((1, 2), keepdim=True)))))


class MapScan(ScanCore):
    """Depthwise convolution, SiLU and selective scan of one map: a branch of `MultiScaleScan`.

    Args:
        scan: order of the map after the convolution, or a chain of routes over copies of it.
        channels: D.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        conv_size: side of the depthwise kernel, odd.
        stride: of the convolution.
        local_scan: as in `ScanCore`.
    """

    def __init__(
        self,
        *,
        scan: ScanOrder,
        channels: int,
        d_state: int,
        dt_rank: int,
        conv_size: int,
        stride: int = 1,
        local_scan: int | None = None,
    ) -> None:
        super().__init__(
            routes=scan.num_routes, channels=channels, d_state=d_state, dt_rank=dt_rank, local_scan=local_scan
        )
        self.copies = scan.copies if isinstance(scan, Chain) else 1
        self.conv = nn.Conv2d(channels, channels, conv_size, stride=stride, padding=conv_size // 2, groups=channels)
        self.act = nn.SiLU()
        self.paths = Paths(scan, channels, d_state)
        self.repeat = self.copies > 1 and not scan.content  # an order read off the image makes its own copies
        self.reset_scan_parameters()

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, M, h, w, D), one map per copy."""
        x = self.act(self.conv(x_BHWD.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        tokens_BLD = x.flatten(1, 2)
        if self.repeat:
            tokens_BLD = tokens_BLD.repeat(1, self.copies, 1)
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(tokens_BLD, x)
        y = self.scan_tokens(u_BLKD, order_KT, "sum", self.paths.shared, prompt_BLN, pieces)
        return y.unflatten(1, (self.copies, x.shape[1], x.shape[2]))


class MultiScaleScan(nn.Module):
    """MSVMamba's mixer: in_proj, a scan at full size and one at half size, added up, squeeze-excitation, (gate,) out_proj.

    Args:
        dim: C, channels in and out.
        scan: `multi_scale`, or any order that `visionssm.scans.split_scales` shares out between the maps.
        d_inner: D, channels of the scans.
        d_state: N.
        dt_rank: R, rank of the step-size projections.
        gate: whether in_proj also gives a gate z that multiplies the result by SiLU(z).
        norm: "routes" norms the output of every route before they are added up, "sum" their sum.
        upsample: how the coarse map is brought to full size.
        local_scan: steps of the segments within which the scans also run back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.

    Raises:
        ValueError: an order of another rank, or unknown `norm` or `upsample`.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        gate: bool,
        norm: Literal["routes", "sum"],
        upsample: Literal["bilinear", "nearest"],
        local_scan: int | None = None,
    ) -> None:
        super().__init__()
        if scan.ndim != 2:
            raise ValueError(f"MultiScaleScan reads images, which {scan!r} does not do")
        if norm not in ("routes", "sum"):
            raise ValueError(f"norm must be 'routes' or 'sum', got {norm!r}")
        if upsample not in ("bilinear", "nearest"):
            raise ValueError(f"upsample must be 'bilinear' or 'nearest', got {upsample!r}")
        full, coarse, stride = split_scales(scan)
        shape = {"channels": d_inner, "d_state": d_state, "dt_rank": dt_rank, "local_scan": local_scan}
        self.gated = gate
        self.norm_routes = norm == "routes"
        self.upsample = upsample
        self.in_proj = Linear(dim, 2 * d_inner if gate else d_inner, bias=False)
        self.full = MapScan(scan=full, conv_size=3, **shape)
        self.coarse = MapScan(scan=coarse, conv_size=7, stride=stride, **shape)
        self.out_norm = nn.LayerNorm(d_inner)
        self.squeeze_excite = SqueezeExcite(d_inner)
        self.act = nn.SiLU()
        self.out_proj = Linear(d_inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.in_proj(x)
        z = x
        if self.gated:
            x, z = x.chunk(2, -1)
        full, coarse = self.full(x), self.coarse(x)
        if self.norm_routes:
            full, coarse = self.out_norm(full), self.out_norm(coarse)
        coarse = coarse.sum(1).permute(0, 3, 1, 2)
        coarse = F.interpolate(coarse, size=[x.shape[1], x.shape[2]], mode=self.upsample)
        y = full.sum(1) + coarse.permute(0, 2, 3, 1)
        if not self.norm_routes:
            y = self.out_norm(y)
        y = self.squeeze_excite(y)
        if self.gated:
            y = y * self.act(z)
        return self.out_proj(y)
