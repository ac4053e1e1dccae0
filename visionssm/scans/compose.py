"""Orders made of the routes of another: one after the other in one sequence, at two scales, or dealt out to channel groups."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ScanOrder, cut
from .channels import MultiScale
from .registry import create_scan, register_scan, scan_from_key

__all__ = ["Chain", "chain", "deal", "split_scales"]


@register_scan("chain")
class Chain(ScanOrder):
    """The routes of another order as one sequence: the state runs on from one into the next.

    Each route has a copy of the image of its own: position p of the copy for route k is k * L + p.

    Args:
        scan: key of the other order.
    """

    scan: str

    ndims = (2, 3)
    num_routes = 1
    total = False
    wraps = True
    padded = True

    @property
    def copies(self) -> int:
        """How often the image is needed."""
        return scan_from_key(self.scan).num_routes

    @property
    def content(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return scan_from_key(self.scan).content

    @property
    def segmented(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return scan_from_key(self.scan).segmented

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        if not self.segmented:
            return super().segments(size)
        return (max(scan_from_key(self.scan).segments(size)),)  # shorter pieces are filled up

    def length(self, size: Sequence[int]) -> int:
        inner = scan_from_key(self.scan)
        if not self.segmented:
            return self.copies * inner.length(size)
        pieces = inner.segments(size)
        return max(pieces) * sum(-(-inner.length(size) // piece) for piece in pieces)

    def positions(self, size: Sequence[int]) -> int:
        return self.copies * scan_from_key(self.scan).positions(size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        inner = scan_from_key(self.scan)
        routes = inner.routes(size)
        copies = torch.arange(len(routes)).unsqueeze(1) * inner.positions(size)
        routes = torch.where(routes >= 0, routes + copies, -1)
        if self.segmented:
            pieces = inner.segments(size)
            routes = torch.cat([cut(route, piece, max(pieces)) for route, piece in zip(routes, pieces, strict=True)])
        return [routes.flatten()]


def chain(scan: ScanOrder) -> Chain:
    """Return the routes of `scan` one after the other."""
    order = create_scan("chain", scan=scan.key, ndim=scan.ndim)
    assert isinstance(order, Chain)
    return order


def _select(scan: ScanOrder, which: Sequence[int]) -> ScanOrder:
    return create_scan("select", scan=scan.key, which=tuple(which), ndim=scan.ndim)


def split_scales(scan: ScanOrder) -> tuple[ScanOrder, Chain, int]:
    """Share the routes of an order out between an image and a coarser one.

    Args:
        scan: `multi_scale`, or any other order: its first route then reads the image and the others, chained, the coarse
            one. An order with a single route, or whose routes only visit a part each, reads both.

    Returns:
        The order of the image, the chain for the coarse image, the stride between them.
    """
    if isinstance(scan, MultiScale):  # its low routes are some of: rows, rows reversed, columns, columns reversed
        which = {1: (3,), 2: (1, 3), 3: (1, 2, 3)}[scan.low]
        return scan, chain(_select(create_scan("nd_2d"), which)), scan.stride
    if scan.num_routes == 1 or not scan.total:
        return scan, chain(scan), 2
    return _select(scan, [0]), chain(_select(scan, range(1, scan.num_routes))), 2


def deal(scan: ScanOrder, groups: int) -> ScanOrder:
    """Return the routes of an order shared out among channel groups, those of a group side by side.

    Args:
        scan: an order with that many channel groups, which is returned as it is, or with a divisor of that, so that several
            get the routes of one of its groups; or one without: its routes are dealt out in turn, starting again where there
            are fewer routes than groups. Where each only visits a part of the image, every group gets all.
        groups: number of groups.

    Raises:
        ValueError: the order has a number of groups that does not divide this one.
    """
    if scan.groups == groups:
        return scan
    routes = scan.num_routes
    if scan.groups != 1:
        if groups % scan.groups:
            raise ValueError(f"{scan!r} has {scan.groups} channel groups, which {groups} are no multiple of")
        per = routes // scan.groups
        first = [group * scan.groups // groups * per for group in range(groups)]
        return _select(scan, [start + route for start in first for route in range(per)])
    if not scan.total:
        return _select(scan, [*range(routes)] * groups)
    rounds = -(-routes // groups)
    return _select(scan, [(group + turn * groups) % routes for group in range(groups) for turn in range(rounds)])
