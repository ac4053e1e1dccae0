"""What published models run where mamba_ssm's CUDA kernels are missing: the baseline that benchmarks compare with.

The semantics and layouts of mamba_ssm's `selective_scan_ref`, called as those models call it: once for all routes, as groups,
where they share their input (SS2D), once per route where each has its own (Vim). Routes are permuted copies, the decays and
inputs of all steps are made at once, then a loop over the steps updates the state and reads it out.

Legend: B batch, L image positions, D channels, N state, K routes, G groups, T steps of a route.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import kept_steps
from .reference import finish, route_conv, step_inputs

__all__ = ["route_conv", "routed_scan", "selective_scan_loop"]


def selective_scan_loop(
    u_BDT: Tensor,
    dt_BDT: Tensor,
    A_DN: Tensor,
    B_BGNT: Tensor,
    C_BGNT: Tensor,
    *,
    keep: bool = False,
    kept_T1: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y (B, D, T) without the skip, and with `keep` the states (B, T, D, N); G groups of channels have a B and a C each.

    The state restarts where `kept_T1` is 0.
    """
    decay = torch.exp(torch.einsum("bdt,dn->bdtn", dt_BDT, A_DN))
    decay = decay if kept_T1 is None else decay * kept_T1
    groups = B_BGNT.shape[1]
    if groups == 1:
        B, C, read = B_BGNT.squeeze(1), C_BGNT.squeeze(1), "bdn,bn->bd"
        inputs = torch.einsum("bdt,bnt,bdt->bdtn", dt_BDT, B, u_BDT)
    else:
        B, C = (x.repeat_interleave(u_BDT.shape[1] // groups, 1) for x in (B_BGNT, C_BGNT))
        inputs, read = torch.einsum("bdt,bdnt,bdt->bdtn", dt_BDT, B, u_BDT), "bdn,bdn->bd"
    state, states, outputs = torch.zeros_like(decay[:, :, 0]), [], []
    for t in range(u_BDT.shape[-1]):
        state = decay[:, :, t] * state + inputs[:, :, t]
        if keep:
            states.append(state)
        outputs.append(torch.einsum(read, state, C[..., t]))
    y_BDT = torch.stack(outputs, -1) if outputs else torch.zeros_like(u_BDT)
    return y_BDT, torch.stack(states, 1) if states else None


def scan_routes(
    u_BKDT: Tensor,
    dt_BKDT: Tensor,
    A_KDN: Tensor,
    B_BKNT: Tensor,
    C_BKNT: Tensor,
    *,
    shared: bool,
    keep: bool = False,
    kept_T1: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y (B, K, D, T) without the skip, and with `keep` the states (B, K, T, D, N).

    `shared` says that all routes read the same u: it decides how many calls there are.
    """
    K, D, N = A_KDN.shape
    size = K if shared else 1  # groups of a call
    calls = []
    for k in range(0, K, size):
        u, dt = (x[:, k : k + size].flatten(1, 2) for x in (u_BKDT, dt_BKDT))
        B, C = (x[:, k : k + size] for x in (B_BKNT, C_BKNT))
        calls.append(selective_scan_loop(u, dt, A_KDN[k : k + size].flatten(0, 1), B, C, keep=keep, kept_T1=kept_T1))
    y_BKDT = torch.cat([y for y, _ in calls], 1).unflatten(1, (K, D))
    if not keep:
        return y_BKDT, None
    empty = u_BKDT.new_zeros(u_BKDT.shape[0], 0, size * D, N)
    states_BTKDN = torch.cat([empty if x is None else x for _, x in calls], 2).unflatten(2, (K, D))
    return y_BKDT, states_BTKDN.transpose(1, 2)


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
    steps = step_inputs(u, delta, B, C, bias, order, softplus)
    u_BKDT, dt_BKDT, B_BKNT, C_BKNT = (x.transpose(2, 3).contiguous() for x in steps)
    A_KDN = A.to(u_BKDT.dtype)
    kept_T1 = kept_steps(u_BKDT.shape[-1], segment, phase, u_BKDT) if segment else None
    y_BKDT, states_BKTDN = scan_routes(
        u_BKDT, dt_BKDT, A_KDN, B_BKNT, C_BKNT, shared=u.shape[2] == 1, keep=return_states, kept_T1=kept_T1
    )
    if D is not None:
        y_BKDT = y_BKDT + u_BKDT * D.to(y_BKDT.dtype)[..., None]
    return finish(y_BKDT.transpose(2, 3), states_BKTDN, u, order, merge)
