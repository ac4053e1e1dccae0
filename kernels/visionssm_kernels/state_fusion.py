"""Spatial-Mamba's state fusion: a sum of dilated depthwise convolutions over a map of states, borders replicated.

On GPUs, and on CPUs forward, all taps are read in one pass, borders included. Elsewhere, and for the gradient on CPUs, each
kernel is a padded convolution of torch.

Source: Spatial-Mamba, arXiv 2410.15091, equation 7; EdwardChasel/Spatial-Mamba@71221eb.

Legend: B batch, H height, W width, D channels, G kernels, k their side, T taps of all kernels together.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import choose, is_plain_inference, module_of, resolve
from .derivatives import first_only

__all__ = ["fuse_states"]


def fuse_states(h: Tensor, weight: Tensor, dilations: Sequence[int] = (1, 3, 5), *, backend: str = "auto") -> Tensor:
    """The sum of G depthwise convolutions, each with a dilation of its own; taps beyond the border read the border.

    Args:
        h: (B, H, W, D), floating.
        weight: (G, D, k, k), k odd.
        dilations: G of them.
        backend: "auto" or a name of `backends()`. "triton" and "numba" have kernels of their own, which compute in float32;
            the others are torch's convolutions.

    Returns:
        (B, H, W, D) in the dtype of h.

    Raises:
        ValueError: naming the argument that does not fit.
        RuntimeError: the backend that was asked for cannot run, with the reason.
    """
    if h.dim() != 4 or not h.is_floating_point():
        raise ValueError(f"h must be floating (B, H, W, D), got {h.dtype} {tuple(h.shape)}")
    if (
        weight.dim() != 4
        or weight.shape[1] != h.shape[3]
        or weight.shape[2] != weight.shape[3]
        or weight.shape[2] % 2 == 0
    ):
        raise ValueError(f"weight must be (G, {h.shape[3]}, k, k) with k odd, got {tuple(weight.shape)}")
    if len(dilations) != weight.shape[0] or min(dilations) < 1:
        raise ValueError(f"dilations must be {weight.shape[0]} positive numbers, got {tuple(dilations)}")
    name = choose(backend, str(h.device), h.dtype, 1)
    if name == "numba" and is_plain_inference(h, weight):
        return _by_kernel(h, weight, list(dilations))
    if name in ("numba", "triton"):
        return torch.ops.visionssm.fuse_states(h, weight, list(dilations), name)
    return _by_convolutions(h, weight, dilations)


def _by_convolutions(h: Tensor, weight: Tensor, dilations: Sequence[int]) -> Tensor:
    maps = h.permute(0, 3, 1, 2)
    fused = torch.zeros_like(maps)
    for kernel, dilation in zip(weight.to(h.dtype).unsqueeze(2), dilations, strict=True):
        margin = dilation * (weight.shape[-1] // 2)
        padded = F.pad(maps, (margin,) * 4, mode="replicate")
        fused = fused + F.conv2d(padded, kernel, dilation=dilation, groups=maps.shape[1])
    return fused.permute(0, 2, 3, 1)


@cache
def _offsets(side: int, dilations: tuple[int, ...]) -> Tensor:
    """(T, 2) int64: what each tap adds to the row and the column, kernel by kernel."""
    steps = [i - side // 2 for i in range(side)]
    return torch.tensor([(d * row, d * column) for d in dilations for row in steps for column in steps], device="cpu")


@torch.library.custom_op("visionssm::fuse_states", mutates_args=())
def _fuse_states(h: Tensor, weight: Tensor, dilations: list[int], backend: str = "auto") -> Tensor:
    name = resolve(backend, str(h.device), h.dtype, 1)
    if name == "triton":
        return _triton().forward(h, weight, dilations)
    if name != "numba":  # a graph made on another machine
        return _by_convolutions(h, weight, dilations).contiguous()
    return _by_kernel(h, weight, dilations)


def _by_kernel(h: Tensor, weight: Tensor, dilations: list[int]) -> Tensor:
    taps = weight.float().permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    rows = h.float()
    rows = rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()
    side = weight.shape[-1]
    offsets, margin = _offsets(side, tuple(dilations)), max(dilations) * (side // 2)
    return module_of("numba").fuse_states(rows, taps, offsets, margin).to(h.dtype)


@_fuse_states.register_fake
def _(h: Tensor, weight: Tensor, dilations: list[int], backend: str = "auto") -> Tensor:
    return h.new_empty(h.shape)


@torch.library.custom_op("visionssm::fuse_states_backward", mutates_args=())
def _fuse_states_backward(grad: Tensor, h: Tensor, weight: Tensor, dilations: list[int]) -> tuple[Tensor, Tensor]:
    return _triton().backward(grad, h, weight, dilations)


@_fuse_states_backward.register_fake
def _(grad: Tensor, h: Tensor, weight: Tensor, dilations: list[int]) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), weight.new_empty(weight.shape)


def _triton() -> Any:
    return importlib.import_module(".triton.state_fusion", __package__)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, weight, ctx.dilations, ctx.backend = inputs
    ctx.save_for_backward(h, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    h, weight = ctx.saved_tensors
    if resolve(ctx.backend, str(h.device), h.dtype, 1) == "triton":
        return *torch.ops.visionssm.fuse_states_backward(grad, h, weight, ctx.dilations), None, None
    maps, grad = h.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
    dh, dweight = torch.zeros_like(maps), []
    for kernel, dilation in zip(weight.to(h.dtype).unsqueeze(2), ctx.dilations, strict=True):
        margins = [dilation * (weight.shape[-1] // 2)] * 4
        padded = F.pad(maps, margins, mode="replicate")
        dpadded, dkernel, _ = torch.ops.aten.convolution_backward(
            grad,
            padded,
            kernel,
            None,
            [1, 1],
            [0, 0],
            [dilation] * 2,
            False,
            [0, 0],
            maps.shape[1],
            [True, True, False],
        )
        dh = dh + torch.ops.aten.replication_pad2d_backward(dpadded, maps, margins)
        dweight.append(dkernel.squeeze(1))
    return dh.permute(0, 2, 3, 1), torch.stack(dweight).to(weight.dtype), None, None


_fuse_states.register_autograd(_backward, setup_context=_setup_context)
first_only(_fuse_states_backward)


@register_flop_formula(torch.ops.visionssm.fuse_states)
def fusion_flops(h_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """2 B H W D per tap."""
    batch, height, width, channels = h_shape
    return 2 * batch * height * width * channels * weight_shape[0] * weight_shape[2] * weight_shape[3]


@register_flop_formula(torch.ops.visionssm.fuse_states_backward)
def fusion_backward_flops(grad_shape: Any, *shapes: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Twice the forward."""
    return 2 * fusion_flops(*shapes[:2])
