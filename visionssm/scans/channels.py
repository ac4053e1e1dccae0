"""Orders that split the channels or the image among their routes."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import ScanOrder, grid
from .diagonal import diagonal_zigzag, spiral
from .raster import along, cyclic_axes
from .registry import register_scan
from .snake import snake

__all__ = ["MultiHead", "MultiScale", "Skip", "Slices"]


def _ceil_div(length: int, by: int) -> int:
    return -(-length // by)


@register_scan("skip")
class Skip(ScanOrder):
    """Every step-th cell, one route per phase: EfficientVMamba (arXiv 2403.09977, TerryPei/EfficientVMamba@0bc5ee2).

    The image is padded at the bottom and right to multiples of the step, and the padding is scanned. Phases with an even y read
    rows, with an odd y columns; x is the slower phase. No position is read twice. In 3D odd phases of the first axis go on
    to the next cyclic axis order. (The published code leaves cells unwritten for step > 2; here they have routes.)

    Args:
        step: distance between the cells of a route; there are step ** ndim routes.
    """

    step: int = 2

    ndims = (2, 3)
    total = False
    padded = True

    def check(self) -> None:
        if self.step < 1:
            raise ValueError(f"scan 'skip': step={self.step!r} must be a positive integer")

    @property
    def num_routes(self) -> int:
        return self.step**self.ndim

    def length(self, size: Sequence[int]) -> int:
        length = 1
        for side in size:
            length = length * _ceil_div(side, self.step)
        return length

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        ends = [end for side in reversed(size) for end in (0, -side % self.step)]
        image = pad(grid(size), ends, value=-1)
        axes = cyclic_axes(self.ndim)
        paths = []
        for phase in itertools.product(range(self.step), repeat=self.ndim):  # fastest: the first axis
            first, *_ = starts = phase[::-1]
            cells = image[tuple(slice(start, None, self.step) for start in starts)]
            paths.append(cells.permute(*axes[first % self.ndim]).flatten())
        return paths


@register_scan("slices")
class Slices(ScanOrder):
    """Each line of an axis for itself: XYScanNet (arXiv 2412.10338, HanzhouLiu/XYScanNet@ec43176).

    Half of the channels is read row by row, half column by column; the state restarts at every line. In 3D three thirds, the
    last taking planes as the cyclic axis orders do.
    """

    ndims = (2, 3)
    segmented = True

    @property
    def num_routes(self) -> int:
        return self.ndim

    @property
    def groups(self) -> int:
        return self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [along(size, axes) for axes in cyclic_axes(self.ndim)]

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(size[axes[-1]] for axes in cyclic_axes(self.ndim))


@register_scan("multi_scale")
class MultiScale(ScanOrder):
    """Raster at full resolution, the other routes on a coarser grid: MSVMamba (arXiv 2405.14174, YuHengsss/MSVMamba@c394019).

    `routes` is the full-resolution raster. `low_routes` index the low grid, which a strided convolution makes; published
    models concatenate them into one sequence whose state runs on from one into the next.

    Args:
        low: number of low routes: 3 = rows reversed, columns, columns reversed; 2 = rows and columns reversed;
            1 = columns reversed.
        stride: of the low grid.
    """

    low: int = 3
    stride: int = 2

    num_routes = 1

    def check(self) -> None:
        if self.low not in (1, 2, 3):
            raise ValueError(f"scan 'multi_scale': low={self.low!r} is not one of (1, 2, 3)")
        if self.stride < 1:
            raise ValueError(f"scan 'multi_scale': stride={self.stride!r} must be a positive integer")

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()]

    def low_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return (h, w), the sides of the low grid."""
        return tuple(_ceil_div(side, self.stride) for side in size)

    def low_routes(self, size: Sequence[int]) -> Tensor:
        """Return int64 (low, h * w): the routes over the low grid of an image of this `size`."""
        image = grid(self.low_size(size))
        rows, columns = image.flatten(), image.T.flatten()
        kinds = {
            1: [columns.flip(0)],
            2: [rows.flip(0), columns.flip(0)],
            3: [rows.flip(0), columns, columns.flip(0)],
        }
        return torch.stack(kinds[self.low])


_HEADS = {
    "C": lambda image: (snake(image), snake(image.T)),
    "X": lambda image: (diagonal_zigzag(image), diagonal_zigzag(image.flip(1))),
    "S": lambda image: (spiral(image), spiral(image.flip(0))),
    "Z": lambda image: (image.flatten(), image.T.flatten()),
}


@register_scan("multi_head")
class MultiHead(ScanOrder):
    """Heads with a pattern each over their share of the channels: MHS-VM (arXiv 2406.05992, PixDeep/MHS-VM@be64b6f).

    Each head has four routes: a pattern, its reversal, the other version of the pattern, its reversal.

    Args:
        heads: patterns: "C" snakes, "X" turning diagonals, "S" spirals, "Z" straight lines.
    """

    heads: tuple[str, ...] = ("C", "X", "S", "Z")

    def check(self) -> None:
        if not self.heads or any(head not in _HEADS for head in self.heads):
            raise ValueError(f"scan 'multi_head': heads={self.heads!r} must be a non-empty list of {tuple(_HEADS)}")

    @property
    def num_routes(self) -> int:
        return 4 * len(self.heads)

    @property
    def groups(self) -> int:
        return len(self.heads)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        pairs = [_HEADS[head](grid(size)) for head in self.heads]
        return [path for a, b in pairs for path in (a, a.flip(0), b, b.flip(0))]
