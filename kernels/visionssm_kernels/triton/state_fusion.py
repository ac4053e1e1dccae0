"""State fusion: a sum of dilated depthwise convolutions over a map, borders replicated; forward and backward.

    y[i, j] = sum_gab w[g, a, b] h[C(i + o_a), C(j + o_b)]        o_a = dilation_g (a - side // 2), C clamps to the map
    dh[p, q] = sum_gab w[g, a, b] sum dy[i, j]                    over all (i, j) with C(i + o_a) = p and C(j + o_b) = q
    dw[g, a, b] = sum_ij dy[i, j] h[C(i + o_a), C(j + o_b)]

Legend: B batch, H rows, W columns, D channels, G kernels, T = G side^2 taps, BP positions and BD channels of one program.
Layout: a program owns (batch, BP positions in reading order, BD channels) as a (BP, BD) float32 tile; a tap is one gather of
rows. A position at the border stands for those beyond it, so of dh it gathers up to |o| + 1 rows and columns for a tap; inside,
one. No padded copy is made and no atomics: dw is written per program and summed in a fixed order.
Cost per position and channel: one row read from memory (its T - 1 other uses are cache hits) and one written, T multiply-adds.
Backward: dy and h read twice, dh written, and 8 T / BP bytes of dw. Bound by memory forward, by loads from L1 for many taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import load_channels
from .memory import on_device, unit_rows

__all__ = ["backward", "forward"]

BLOCK_P, BLOCK_D, WARPS = 64, 32, 4
MAPS = ("height", "width")


@triton.jit
def place(pid, height, width, dim, BP: tl.constexpr, BD: tl.constexpr):
    """Batch, rows and columns (BP, 1), whether these are on the map, channels (BD,), of a program of grid
    (batch x channel blocks x blocks of positions)."""
    parts = tl.cdiv(height * width, BP)
    blocks = tl.cdiv(dim, BD)
    position = ((pid % parts) * BP + tl.arange(0, BP))[:, None]
    b = (pid // parts // blocks).to(tl.int64)
    d = (pid // parts % blocks) * BD + tl.arange(0, BD)
    return b, position // width, position % width, position < height * width, d


@triton.jit
def clamp(i, size):
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def read(x, b, i, j, x_b, x_h, x_w, d, mask):
    """(BP, BD) float32 tile of x (B, H, W, D) at rows i and columns j."""
    offset = b * x_b + i.to(tl.int64) * x_h + j.to(tl.int64) * x_w
    return tl.load(x + offset + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def reach(i, size, step):
    """How many positions beyond i count as i, for a tap at `step`: |step| at the border that it crosses, else 0."""
    crosses = ((step < 0) & (i == 0)) | ((step > 0) & (i == size - 1))
    return tl.where(crosses, tl.abs(step), 0)


@triton.jit(do_not_specialize=MAPS)
def fuse_kernel(
    h, weight, y, height, width, dim, h_b, h_h, h_w,
    SIDE: tl.constexpr, DILATIONS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y (B, H, W, D), weight (T, D)."""
    b, i, j, on_map, d = place(tl.program_id(0), height, width, dim, BP, BD)
    inside = d < dim
    mask = on_map & inside[None, :]
    total = tl.zeros((BP, BD), tl.float32)
    for g in tl.static_range(len(DILATIONS)):
        for tap in tl.static_range(SIDE * SIDE):
            row = clamp(i + DILATIONS[g] * (tap // SIDE - SIDE // 2), height)
            column = clamp(j + DILATIONS[g] * (tap % SIDE - SIDE // 2), width)
            w = load_channels(weight, (g * SIDE * SIDE + tap) * dim + d, inside)
            total += w[None, :] * read(h, b, row, column, h_b, h_h, h_w, d, mask)
    out = ((b * height + i) * width + j) * dim + d[None, :]
    tl.store(y + out, total.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=MAPS)
def fuse_input_kernel(
    grad, weight, dh, height, width, dim, grad_b, grad_h, grad_w,
    SIDE: tl.constexpr, DILATIONS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dh (B, H, W, D)."""
    b, i, j, on_map, d = place(tl.program_id(0), height, width, dim, BP, BD)
    inside = d < dim
    total = tl.zeros((BP, BD), tl.float32)
    for g in tl.static_range(len(DILATIONS)):
        for tap in range(SIDE * SIDE):  # not unrolled: what is inside is two loops
            down = DILATIONS[g] * (tap // SIDE - SIDE // 2)
            right = DILATIONS[g] * (tap % SIDE - SIDE // 2)
            rows, columns = reach(i, height, down), reach(j, width, right)
            w = load_channels(weight, (g * SIDE * SIDE + tap) * dim + d, inside)
            seen = tl.zeros((BP, BD), tl.float32)
            for m in range(tl.max(tl.max(rows, axis=1), axis=0) + 1):
                row = i - down + tl.where(down > 0, m, -m)
                row_counts = on_map & (m <= rows) & (row >= 0) & (row < height)
                for n in range(tl.max(tl.max(columns, axis=1), axis=0) + 1):
                    column = j - right + tl.where(right > 0, n, -n)
                    counts = row_counts & (n <= columns) & (column >= 0) & (column < width)
                    seen += read(grad, b, row, column, grad_b, grad_h, grad_w, d, counts & inside[None, :])
            total += w[None, :] * seen
    out = ((b * height + i) * width + j) * dim + d[None, :]
    tl.store(dh + out, total.to(dh.dtype.element_ty), mask=on_map & inside[None, :])


@triton.jit(do_not_specialize=MAPS)
def fuse_weight_kernel(
    grad, h, dweight, height, width, dim, grad_b, grad_h, grad_w, h_b, h_h, h_w,
    SIDE: tl.constexpr, DILATIONS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Each program's share of dweight: (B, blocks of positions, T, D)."""
    parts = tl.cdiv(height * width, BP)
    b, i, j, on_map, d = place(tl.program_id(0), height, width, dim, BP, BD)
    mask = on_map & (d < dim)[None, :]
    g_tile = read(grad, b, i, j, grad_b, grad_h, grad_w, d, mask)
    share = (b * parts + tl.program_id(0) % parts) * len(DILATIONS) * SIDE * SIDE
    for g in tl.static_range(len(DILATIONS)):
        for tap in tl.static_range(SIDE * SIDE):
            row = clamp(i + DILATIONS[g] * (tap // SIDE - SIDE // 2), height)
            column = clamp(j + DILATIONS[g] * (tap % SIDE - SIDE // 2), width)
            row_sum = tl.sum(g_tile * read(h, b, row, column, h_b, h_h, h_w, d, mask), axis=0)
            tl.store(dweight + (share + g * SIDE * SIDE + tap) * dim + d, row_sum, mask=d < dim)


def _launch(kernel: object, tensors: tuple[Tensor, ...], mapped: tuple[Tensor, ...], dilations: list[int], side: int):
    batch, height, width, dim = mapped[0].shape
    grid = batch * triton.cdiv(dim, BLOCK_D) * triton.cdiv(height * width, BLOCK_P)
    strides = [stride for x in mapped for stride in x.stride()[:3]]
    with on_device(mapped[0]):
        kernel[grid,](  # pyright: ignore
            *tensors, height, width, dim, *strides,
            SIDE=side, DILATIONS=tuple(dilations), BP=BLOCK_P, BD=BLOCK_D, num_warps=WARPS,
        )  # fmt: skip


def _by_tap(weight: Tensor) -> Tensor:
    return weight.float().permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def forward(h: Tensor, weight: Tensor, dilations: list[int]) -> Tensor:
    """See `visionssm_kernels.fuse_states`: (B, H, W, D) in the dtype of h; weight (G, D, side, side)."""
    h = unit_rows(h)
    y = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    if y.numel():
        _launch(fuse_kernel, (h, _by_tap(weight), y), (h,), dilations, weight.shape[-1])
    return y


def backward(grad: Tensor, h: Tensor, weight: Tensor, dilations: list[int]) -> tuple[Tensor, Tensor]:
    """(dh, dweight) in the shapes and dtypes of h and weight."""
    grad, h, side = unit_rows(grad), unit_rows(h), weight.shape[-1]
    batch, height, width, dim = h.shape
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    if not dh.numel():
        return dh, torch.zeros_like(weight)
    parts = triton.cdiv(height * width, BLOCK_P)
    dweight = torch.empty((batch * parts, weight.shape[0] * side * side, dim), dtype=torch.float32, device=h.device)
    _launch(fuse_input_kernel, (grad, _by_tap(weight), dh), (grad,), dilations, side)
    _launch(fuse_weight_kernel, (grad, h, dweight), (grad, h), dilations, side)
    dweight = dweight.sum(0).unflatten(0, (weight.shape[0], side, side)).movedim(-1, 1)
    return dh, dweight.to(weight.dtype, memory_format=torch.contiguous_format)
