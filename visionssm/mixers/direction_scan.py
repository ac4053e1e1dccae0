"""The direction-aware image mixer: one set of scan parameters for every route, told by which move each step arrives.

Source: PlainMamba, arXiv 2403.17695, section 3.2; ChenhongyiYang/PlainMamba@0975a1d.

Legend: B batch, S spatial sizes, L = prod(S), C block width, D inner width, N state, K routes, T steps, R dt rank, P = R + 2 N.
"""

from __future__ import annotations

import functools
from typing import List, Literal, Tuple  # noqa: UP035  (TorchScript reads these)

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from visionssm.layers import Linear, init_A_log
from visionssm.scans import RouteTable, ScanOrder, route_table

from .functional import decay_rate, gated, projects_in_scan, segment_of, take_routes
from .paths import Paths, scan_shared

__all__ = ["DirectionScan", "arrivals", "visits"]

_CONVS = {2: nn.Conv2d, 3: nn.Conv3d}


def arrivals(order_KT: Tensor, size: List[int]) -> Tensor:  # noqa: UP006
    """The move by which each step of a route arrives, for routes of any kind.

    Args:
        order_KT: integer (..., K, T), the position visited at each step; -1 is a padding step.
        size: S, one to three sides.

    Returns:
        int64 (..., K, T): 1 right, 2 left, 3 up, 4 down, 5 to the next plane, 6 to the previous one; 0 for a start. What does not
        come from a direct neighbour starts anew: the first visit, a jump, a diagonal step. Padding steps have 0 and are
        passed over: the visit before them counts.
    """
    more, less = [1, 4, 5], [2, 3, 6]  # per axis, fastest first: the id of a step up the coordinate, of a step down it
    real = order_KT >= 0
    steps = torch.arange(order_KT.shape[-1], device=order_KT.device)
    last = torch.where(real, steps, -1).cummax(-1)[0]
    before = torch.cat(
        [torch.full_like(last[..., :1], -1), last[..., :-1]], -1
    )  # the step of the visit before, -1 if none
    here = order_KT.long().clamp(min=0)
    there = here.gather(-1, before.clamp(min=0))
    ids, distance = torch.zeros_like(here), torch.zeros_like(here)
    for axis in range(len(size)):
        side = size[len(size) - 1 - axis]
        move = here % side - there % side
        ids = ids + (move > 0) * more[axis] + (move < 0) * less[axis]
        distance = distance + move.abs()
        here, there = here // side, there // side
    return torch.where(real & (before >= 0) & (distance == 1), ids, 0)


def visits(order_KT: Tensor, size: List[int]) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """When, and by which move, each position is visited.

    Args:
        order_KT: integer (..., K, T), the position visited at each step; -1 is a padding step.
        size: S.

    Returns:
        int64 (..., K, L) each: how many visits route k makes before that to the position, and the move of `arrivals`; 0 where
        it never comes by.
    """
    length = 1
    for side in size:
        length *= side
    real = order_KT >= 0
    columns = torch.where(real, order_KT, length).long()  # padding steps fall into one more column, which is cut off
    empty = F.pad(torch.zeros_like(columns[..., :1]), [0, length])
    rank = empty.scatter(-1, columns, real.long().cumsum(-1) - 1)
    move = empty.scatter(-1, columns, arrivals(order_KT, size))
    return rank[..., :length], move[..., :length]


