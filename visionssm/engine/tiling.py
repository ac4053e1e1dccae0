"""Restoration of pictures of any size, in tiles: as the published figures were made, or within a bound on memory.

Legend: s scale; a picture is (H, W, C), a tile (1, C, h, w) for the network.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visionssm.data.errors import UserError

__all__ = [
    "LiveBytes",
    "Span",
    "Tiling",
    "fit_tile",
    "model_memory",
    "published_spans",
    "restore_picture",
    "self_ensemble",
    "tile_spans",
]

Restorer = Callable[[Tensor], Tensor]
_PUBLISHED_SIDE, _PUBLISHED_OVERLAP = 200, 10
_SMALLEST_TILE = 32
_UNSEEN = 2.0  # what operators allocate inside, over the tensors: 1.0 to 1.95 times as much was measured
_PROBE = 64


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a picture is cut.

    Args:
        mode: "published": side // 200 + 1 pieces per axis with an overlap of a tenth, as MambaIR, MambaIRv2 and MaIR were
            measured; "tiles": the fields below; "whole": in one piece.
        tile: Side of a tile, in pixels of the input.
        overlap: How far neighbours reach into each other.
        blend: "linear" fades from one tile to the next, "cut" changes in the middle of the overlap.
    """

    mode: Literal["published", "tiles", "whole"] = "published"
    tile: int = 192
    overlap: int = 16
    blend: Literal["linear", "cut"] = "linear"

    def __post_init__(self) -> None:
        if self.mode not in ("published", "tiles", "whole"):
            raise UserError(f"tiling {self.mode!r} must be published, tiles or whole")
        if self.blend not in ("linear", "cut"):
            raise UserError(f"blend {self.blend!r} must be linear or cut")
        if self.tile < 1:
            raise UserError(f"tile={self.tile} must be at least 1 pixel")
        if not 0 <= self.overlap <= self.tile // 2:
            raise UserError(f"overlap={self.overlap} must be 0 to {self.tile // 2}, half of tile={self.tile}")


@dataclass(frozen=True)
class Span:
    """One tile along one axis: input samples start..stop, and the weight of each in what is put together."""

    start: int
    stop: int
    weights: np.ndarray


def published_spans(length: int) -> tuple[list[Span], int]:
    """The published cut of one axis.

    Source: `test()` of csguoh/MambaIR@33d7b34, basicsr/models/mambair_model.py.

    Returns:
        The tiles, and the length after reflection at the end, of which they are parts.
    """
    pieces = length // _PUBLISHED_SIDE + 1
    padded = length + -length % pieces
    core = padded // pieces
    reach = core // _PUBLISHED_OVERLAP
    spans = []
    for i in range(pieces):
        start, stop = max(0, i * core - reach), min(padded, (i + 1) * core + reach)
        weights = np.zeros(stop - start, np.float32)
        weights[i * core - start : (i + 1) * core - start] = 1
        spans.append(Span(start, stop, weights))
    return spans, padded


def tile_spans(length: int, tile: int, overlap: int, blend: str) -> list[Span]:
    """Tiles of one size along one axis, the last flush with the end; a shorter axis is one tile."""
    tile = min(tile, length)
    starts = [*range(0, length - tile, max(1, tile - overlap)), length - tile]
    spans = []
    for i, start in enumerate(starts):
        if blend == "cut":
            first = 0 if i == 0 else (starts[i - 1] + tile - start) // 2
            last = tile if i + 1 == len(starts) else starts[i + 1] - start + (start + tile - starts[i + 1]) // 2
            weights = np.zeros(tile, np.float32)
            weights[first:last] = 1
        else:
            near = np.arange(1, tile + 1, dtype=np.float32)
            weights = np.minimum(np.minimum(near, near[::-1]), overlap + 1)
        spans.append(Span(start, start + tile, weights))
    return spans


def self_ensemble(restore: Restorer) -> Restorer:
    """The mean over the eight symmetries of the square ("+" in the papers: MambaIR+, MaIR+)."""

    def apply(x: Tensor) -> Tensor:
        total: Tensor | None = None
        for index in range(8):
            dims = [dim for bit, dim in ((1, 3), (2, 2)) if index & bit]
            y = x.flip(dims) if dims else x
            y = restore(y.transpose(2, 3).contiguous() if index & 4 else y)
            y = y.transpose(2, 3) if index & 4 else y
            y = y.flip(dims) if dims else y
            total = y if total is None else total + y
        assert total is not None
        return total / 8

    return apply


