"""Routed scans and convolutions along routes on GPUs, in Triton.

Importing this package needs neither Triton nor a GPU: `why_not` says what is missing, and the kernels are
imported when first used. With TRITON_INTERPRET=1 set before that, they run in Triton's interpreter on CPU
tensors, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

__all__ = [
    "CHUNK",
    "route_conv_backward",
    "route_conv_forward",
    "routed_scan_backward",
    "routed_scan_forward",
    "why_not",
]

CHUNK = 32
STATE_SIZES = (1, 2, 4, 8, 16, 32, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _device_problem(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (its wheels are for Linux)"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type!r}"
    if torch.version.hip is not None:
        return "ROCm is not supported: the kernels assume warps of 32 threads"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"needs compute capability 8.0 or newer, not {major}.{minor}"


def why_not(device: torch.device, dtype: torch.dtype, d_state: int) -> str | None:
    """None if the kernels can run such inputs, else the reason in one line."""
    problem = _device_problem(device)
    if problem is not None:
        return problem
    if dtype not in DTYPES:
        return f"takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if d_state not in STATE_SIZES:
        return f"takes d_state {', '.join(map(str, STATE_SIZES))}, not {d_state}"
    return None


def routed_scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
    order: Tensor | None, softplus: bool, merge: str, save_checkpoints: bool, save_states: bool,
    segment: int = 0, phase: int = 0, dt_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, checkpoints, states); see `scan.routed_scan_forward`."""
    from . import scan

    return scan.routed_scan_forward(
        u, delta, A, B, C, D, bias, order, softplus, merge, save_checkpoints, save_states, segment, phase, dt_weight
    )


def routed_scan_backward(
    grad_y: Tensor, grad_states: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, order: Tensor | None, softplus: bool, merge: str, checkpoints: Tensor,
    segment: int = 0, phase: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """(du, ddelta, dA, dB, dC, dD, dbias); see `scan.routed_scan_backward`."""
    from . import scan

    return scan.routed_scan_backward(
        grad_y, grad_states, u, delta, A, B, C, D, bias, order, softplus, merge, checkpoints, segment, phase
    )


def route_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """u (B, L, K, D); see `conv.route_conv_forward`."""
    from . import conv

    return conv.route_conv_forward(x, weight, bias, order, silu)


def route_conv_backward(
    grad_u: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx, dweight, dbias); see `conv.route_conv_backward`."""
    from . import conv

    return conv.route_conv_backward(grad_u, x, weight, bias, order, silu)
