"""The orders of ZigMa (arXiv 2403.13802, CompVis/zigma@37d837b): one route per layer, taken in turn.

Published for squares; here for any H x W.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from .base import Adjacency, ScanOrder, grid, invert
from .curves import gilbert
from .registry import register_scan
from .select import one_route_per_layer
from .snake import snake

__all__ = ["Random", "Zigzag", "ZigzagHilbert"]


class _OneOfEight(ScanOrder):
    """Eight routes of which layer i uses number i mod `count`.

    Args:
        count: keep the first `count` routes: 1..8.
    """

    count: int = 8

    def check(self) -> None:
        if not 1 <= self.count <= 8:
            raise ValueError(f"scan {self.name!r}: count={self.count!r} is not in 1..8")

    @property
    def num_routes(self) -> int:
        return self.count

    @abstractmethod
    def all_paths(self, size: tuple[int, ...]) -> list[Tensor]:
        """Return the eight routes."""

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return self.all_paths(size)[: self.count]

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)


@register_scan("zigzag")
class Zigzag(_OneOfEight):
    """Row snake, then column snake, from the corners top-left, top-right, bottom-left, bottom-right: ZigMa's zigzagN."""

    adjacency = "faces"

    def all_paths(self, size: tuple[int, ...]) -> list[Tensor]:
        image = grid(size)
        corners = [image, image.flip(1), image.flip(0), image.flip(0, 1)]
        return [snake(view) for corner in corners for view in (corner, corner.T)]


@register_scan("zigzag_hilbert")
class ZigzagHilbert(_OneOfEight):
    """The Hilbert curve under the eight symmetries of the square: ZigMa's hilbertN.

    The published code reads the image in the order of the flattened ranks along the curve, which is the inverse
    permutation of the curve and jumps about; released weights are trained so.

    Args:
        curve: False: the published routes. True: the curves themselves, step by step to neighbours.
    """

    curve: bool = False

    @property
    def adjacency(self) -> Adjacency:
        return "corners" if self.curve else "none"

    def all_paths(self, size: tuple[int, ...]) -> list[Tensor]:
        height, width = size
        upright = invert(gilbert((height, width), (0, 1))).view(height, width)
        lying = invert(gilbert((width, height), (0, 1))).view(width, height)  # for what turns or mirrors it into H x W
        ranks = [(lying if turns % 2 else upright).rot90(turns) for turns in range(4)]
        mirrored = [(upright if turns % 2 else lying).rot90(turns).T for turns in range(4)]
        paths = [image.flatten() for pair in zip(ranks, mirrored, strict=True) for image in pair]
        return [invert(path) for path in paths] if self.curve else paths


@register_scan("random")
class Random(ScanOrder):
    """Random permutations, the same at every call: ZigMa's randomN (which drew them anew for every model and did not store them).

    Args:
        count: number of routes; layer i uses number i mod `count`.
        seed: of the generator; every size has its own permutations.
    """

    count: int = 8
    seed: int = 0

    ndims = (2, 3, 1)

    def check(self) -> None:
        if self.count < 1:
            raise ValueError(f"scan 'random': count={self.count!r} must be a positive integer")

    @property
    def num_routes(self) -> int:
        return self.count

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        return [torch.randperm(self.length(size), generator=generator, device="cpu") for _ in range(self.count)]

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)
