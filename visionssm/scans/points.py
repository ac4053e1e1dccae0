"""Orders of point clouds: Point Cloud Mamba (arXiv 2403.00762, SkyworkAI/PointCloudMamba@57fdb29).

Legend: N points, 3 coordinates x, y, z.
"""

import torch
from torch import Tensor

from .curves import hilbert_codes, morton_codes

__all__ = ["POINT_ORDERS", "point_codes", "point_grid", "point_order"]

_SNAKES = ("xyz", "xzy", "yxz", "yzx", "zxy", "zyx")
_CURVES = {"z": morton_codes, "hilbert": hilbert_codes}
POINT_ORDERS = (*_SNAKES, "z", "z-trans", "hilbert", "hilbert-trans")


def point_grid(position_N3: Tensor, cell: float = 0.02) -> Tensor:
    """Return the grid cells of a cloud's points, counted from the lowest cell on each axis: int64 (N, 3)."""
    cells = (position_N3 / cell).floor().long()
    return cells - cells.amin(dim=0)


def point_codes(cell_N3: Tensor, order: str, *, published: bool = False) -> Tensor:
    """Return the numbers by which points are sorted.

    Axis orders are snakes: the first letter fastest and turning with the second coordinate, whole planes turned round for an
    odd third one. "z" and "hilbert" are the curves, "-trans" swaps x and y first.

    Args:
        cell_N3: integer (N, 3), not negative.
        order: one of `POINT_ORDERS`.
        published: for axis orders, sort as the published code does. It has the maxima of the second and third coordinate
            where the coordinates belong, so the first letter alone decides, downwards if just one maximum is odd.
    Returns:
        int64 (N,).
    Raises:
        ValueError: unknown order.
    """
    if order not in POINT_ORDERS:
        raise ValueError(f"unknown point order {order!r}; accepted: {', '.join(POINT_ORDERS)}")
    highest = cell_N3.amax(dim=0)
    if order in _SNAKES:
        axes = ["xyz".index(letter) for letter in order]
        first, second, third = cell_N3.long()[:, axes].unbind(1)
        first_max, second_max, third_max = highest[axes].tolist()
        if published:
            return -first if (second_max + third_max) % 2 else first
        lines, plane = first_max + 1, (first_max + 1) * (second_max + 1)
        inside = second * lines + torch.where(second % 2 == 1, first_max - first, first)
        return third * plane + torch.where(third % 2 == 1, plane - 1 - inside, inside)
    curve, _, swapped = order.partition("-")
    points = cell_N3[:, [1, 0, 2]] if swapped else cell_N3
    return _CURVES[curve](points, int(highest.max()).bit_length())


def point_order(cell_N3: Tensor, order: str, *, published: bool = False) -> Tensor:
    """Return the points in visiting order, equal codes as they come: int64 (N,); arguments as `point_codes`."""
    return point_codes(cell_N3, order, published=published).argsort(stable=True)
