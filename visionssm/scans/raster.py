"""Straight lines: raster, bidirectional, cross and their kin."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ScanOrder, grid
from .registry import register_scan
from .select import one_route_per_layer

__all__ = [
    "Alternating",
    "Bidirectional",
    "Cross",
    "CrossBidirectional",
    "CrossRotate",
    "CrossUnidirectional",
    "Group",
    "Raster",
    "along",
    "cyclic_axes",
    "with_reversed",
]


def along(size: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Return the straight reading of an image with its axes in this order, slowest first: int64 (L,)."""
    return grid(size).permute(*axes).flatten()


def cyclic_axes(ndim: int) -> list[tuple[int, ...]]:
    """Return the cyclic orders of the axes, slowest first: [(0, 1, 2), (1, 2, 0), (2, 0, 1)] for three."""
    return [tuple((start + step) % ndim for step in range(ndim)) for start in range(ndim)]


def with_reversed(paths: Sequence[Tensor]) -> list[Tensor]:
    """Return all paths, then all of them reversed."""
    return [*paths, *(path.flip(0) for path in paths)]


@register_scan("raster")
class Raster(ScanOrder):
    """Row by row, the last axis fastest: Mamba (arXiv 2312.00752); VMamba's one scan. Any rank."""

    ndims = (2, 3, 1)
    num_routes = 1

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()]


@register_scan("bidirectional")
class Bidirectional(ScanOrder):
    """Raster and its reversal: Vim (arXiv 2401.09417, hustvl/Vim). Any rank."""

    ndims = (2, 3, 1)
    num_routes = 2

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([grid(size).flatten()])


@register_scan("alternating")
class Alternating(ScanOrder):
    """Raster and its reversal, one per layer in turn: Adventurer (arXiv 2410.07599), LBMamba's LBVim (arXiv 2506.15976).

    Both turn the whole sequence around between layers, which is the same. Any rank.
    """

    ndims = (2, 3, 1)
    num_routes = 2

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([grid(size).flatten()])

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)


def _cross(size: tuple[int, ...]) -> list[Tensor]:
    return with_reversed([along(size, axes) for axes in cyclic_axes(len(size))])


def _unidirectional(size: tuple[int, ...]) -> list[Tensor]:
    return [grid(size).flatten()] * (2 * len(size))


def _bidirectional(size: tuple[int, ...]) -> list[Tensor]:
    return with_reversed([grid(size).flatten()] * len(size))


def _rotate(size: tuple[int, ...]) -> list[Tensor]:
    return [torch.rot90(grid(size), turns).flatten() for turns in range(4)]


_CROSS_KINDS = {0: _cross, 1: _unidirectional, 2: _bidirectional, 3: _rotate}


@register_scan("cross")
class Cross(ScanOrder):
    """Along every axis, then all of it reversed: VMamba (arXiv 2401.10166, MzeroMiko/VMamba@2ed52ea).

    In 2D four routes: rows, columns, rows reversed, columns reversed. In 3D six: the cyclic axis orders, then
    reversed.

    Args:
        scans: VMamba's number for the kind: 0 cross, 1 `cross_unidirectional`, 2 `cross_bidirectional`,
            3 `cross_rotate` (2D only).
    """

    scans: int = 0

    ndims = (2, 3)

    def check(self) -> None:
        if self.scans not in _CROSS_KINDS:
            raise ValueError(f"scan 'cross': scans={self.scans!r} is not one of {tuple(_CROSS_KINDS)}")
        if self.scans == 3 and self.ndim != 2:
            raise ValueError("scan 'cross': scans=3 turns a plane, so ndim must be 2")

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _CROSS_KINDS[self.scans](size)


@register_scan("cross_unidirectional")
class CrossUnidirectional(ScanOrder):
    """As many routes as `cross`, all of them raster, each with its own parameters: VMamba's scans=1."""

    ndims = (2, 3)

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _unidirectional(size)


@register_scan("cross_bidirectional")
class CrossBidirectional(ScanOrder):
    """As many routes as `cross`, the first half raster, the second half raster reversed: VMamba's scans=2."""

    ndims = (2, 3)

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _bidirectional(size)


@register_scan("cross_rotate")
class CrossRotate(ScanOrder):
    """Raster of the image turned by 0, 90, 180, 270 degrees counter-clockwise: VMamba's scans=3."""

    num_routes = 4

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _rotate(size)


@register_scan("group")
class Group(ScanOrder):
    """The routes of `cross`, each over its own share of the channels; the shares are concatenated.

    In 3D six shares: the cyclic axis orders, then reversed. Source: GroupMamba (arXiv 2407.13772,
    Amshaker/GroupMamba@c1800ed), whose hand-written gradient is wrong for H != W.
    """

    ndims = (2, 3)

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    @property
    def groups(self) -> int:
        return self.num_routes

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _cross(size)
