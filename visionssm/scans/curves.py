"""Space-filling curves: Morton and Hilbert codes, and the generalised Hilbert curve for any rectangle or box."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Adjacency, ScanOrder, grid
from .raster import cyclic_axes, with_reversed
from .registry import register_scan

__all__ = [
    "Gilbert",
    "Gilbert3D",
    "Hilbert",
    "Hilbert3D",
    "Morton",
    "Morton3D",
    "gilbert",
    "hilbert_codes",
    "morton",
    "morton_codes",
]


def morton_codes(points: Tensor, bits: int) -> Tensor:
    """Return the bits of the coordinates interleaved, the last coordinate in the lowest bit.

    Args:
        points: integer (..., n), each coordinate in 0..2**bits - 1.
        bits: bits per coordinate; n * bits must stay below 64.
    Returns:
        int64 (...).
    """
    ndim = points.shape[-1]
    codes = points.new_zeros(points.shape[:-1], dtype=torch.int64)
    for axis, coordinate in enumerate(points.long().unbind(-1)):
        for bit in range(bits):
            codes |= (coordinate >> bit & 1) << (bit * ndim + ndim - 1 - axis)
    return codes


def hilbert_codes(points: Tensor, bits: int) -> Tensor:
    """Return the position of points along the Hilbert curve of a cube of side 2**bits, by Skilling's transform.

    Source: J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004).

    Args:
        points: integer (..., n), each coordinate in 0..2**bits - 1.
        bits: bits per coordinate; n * bits must stay below 64.
    Returns:
        int64 (...), a permutation of 0..2**(n * bits) - 1 over the whole cube.
    """
    x = list(points.long().unbind(-1))
    for bit in range(bits - 1, 0, -1):  # undo the excess turns, level by level
        low = (1 << bit) - 1
        for axis in range(len(x)):
            invert = x[axis] >> bit & 1 == 1
            swap = torch.where(invert, 0, (x[0] ^ x[axis]) & low)
            x[0] = torch.where(invert, x[0] ^ low, x[0] ^ swap)
            if axis:
                x[axis] = x[axis] ^ swap
    for axis in range(1, len(x)):  # Gray code
        x[axis] = x[axis] ^ x[axis - 1]
    turn = torch.zeros_like(x[0])
    for bit in range(bits - 1, 0, -1):
        turn ^= torch.where(x[-1] >> bit & 1 == 1, (1 << bit) - 1, 0)
    return morton_codes(torch.stack([coordinate ^ turn for coordinate in x], -1), bits)


def _points(size: Sequence[int]) -> Tensor:
    """Return the coordinates of all cells in raster order: int64 (L, n)."""
    return torch.stack(torch.unravel_index(grid(size).flatten(), tuple(size)), -1)


def morton(image: Tensor) -> Tensor:
    """Return an image read in Morton order of the enclosing cube of side 2**b, the cells outside it dropped."""
    codes = morton_codes(_points(image.shape), (max(image.shape) - 1).bit_length())
    return image.flatten()[codes.argsort()]


# A side of a box: (axis, signed length).
_Side = tuple[int, int]


def _half(side: _Side, even: bool = True) -> _Side:
    """Return the first half of a side, by floor division, made even if the side is longer than 2 and that is asked for."""
    axis, length = side
    half = length // 2
    if even and half % 2 and abs(length) > 2:
        half += 1 if length > 0 else -1
    return axis, half


def _minus(side: _Side, other: _Side) -> _Side:
    return side[0], side[1] - other[1]


def _back(side: _Side) -> _Side:
    return side[0], -side[1]


def _last(side: _Side) -> _Side:
    """Return the move from the first cell of a side to its last one."""
    axis, length = side
    return axis, length - (1 if length > 0 else -1)


class _Gilbert:
    """Walks boxes given by their sides, the first being the one to walk along; equal boxes are walked once."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.known: dict[tuple[_Side, ...], Tensor] = {}

    def walk(self, *sides: _Side) -> Tensor:
        """Return the cells of the box relative to its first one, in order: int64 (cells, ndim)."""
        sides = tuple(side for side in sides if abs(side[1]) != 1) or sides[:1]
        if sides not in self.known:
            self.known[sides] = (self._line, self._plane, self._box)[len(sides) - 1](*sides)
        return self.known[sides]

    def _from(self, moves: Sequence[_Side], *sides: _Side) -> Tensor:
        start = [sum(length for axis, length in moves if axis == wanted) for wanted in range(self.ndim)]
        return self.walk(*sides) + torch.tensor(start, device="cpu")

    def _line(self, a: _Side) -> Tensor:
        axis, length = a
        cells = torch.zeros(abs(length), self.ndim, dtype=torch.int64, device="cpu")
        cells[:, axis] = torch.arange(abs(length), device="cpu") * (1 if length > 0 else -1)
        return cells

    def _plane(self, a: _Side, b: _Side) -> Tensor:
        if 2 * abs(a[1]) > 3 * abs(b[1]):
            a2 = _half(a)
            return torch.cat([self.walk(a2, b), self._from([a2], _minus(a, a2), b)])
        a2, b2 = _half(a, even=False), _half(b)
        return torch.cat(
            [
                self.walk(b2, a2),
                self._from([b2], a, _minus(b, b2)),
                self._from([_last(a), _last(b2)], _back(b2), _back(_minus(a, a2))),
            ]
        )

    def _box(self, a: _Side, b: _Side, c: _Side) -> Tensor:
        w, h, d = (abs(side[1]) for side in (a, b, c))
        a2, b2, c2 = _half(a), _half(b), _half(c)
        rest_a, rest_b, rest_c = _minus(a, a2), _minus(b, b2), _minus(c, c2)
        if 2 * w > 3 * h and 2 * w > 3 * d:
            parts = [self.walk(a2, b, c), self._from([a2], rest_a, b, c)]
        elif 3 * h > 4 * d:
            parts = [
                self.walk(b2, c, a2),
                self._from([b2], a, rest_b, c),
                self._from([_last(a), _last(b2)], _back(b2), c, _back(rest_a)),
            ]
        elif 3 * d > 4 * h:
            parts = [
                self.walk(c2, a2, b),
                self._from([c2], a, b, rest_c),
                self._from([_last(a), _last(c2)], _back(c2), _back(rest_a), b),
            ]
        else:
            parts = [
                self.walk(b2, c2, a2),
                self._from([b2], c, a2, rest_b),
                self._from([_last(b2), _last(c)], a, _back(b2), _back(rest_c)),
                self._from([_last(a), b2, _last(c)], _back(c), _back(rest_a), rest_b),
                self._from([_last(a), _last(b2)], _back(b2), c2, _back(rest_a)),
            ]
        return torch.cat(parts)


