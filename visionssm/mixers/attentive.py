"""The attentive mixer: sort an image's positions by what they show, scan once, and let learned prompts join the readout.

Source: MambaIRv2, arXiv 2411.15269, section 3; csguoh/MambaIR@33d7b34 basicsr/archs/mambairv2_arch.py (ASSM).

Legend: B batch, H, W size, L = H * W, C block width, D inner width, N state, R dt rank, T categories.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionssm.layers import init_A_log, init_dt
from visionssm.scans import category_order, invert

from .functional import decay_rate, scan_routes

__all__ = ["AttentiveScan", "CategoryRouter"]


class CategoryRouter(nn.Module):
    """Gives every position one of T categories: a straight-through Gumbel softmax over a small network.

    Args:
        dim: C.
        categories: T.
    """

    def __init__(self, dim: int, categories: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 3)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim // 3, categories)

    def forward(self, x_BLC: Tensor, noise_BLT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Chooses the most probable category, or with Gumbel noise a random one in proportion to its probability.

        Args:
            x_BLC: the positions.
            noise_BLT: what is added to the log-probabilities.

        Returns:
            The probabilities (B, L, T), through which gradients flow, and the choices, int64 (B, L).
        """
        scores = F.log_softmax(self.fc2(self.act(self.fc1(x_BLC))), -1)
        soft_BLT = F.softmax(scores if noise_BLT is None else scores + noise_BLT, -1)
        return soft_BLT, soft_BLT.argmax(-1)


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
    ) -> None:
        super().__init__()
        if sort not in ("published", "stable"):
            raise ValueError(f"sort must be 'published' or 'stable', got {sort!r}")
        self.categories = categories
        self.sort = sort
        self.dims = (dt_rank, d_state, d_state)
        self.router = CategoryRouter(dim, categories)
        self.prompt = nn.Parameter(torch.empty(categories, rank))
        self.prompt_basis = nn.Parameter(torch.empty(rank, d_state))
        self.in_proj = nn.Linear(dim, d_inner)
        self.conv = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        self.x_proj = nn.Parameter(torch.empty(1, sum(self.dims), d_inner))
        self.dt_proj = nn.Parameter(torch.empty(1, d_inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(1, d_inner))
        self.A_log = nn.Parameter(torch.empty(1, d_inner, d_state))
        self.D = nn.Parameter(torch.empty(1, d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, dim)
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
        stable = self.sort == "stable"
        order_B1L = category_order(category_BL) if stable else category_BL.argsort(dim=-1).to(torch.int32)[:, None]
        prompt_BLN = self._prompts(soft_BLT, category_BL, invert(order_B1L)[:, 0])
        h = self.in_proj(x)
        h = h * torch.sigmoid(self.conv(h.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        h_BLD = h.flatten(1, 2)
        dt_low, B_BLN, C_BLN = F.linear(h_BLD, self.x_proj[0]).split(self.dims, -1)
        y_BLD = scan_routes(
            h_BLD.unsqueeze(2),
            F.linear(dt_low, self.dt_proj[0]).unsqueeze(2),
            decay_rate(self.A_log),  # A, D and the bias stay in float32, as the kernel's state does
            B_BLN.unsqueeze(2),
            (C_BLN + prompt_BLN).unsqueeze(2),
            self.D,
            self.dt_bias,
            order_B1L,
            "sum",
        )
        return self.out_proj(self.out_norm(y_BLD)).view(x.shape)

    def _prompts(self, soft_BLT: Tensor, category_BL: Tensor, step_BL: Tensor) -> Tensor:
        """What each position reads: the prompt of the raster position whose number is the step that visits it."""
        table_TN = self.prompt @ self.prompt_basis
        if not torch.is_grad_enabled():
            return F.embedding(category_BL.gather(1, step_BL), table_TN)
        hard_BLT = F.one_hot(category_BL, self.categories).to(soft_BLT.dtype)
        prompt_BLN = (hard_BLT - soft_BLT.detach() + soft_BLT) @ table_TN
        return prompt_BLN.gather(1, step_BL.unsqueeze(-1).expand_as(prompt_BLN))
