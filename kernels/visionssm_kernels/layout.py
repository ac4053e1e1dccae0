"""Moves between image order and route order, in plain torch.

Legend: B batch, L image positions, D channels, K routes, T steps of a route.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gather_steps", "kept_steps", "scatter_steps"]


def _index(order: Tensor) -> tuple[Tensor, Tensor]:
    """A gather index (1 or B, K, T, 1), padding steps clamped to 0, and the mask of the real steps."""
    order_BKT1 = (order if order.dim() == 3 else order.unsqueeze(0)).long().unsqueeze(-1)
    return order_BKT1.clamp_min(0), order_BKT1 >= 0


def kept_steps(steps: int, segment: int, phase: int, like: Tensor) -> Tensor:
    """(T, 1), 1 where a step goes on from the state before it and 0 where the state restarts: `routed_scan`'s segments."""
    t = torch.arange(phase, phase + steps, device=like.device)
    return (t % segment != 0).to(like.dtype).unsqueeze(1)


def gather_steps(x_BLKD: Tensor, order: Tensor | None, num_routes: int) -> Tensor:
    """Reads every route's steps: (B, L, 1 or K, D) in image order -> (B, K, T, D), zero at padding steps."""
    x_BKLD = x_BLKD.transpose(1, 2)
    if order is None:
        return x_BKLD.expand(-1, num_routes, -1, -1)
    if x_BKLD.shape[2] == 0:  # no position to read: every step is padding
        return x_BKLD.new_zeros(x_BKLD.shape[0], num_routes, order.shape[-1], x_BKLD.shape[-1])
    index, real = _index(order)
    shape = (x_BKLD.shape[0], num_routes, order.shape[-1], x_BKLD.shape[-1])
    steps = x_BKLD.expand(-1, num_routes, -1, -1).gather(2, index.expand(shape))
    return steps * real.to(steps.dtype)


def scatter_steps(y_BKTD: Tensor, order: Tensor | None, num_positions: int) -> Tensor:
    """Writes every step back to its position: (B, K, T, D) -> (B, L, K, D), zero where a route never was."""
    if order is None:
        return y_BKTD.transpose(1, 2)
    batch, routes, _, channels = y_BKTD.shape
    if num_positions == 0:
        return y_BKTD.new_zeros(batch, 0, routes, channels)
    index, real = _index(order)
    out_BKLD = y_BKTD.new_zeros(batch, routes, num_positions, channels)
    out_BKLD = out_BKLD.scatter_add(2, index.expand(y_BKTD.shape), y_BKTD * real.to(y_BKTD.dtype))
    return out_BKLD.transpose(1, 2)