def gilbert(size: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Return the generalised Hilbert curve through an image: int64 (L,).

    With even sides every step is to a direct neighbour. With odd ones a step may be diagonal, and in 3D reach two cells.
    Source: the construction of jakubcerveny/gilbert, used in 2D by CompVis/zigma@37d837b.

    Args:
        size: sides of the image, 2 or 3 of them.
        axes: all axes; the curve runs from the first cell along the first of them.
    """
    cells = _Gilbert(len(size)).walk(*((axis, size[axis]) for axis in axes))
    return grid(size)[tuple(cells.unbind(1))]


def _longest_first(size: Sequence[int], axes: Sequence[int]) -> list[int]:
    """Return the axes with the longest in front, the first of them where several are longest."""
    longest = max(axes, key=lambda axis: size[axis])
    return [longest, *(axis for axis in axes if axis != longest)]


@register_scan("gilbert")
class Gilbert(ScanOrder):
    """The generalised Hilbert curve of any rectangle, along the longer side (CompVis/zigma@37d837b).

    Args:
        axis: one route each: which way to go on squares, "x_is_column" along rows, "x_is_row" along columns. On other
            rectangles both are one curve.
    """

    axis: tuple[str, ...] = ("x_is_column", "x_is_row")

    adjacency = "corners"

    def check(self) -> None:
        accepted = ("x_is_column", "x_is_row")
        if not self.axis or any(axis not in accepted for axis in self.axis):
            raise ValueError(f"scan 'gilbert': axis={self.axis!r} must be a non-empty list of {accepted}")

    @property
    def num_routes(self) -> int:
        return len(self.axis)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        axes = {"x_is_column": (1, 0), "x_is_row": (0, 1)}
        return [gilbert(size, _longest_first(size, axes[axis])) for axis in self.axis]


@register_scan("gilbert_3d")
class Gilbert3D(ScanOrder):
    """The generalised Hilbert curve of any box, along its longest side (jakubcerveny/gilbert)."""

    ndims = (3,)
    num_routes = 1

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [gilbert(size, _longest_first(size, (2, 1, 0)))]


@register_scan("hilbert")
class Hilbert(ScanOrder):
    """The generalised Hilbert curve along every axis, the last axis first, then all of it reversed: 4 routes, in 3D 6."""

    ndims = (2, 3)

    @property
    def adjacency(self) -> Adjacency:
        return "corners" if self.ndim == 2 else "none"

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([gilbert(size, axes[::-1]) for axes in cyclic_axes(self.ndim)])


@register_scan("morton")
class Morton(ScanOrder):
    """The Morton (Z) order for every cyclic order of the axes, then all of it reversed: 4 routes, in 3D 6.

    Sides that are not a power of two take the order of the enclosing cube without the cells outside.
    """

    ndims = (2, 3)

    @property
    def num_routes(self) -> int:
        return 2 * self.ndim

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return with_reversed([morton(grid(size).permute(*axes)) for axes in cyclic_axes(self.ndim)])


@register_scan("morton_3d")
class Morton3D(ScanOrder):
    """The Morton order of a volume, the last axis in the lowest bit (SkyworkAI/PointCloudMamba@57fdb29, "z")."""

    ndims = (3,)
    num_routes = 1

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [morton(grid(size))]


@register_scan("hilbert_3d")
class Hilbert3D(ScanOrder):
    """The Hilbert curve of a volume (SkyworkAI/PointCloudMamba@57fdb29, "hilbert").

    Cubes whose side is a power of two are read by Skilling's code as published, all other boxes as `gilbert_3d`.
    """

    ndims = (3,)
    num_routes = 1

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        side = size[0]
        if set(size) != {side} or side & (side - 1):
            return [gilbert(size, _longest_first(size, (2, 1, 0)))]
        return [hilbert_codes(_points(size), side.bit_length() - 1).argsort()]
