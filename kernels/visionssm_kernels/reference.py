"""The recurrence as an obvious loop over steps: the ground truth of every other implementation.

    dt_t = softplus(delta_t + bias)
    h_t  = exp(dt_t A) * h_{t-1} + dt_t B_t u_t          (Mamba, arXiv 2312.00752, Euler form for B)
    y_t  = C_t . h_t + D u_t

Any floating dtype; float64 inputs are computed in float64, all others in float32. Differentiable any number of times.
Legend: B batch, L image positions, D channels, N state, K routes, T steps of a route.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import gather_steps, kept_steps, scatter_steps

__all__ = ["route_conv", "routed_scan"]


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def step_inputs(
    u: Tensor, delta: Tensor, B: Tensor, C: Tensor, bias: Tensor | None, order: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, dt (B, K, T, D) and B, C (B, K, T, N) in route order and in the dtype of the computation."""
    dtype = compute_dtype(u, delta, B, C, bias)
    routes = delta.shape[2]
    u, delta, B, C = (gather_steps(x.to(dtype), order, routes) for x in (u, delta, B, C))
    if bias is not None:
        delta = delta + bias.to(dtype)[:, None]
    return u, F.softplus(delta, threshold=50.0) if softplus else delta, B, C


def finish(
    y_BKTD: Tensor,
    states_BKTDN: Tensor | None,
    u: Tensor,
    order: Tensor | None,
    merge: str,
) -> tuple[Tensor, Tensor | None]:
    """Scatters the steps to image order, merges the routes and restores u's dtype."""
    positions = u.shape[1]
    y = scatter_steps(y_BKTD, order, positions)
    y = (y.sum(2) if merge == "sum" else y).to(u.dtype)
    if states_BKTDN is None:
        return y, None
    D, N = states_BKTDN.shape[-2:]
    return y, scatter_steps(states_BKTDN.flatten(-2), order, positions).unflatten(-1, (D, N))


def routed_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    order: Tensor | None,
    softplus: bool,
    merge: str,
    return_states: bool,
    segment: int = 0,
    phase: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """See `visionssm_kernels.routed_scan`; states are (B, L, K, D, N) or None."""
    u_BKTD, dt_BKTD, B_BKTN, C_BKTN = step_inputs(u, delta, B, C, bias, order, softplus)
    x_BKTD, A_KDN = dt_BKTD * u_BKTD, A.to(dt_BKTD.dtype)
    h_BKDN = dt_BKTD.new_zeros(dt_BKTD.shape[0], *A.shape)
    kept_T1 = kept_steps(dt_BKTD.shape[2], segment, phase, dt_BKTD) if segment else None
    states = []
    for t in range(dt_BKTD.shape[2]):
        decay = torch.exp(dt_BKTD[:, :, t, :, None] * A_KDN)
        if kept_T1 is not None:
            decay = decay * kept_T1[t]
        h_BKDN = decay * h_BKDN + x_BKTD[:, :, t, :, None] * B_BKTN[:, :, t, None, :]
        states.append(h_BKDN)
    states_BKTDN = torch.stack(states, 2) if states else h_BKDN.unsqueeze(2)[:, :, :0]
    y_BKTD = torch.einsum("bktdn,bktn->bktd", states_BKTDN, C_BKTN)
    if D is not None:
        y_BKTD = y_BKTD + D.to(y_BKTD.dtype)[:, None] * u_BKTD
    return finish(y_BKTD, states_BKTDN if return_states else None, u, order, merge)


def route_conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """See `visionssm_kernels.route_conv`."""
    dtype = compute_dtype(x, weight, bias)
    routes, channels, width = weight.shape
    x_BKTD = gather_steps(x.to(dtype), order, routes)
    x_BCT = F.pad(x_BKTD.transpose(2, 3).flatten(1, 2), (width - 1, 0))
    flat_bias = None if bias is None else bias.to(dtype).flatten()
    if x_BCT.shape[0] == 0 or x_BKTD.shape[2] == 0:
        u_BKTD = x_BKTD + 0 * weight.to(dtype).sum()  # keeps the graph of an empty batch
    else:
        u_BCT = F.conv1d(x_BCT, weight.to(dtype).flatten(0, 1).unsqueeze(1), flat_bias, groups=routes * channels)
        u_BKTD = u_BCT.unflatten(1, (routes, channels)).transpose(2, 3)
    u_BKTD = F.silu(u_BKTD) if silu else u_BKTD
    return scatter_steps(u_BKTD, order, x.shape[1]).to(x.dtype)
