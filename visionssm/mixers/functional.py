"""The kernels as mixers call them: one leaf in FX graphs, scriptable, with the fixed choices of this layer."""

# ruff: noqa: RET505  (TorchScript leaves out the branch of `else` only if there is one)

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models._features_fx import register_notrace_function
from torch import Tensor
from torch.fx import Proxy

from visionssm_kernels import fuse_states, linear_routes, locally_bidirectional_scan, norm_gate, route_conv, routed_scan
from visionssm_kernels.backends import is_plain_inference, projects, resolve
from visionssm_kernels.bidirectional import add_inputs, backward_routes

__all__ = [
    "add_step_inputs",
    "conv_along_routes",
    "deal_channels",
    "decay_rate",
    "fuse_dilated",
    "gated",
    "gated_norm",
    "join_groups",
    "pad_to_slots",
    "project_routes",
    "projects_in_scan",
    "scan_routes",
    "segment_of",
    "take_routes",
    "widened",
]


@register_notrace_function  # its branch depends on the dtype, which FX does not know
def widened(x: Tensor) -> Tensor:
    """The same in at least float32: under autocast and in half-precision models too."""
    return x if x.dtype == torch.float64 else x.float()


@register_notrace_function
def decay_rate(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in at least float32."""
    return -torch.exp(widened(A_log))


@register_notrace_function
def scan_routes(
    u_BLKD: Tensor,
    delta_BLKD: Tensor,
    A_KDN: Tensor,
    B_BLKN: Tensor,
    C_BLKN: Tensor,
    D_KD: Tensor | None,
    bias_KD: Tensor | None,
    order_KT: Tensor | None,
    merge: str,
    segment: int = -1,
    dt_weight_KDR: Tensor | None = None,
) -> Tensor:
    """`visionssm_kernels.routed_scan` with softplus; merge "sum" -> (B, L, D), "none" -> (B, L, K, D).

    With a weight `delta_BLKD` is (B, L, K, R): see `projects_in_scan`, which says when that may be.
    With a `segment` of `segment_of` that is not negative, `visionssm_kernels.locally_bidirectional_scan`.
    """
    if not torch.jit.is_scripting():
        inputs = (u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD)
        if segment >= 0:
            return locally_bidirectional_scan(*inputs, segment=segment, order=order_KT, merge=merge)  # pyright: ignore
        return routed_scan(*inputs, order=order_KT, merge=merge, dt_weight=dt_weight_KDR)  # pyright: ignore
    else:
        y = torch.ops.visionssm.routed_scan(
            u_BLKD, delta_BLKD, A_KDN, B_BLKN, C_BLKN, D_KD, bias_KD, order_KT, True, merge, False, False, "auto"
        )[0]
        if segment >= 0:
            back_KT, size, phase = backward_routes(order_KT, u_BLKD, A_KDN.shape[0], segment)
            y = (
                y
                + torch.ops.visionssm.routed_scan(
                    u_BLKD,
                    delta_BLKD,
                    A_KDN,
                    B_BLKN,
                    C_BLKN,
                    None,
                    bias_KD,
                    back_KT,
                    True,
                    merge,
                    False,
                    False,
                    "auto",
                    size,
                    phase,
                )[0]
            )
            y = add_inputs(y, -(B_BLKN * C_BLKN).sum(-1), u_BLKD, delta_BLKD, bias_KD, order_KT)
        return y


def projects_in_scan(u_BLKD: Tensor, dt_low: Tensor, d_state: int) -> bool:
    """Whether a scan is better given the R numbers from which dt is projected, and dt's weight, than delta itself.

    In inference, in half precision by the Triton kernels and in float32 by those for CPUs, which multiply as they scan: delta, K
    feature maps to be written and read again, is never made. On GPUs float32 takes three passes of the tensor cores, which cost
    what that saves; with gradients the backward would make delta again. Graphs that other machines may run (FX, torch.export,
    TorchScript) hold the product, and so does what watches torch's operations on CPUs (`is_plain_inference`).

    Args:
        u_BLKD: (B, L, 1 or K, D), what is scanned.
        dt_low: (B, L, K, R).
        d_state: N.
    """
    if not torch.jit.is_scripting():
        return _projects_here(u_BLKD, dt_low, d_state)
    else:
        return False


def _projects_here(u_BLKD: Tensor, dt_low: Tensor, d_state: int) -> bool:
    if isinstance(u_BLKD, Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.is_grad_enabled():
        return False
    if u_BLKD.is_cuda:
        suited = dt_low.dtype == torch.bfloat16 or dt_low.dtype == torch.float16
    else:
        suited = u_BLKD.dtype == dt_low.dtype == torch.float32 and is_plain_inference(u_BLKD, dt_low)
    return suited and projects(resolve("auto", str(u_BLKD.device), u_BLKD.dtype, d_state), dt_low.shape[-1])


def segment_of(local_scan: int | None) -> int:
    """The `segment` of `scan_routes` for a mixer's option `local_scan`.

    Raises:
        ValueError: it is negative.
    """
    if local_scan is not None and local_scan < 0:
        raise ValueError(f"local_scan must be a number of steps, 0 for the published one or None, got {local_scan}")
    return -1 if local_scan is None else local_scan


@register_notrace_function
def add_step_inputs(
    y: Tensor, weight_BLK: Tensor, u_BLKD: Tensor, delta_BLKD: Tensor, bias_KD: Tensor, order_KT: Tensor | None
) -> Tensor:
    """y + weight dt u, the steps' own inputs: `visionssm_kernels.bidirectional.add_inputs`."""
    return add_inputs(y, weight_BLK, u_BLKD, delta_BLKD, bias_KD, order_KT)


@register_notrace_function
def conv_along_routes(x_BLKD: Tensor, weight_KDW: Tensor, bias_KD: Tensor | None, order_KT: Tensor | None) -> Tensor:
    """`visionssm_kernels.route_conv` with SiLU: (B, L, 1 or K, D) -> (B, L, K, D)."""
    if not torch.jit.is_scripting():
        return route_conv(x_BLKD, weight_KDW, bias_KD, order=order_KT)
    else:
        return torch.ops.visionssm.route_conv(x_BLKD, weight_KDW, bias_KD, order_KT, True, "auto")


@register_notrace_function  # its branch depends on the size, which FX does not know
def pad_to_slots(x_BLD: Tensor, order_KT: Tensor) -> Tensor:
    """Zero tokens for the padding slots of an order (`visionssm.scans.with_slots`): (B, L, D) -> (B, T, D)."""
    slots = order_KT.shape[-1] - x_BLD.shape[1]
    # a graph that is open to any size always pads; otherwise a size without slots needs no copy
    if not torch.jit.is_tracing() and isinstance(slots, int) and slots == 0:
        return x_BLD
    return F.pad(x_BLD, (0, 0, 0, slots))


def take_routes(y_BLKD: Tensor, table_KL: Tensor) -> Tensor:
    """Position l of route k from position `table_KL[k, l]`, or `table[b, k, l]`, of that route: (B, L, K, D) -> (B, L, K, D)."""
    index = table_KL.long().transpose(-1, -2).unsqueeze(-1)
    return y_BLKD.gather(1, index.expand_as(y_BLKD))


@register_notrace_function  # its branch depends on a shape, which FX does not know
def deal_channels(x_BLKD: Tensor, groups: int, routes: int) -> Tensor:
    """The channels of its group for each route: (..., 1 or K, G * D) -> (..., K, D), K a multiple of G."""
    if x_BLKD.shape[-2] == 1:
        x_BLGD = x_BLKD.squeeze(-2).unflatten(-1, (groups, -1))
        return x_BLGD if routes == groups else x_BLGD.repeat_interleave(routes // groups, dim=-2)
    x = x_BLKD.unflatten(-2, (groups, -1)).unflatten(-1, (groups, -1))
    return x.diagonal(0, -4, -2).movedim(-1, -3).flatten(-3, -2)


def join_groups(y_BLKD: Tensor, groups: int) -> Tensor:
    """The routes of a group added up, the groups side by side: (B, L, K, D) -> (B, L, G * D)."""
    return y_BLKD.unflatten(2, (groups, -1)).sum(3).flatten(2)


@register_notrace_function  # its branch depends on modes and sizes, which FX does not know
def project_routes(x_BLKD: Tensor, weight_KCD: Tensor) -> Tensor:
    """A linear layer per route, read and written where the tokens lie: (B, L, K, D) -> (B, L, K, C)."""
    if not torch.jit.is_scripting():
        return linear_routes(x_BLKD, weight_KCD)
    x_KTD = x_BLKD.flatten(0, 1).transpose(0, 1)
    return torch.bmm(x_KTD, weight_KCD.transpose(1, 2)).transpose(0, 1).unflatten(0, x_BLKD.shape[:2])


@register_notrace_function
def fuse_dilated(h_BHWD: Tensor, weight_GDkk: Tensor) -> Tensor:
    """`visionssm_kernels.fuse_states` with dilations 1, 3 and 5."""
    if not torch.jit.is_scripting():
        return fuse_states(h_BHWD, weight_GDkk)
    else:
        return torch.ops.visionssm.fuse_states(h_BHWD, weight_GDkk, [1, 3, 5])


@register_notrace_function
def gated(y: Tensor, z: Tensor, scale: float) -> Tensor:
    """y * silu(z) * scale."""
    if not torch.jit.is_scripting():
        return norm_gate(y, z, norm=False, scale=scale)
    else:
        return y * (F.silu(z) * scale)


@register_notrace_function
def gated_norm(y: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """LayerNorm over the channels as `nn.LayerNorm` does it by default, then * silu(z)."""
    if not torch.jit.is_scripting():
        return norm_gate(y, z, weight, bias)
    else:
        return F.layer_norm(y, [y.shape[-1]], weight, bias) * F.silu(z)
