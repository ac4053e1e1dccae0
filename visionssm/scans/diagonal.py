"""Along diagonals and round in spirals."""

import torch
from torch import Tensor

from .base import ScanOrder, grid
from .raster import with_reversed
from .registry import register_scan

__all__ = ["Diagonal", "Spiral", "diagonal", "diagonal_zigzag", "spiral"]


def _by_diagonal(image: Tensor, *, turning: bool) -> Tensor:
    height, width = image.shape
    y, x = torch.arange(height, device="cpu")[:, None], torch.arange(width, device="cpu")
    along = torch.where((y + x) % 2 == 1, y, height - 1 - y) if turning else y
    return image.flatten()[((y + x) * height + along).flatten().argsort()]


def diagonal(image: Tensor) -> Tensor:
    """Return an image read by anti-diagonals from the top-left corner on, each from its top end down."""
    return _by_diagonal(image, turning=False)


def diagonal_zigzag(image: Tensor) -> Tensor:
    """Return an image read by anti-diagonals, odd ones downwards, even ones upwards: (0,0), (0,1), (1,0), (2,0), ..."""
    return _by_diagonal(image, turning=True)


def spiral(image: Tensor) -> Tensor:
    """Return an image read clockwise and inwards from the top-left corner: right, down, left, up."""
    sides = []
    while image.numel():
        sides.append(image[0])
        image = image[1:].rot90()
    return torch.cat(sides)


@register_scan("diagonal")
class Diagonal(ScanOrder):
    """By anti-diagonals, by diagonals, then both reversed (the oblique half of RS-Mamba's scan, arXiv 2404.02668)."""

    num_routes = 4

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([diagonal(grid(size)), diagonal(grid(size).flip(1))])


@register_scan("spiral")
class Spiral(ScanOrder):
    """The clockwise spiral inwards from the top-left corner, and outwards again."""

    num_routes = 2
    adjacency = "faces"

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([spiral(grid(size))])
