"""Layers that are torch's, but infer on CPUs with the channels last in memory, as convolutions there are fastest.

Gradients, graphs, autocast and other devices see torch's own operations in the layout that they get.
"""

# ruff: noqa: SIM102  (TorchScript leaves out a branch for `is_scripting` alone)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_function
from torch import Tensor, nn

import visionssm_kernels
from visionssm_kernels.backends import is_plain_inference

__all__ = ["Conv3d", "InstanceNorm2d", "InstanceNorm3d", "channels_last_in_inference", "use_channels_last"]

_LEAST_POSITIONS = 4096  # of a volume that pays for oneDNN's rearranging of the weights


def _infers_on_cpu(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and is_plain_inference(x)


@register_notrace_function  # its branch depends on modes, which FX does not know
def channels_last_in_inference(x: Tensor) -> Tensor:
    """The same values; in inference on CPUs with the channels last in memory."""
    if not torch.jit.is_scripting():
        if _infers_on_cpu(x):
            return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


@register_notrace_function
def _instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, inplace: bool) -> Tensor:
    if not torch.jit.is_scripting():
        if _infers_on_cpu(x):
            x = channels_last_in_inference(x).movedim(1, -1)
            return visionssm_kernels.instance_norm(x, weight, bias, eps=eps, inplace=inplace).movedim(-1, 1)
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


@register_notrace_function
def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    if not torch.jit.is_scripting():
        able = _infers_on_cpu(x) and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        if able and x.shape[2:].numel() >= _LEAST_POSITIONS:
            return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)


class Conv3d(nn.Conv3d):
    """torch's with zero padding, in inference on CPUs by oneDNN for few channels too, where torch takes a slow way."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W')."""
        return _conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # pyright: ignore


class _InstanceNorm(nn.Module):
    """torch's, without running statistics; in inference on CPUs with the channels last in memory.

    Args:
        inplace: whether in inference the result may take the memory of the input.
    """

    def __init__(self, *args: Any, inplace: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return _instance_norm(x, self.weight, self.bias, self.eps, self.inplace)  # pyright: ignore


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Of images."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Of volumes."""


def use_channels_last(module: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Makes these layers of torch's convolutions and norms wherever they do the same; the state dict does not change.

    Args:
        module: whose layers are exchanged.
        inplace: whether its norms' inputs are used by nothing else, as those right after a convolution.
    """
    norms: dict[type, Any] = {nn.InstanceNorm2d: InstanceNorm2d, nn.InstanceNorm3d: InstanceNorm3d}
    layer: Any
    for layer in module.modules():
        if type(layer) is nn.Conv3d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.__class__ = Conv3d
        elif type(layer) in norms and not layer.track_running_stats:
            layer.__class__ = norms[type(layer)]
            layer.inplace = inplace  # pyright: ignore[reportArgumentType]
    return module