@torch.no_grad()
def restore_picture(
    restore: Restorer,
    picture: np.ndarray,
    *,
    scale: int,
    tiling: Tiling,
    device: torch.device | str = "cpu",
    tick: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Restores a picture tile by tile; only one row of tiles is held as floats.

    Args:
        restore: (1, C, h, w) float32, 0..1 -> (1, C, s h, s w).
        picture: (H, W, C) uint8, uint16, or float32 in 0..1.
        scale: s.
        tiling: How to cut.
        device: Where tiles go.
        tick: Called after each tile with the number of tiles done and of all.

    Returns:
        (s H, s W, C) of the same dtype; integers are clipped and rounded, floats are as the network gave them.

    Raises:
        UserError: If the picture is empty or the network fails for lack of memory.
    """
    height, width, channels = picture.shape
    if 0 in picture.shape:
        raise UserError(f"a picture of {width}x{height} has nothing to restore")
    rows, columns, source = _cut(picture, tiling)
    out = np.empty((height * scale, width * scale, channels), picture.dtype)
    high, wide = max(row.stop - row.start for row in rows) * scale, source.shape[1] * scale
    band, total = np.zeros((high, wide, channels), np.float32), np.zeros((high, wide, 1), np.float32)
    for i, row in enumerate(rows):
        lines = (row.stop - row.start) * scale
        for j, column in enumerate(columns):
            tile = _restore_tile(restore, source[row.start : row.stop, column.start : column.stop], scale, device)
            weights = np.outer(row.weights, column.weights).repeat(scale, 0).repeat(scale, 1)[..., None]
            place = slice(column.start * scale, column.stop * scale)
            band[:lines, place] += tile * weights
            total[:lines, place] += weights
            if tick is not None:
                tick(i * len(columns) + j + 1, len(rows) * len(columns))
        # What the next row of tiles does not reach is finished; the rest moves up.
        done = ((rows[i + 1].start if i + 1 < len(rows) else row.stop) - row.start) * scale
        top = row.start * scale
        finished = (slice(0, min(done, len(out) - top)), slice(0, out.shape[1]))
        band[finished] /= total[finished]
        _quantise(band[finished], out[top : top + done])
        for buffer in (band, total):
            buffer[: lines - done] = buffer[done:lines].copy()
            buffer[lines - done :] = 0
    return out


def _cut(picture: np.ndarray, tiling: Tiling) -> tuple[list[Span], list[Span], np.ndarray]:
    height, width = picture.shape[:2]
    if tiling.mode == "published":
        (rows, high), (columns, wide) = published_spans(height), published_spans(width)
        return rows, columns, np.pad(picture, ((0, high - height), (0, wide - width), (0, 0)), mode="reflect")
    tile = (height, width) if tiling.mode == "whole" else (tiling.tile, tiling.tile)
    rows, columns = (
        tile_spans(length, side, tiling.overlap, tiling.blend)
        for length, side in zip((height, width), tile, strict=True)
    )
    return rows, columns, picture


def _restore_tile(restore: Restorer, tile: np.ndarray, scale: int, device: torch.device | str) -> np.ndarray:
    """(h, w, C) -> (s h, s w, C) float32."""
    peak = np.iinfo(tile.dtype).max if tile.dtype.kind == "u" else 1
    x = torch.from_numpy(tile.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(peak)).to(device)
    try:
        y = restore(x)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"a tile of {tile.shape[1]}x{tile.shape[0]} does not fit into memory; choose a smaller one"
        ) from error
    if y.shape[2:] != (tile.shape[0] * scale, tile.shape[1] * scale):
        raise UserError(f"the network made {tuple(y.shape)} of {tuple(x.shape)}, which is not {scale} times the size")
    return y[0].permute(1, 2, 0).float().cpu().numpy()


def _quantise(values: np.ndarray, out: np.ndarray) -> None:
    if out.dtype.kind != "u":
        out[...] = values
        return
    np.clip(values, 0, 1, out=values)
    values *= np.iinfo(out.dtype).max
    np.rint(values, out=values)
    out[...] = values


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it that are alive, and their peak.

    Args:
        known: tensors that are there already.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


@torch.no_grad()
def model_memory(model: nn.Module, restore: Restorer, channels: int, device: torch.device | str = "cpu") -> float:
    """Bytes per input pixel that restoring a tile takes at its peak, measured on a small one.

    Restoration networks work at one resolution with scans, convolutions and windows, so this does not depend on the size.

    Args:
        model: The network, for its own tensors.
        restore: What runs it.
        channels: Of the pictures.
        device: Where.
    """
    x = torch.zeros(1, channels, _PROBE, _PROBE, device=device)
    restore(x)  # tables and kernels are made once
    with LiveBytes([x, *model.parameters(), *model.buffers()]) as memory:
        restore(x)
    return memory.peak * _UNSEEN / _PROBE**2


def fit_tile(
    limit: int,
    *,
    per_pixel: float,
    size: tuple[int, int],
    scale: int,
    channels: int,
    itemsize: int,
    overlap: int,
) -> int:
    """The largest tile side that keeps a restoration within so many bytes, above what the loaded program takes.

    Args:
        limit: Bytes for the picture, its result and the network's work.
        per_pixel: From `model_memory`.
        size: H, W of the picture.
        scale, channels: Of the model.
        itemsize: Bytes per sample of the picture: 1 or 2.
        overlap: Of the tiles.

    Raises:
        UserError: If no tile of 32 pixels fits; the message says what would.
    """
    height, width = size
    fixed = height * width * channels * itemsize * (1 + scale**2)

    def need(tile: int) -> float:
        rows = min(tile, height)
        floats = 4 * scale**2 * (channels + 1) * rows * (width + 3 * min(tile, width))
        return fixed + floats + per_pixel * rows * min(tile, width)

    smallest = max(_SMALLEST_TILE, 2 * overlap)
    if need(smallest) > limit:
        raise UserError(
            f"a memory bound of {limit / 2**20:,.0f} MiB is too small for a picture of {width}x{height}: its smallest tiles "
            f"need {math.ceil(need(smallest) / 2**20):,} MiB"
        )
    low, high = smallest, max(smallest, *size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(middle) <= limit else (low, middle - 1)
    return low
