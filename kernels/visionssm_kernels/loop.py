"""What published models run where mamba_ssm's CUDA kernels are missing: the baseline that benchmarks compare with.

The semantics and layouts of mamba_ssm's `selective_scan_ref` for K groups: every route is a permuted copy in (B, K, D, T), the
decays and inputs of all steps are made at once, then a loop over the steps updates the state and reads it out.

Legend: B batch, L image positions, D channels, N state, K routes, T steps of a route.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import finish, route_conv, step_inputs

__all__ = ["route_conv", "routed_scan", "step_loop"]


def step_loop(
    u_BKDT: Tensor, dt_BKDT: Tensor, A_KDN: Tensor, B_BKNT: Tensor, C_BKNT: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """y (B, K, D, T) without the skip, and the T states (B, K, D, N)."""
    decay = torch.exp(torch.einsum("bkdt,kdn->bkdtn", dt_BKDT, A_KDN))
    inputs = torch.einsum("bkdt,bknt,bkdt->bkdtn", dt_BKDT, B_BKNT, u_BKDT)
    state, states, outputs = torch.zeros_like(decay[:, :, :, 0]), [], []
    for t in range(u_BKDT.shape[-1]):
        state = decay[:, :, :, t] * state + inputs[:, :, :, t]
        states.append(state)
        outputs.append(torch.einsum("bkdn,bkn->bkd", state, C_BKNT[..., t]))
    return torch.stack(outputs, -1) if outputs else torch.zeros_like(u_BKDT), states


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
) -> tuple[Tensor, Tensor | None]:
    """See `visionssm_kernels.routed_scan`; states are (B, L, K, D, N) or None."""
    steps = step_inputs(u, delta, B, C, bias, order, softplus)
    u_BKDT, dt_BKDT, B_BKNT, C_BKNT = (x.transpose(2, 3).contiguous() for x in steps)
    y_BKDT, states = step_loop(u_BKDT, dt_BKDT, A.to(u_BKDT.dtype), B_BKNT, C_BKNT)
    if D is not None:
        y_BKDT = y_BKDT + u_BKDT * D.to(y_BKDT.dtype)[..., None]
    states_BKTDN = None
    if return_states:
        empty = dt_BKDT.new_zeros(dt_BKDT.shape[0], A.shape[0], 0, *A.shape[1:])
        states_BKTDN = torch.stack(states, 2) if states else empty
    return finish(y_BKDT.transpose(2, 3), states_BKTDN, u, order, merge)
