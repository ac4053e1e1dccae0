"""Orders for volumes, and alternating axis orders."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .base import ScanOrder, grid
from .raster import along, with_reversed
from .registry import register_scan
from .select import one_route_per_layer

__all__ = ["ND2D", "ND3D", "Axes", "Bidirectional3D", "ND3DFactorised", "Raster3D", "TriOrientated"]


@register_scan("raster_3d")
class Raster3D(ScanOrder):
    """`raster` of a volume: the first axis slowest, the last fastest."""

    ndims = (3,)
    num_routes = 1

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()]


@register_scan("bidirectional_3d")
class Bidirectional3D(ScanOrder):
    """`bidirectional` of a volume."""

    ndims = (3,)
    num_routes = 2

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([grid(size).flatten()])


@register_scan("tri_orientated")
class TriOrientated(ScanOrder):
    """Forwards, backwards, between slices: SegMamba (arXiv 2401.13560, ge-xing/SegMamba@cff3597).

    The third route cuts the raster into equal chunks and reads the first of every chunk, then the second of every chunk, ...

    Args:
        nslices: number of chunks, which must divide the number of positions; 0 = the length of the first axis, so that a chunk
            is a plane. Published models have 64, 32, 16, 8 in their four stages, planes at an input of 128 only.
    """

    nslices: int = 0

    ndims = (3, 2, 1)
    num_routes = 3

    def check(self) -> None:
        if self.nslices < 0:
            raise ValueError(f"scan 'tri_orientated': nslices={self.nslices!r} must not be negative")

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        raster = grid(size).flatten()
        chunks = self.nslices or size[0]
        if raster.numel() % chunks:
            raise ValueError(
                f"scan 'tri_orientated': nslices={chunks} does not divide the {raster.numel()} positions of size={size}; "
                "nslices=0 takes planes at any size"
            )
        return [raster, raster.flip(0), raster.view(chunks, -1).T.flatten()]


_LETTERS = {2: "hw", 3: "dhw"}
_ND_ORDERS = {2: ("hw", "wh"), 3: ("dhw", "dwh", "whd")}  # Mamba-ND's, slowest axis first


def _path(size: tuple[int, ...], order: str) -> Tensor:
    letters = _LETTERS[len(size)]
    axes, _, flip = order.partition("_")
    path = along(size, [letters.index(letter) for letter in axes])
    return path.flip(0) if flip else path


@register_scan("axes")
class Axes(ScanOrder):
    """Any orders of the axes, one per layer in turn: Mamba-ND (arXiv 2402.05892, jacklishufan/Mamba-ND@4f70284) in general.

    Args:
        orders: the routes: the axes (d,) h, w from slowest to fastest, with "_flip" for the reversal, such as "wh" or "dwh_flip";
            () = the routes of `nd_2d` or `nd_3d`.
    """

    orders: tuple[str, ...] = ()

    ndims = (2, 3)

    def check(self) -> None:
        letters = _LETTERS[self.ndim]
        for order in self.orders:
            if sorted(order.removesuffix("_flip")) != sorted(letters):
                raise ValueError(
                    f"scan 'axes' with ndim={self.ndim}: {order!r} in orders is not an order of the axes {letters!r}, "
                    "with or without '_flip'"
                )

    @property
    def num_routes(self) -> int:
        return len(self.orders) or 2 * len(_ND_ORDERS[self.ndim])

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [_path(size, order) for order in self.orders] or _nd(size)

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)


def _nd(size: tuple[int, ...]) -> list[Tensor]:
    return [_path(size, order + end) for order in _ND_ORDERS[len(size)] for end in ("", "_flip")]


@register_scan("nd_2d")
class ND2D(ScanOrder):
    """Rows, reversed, columns, reversed, one per layer in turn: Mamba-ND (jacklishufan/Mamba-ND@4f70284)."""

    num_routes = 4

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _nd(size)

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)


@register_scan("nd_3d")
class ND3D(ScanOrder):
    """The axis orders d h w, d w h, w h d, each with its reversal, one per layer in turn.

    Source: Mamba-ND (jacklishufan/Mamba-ND@4f70284).
    """

    ndims = (3,)
    num_routes = 6

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return _nd(size)

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)


@register_scan("nd_3d_factorised")
class ND3DFactorised(ScanOrder):
    """`nd_3d` cut into separate sequences, reversals inside each: Mamba-ND's factorised forms.

    Args:
        factorization: "hw_t": each frame for itself in routes 0-3, the whole volume in 4-5; "h_w_t": each line for itself.
    """

    factorization: Literal["hw_t", "h_w_t"] = "hw_t"

    ndims = (3,)
    num_routes = 6
    segmented = True

    def check(self) -> None:
        if self.factorization not in ("hw_t", "h_w_t"):
            raise ValueError(
                f"scan 'nd_3d_factorised': factorization={self.factorization!r} is not one of ('hw_t', 'h_w_t')"
            )

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        inside = (2, 2, 3) if self.factorization == "hw_t" else (1, 1, 1)  # axes inside a sequence, per axis order
        sides = dict(zip("dhw", size, strict=True))
        pieces = [math.prod(sides[x] for x in order[-n:]) for order, n in zip(_ND_ORDERS[3], inside, strict=True)]
        return tuple(piece for piece in pieces for _ in range(2))

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        paths = []
        for order, piece in zip(_ND_ORDERS[3], self.segments(size)[::2], strict=True):
            path = _path(size, order)
            paths += [path, path.view(-1, piece).flip(1).flatten()]
        return paths

    def _layer(self, index: int, depth: int) -> ScanOrder:
        return one_route_per_layer(self, index)
