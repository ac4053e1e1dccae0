"""Pictures of scan orders."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .base import ScanOrder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

_PANEL = 2.4  # inches


def draw(scan: ScanOrder, size: Sequence[int], path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw the route through an image or a volume, one panel per route: a green dot at its start, a red square at its end.

    Args:
        scan: the order.
        size: (H, W) or (D, H, W).
        path: file to write, in the format of its ending.
    Returns:
        The figure. Padding steps are left out: the line goes on to the next cell.
    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: `size` has neither 2 nor 3 dimensions, or is not accepted by the order.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("draw needs matplotlib: pip install matplotlib") from error
    size = tuple(size)
    if len(size) not in (2, 3):
        raise ValueError(f"draw shows images (H, W) and volumes (D, H, W), got size={size}")
    if scan.positions(size) != math.prod(size):
        raise ValueError(f"{scan!r} visits tokens that are no cells, so it cannot be drawn; draw the order it wraps")
    routes = scan.routes(size)
    columns = min(4, len(routes))
    rows = -(-len(routes) // columns)
    figure = Figure(figsize=(columns * _PANEL, rows * _PANEL), layout="constrained")
    figure.suptitle(f"{scan.name} {' x '.join(map(str, size))}")
    for index, route in enumerate(routes):
        axes = figure.add_subplot(rows, columns, index + 1, projection="3d" if len(size) == 3 else None)
        # Coordinates fastest axis first: x to the right, y downwards, z into the depth.
        cells = [axis.tolist() for axis in reversed(torch.unravel_index(route[route >= 0], size))]
        # Colour runs with the steps, so that crossing lines can be told apart.
        steps = range(len(cells[0]))
        axes.plot(*cells, color="0.6", linewidth=1, zorder=1)
        axes.scatter(*cells, c=steps, cmap="viridis", s=6, zorder=2)
        axes.scatter(*[[axis[0]] for axis in cells], color="tab:green", marker="o", s=36, zorder=3)
        axes.scatter(*[[axis[-1]] for axis in cells], color="tab:red", marker="s", s=36, zorder=3)
        axes.set_title(f"route {index}", fontsize="small")
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.locator_params(integer=True)
        axes.tick_params(labelsize="xx-small")
    if path is not None:
        figure.savefig(path)
    return figure
