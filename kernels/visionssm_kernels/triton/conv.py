"""Causal depthwise convolution along routes, forward and backward.

    u[order[t]] = act(bias + sum_j w[W - 1 - j] x[order[t - j]])        j = 0..W-1
    dx[order[s]] = sum_j w[W - 1 - j] g[order[s + j]]                   g = gradient before the activation
    dw[W - 1 - j] = sum_t g[order[t]] x[order[t - j]]                   dbias = sum_t g[order[t]]

x and g are 0 outside the route and at padding steps.

Legend: B batch, L positions, Kx 1 or K, K routes, D channels, T steps of a route, W taps, BT steps and BD
channels of one program.
Layout: a program owns (batch, route, BT steps, BD channels) as a (BT, BD) tile; a tap is one gather of rows at
order[t - j]. dx is the forward with the taps turned round (DIRECTION), so there are two kernels. Sums over
routes (Kx = 1) and over programs (dw, dbias) are made afterwards, in a fixed order.
Cost per step and channel: one row read from memory (its W - 1 other uses are cache hits) and one written, W
multiply-adds. Bound by memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import SIZES, load_channels, load_position, sigmoid
from .memory import clear_unvisited, image_buffer, on_device, row_strides, table_strides, unit_rows

__all__ = ["route_conv_backward", "route_conv_forward"]

BLOCK_T, BLOCK_D, WARPS = 32, 64, 4


@triton.jit
def convolve(x, weight, order, t, T, d, x_l, inside, W: tl.constexpr, DIRECTION: tl.constexpr):
    """(BT, BD) tile of sum_j w[W - 1 - j] x[order[t - j]] (t + j for DIRECTION 1)."""
    total = tl.zeros((t.shape[0], d.shape[0]), tl.float32)
    for j in tl.static_range(W):
        position = load_position(order, t + DIRECTION * j, T)[:, None]
        taken = inside[None, :] & (position >= 0)
        row = tl.load(x + position * x_l + d[None, :], mask=taken, other=0.0).to(tl.float32)
        total += row * load_channels(weight, d * W + (W - 1 - j), inside)[None, :]
    return total


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x, weight, bias, order, out,
    L, T, dim, routes,
    x_b, x_l, x_k, order_b, order_k,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, SILU: tl.constexpr, DIRECTION: tl.constexpr,
):  # fmt: skip
    """Grid (batch x routes x channel blocks x blocks of steps); out is (B, L, K, D)."""
    blocks = tl.cdiv(dim, BD)
    parts = tl.cdiv(T, BT)
    part = tl.program_id(0) % parts
    pid = tl.program_id(0) // parts
    k = ((pid // blocks) % routes).to(tl.int64)
    b = (pid // blocks // routes).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    t = part * BT + tl.arange(0, BT)
    inside = d < dim
    if order is not None:
        order += b * order_b + k * order_k
    total = convolve(x + b * x_b + k * x_k, weight + k * dim * W, order, t, T, d, x_l, inside, W, DIRECTION)
    total += load_channels(bias, k * dim + d, inside)[None, :]
    if SILU:
        total *= sigmoid(total)
    position = load_position(order, t, T)[:, None]
    place = ((b * L + position) * routes + k) * dim + d[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside[None, :] & (position >= 0))


@triton.jit(do_not_specialize=SIZES)
def conv_weight_kernel(
    grad, x, weight, bias, order, before, dweight, dbias,
    L, T, dim, routes,
    grad_b, grad_l, grad_k, x_b, x_l, x_k, order_b, order_k,
    W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation into `before` (B, L, K, D) if SILU, and each program's share of dweight
    (blocks of steps, B, K, D, W) and dbias. Grid as conv_kernel."""
    blocks = tl.cdiv(dim, BD)
    parts = tl.cdiv(T, BT)
    part = tl.program_id(0) % parts
    pid = tl.program_id(0) // parts
    k = ((pid // blocks) % routes).to(tl.int64)
    b = (pid // blocks // routes).to(tl.int64)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    t = part * BT + tl.arange(0, BT)
    inside = d < dim
    if order is not None:
        order += b * order_b + k * order_k
    x += b * x_b + k * x_k
    position = load_position(order, t, T)[:, None]
    taken = inside[None, :] & (position >= 0)
    g = tl.load(grad + b * grad_b + k * grad_k + position * grad_l + d[None, :], mask=taken, other=0.0).to(tl.float32)
    if SILU:
        total = convolve(x, weight + k * dim * W, order, t, T, d, x_l, inside, W, -1)
        total += load_channels(bias, k * dim + d, inside)[None, :]
        s = sigmoid(total)
        g *= s * (1.0 + total * (1.0 - s))
        tl.store(before + ((b * L + position) * routes + k) * dim + d[None, :], g, mask=taken)
    batch = tl.num_programs(0) // (blocks * routes * parts)
    share = ((part.to(tl.int64) * batch + b) * routes + k) * dim + d
    for j in tl.static_range(W):
        source = load_position(order, t - j, T)[:, None]
        row = tl.load(x + source * x_l + d[None, :], mask=inside[None, :] & (source >= 0), other=0.0).to(tl.float32)
        tl.store(dweight + share * W + (W - 1 - j), tl.sum(g * row, axis=0), mask=inside)
    if dbias is not None:
        tl.store(dbias + share, tl.sum(g, axis=0), mask=inside)


def _grid(batch: int, routes: int, dim: int, steps: int) -> tuple[int]:
    return (batch * routes * triton.cdiv(dim, BLOCK_D) * triton.cdiv(steps, BLOCK_T),)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool, direction: int
) -> Tensor:
    (batch, length, _, dim), (routes, _, taps) = x.shape, weight.shape
    steps = length if order is None else order.shape[-1]
    out = image_buffer((batch, length, routes, dim), x.dtype, x, order)
    grid = _grid(batch, routes, dim, steps)
    if out.numel() and steps:
        with on_device(x):
            conv_kernel[grid](
                x, weight, bias, order, out, length, steps, dim, routes, *row_strides(x, routes), *table_strides(order),
                W=taps, BT=BLOCK_T, BD=BLOCK_D, SILU=silu, DIRECTION=direction, num_warps=WARPS,
            )  # fmt: skip
    clear_unvisited(order, out)
    return out


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def route_conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool) -> Tensor:
    """u (B, L, K, D) of x's dtype; x (B, L, Kx, D), weight (K, D, W), bias (K, D) or None, order as in
    `routed_scan_forward`."""
    return _convolve(unit_rows(x), weight.contiguous(), _contiguous(bias), unit_rows(order), silu, -1)


def route_conv_backward(
    grad_u: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dx, dweight, dbias) in the shapes and dtypes of x, weight and bias."""
    grad_u, x, weight, order = unit_rows(grad_u), unit_rows(x), weight.contiguous(), unit_rows(order)
    bias = _contiguous(bias)
    (batch, length, x_routes, dim), (routes, _, taps) = x.shape, weight.shape
    steps = length if order is None else order.shape[-1]
    grid = _grid(batch, routes, dim, steps)
    if not (grad_u.numel() and steps):
        return torch.zeros_like(x), torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    floats = {"dtype": torch.float32, "device": x.device}
    before = torch.empty((batch, length, routes, dim), **floats) if silu else grad_u
    parts = triton.cdiv(steps, BLOCK_T)
    dweight = torch.empty((parts, batch, routes, dim, taps), **floats)
    dbias = None if bias is None else torch.empty((parts, batch, routes, dim), **floats)
    with on_device(x):
        conv_weight_kernel[grid](
            grad_u, x, weight, bias, order, before, dweight, dbias, length, steps, dim, routes,
            *row_strides(grad_u, routes), *row_strides(x, routes), *table_strides(order),
            W=taps, BT=BLOCK_T, BD=BLOCK_D, SILU=silu, num_warps=WARPS,
        )  # fmt: skip
    dx = _convolve(before, weight, None, order, False, 1).to(x.dtype)
    if x_routes != routes:
        dx = dx.sum(2, keepdim=True)
    return dx, dweight.sum((0, 1)), None if dbias is None else dbias.sum((0, 1))
