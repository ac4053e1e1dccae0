"""Stochastic layer-wise shuffle: in training a layer may see its tokens in a random order, and its output is put back.

Source: Stochastic Layer-Wise Shuffle, arXiv 2408.17081; huangzizheng01/ShuffleMamba@0df405f. The chance grows linearly from 0 in
the first layer to the rate in the last; one draw and one permutation serve the whole batch, class token included.

The draw comes from torch's CPU generator: runs repeat under `torch.manual_seed` and resume where it is restored. It is made
outside a checkpointed layer, so that running the layer again sees the same order.

Legend: B batch, L tokens (of a map: all its positions), C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

from visionssm.scans import RouteTable
from visionssm.scans.dynamic import draw_shuffle, shuffle_probability

__all__ = ["draw_order", "reordered", "restored", "shuffle_rates"]


def shuffle_rates(rate: float, blocks: Iterable[nn.Module]) -> list[float]:
    """The chance of every block: of the layers that read tokens along routes; 0 for convolutions and norms between them.

    Args:
        rate: of the last layer.
        blocks: of the whole model.

    Raises:
        ValueError: `rate` is not in 0..1, or there is no such layer.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"shuffle_rate must be in 0..1, got {rate}")
    scans = [any(isinstance(module, RouteTable) for module in block.modules()) for block in blocks]
    if rate > 0 and not any(scans):
        raise ValueError(f"shuffle_rate={rate} needs layers that read tokens along fixed routes: this model has none")
    layers = iter(range(sum(scans)))
    return [shuffle_probability(next(layers), sum(scans), rate) if scan else 0.0 for scan in scans]


@register_notrace_function
def draw_order(x: Tensor, rate: float, training: bool) -> Tensor:
    """Draws whether a layer's tokens are shuffled, and how.

    Args:
        x: tokens (B, L, C) or a map (B, *S, C).
        rate: the chance.
        training: outside training nothing is ever shuffled.

    Returns:
        int64 (L,), or empty to leave the tokens as they are.
    """
    length = x.flatten(1, -2).shape[1]
    nothing = torch.zeros(0, dtype=torch.int64, device=x.device)
    if not training or rate == 0.0:
        return nothing
    if torch.jit.is_scripting():
        if torch.rand(1).item() >= rate:
            return nothing
        return torch.randperm(length).to(x.device)
    if torch.compiler.is_compiling():  # a graph cannot leave the permutation out: it takes the one that changes nothing
        same, other = torch.arange(length, device=x.device), torch.randperm(length, device=x.device)
        return torch.where(torch.rand(1, device=x.device) < rate, other, same)
    order = draw_shuffle(length, rate, generator=torch.default_generator, device=x.device)
    return nothing if order is None else order


@register_notrace_function
def reordered(x: Tensor, order: Tensor) -> Tensor:
    """The tokens in a drawn order, in the shape of `x`."""
    if order.numel() == 0:
        return x
    return x.flatten(1, -2).index_select(1, order).view(x.shape)


@register_notrace_function
def restored(x: Tensor, order: Tensor) -> Tensor:
    """Undoes `reordered`."""
    if order.numel() == 0:
        return x
    return x.flatten(1, -2).index_select(1, order.argsort()).view(x.shape)
