"""Window by window."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import ScanOrder, grid
from .raster import cyclic_axes, with_reversed
from .registry import register_scan

__all__ = ["AtrousWindow", "SliceWindow", "Window", "WindowColumnFirst"]

_DIRECTION = re.compile(r"(?:h|v|w([1-9]\d*))(?:_flip)?")


def _side(direction: str) -> int:
    """Return the window side K of "wK" and "wK_flip", 1 for the others."""
    match = _DIRECTION.fullmatch(direction)
    return int(match[1] or 1) if match else 1


def _windows(image: Tensor, side: int) -> Tensor:
    """Return an image of any rank read window by window, raster among and inside them, -1 where it is padded."""
    ends = [end for length in reversed(image.shape) for end in (0, -length % side)]
    image = pad(image, ends, value=-1)
    ndim = image.dim()
    blocks = image.reshape([part for length in image.shape for part in (length // side, side)])
    return blocks.permute(*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2)).flatten()


def _read(image: Tensor, direction: str) -> Tensor:
    if direction[0] == "h":
        path = image.flatten()
    elif direction[0] == "v":
        path = image.permute(*reversed(range(image.dim()))).flatten()
    else:
        path = _windows(image, _side(direction))
    return path.flip(0) if direction.endswith("_flip") else path


def _length(directions: Sequence[str], size: Sequence[int]) -> int:
    length: Any = math.prod(size)
    for side in sorted({_side(direction) for direction in directions} - {1}):
        # sym_max, because max() would ask a symbolic size for its value.
        length = torch.sym_max(length, math.prod(-(-s // side) * side for s in size))
    return length


def _check(name: str, directions: tuple[str, ...]) -> None:
    if not directions:
        raise ValueError(f"scan {name!r}: directions must not be empty")
    for direction in directions:
        if not _DIRECTION.fullmatch(direction):
            raise ValueError(
                f"scan {name!r}: direction {direction!r} is not 'h', 'v', 'wK' with a window side K >= 1, "
                "or one of these with '_flip'"
            )


@register_scan("window")
class Window(ScanOrder):
    """Lines and windows: LocalMamba (arXiv 2403.09338, hunto/LocalMamba@75e5d1f).

    "h" reads rows, "v" columns, "wK" windows of side K in raster order, raster inside each; the image is padded at
    the bottom and right to multiples of K and the padding is scanned too. "_flip" reverses the whole sequence, padding
    included. Shorter routes are padded at the end up to the longest. In 3D "v" takes the axes in reverse order and
    windows are cubes.

    Args:
        directions: the routes, any of "h", "v", "wK" with K >= 1, and these with "_flip".
    """

    directions: tuple[str, ...] = ("h", "h_flip", "v", "v_flip", "w2", "w2_flip", "w7", "w7_flip")

    ndims = (2, 3)
    padded = True

    def check(self) -> None:
        _check(self.name, self.directions)

    @property
    def num_routes(self) -> int:
        return len(self.directions)

    def length(self, size: Sequence[int]) -> int:
        return _length(self.directions, size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [_read(grid(size), direction) for direction in self.directions]

    def published_unscan(self, size: tuple[int, int]) -> Tensor:
        """Return what the published code does to the output of each route: int64 (K, H * W).

        The output that belongs to cell `table[k, p]` was put at cell p. That is the cell itself, except for "v" and "v_flip"
        at H != W, whose inverse mixes up the sides; to repeat it, gather the un-scanned output of a route with its row.
        """
        image = grid(size)
        wrong = image.T.reshape(size).T.flatten()
        return torch.stack([wrong if direction[0] == "v" else image.flatten() for direction in self.directions])


@register_scan("window_column_first")
class WindowColumnFirst(ScanOrder):
    """`window` of the transposed image: windows column by column, column-major inside.

    It stands in LocalMamba's code (hunto/LocalMamba@75e5d1f), used by no released model.

    Args:
        directions: as for `window`.
    """

    directions: tuple[str, ...] = ("w2", "w2_flip", "w7", "w7_flip")

    ndims = (2, 3)
    padded = True

    def check(self) -> None:
        _check(self.name, self.directions)

    @property
    def num_routes(self) -> int:
        return len(self.directions)

    def length(self, size: Sequence[int]) -> int:
        return _length(self.directions, size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        image = grid(size).permute(*reversed(range(len(size))))
        return [_read(image, direction) for direction in self.directions]


@register_scan("slice_window")
class SliceWindow(ScanOrder):
    """Slice by slice along the first axis, window by window inside a slice, raster in both, and the reversal of it.

    For volumes whose slices lie further apart than their pixels. Windows that the lower or right edge cuts are smaller, so
    nothing is padded. In 2D these are the windows of the image.

    Args:
        side: of a window.
    """

    side: int = 4

    ndims = (3, 2)
    num_routes = 2

    def check(self) -> None:
        if self.side < 1:
            raise ValueError(f"scan 'slice_window': side={self.side!r} must be 1 or more")

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        slices = grid(size).view(-1, *size[-2:])
        windows = [w.flatten(1) for rows in slices.split(self.side, 1) for w in rows.split(self.side, 2)]
        return with_reversed([torch.cat(windows, 1).flatten()])


@register_scan("atrous_window")
class AtrousWindow(ScanOrder):
    """Windows with holes: their cells lie `rate` apart, and the windows of a tile interlace, as in AtrousMamba (2025).

    The image is padded at the bottom and right to multiples of side * rate and the padding is scanned. Tiles are read in
    raster order, the rate ** ndim windows of a tile by their first cells, each in raster order; then the same along the other
    cyclic axis orders, then all of it reversed. No code was released: side and rate are the paper's terms, the order of the
    windows is ours. With rate 1 these are the windows of `window`.

    Args:
        side: cells along a window.
        rate: distance between them.
    """

    side: int = 2
    rate: int = 2

    ndims = (2, 3)
    padded = True

    def check(self) -> None:
        if self.side < 1 or self.rate < 1:
            raise ValueError(f"scan 'atrous_window': side={self.side!r} and rate={self.rate!r} must be positive")

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def length(self, size: Sequence[int]) -> int:
        tile = self.side * self.rate
        return math.prod(-(-length // tile) * tile for length in size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        tile, ndim = self.side * self.rate, self.ndim
        image = pad(grid(size), [end for length in reversed(size) for end in (0, -length % tile)], value=-1)
        # every axis becomes (tile, cell of the window, phase of the window), to be read tiles, phases, cells
        parts = [part for length in image.shape for part in (length // tile, self.side, self.rate)]
        blocks = image.reshape(parts)
        axes = [[3 * axis + part for axis in order] for order in cyclic_axes(ndim) for part in (0, 2, 1)]
        return with_reversed(
            [blocks.permute(*itertools.chain(*axes[k : k + 3])).flatten() for k in range(0, 3 * ndim, 3)]
        )
