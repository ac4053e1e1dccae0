"""A user's own order, as short as they come: the rows from the outside in."""

import torch

from visionssm.scans import ScanOrder, grid, register_scan


@register_scan("outside_in")
class OutsideIn(ScanOrder):
    """The first row, the last, the second, the last but one, and so on, each from left to right."""

    num_routes = 1

    def paths(self, size):
        rows = grid(size)
        pairs = [row for top in range((len(rows) + 1) // 2) for row in (rows[top], rows[len(rows) - 1 - top])]
        return [torch.cat(pairs[: len(rows)])]