@functools.lru_cache(maxsize=32)
def _cached_visits(scan: ScanOrder, size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # tables made in inference mode could not be saved for a later backward pass
    with torch.inference_mode(False):
        return visits(route_table(scan, size, device), list(size))


@register_notrace_module
class VisitTable(nn.Module):
    """The `visits` of an order in a channels-last image; kept between calls in eager mode.

    Args:
        scan: the order.
    """

    def __init__(self, scan: ScanOrder) -> None:
        super().__init__()
        self.scan = scan
        self.route_table = RouteTable(scan)

    def forward(self, x_BSC: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """(B, *S, C) -> rank and move (K, L)."""
        if torch.jit.is_scripting() or torch.jit.is_tracing():  # noqa: SIM114  (TorchScript cannot read the next condition)
            rank_KL, move_KL = visits(self.route_table(x_BSC), list(x_BSC.shape[1:-1]))
        elif torch.compiler.is_compiling() or torch.compiler.is_exporting() or detect_fake_mode() is not None:
            rank_KL, move_KL = visits(self.route_table(x_BSC), list(x_BSC.shape[1:-1]))
        else:
            rank_KL, move_KL = _cached_visits(self.scan, tuple(x_BSC.shape[1:-1]), x_BSC.device)
        return rank_KL, move_KL


class DirectionScan(nn.Module):
    """PlainMamba's mixer: in_proj, depthwise conv, SiLU, direction-aware selective scan, gate, out_proj.

    h_t = exp(dt_t A) h_{t-1} + dt_t (B_t + direction_B[move_t]) u_t, with move_t of `arrivals`. All routes share one set of
    parameters, so it fits any scan order. The dt bias counts twice, as in the published code.

    Args:
        dim: C, channels in and out.
        scan: order of the routes; its rank says whether this reads images or volumes.
        d_inner: D, channels of the scan.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        conv_size: side of the depthwise kernel, odd.
        align: which position's dt, B and C go with the n-th one that a route visits: "published", that of the n-th
            position in raster order, as the released weights need it; "exact", its own.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.

    Raises:
        ValueError: an order that this cannot read, or an unknown `align`.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        conv_size: int = 7,
        align: Literal["published", "exact"] = "published",
        local_scan: int | None = None,
    ) -> None:
        super().__init__()
        self.segment = segment_of(local_scan)
        if scan.ndim not in _CONVS:
            raise ValueError(f"DirectionScan reads images and volumes, but {scan!r} reads rank {scan.ndim}")
        if d_inner % scan.groups:
            raise ValueError(f"{scan!r} splits the channels into {scan.groups} groups, but d_inner is {d_inner}")
        if align not in ("published", "exact"):
            raise ValueError(f"align must be 'published' or 'exact', got {align!r}")
        self.routes, self.groups = scan.num_routes, scan.groups
        self.dims = (dt_rank, d_state, d_state)
        self.raster_aligned = align == "published"
        self.in_proj = Linear(dim, 2 * d_inner)
        self.conv = _CONVS[scan.ndim](d_inner, d_inner, conv_size, padding=conv_size // 2, groups=d_inner)
        self.act = nn.SiLU()
        self.paths = Paths(scan, d_inner, d_state)
        self.visit_table = VisitTable(scan)
        self.x_proj = Linear(d_inner, sum(self.dims), bias=False)
        self.dt_proj = Linear(dt_rank, d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(d_inner))
        self.A_log = nn.Parameter(torch.empty(d_inner, d_state))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.direction_B = nn.Parameter(torch.empty(1 + 2 * scan.ndim, d_state))
        self.out_proj = Linear(d_inner, dim)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """Draws dt, A, D and the directions anew, as the published training does: softplus(dt) starts near log 2."""
        nn.init.trunc_normal_(self.dt_proj.weight, std=0.02)
        nn.init.zeros_(self.dt_bias)
        with torch.no_grad():
            self.A_log.copy_(init_A_log(1, *self.A_log.shape)[0])
            self.D.fill_(1.0)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def scan(self, x_BSD: Tensor) -> Tensor:
        """The selective scan alone: (B, *S, D) -> (B, *S, D)."""
        u_BLKD, order_KT, prompt_BLN, pieces = self.paths(x_BSD.flatten(1, -2), x_BSD)
        if self.paths.content is None:
            rank_KL, move_KL = self.visit_table(x_BSD)
        else:
            assert order_KT is not None
            rank_KL, move_KL = visits(order_KT, list(x_BSD.shape[1:-1]))
        proj_BLKP = self.x_proj(u_BLKD)
        if self.raster_aligned:  # the kernel reads everything where the route is, so what it shall find is laid there
            proj_BLKP = take_routes(proj_BLKP.expand(-1, -1, self.routes, -1), rank_KL)
        dt_low, B_BLKN, C_BLKN = proj_BLKP.split(self.dims, -1)
        if prompt_BLN is not None:
            C_BLKN = C_BLKN + prompt_BLN.unsqueeze(2)
        inside = pieces is None and self.groups == 1 and self.segment < 0
        inside = inside and projects_in_scan(u_BLKD, dt_low, self.dims[1])
        # A, D and the bias are parameters in float32 and stay so under autocast; the kernel's state is float32 too.
        y = scan_shared(
            u_BLKD,
            dt_low if inside else self.dt_proj(dt_low),
            decay_rate(self.A_log),
            B_BLKN + F.embedding(move_KL.transpose(-1, -2), self.direction_B),
            C_BLKN.expand(-1, -1, self.routes, -1),
            self.D,
            2 * self.dt_bias,
            order_KT,
            pieces,
            self.routes,
            self.groups,
            self.segment,
            self.dt_proj.weight if inside else None,
        )
        return y.view_as(x_BSD)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S, C) -> (B, *S, C)."""
        x, z = self.in_proj(x).chunk(2, -1)
        x = self.act(self.conv(x.movedim(-1, 1))).movedim(1, -1)
        return self.out_proj(gated(self.scan(x), z, 1.0))
