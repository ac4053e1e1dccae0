"""The locally bi-directional scan: a scan along each route, and one back within short segments of it.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t           from the start of the route
    r_t = exp(dt_t A) r_{t+1} + dt_t B_t u_t           from the end of t's segment
    y_t = C_t . (h_t + r_t - dt_t B_t u_t) + D u_t     the step's own input counts once

Source: LBMamba, arXiv 2506.15976; cvlab-stonybrook/LBMamba@5215551 (LBMamba_kernel, cuda_validation/grad_derivation.md).
There a segment is what one thread of a CUDA block holds: `published_segment`.

Two routed scans, the second along the reversed routes with a state that restarts at every segment, on the kernels of
whatever device; the step's own input is taken out once in plain torch.

Legend: B batch, L image positions, D channels, N state, K routes, T steps of a route.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import routed_scan

__all__ = ["add_inputs", "backward_routes", "locally_bidirectional_scan", "published_segment"]


def published_segment(steps: int) -> int:
    """The segment of the published kernels for routes of `steps` steps: 4 up to 128, 8 up to 256, else 16."""
    return 4 if steps <= 128 else 8 if steps <= 256 else 16


def locally_bidirectional_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    segment: int,
    order: Tensor | None = None,
    merge: Literal["sum", "none"] = "sum",
    backend: str = "auto",
) -> Tensor:
    """Selective scan that at every step has also seen the rest of the step's segment.

    Args:
        u, delta, A, B, C, D, bias: as in `routed_scan`, with softplus; one set of parameters serves both directions.
        segment: steps of a segment; segments are counted from the start of a route. 0 for `published_segment`.
        order: as in `routed_scan`.
        merge: as in `routed_scan`.
        backend: as in `routed_scan`.

    Returns:
        As `routed_scan`.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    if segment < 0:
        raise ValueError(f"segment must be 0 or more steps, got {segment}")
    y = routed_scan(u, delta, A, B, C, D, bias, order=order, merge=merge, backend=backend)
    back, segment, phase = backward_routes(order, u, A.shape[0], segment)
    y = y + routed_scan(
        u, delta, A, B, C, None, bias, order=back, merge=merge, segment=segment, phase=phase, backend=backend
    )
    return add_inputs(y, -(B * C).sum(-1), u, delta, bias, order)


def backward_routes(order: Tensor | None, u: Tensor, routes: int, segment: int) -> tuple[Tensor, int, int]:
    """The routes walked backwards, and `routed_scan`'s segment and phase for segments counted from their start.

    Args:
        order: the routes, or None.
        u: (B, L, ...), what they are walked over.
        routes: K.
        segment: as in `locally_bidirectional_scan`.
    """
    if order is None:
        order = torch.arange(u.shape[1], device=u.device).unsqueeze(0).expand(routes, -1)
    steps = order.shape[-1]
    if torch.jit.is_tracing():  # which keeps the segments of this length
        steps = int(steps)
        walked: Tensor = torch.ops.visionssm.routes_of_length(order, steps)
    else:
        walked = order
    size = segment if segment > 0 else published_segment(steps)
    return walked.flip(-1), size, (size - steps % size) % size


@torch.library.custom_op("visionssm::routes_of_length", mutates_args=())
def _routes_of_length(order: Tensor, steps: int) -> Tensor:
    if order.shape[-1] != steps:
        raise ValueError(f"traced for routes of {steps} steps, which decide segments, got {order.shape[-1]} steps")
    return order.clone()


@_routes_of_length.register_fake
def _(order: Tensor, steps: int) -> Tensor:
    return torch.empty_like(order)


def add_inputs(
    y: Tensor, weight: Tensor, u: Tensor, delta: Tensor, bias: Tensor | None, order: Tensor | None = None
) -> Tensor:
    """y + weight dt u at the positions that routes visit, added up over the routes if y is.

    Args:
        y: (B, L, D) or (B, L, K, D).
        weight: (B, L, K).
        u: (B, L, 1 or K, D).
        delta: (B, L, K, D).
        bias: (K, D) or None.
        order: as in `routed_scan`.

    Returns:
        As y, computed in at least float32.
    """
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    dt = delta.to(wide) if bias is None else delta.to(wide) + bias
    weight = weight.to(wide)
    if order is not None:
        weight = weight * visited_positions(order, u.shape[1]).to(wide)
    inputs = F.softplus(dt, 1.0, 50.0) * weight.unsqueeze(-1) * u
    return (y + (inputs.sum(2) if y.dim() == 3 else inputs)).to(y.dtype)


def visited_positions(order: Tensor, positions: int) -> Tensor:
    """(1 or B, L, K), whether route k comes by position l."""
    order_BKT = (order if order.dim() == 3 else order.unsqueeze(0)).long()
    flags = torch.zeros_like(order_BKT[:, :, :1], dtype=torch.bool).repeat(1, 1, positions + 1)
    columns = torch.where(
        order_BKT >= 0, order_BKT, positions
    )  # padding steps fall into one more column, which is cut off
    return flags.scatter(2, columns, torch.ones_like(columns, dtype=torch.bool))[..., :positions].transpose(1, 2)
