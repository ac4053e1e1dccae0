"""The attentive mixer: sort an image's positions by what they show, scan once, and let learned prompts join the readout.

Source: MambaIRv2, arXiv 2411.15269, section 3; csguoh/MambaIR@33d7b34 basicsr/archs/mambairv2_arch.py (ASSM).

Legend: B batch, H, W size, L = H * W, C block width, D inner width, N state, R dt rank, T categories.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import Linear, init_A_log, init_dt, project
from visionssm.scans import ScanOrder, category_order, invert

from .functional import deal_channels, decay_rate, join_groups, project_routes, projects_in_scan, scan_routes
from .paths import Paths, scan_pieces
from .router import CategoryRouter

__all__ = ["AttentiveScan"]


class AttentiveScan(nn.Module):
    """Attentive state-space module: in_proj, position gate, one scan over the positions sorted by category, norm, out_proj.

    Each category has a learned prompt that is added to C. As published, and as the weights need it, the prompts are not sorted
    along: step t of the scan reads that of position t of the raster, not that of the position which the step visits.

    Args:
        dim: C, channels in and out.
        d_inner: D, channels of the scan.
        d_state: N.
        dt_rank: R, rank of the step-size projection.
        categories: T.
        rank: of the (T, N) matrix of prompts, which is a product of two.
        sort: the order inside a category: "stable" for that of the raster, "published" for what the published code's
            `torch.sort` without `stable=True` makes of it: on CPUs another, the same every time; elsewhere as the device has it.
        scan: an order to scan along instead, with parameters of its own for each of its routes; categories then only say which
            prompt a position reads, its own one.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        categories: int,
        rank: int,
        sort: Literal["published", "stable"] = "published",
        scan: ScanOrder | None = None,
    ) -> None:
        super().__init__()
        routes, self.groups = (1, 1) if scan is None else (scan.num_routes, scan.groups)
        if d_inner % self.groups:
            raise ValueError(f"{scan!r} splits the channels into {self.groups} groups, but d_inner is {d_inner}")
        channels = d_inner // self.groups
        if sort not in ("published", "stable"):
            raise ValueError(f"sort must be 'published' or 'stable', got {sort!r}")
        self.categories = categories
        self.sort = sort
        self.dims = (dt_rank, d_state, d_state)
        self.router = CategoryRouter(dim, categories)
        self.prompt = nn.Parameter(torch.empty(categories, rank))
        self.prompt_basis = nn.Parameter(torch.empty(rank, d_state))
        self.in_proj = Linear(dim, d_inner)
        self.conv = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.routes = routes
        self.paths = None if scan is None else Paths(scan, d_inner, d_state)
        self.x_proj = nn.Parameter(torch.empty(routes, sum(self.dims), channels))
        self.dt_proj = nn.Parameter(torch.empty(routes, channels, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(routes, channels))
        self.A_log = nn.Parameter(torch.empty(routes, channels, d_state))
        self.D = nn.Parameter(torch.empty(routes, channels))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = Linear(d_inner, dim)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """Draws x_proj, dt, A and D anew, as Mamba does, and the prompts."""
        nn.init.uniform_(self.x_proj, -(self.x_proj.shape[-1] ** -0.5), self.x_proj.shape[-1] ** -0.5)
        init_dt(self.dt_proj, self.dt_bias)
        with torch.no_grad():
            self.A_log.copy_(init_A_log(*self.A_log.shape))
            self.D.fill_(1.0)
        for table in (self.prompt, self.prompt_basis):
            nn.init.uniform_(table, -1 / table.shape[0], 1 / table.shape[0])

    def draw_noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Gumbel noise for the routing of an image.

        Args:
            x: (B, H, W, C), says how much and where.
            generator: source of chance, of any device; None for torch's own on the device of `x`.

        Returns:
            (B, L, T), float32 on the device of `x`, or float64 if `x` is.
        """
        device = x.device if generator is None else generator.device
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        noise = torch.empty(x.shape[0], x.shape[1] * x.shape[2], self.categories, device=device, dtype=dtype)
        return noise.exponential_(generator=generator).log_().neg_().to(x.device)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mixes an image.

        Args:
            x: (B, H, W, C).
            noise: (B, L, T) for the routing, see `draw_noise`; None for the most probable categories.

        Returns:
            (B, H, W, C).
        """
        soft_BLT, category_BL = self.router(x.flatten(1, 2), noise)
        h = self.in_proj(x)
        h = h * torch.sigmoid(self.conv(h.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        h_BLD = h.flatten(1, 2)
        if self.paths is None:
            y_BLD = self._scan_sorted(h_BLD, soft_BLT, category_BL)
        else:
            y_BLD = self._scan_along(h_BLD, x, self._own_prompts(soft_BLT, category_BL))
        return self.out_proj(self.out_norm(y_BLD)).view(x.shape)

    def _scan_sorted(self, h_BLD: Tensor, soft_BLT: Tensor, category_BL: Tensor) -> Tensor:
        stable = self.sort == "stable"
        order_B1L = category_order(category_BL) if stable else category_BL.argsort(dim=-1).to(torch.int32)[:, None]
        prompt_BLN = self._prompts(soft_BLT, category_BL, invert(order_B1L)[:, 0])
        u_BL1D = h_BLD.unsqueeze(2)
        dt_low, B_BL1N, C_BL1N = project(u_BL1D, self.x_proj[0]).split(self.dims, -1)
        inside = projects_in_scan(u_BL1D, dt_low, self.dims[1])
        return scan_routes(
            u_BL1D,
            dt_low if inside else F.linear(dt_low, self.dt_proj[0]),
            decay_rate(self.A_log),  # A, D and the bias stay in float32, as the kernel's state does
            B_BL1N,
            C_BL1N + prompt_BLN.unsqueeze(2),
            self.D,
            self.dt_bias,
            order_B1L,
            "sum",
            dt_weight_KDR=self.dt_proj if inside else None,
        )

    def _scan_along(self, h_BLD: Tensor, image: Tensor, prompt_BLN: Tensor) -> Tensor:
        assert self.paths is not None
        u_BLKD, order_KT, further_BLN, pieces = self.paths(h_BLD, image)
        u_BLKD = u_BLKD.expand(-1, -1, self.routes, -1)
        if self.groups > 1:
            u_BLKD = deal_channels(u_BLKD, self.groups, self.routes)
        dt_low, B_BLKN, C_BLKN = project_routes(u_BLKD, self.x_proj).split(self.dims, -1)
        C_BLKN = C_BLKN + prompt_BLN.unsqueeze(2)
        if further_BLN is not None:
            C_BLKN = C_BLKN + further_BLN.unsqueeze(2)
        inside = pieces is None and projects_in_scan(u_BLKD, dt_low, self.dims[1])
        delta_BLKD = dt_low if inside else project_routes(dt_low, self.dt_proj)
        dt_weight = self.dt_proj if inside else None
        A_KDN, merge = decay_rate(self.A_log), "sum" if self.groups == 1 else "none"
        D, bias = self.D, self.dt_bias
        if pieces is not None:
            y = scan_pieces(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D, bias, pieces, merge)
        else:
            y = scan_routes(u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D, bias, order_KT, merge, -1, dt_weight)
        return y if self.groups == 1 else join_groups(y, self.groups)

    def _own_prompts(self, soft_BLT: Tensor, category_BL: Tensor) -> Tensor:
        """The prompt of each position's category."""
        table_TN = self.prompt @ self.prompt_basis
        if not torch.is_grad_enabled():
            return F.embedding(category_BL, table_TN)
        hard_BLT = F.one_hot(category_BL, self.categories).to(soft_BLT.dtype)
        return (hard_BLT - soft_BLT.detach() + soft_BLT).to(table_TN.dtype) @ table_TN

    def _prompts(self, soft_BLT: Tensor, category_BL: Tensor, step_BL: Tensor) -> Tensor:
        """What each position reads: the prompt of the raster position whose number is the step that visits it."""
        prompt_BLN = self._own_prompts(soft_BLT, category_BL)
        return prompt_BLN.gather(1, step_BL.unsqueeze(-1).expand_as(prompt_BLN))
