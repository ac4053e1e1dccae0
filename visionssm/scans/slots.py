"""Padding as positions, for mixers that compute something at padded steps; and LocalMamba's published un-scan."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ScanOrder
from .registry import create_scan, register_scan, scan_from_key
from .window import Window

__all__ = ["PublishedUnscan", "WithSlots", "published_unscan", "with_slots"]


@register_scan("with_slots")
class WithSlots(ScanOrder):
    """The routes of another order, whose padding steps visit positions of their own behind the L real ones.

    A padding step of the kernels is a zero token, over which the state only decays. LocalVim (hunto/LocalMamba@75e5d1f) pads
    before its causal convolution, so a padded step carries what the convolution gives there. Step by step, the padding of
    every route is numbered L, L + 1, ...; routes share these slots. Padding behind a route's last position, which
    nothing comes after, stays -1.

    Args:
        scan: key of an order whose routes each visit every position; a longest route has `length - L` padding steps.
    """

    scan: str

    ndims = (2, 3)
    wraps = True
    padded = True

    @property
    def inner(self) -> ScanOrder:
        """The order with padding."""
        return scan_from_key(self.scan)

    @property
    def num_routes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.num_routes

    @property
    def groups(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.groups

    def positions(self, size: Sequence[int]) -> int:
        return self.inner.length(size)

    def length(self, size: Sequence[int]) -> int:
        return self.inner.length(size)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        routes = self.inner.routes(size)
        real = routes >= 0
        ahead = real.flip(1).cumsum(1).flip(1)  # real steps from here on
        inside = ~real & (ahead > 0)
        slots = self.inner.positions(size) - 1 + inside.cumsum(1)
        return list(torch.where(inside, slots, routes))


@register_scan("published_unscan")
class PublishedUnscan(ScanOrder):
    """Not an order to scan by: position p of route k is filled from the output for position `routes[k, p]`.

    See `Window.published_unscan`.

    Args:
        scan: key of a `window` order.
    """

    scan: str

    wraps = True

    @property
    def num_routes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return scan_from_key(self.scan).num_routes

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        window = scan_from_key(self.scan)
        assert isinstance(window, Window)
        return list(window.published_unscan((size[0], size[1])))


def with_slots(scan: ScanOrder) -> ScanOrder:
    """Return `scan` with padding slots, or itself without padding, or where routes visit a part each or start anew inside."""
    if not scan.padded or not scan.total or scan.segmented:
        return scan
    return create_scan("with_slots", scan=scan.key, ndim=scan.ndim)


def published_unscan(scan: ScanOrder) -> ScanOrder | None:
    """Return where the published code takes each route's outputs from; None where that is right (no `window` order)."""
    return create_scan("published_unscan", scan=scan.key) if isinstance(scan, Window) else None
