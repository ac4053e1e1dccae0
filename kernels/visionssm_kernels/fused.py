"""What models do around the scan, fused on CPUs: LayerNorm, gate and scale after it; instance norm with the channels last.

The kernels are for inference in float32 (`is_plain_inference`). With gradients, under autocast, torch.compile, export and
tracing, where a mode watches torch's operators, and with any implementation but "numba", it is the plain operations of torch.
Kernels of the same kind for RMSNorm alone, LayerNorm alone and the depthwise convolution with SiLU were measured and left out:
torch's are about as fast.

Legend: D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import chosen, is_plain_inference, module_of, resolve

__all__ = ["instance_norm", "norm_gate"]


def norm_gate(
    x: Tensor,
    gate: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: bool = True,
    eps: float = 1e-5,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """norm(x) * silu(gate) * scale.

    Args:
        x: (..., D).
        gate: (..., D).
        weight: (D,) or None, of the norm.
        bias: (D,) or None, of the norm.
        norm: whether x goes through LayerNorm over its last dimension.
        eps: added to the variance.
        scale: factor on the gate.
        backend: "auto" or a name of `backends()`; only "numba" has a kernel of its own.

    Returns:
        (..., D) in the dtype of torch's operations.

    Raises:
        ValueError: naming the argument that does not fit.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    if gate.shape != x.shape:
        raise ValueError(f"gate must have x's shape {tuple(x.shape)}, got {tuple(gate.shape)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and (not norm or parameter.shape != x.shape[-1:]):
            wanted = f"({x.shape[-1]},)" if norm else "None without a norm"
            raise ValueError(f"{name} must be {wanted}, got {tuple(parameter.shape)}")
    name = resolve(chosen(backend), str(x.device), x.dtype, 1)
    tensors = (x, gate, weight, bias)
    if (
        name == "numba"
        and all(t is None or t.dtype == torch.float32 for t in tensors)
        and is_plain_inference(*tensors)
        and not torch.is_autocast_enabled("cpu")
    ):
        return module_of(name).norm_gate(*tensors, norm, eps, scale)
    if norm:
        x = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    gate = F.silu(gate)
    return x * (gate if scale == 1.0 else gate * scale)


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    inplace: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Every channel of every sample to mean 0 and variance 1 over its positions, then * weight + bias.

    Args:
        x: (B, *S, C): channels last.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance, which is that of the sample (divided by the number of positions).
        inplace: whether the memory of x may be used for the result.
        backend: "auto" or a name of `backends()`; only "numba" has a kernel of its own.

    Returns:
        (B, *S, C) in the dtype of torch's operations.

    Raises:
        ValueError: naming the argument that does not fit.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    if x.dim() < 3:
        raise ValueError(f"x must be (B, *S, C), got {tuple(x.shape)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(f"{name} must be ({x.shape[-1]},), got {tuple(parameter.shape)}")
    name = resolve(chosen(backend), str(x.device), x.dtype, 1)
    tensors = (x, weight, bias)
    if (
        name == "numba"
        and all(t is None or t.dtype == torch.float32 for t in tensors)
        and is_plain_inference(*tensors)
        and not torch.is_autocast_enabled("cpu")
    ):
        return module_of(name).instance_norm(x.flatten(1, -2), weight, bias, eps, inplace).view(x.shape)
    return F.instance_norm(x.movedim(-1, 1), weight=weight, bias=bias, eps=eps).movedim(1, -1)
