"""Linear layers, in inference on CPUs by the faster of the two libraries that torch brings for float32 products.

torch multiplies float32 matrices with MKL, which keeps its AVX-512 code for Intel's processors; convolutions go through oneDNN,
which does not. Anything but plain inference in float32 (`is_plain_inference`) is torch's own `linear`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import is_plain_inference

__all__ = ["linear", "linear_routes"]

_LEAST_ROWS = 48  # with fewer there is little to gain, and oneDNN prepares code for each new shape


@cache
def _onednn() -> Any:
    """The product in oneDNN, or None where it is missing or has no AVX-512 to use."""
    found = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    overloads = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if found else None
    return None if overloads is None else overloads.default


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, routes: int = 1) -> Any:
    """oneDNN's product where these go through it, else None; of `x`, the rows of each of some routes."""
    if (
        is_plain_inference(x, weight, bias)
        and (product := _onednn()) is not None
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= routes * _LEAST_ROWS * x.shape[-1] > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
    ):
        return product
    return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x weight^T + bias, as `torch.nn.functional.linear`, or the GELU of that.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.
        gelu: whether to apply the exact GELU, as part of the product where oneDNN computes it.

    Returns:
        (..., C') in the dtype of torch's operation; in inference rounded in another order.
    """
    product = _product(x, weight, bias)
    if product is not None:
        return product(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear_routes(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T by another weight for every route, read and written where the tokens lie.

    Args:
        x: (B, L, K, C).
        weight: (K, C', C).

    Returns:
        (B, L, K, C') in the dtype of torch's product; in inference rounded in another order.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.dim() != 4 or weight.dim() != 3 or x.shape[2:] != (weight.shape[0], weight.shape[2]):
        raise ValueError(
            f"x must be (B, L, K, C) and weight (K, C', C), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    product = _product(x, weight, None, x.shape[2])
    if product is not None:
        return torch.stack([product(x[:, :, k], w, None, "none", [], "") for k, w in enumerate(weight)], 2)
    x_KTC = x.flatten(0, 1).transpose(0, 1)
    return torch.bmm(x_KTC, weight.transpose(1, 2)).transpose(0, 1).unflatten(0, x.shape[:2])
