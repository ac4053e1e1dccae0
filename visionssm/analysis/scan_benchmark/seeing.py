"""What a backbone sees: effective receptive fields, and the attention that a selective scan implies.

A scan is linear in its input u once dt, B and C are known: y_t = sum_s alpha_ts u_s, with
alpha_ts = C_t . (exp(A sum_{r=s+1..t} dt_r) dt_s B_s) for s <= t along the route, and 0 after it ("The Hidden Attention of Mamba
Models", arXiv 2403.01590, equation 11). The skip D u_t is left out, as there.

Legend: B batch, L positions, K routes, T steps, D channels, N state.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visionssm.data.errors import UserError
from visionssm.mixers.core import RoutedScan
from visionssm.scans import ScanOrder
from visionssm_kernels import use_backend

from .cells import Cell
from .config import LearningConfig, SeeingConfig
from .images import TEST_PHOTOS, TRAIN_PHOTOS, square_photos
from .learning import WEIGHTS, build_dense_model, load_dense_model
from .tasks import Denoising

__all__ = ["SEEN_PHOTOS", "ScanRecorder", "hidden_attention", "measure", "receptive_field", "seeing_cells"]

SEEN_PHOTOS = (*TEST_PHOTOS, *TRAIN_PHOTOS)
UNTRAINED = {"task": "restoration", "seed": 0}


class ScanRecorder(TorchDispatchMode):
    """Keeps the arguments of every scan that runs through the kernels' operator while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.visionssm.routed_scan.default:
            self.calls.append(tuple(args))
        return func(*args, **(kwargs or {}))


def hidden_attention(
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    softplus: bool = True,
    segments: Sequence[int] | None = None,
) -> Tensor:
    """The token-to-token weights of one image, in image order.

    Args:
        delta: (L, K, D).
        A: (K, D, N).
        B, C: (L, K, N).
        bias: (K, D) or None.
        order: integer (K, T), -1 = padding; None: every route is 0..L-1.
        softplus: whether dt = softplus(delta + bias).
        segments: per route the number of steps after which the state starts anew; None for never.

    Returns:
        (K, D, L, L): the weight of column s in row t.
    """
    length, routes = delta.shape[:2]
    maps = delta.new_zeros(routes, A.shape[1], length + 1, length + 1)
    for k in range(routes):
        route = torch.arange(length, device=delta.device) if order is None else order[k].long()
        real = (route >= 0).to(delta.dtype)[:, None]
        place = route.clamp(min=0)
        dt = delta[place, k] * real + (0 if bias is None else bias[k])
        dt_TD = F.softplus(dt, threshold=50.0) if softplus else dt
        reach = dt_TD.cumsum(0)
        gap_DTT = (reach[:, None] - reach[None]).permute(2, 0, 1)
        past = torch.ones(len(route), len(route), dtype=torch.bool, device=delta.device).tril()
        if segments is not None:
            piece = torch.arange(len(route), device=delta.device) // segments[k]
            past &= piece[:, None] == piece[None]
        gap_DTT = torch.where(past, gap_DTT, 0.0)  # the future would overflow before it is cut off
        weights = torch.zeros_like(gap_DTT)
        for n in range(A.shape[-1]):
            products = (C[place, k, n] * real[:, 0])[:, None] * (B[place, k, n] * real[:, 0])[None]
            weights += torch.exp(gap_DTT * A[k, :, n, None, None]) * products
        weights *= dt_TD.T[:, None] * past
        rows = torch.where(route >= 0, route, length)  # padding steps fall off the edge
        maps[k][:, rows[:, None], rows[None]] = weights
    return maps[:, :, :length, :length]


def receptive_field(model: nn.Module, images: Tensor) -> Tensor:
    """Mean absolute gradient of the central output with respect to each pixel.

    Args:
        model: (B, 3, H, W) -> (B, O, H, W).
        images: (B, 3, H, W).

    Returns:
        (H, W), sums to 1 (Luo et al., arXiv 1701.04128).
    """
    images = images.clone().requires_grad_()
    height, width = images.shape[-2:]
    centre = model(images)[:, :, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2]
    (gradient,) = torch.autograd.grad(centre.sum(), images)
    field = gradient.abs().sum(1).mean(0)
    return field / field.sum()


def seeing_cells(scans: Sequence[ScanOrder], config: SeeingConfig, learning: LearningConfig) -> list[Cell]:
    """One cell per order; looks at the backbone that was trained to denoise with seed 0, or at an untrained one."""
    trained = learning.on and "restoration" in learning.tasks
    fixed = {"photos": config.photos, "size": config.size, "trained": trained}
    if config.photos > len(SEEN_PHOTOS):
        raise UserError(f"seeing.photos={config.photos}: there are {len(SEEN_PHOTOS)} photographs")
    from .learning import learning_cells

    source = [cell for cell in learning_cells(scans, learning) if cell.params["task"] == "restoration"]
    by_scan = {cell.scan: cell for cell in source if cell.params["seed"] == 0}
    cells = []
    for scan in scans:
        if trained:
            cell = by_scan[scan.key]
            params = {"model": cell.params, "cell": cell.digest}
        else:
            dense = {"model": learning.model, "kwargs": learning.kwargs}
            params = {"model": {**UNTRAINED, **dense}, "cell": None}
        cells.append(Cell("seeing", scan.key, {**fixed, **params}))
    return cells


