"""What every mixer with parameters per route shares: x_proj, dt, A and D, and the scan that uses them.

x_proj and dt_proj act per token, so they commute with any permutation: dt, B and C are computed once in image order for all
routes, and the kernel does the reading in route order. Where the kernel multiplies by dt_proj faster than a product ahead of it,
it is left to do so (`projects_in_scan`).

Low-rank SS2D (DLRMamba, arXiv 2603.06920, equation 5; no code is published): the state transition is U V^T of rank r < N.
The paper writes a constant dense matrix; here, as Mamba's transition is diagonal and depends on the token, it is

    h_t = U exp(dt_t A) V^T h_{t-1} + dt_t B_t u_t          A (D, r), U and V (N, r), V^T U = I

so the state is carried in the r dimensions V^T h: a scan with state r, B V and C U, plus what of a step's own input lies
outside, (C . B - C U . B V) dt u. U and V are learned and start as the identity's first r columns; with r = N that is the
full scan.

Legend: B batch, L positions, D channels of a route, N state, K routes, Ku 1 or K, R dt rank, r rank of the transition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional  # noqa: UP035  (TorchScript reads these)

import torch
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from visionssm.layers import init_A_log, init_dt, project

from .functional import add_step_inputs, decay_rate, project_routes, projects_in_scan, scan_routes, segment_of
from .paths import scan_pieces

__all__ = ["ScanCore"]

# A leaf of FX graphs here too: timm's tracer finds the functions in files whose `forward` it meets, and this is a base class.
torch.fx.wrap("project_routes")


@register_notrace_module
class RoutedScan(nn.Module):
    """The kernel, as a leaf of FX graphs wherever the mixer's code stands.

    Args:
        segment: see `scan_routes`.
    """

    def __init__(self, segment: int = -1) -> None:
        super().__init__()
        self.segment = segment

    def forward(
        self,
        u_BLKD: Tensor,
        delta_BLKD: Tensor,
        A_log_KDN: Tensor,
        B_BLKN: Tensor,
        C_BLKN: Tensor,
        D_KD: Tensor,
        bias_KD: Tensor,
        order_KT: Tensor | None,
        merge: str,
        pieces: Optional[List[Tensor]] = None,  # noqa: UP006, UP045
        dt_weight_KDR: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tensor:
        """See `scan_routes`, or with pieces, and then without a dt_weight, `scan_pieces`.

        A, D and the bias are parameters in float32 and stay so under autocast; so is the kernel's state.
        """
        A_KDN = decay_rate(A_log_KDN)
        if pieces is not None:
            return scan_pieces(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, pieces, merge, self.segment)
        return scan_routes(
            u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, order_KT, merge, self.segment, dt_weight_KDR
        )


class ScanCore(nn.Module):
    """Abstract: the selective scan of image-order tokens. A mixer says what comes before and after it.

    Args:
        routes: K; each has parameters of its own.
        channels: D.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        local_scan: steps of the segments within which the scan also runs back (LBMamba, arXiv 2506.15976), 0 for the published
            choice by length; None for no such scan.
        low_rank: r, see above; None for N, without U and V.

    Raises:
        ValueError: `low_rank` is not in 1..N, or `local_scan` is negative.
    """

    if TYPE_CHECKING:  # parameters or None: TorchScript finds that out by itself
        state_U: Tensor | None
        state_V: Tensor | None

    def __init__(
        self,
        *,
        routes: int,
        channels: int,
        d_state: int,
        dt_rank: int,
        local_scan: int | None = None,
        low_rank: int | None = None,
    ) -> None:
        super().__init__()
        if low_rank is not None and not 1 <= low_rank <= d_state:
            raise ValueError(f"low_rank must be in 1..d_state = 1..{d_state}, or None, got {low_rank}")
        self.dims = (dt_rank, d_state, d_state)
        self.kernel: Any = RoutedScan(segment_of(local_scan))
        self.x_proj = nn.Parameter(torch.empty(routes, sum(self.dims), channels))
        self.dt_proj = nn.Parameter(torch.empty(routes, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(routes, channels))
        self.A_log = nn.Parameter(torch.empty(routes, channels, d_state if low_rank is None else low_rank))
        self.D = nn.Parameter(torch.empty(routes, channels))
        for name in ("state_U", "state_V"):
            shape = None if low_rank is None else (routes, d_state, low_rank)
            self.register_parameter(name, None if shape is None else nn.Parameter(torch.empty(shape)))

    def reset_scan_parameters(self) -> None:
        """Draws x_proj, dt, A and D anew, as Mamba does."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[-1] ** -0.5), self.x_proj.shape[-1] ** -0.5)
        init_dt(self.dt_proj, self.dt_bias)
        with torch.no_grad():
            self.A_log.copy_(init_A_log(*self.A_log.shape))
            self.D.fill_(1.0)
            for factor in (self.state_U, self.state_V):
                if factor is not None:
                    factor.copy_(torch.eye(factor.shape[1], factor.shape[2]).expand_as(factor))

    def scan_tokens(
        self,
        u_BLKD: Tensor,
        order_KT: Tensor | None,
        merge: str,
        shared: bool,
        prompt_BLN: Tensor | None = None,
        pieces: Optional[List[Tensor]] = None,  # noqa: UP006, UP045
    ) -> Tensor:
        """The scan along every route.

        Args:
            u_BLKD: (B, L, Ku, D).
            order_KT: integer (K, T), or (B, K, T) for a table per image, the position visited at each step.
            merge: "sum" adds the routes up, "none" keeps them apart.
            shared: whether Ku is 1: one product then projects for all routes.
            prompt_BLN: added to the readout C of every route.
            pieces: of each route, in place of `order_KT`: see `Paths`.

        Returns:
            (B, L, D) or (B, L, K, D).
        """
        if shared:
            x_BLD = u_BLKD.squeeze(2)
            proj = project(x_BLD, self.x_proj.flatten(0, 1)).unflatten(-1, self.x_proj.shape[:2])
        else:
            proj = project_routes(u_BLKD, self.x_proj)
        dt_low, B_BLKN, C_BLKN = proj.split(self.dims, -1)
        if prompt_BLN is not None:
            C_BLKN = C_BLKN + prompt_BLN.unsqueeze(2)
        A_log, D, bias = self.A_log, self.D, self.dt_bias
        U_KNr, V_KNr = self.state_U, self.state_V
        inside = U_KNr is None and pieces is None and self.kernel.segment < 0
        inside = inside and projects_in_scan(u_BLKD, dt_low, self.dims[1])
        delta_BLKD = dt_low if inside else project_routes(dt_low, self.dt_proj)
        dt_weight = self.dt_proj if inside else None
        if U_KNr is None or V_KNr is None:
            return self.kernel(u_BLKD, delta_BLKD, A_log, B_BLKN, C_BLKN, D, bias, order_KT, merge, pieces, dt_weight)
        B_BLKr, C_BLKr = project_routes(B_BLKN, V_KNr.transpose(1, 2)), project_routes(C_BLKN, U_KNr.transpose(1, 2))
        y = self.kernel(u_BLKD, delta_BLKD, A_log, B_BLKr, C_BLKr, D, bias, order_KT, merge, pieces)
        outside_BLK = (C_BLKN * B_BLKN).sum(-1) - (C_BLKr * B_BLKr).sum(-1)
        return add_step_inputs(y, outside_BLK, u_BLKD, delta_BLKD, bias, order_KT)
