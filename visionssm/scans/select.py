"""Some routes of another order, and the schedules built on it."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from .base import Adjacency, ScanOrder
from .registry import create_scan, register_scan, scan_from_key

__all__ = ["Alternate", "Select", "one_route_per_layer"]


@register_scan("select")
class Select(ScanOrder):
    """Chosen routes of another order, in the order given.

    Args:
        scan: name or `key` of the other order.
        which: indices of the routes.
    """

    scan: str = "raster"
    which: tuple[int, ...] = (0,)

    ndims = (2, 3, 1)
    wraps = True

    def check(self) -> None:
        known = self.source.num_routes
        if not self.which or any(not 0 <= route < known for route in self.which):
            raise ValueError(f"scan 'select': which={self.which!r} must name routes 0..{known - 1} of {self.scan!r}")

    @property
    def source(self) -> ScanOrder:
        """The other order."""
        scan = scan_from_key(self.scan)
        return scan if scan.ndim == self.ndim else dataclasses.replace(scan, ndim=self.ndim)

    @property
    def num_routes(self) -> int:
        return len(self.which)

    @property
    def total(self) -> bool:
        return self.source.total

    @property
    def padded(self) -> bool:
        return self.source.padded

    @property
    def adjacency(self) -> Adjacency:
        return self.source.adjacency

    @property
    def segmented(self) -> bool:
        return self.source.segmented

    @property
    def content(self) -> bool:
        return self.source.content

    def length(self, size: Sequence[int]) -> int:
        return self.source.length(size)

    def positions(self, size: Sequence[int]) -> int:
        return self.source.positions(size)

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        segments = self.source.segments(size)
        return tuple(segments[route] for route in self.which)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return list(self.source.routes(size)[list(self.which)])


def one_route_per_layer(scan: ScanOrder, index: int) -> ScanOrder:
    """Return the order with only route `index` mod K of `scan`: the schedule of alternating models."""
    return create_scan("select", scan=scan.key, which=(index % scan.num_routes,), ndim=scan.ndim)


@register_scan("alternate")
class Alternate(ScanOrder):
    """One of every two opposite routes of another order: the first of each pair in even layers, the second in odd ones.

    Over `bidirectional` it is LBVim's schedule (LBMamba, arXiv 2506.15976, cvlab-stonybrook/LBMamba@5215551, which turns the
    sequence round after every layer); over `cross` rows and columns, then the same backwards. Without a layer it has all routes.

    Args:
        scan: name or `key` of the other order, whose routes are pairs of a route and its reversal.
    """

    scan: str = "bidirectional"

    ndims = (2, 3, 1)
    wraps = True

    def check(self) -> None:
        self._pairs()

    @property
    def source(self) -> ScanOrder:
        """The other order."""
        scan = scan_from_key(self.scan)
        return scan if scan.ndim == self.ndim else dataclasses.replace(scan, ndim=self.ndim)

    @property
    def num_routes(self) -> int:
        return self.source.num_routes

    @property
    def total(self) -> bool:
        return self.source.total

    @property
    def padded(self) -> bool:
        return self.source.padded

    @property
    def adjacency(self) -> Adjacency:
        return self.source.adjacency

    @property
    def segmented(self) -> bool:
        return self.source.segmented

    def length(self, size: Sequence[int]) -> int:
        return self.source.length(size)

    def positions(self, size: Sequence[int]) -> int:
        return self.source.positions(size)

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        return self.source.segments(size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return list(self.source.routes(size))

    def _pairs(self) -> list[tuple[int, int]]:
        rows = self.source.routes((3, 5, 4)[: self.ndim])
        left = {k: row[row >= 0].tolist() for k, row in enumerate(rows)}
        pairs = []
        while left:
            first, path = next(iter(left.items()))
            del left[first]
            second = next((k for k, other in left.items() if other == path[::-1]), None)
            if second is None:
                raise ValueError(f"scan 'alternate': route {first} of {self.scan!r} is not matched by its reversal")
            del left[second]
            pairs.append((first, second))
        return pairs

    def _layer(self, index: int, depth: int) -> ScanOrder:
        which = tuple(pair[index % 2] for pair in self._pairs())
        return create_scan("select", scan=self.source.key, which=which, ndim=self.ndim)