def measure(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Receptive field of the central pixels, hidden attention of the last scan at the first stage's size."""
    torch.manual_seed(0)
    if params["cell"] is not None:
        weights = folder.parents[1] / "learning" / params["cell"] / WEIGHTS
        if not weights.is_file():
            raise UserError(f"the backbone trained with {scan.name} is not there, so there is nothing to look at")
        model = load_dense_model(scan, params["model"], weights)
    else:
        model = build_dense_model(scan, params["model"], Denoising.outputs).eval()
    photos = square_photos(SEEN_PHOTOS[: params["photos"]], params["size"])
    field = receptive_field(model, photos)
    # the operator is what is recorded; "auto" might choose plain torch, which does not pass through it
    with torch.no_grad(), use_backend("numba"), ScanRecorder() as recorder:
        model(photos[:1])
    if scan.segmented:
        weights_LL, most = _attention_in_pieces(model, photos[:1])
    else:
        most = max(call[0].shape[1] for call in recorder.calls)
        call = [call for call in recorder.calls if call[0].shape[1] == most][-1]
        _, delta, A, B, C, _, bias, order, softplus = call[:9]
        order = order[0] if order is not None and order.dim() == 3 else order  # an image's own
        weights_LL = hidden_attention(delta[0], A, B[0], C[0], bias, order, softplus).abs().mean(1).sum(0)
    side = round(most**0.5)
    rows = weights_LL / weights_LL.sum(1, keepdim=True).clamp(min=1e-12)
    return {
        "field": _encode(field),
        "field_side": params["size"],
        "field_half": _share_needed(field, 0.5),
        "field_most": _share_needed(field, 0.9),
        "attention": _encode(rows, per_row=True),
        "attention_side": side,
        "attention_distance": _mean_distance(rows, side),
        "attention_reach": (rows > 0.01 * rows.amax(1, keepdim=True)).double().mean().item(),
    }


def _attention_in_pieces(model: nn.Module, photo: Tensor) -> tuple[Tensor, int]:
    """The same where routes are scanned piece by piece, which the operator sees as a batch: (L, L), and L."""
    calls: list[tuple[Any, ...]] = []
    kernels = [module for module in model.modules() if isinstance(module, RoutedScan)]
    hooks = [kernel.register_forward_pre_hook(lambda module, args: calls.append(args)) for kernel in kernels]
    with torch.no_grad():
        model(photo)
    for hook in hooks:
        hook.remove()
    if not calls:
        raise UserError(
            "the attention of an order whose state starts anew is read from mixers with parameters per route"
        )
    most = max(call[0].shape[1] for call in calls)
    _, delta, A_log, B, C, _, bias, _, _, pieces = [call for call in calls if call[0].shape[1] == most][-1][:10]
    routes = torch.nn.utils.rnn.pad_sequence([piece.flatten() for piece in pieces], True, -1)
    segments = [piece.shape[1] for piece in pieces]
    weights = hidden_attention(delta[0], -A_log.exp(), B[0], C[0], bias, routes, segments=segments)
    return weights.abs().mean(1).sum(0), most


def _share_needed(field: Tensor, energy: float) -> float:
    """The smallest share of the pixels that holds this share of the field."""
    sums = field.flatten().sort(descending=True).values.double().cumsum(0)
    return (int((sums < energy * sums[-1]).sum()) + 1) / len(sums)


def _mean_distance(rows: Tensor, side: int) -> float:
    """Mean image distance, in tokens, from where a token reads, weighted by how much."""
    places = torch.arange(side * side)
    points = torch.stack([places // side, places % side], 1).double()
    return (rows.double() * torch.cdist(points, points)).sum(1).mean().item()


def _encode(values: Tensor, *, per_row: bool = False) -> str:
    """Square roots in 8 bits, so that faint values stay visible; relative to the largest, of each row if asked."""
    top = values.amax(1, keepdim=True) if per_row else values.max()
    levels = (255 * (values / top.clamp(min=1e-30)).clamp(0, 1).sqrt()).round()
    return base64.b64encode(levels.to(torch.uint8).numpy().tobytes()).decode()


def decode(text: str, side: int) -> np.ndarray:
    """The maps of `measure` as uint8: (side, side), or (side * side, side * side) for attention."""
    values = np.frombuffer(base64.b64decode(text), np.uint8)
    return values.reshape(side, side) if len(values) == side * side else values.reshape(side * side, side * side)
