"""Typed forms of torch's and timm's helpers whose own annotations say less than they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint
from torch import Tensor, nn

__all__ = ["checkpointed", "drop_path_rates", "unscripted"]

_F = TypeVar("_F", bound=Callable[..., object])

if TYPE_CHECKING:

    def unscripted(function: _F) -> _F:
        """Marks a method that TorchScript shall leave alone."""
        ...
else:
    unscripted = torch.jit.ignore


def checkpointed(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Runs a module and forgets its activations: the backward pass runs it again."""
    return cast("Tensor", checkpoint(module, *inputs))


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth rates per stage and block, rising linearly from 0 to `rate` over all blocks."""
    return cast("list[list[float]]", calculate_drop_path_rates(rate, list(depths), stagewise=True))
