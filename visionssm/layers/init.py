"""Initial values of the selective scan's parameters (Mamba, arXiv 2312.00752, section 3.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["init_A_log", "init_dt", "init_dt_bias"]


def init_A_log(routes: int, channels: int, d_state: int) -> Tensor:
    """log(1), ..., log(N) for every route and channel: (K, D, N), float32."""
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().expand(routes, channels, d_state).clone()


@torch.no_grad()
def init_dt(weight: Tensor, bias: Tensor, *, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
    """Fills the dt projection so that softplus(bias) is log-uniform in [dt_min, dt_max].

    Args:
        weight: (..., D, R), filled with U(-R^-0.5, R^-0.5).
        bias: (..., D), filled with the inverse softplus of the step sizes.
        dt_min: smallest step size drawn.
        dt_max: largest step size drawn.
        dt_floor: step sizes below are raised to it.
    """
    limit = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -limit, limit)
    init_dt_bias(bias, dt_min=dt_min, dt_max=dt_max, dt_floor=dt_floor)


@torch.no_grad()
def init_dt_bias(bias: Tensor, *, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
    """Fills the dt bias alone, of any shape: see `init_dt`."""
    dt = torch.exp(torch.empty_like(bias).uniform_(math.log(dt_min), math.log(dt_max))).clamp_(min=dt_floor)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))
