"""The recurrence in plain torch, two passes over chunks: portable, differentiable any number of times, exportable.

The T steps are cut into chunks of about sqrt(T). Pass 1 runs all chunks side by side from a zero state and keeps only
their last states; a short loop carries these from chunk to chunk (a chunk's decay is exp(A * sum dt), never a division of
cumulated decays, which overflows). Pass 2 runs all chunks again from the right states and reads out y. About 3 sqrt(T) small
loops instead of T, nothing of size T x D x N kept in inference.

Legend: B batch, L image positions, D channels, N state, K routes, T steps, G chunks, S steps of a chunk.
"""

from __future__ import annotations

import math
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import kept_steps
from .reference import finish, route_conv, step_inputs

__all__ = ["route_conv", "routed_scan"]


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
    A_KDN = A.to(dt_BKTD.dtype)
    steps = dt_BKTD.shape[2]
    size = max(1, math.isqrt(max(index(steps), 1)))  # torch.compile unrolls the loops, so it needs the number
    chunks = max(1, -(-steps // size))

    def cut(
        x_BKTC: Tensor,
    ) -> list[Tensor]:  # S tensors (B, K, G, C); a step with dt = 0 leaves the state as it is
        x = F.pad(x_BKTC, (0, 0, 0, chunks * size - steps))
        return list(x.unflatten(2, (chunks, size)).unbind(3))

    dt_S, input_S, B_S, C_S = cut(dt_BKTD), cut(dt_BKTD * u_BKTD), cut(B_BKTN), cut(C_BKTN)
    A_K1DN = A_KDN.unsqueeze(1)
    kept_S = cut(kept_steps(steps, segment, phase, dt_BKTD).expand(1, 1, -1, -1)) if segment else None

    def step(h_BKGDN: Tensor, s: int) -> Tensor:
        decay = torch.exp(dt_S[s].unsqueeze(-1) * A_K1DN)
        if kept_S is not None:
            decay = decay * kept_S[s].unsqueeze(-1)
        return decay * h_BKGDN + input_S[s].unsqueeze(-1) * B_S[s].unsqueeze(-2)

    shape = (dt_BKTD.shape[0], A.shape[0], chunks, *A.shape[1:])
    h = dt_BKTD.new_zeros(shape)
    for s in range(size):
        h = step(h, s)
    chunk_dt = torch.stack(dt_S, 0).sum(0)
    chunk_decay = torch.exp(chunk_dt.unsqueeze(-1) * A_K1DN)
    if kept_S is not None:
        chunk_decay = chunk_decay * torch.stack(kept_S, 0).prod(0).unsqueeze(-1)
    decay_G = chunk_decay.unbind(2)
    local_G = h.unbind(2)
    start_G = [torch.zeros_like(local_G[0])]
    for g in range(chunks - 1):
        start_G.append(decay_G[g] * start_G[g] + local_G[g])

    h = torch.stack(start_G, 2)
    y_S, states_S = [], []
    for s in range(size):
        h = step(h, s)
        y_S.append((h * C_S[s].unsqueeze(-2)).sum(-1))
        if return_states:
            states_S.append(h)
    y_BKTD = torch.stack(y_S, 3).flatten(2, 3)[:, :, :steps]
    if D is not None:
        y_BKTD = y_BKTD + D.to(y_BKTD.dtype)[:, None] * u_BKTD
    states = torch.stack(states_S, 3).flatten(2, 3)[:, :, :steps] if return_states else None
    return finish(y_BKTD, states, u, order, merge)
