"""What a classifier takes for an image."""

from __future__ import annotations

import torch
from timm.models._features_fx import register_notrace_function
from torch import Tensor

__all__ = ["check_image"]


@register_notrace_function  # its branch depends on the shape, which FX does not know
def check_image(x: Tensor, in_chans: int) -> None:
    """Raises ValueError unless `x` is (B, in_chans, H, W), TypeError unless it is floating point."""
    if torch.jit.is_tracing():
        return
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"images must be (B, {in_chans}, H, W), got the shape {list(x.shape)}; in_chans= builds a model for other channels"
        )
    if not x.is_floating_point():
        raise TypeError(f"images must be floating point, got {x.dtype}")
