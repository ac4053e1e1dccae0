"""Continuous readings that turn round at the end of every line."""

import torch
from torch import Tensor

from .base import ScanOrder, grid
from .raster import cyclic_axes, with_reversed
from .registry import register_scan

__all__ = ["Continuous", "Snake", "snake"]


def snake(image: Tensor) -> Tensor:
    """Return an image of any rank read as a snake: odd rows backwards, then odd planes backwards, and so on."""
    while image.dim() > 1:
        image = image.clone()
        image[..., 1::2, :] = image[..., 1::2, :].flip(-1)
        image = image.flatten(-2)
    return image


@register_scan("snake")
class Snake(ScanOrder):
    """The snake along the rows, and its reversal; in 3D a snake of snakes."""

    ndims = (2, 3)
    num_routes = 2
    adjacency = "faces"

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([snake(grid(size))])


@register_scan("continuous")
class Continuous(ScanOrder):
    """The snake along every axis, each followed by its reversal.

    In 2D: rows, reversed, columns, reversed. In 3D the three cyclic axis orders, each with its reversal.
    Source: PlainMamba (arXiv 2403.17695, ChenhongyiYang/PlainMamba@0975a1d).
    """

    ndims = (2, 3)
    adjacency = "faces"

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    @property
    def num_directions(self) -> int:
        """Number of direction ids: the start and two per axis."""
        return 1 + 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        paths = []
        for axes in cyclic_axes(self.ndim):
            path = snake(grid(size).permute(*axes))
            paths += [path, path.flip(0)]
        return paths

    def directions(self, size: tuple[int, ...]) -> Tensor:
        """Return int64 (K, T): the move by which each step arrives.

        0 start, 1 right, 2 left, 3 up, 4 down, and in 3D 5 to the next plane, 6 to the previous one.
        """
        routes = self.routes(size)
        coordinates = torch.unravel_index(routes, tuple(size))  # per axis, slowest first
        ids = torch.zeros_like(routes)
        # Per axis, fastest first: the id of a step up the coordinate, the id of a step down it.
        for axis, (more, less) in zip(reversed(coordinates), ((1, 2), (4, 3), (5, 6)), strict=False):
            move = axis.diff(dim=1)
            ids[:, 1:] += torch.where(move > 0, more, 0) + torch.where(move < 0, less, 0)
        return ids
