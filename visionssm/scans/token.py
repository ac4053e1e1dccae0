"""A scan order over patches, made one over patches and a class token in their middle."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ScanOrder, cut
from .registry import create_scan, register_scan, scan_from_key

__all__ = ["WithToken", "with_token"]


@register_scan("with_token")
class WithToken(ScanOrder):
    """The routes of another order, each with a class token that lies at position M // 2 of the M + 1 tokens.

    The token enters every route at step M // 2; with `mirrored`, a route that reverses an earlier one meets it
    at the mirrored step, as when the whole sequence is reversed (Vim, arXiv 2401.09417). Without, the step is the same
    for all (LocalVim, hunto/LocalMamba@75e5d1f). The two differ for odd M only, or where routes are padded.

    Args:
        scan: key of the order over the patches.
        mirrored: see above.
    """

    scan: str
    mirrored: bool = True
    ndims = (2, 3)
    wraps = True

    @property
    def inner(self) -> ScanOrder:
        """The order over the patches."""
        return scan_from_key(self.scan)

    @property
    def num_routes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.num_routes

    @property
    def total(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.total

    @property
    def padded(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.padded or self.inner.segmented

    @property
    def groups(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.groups

    @property
    def content(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.content

    def positions(self, size: Sequence[int]) -> int:
        return self.inner.positions(size) + 1

    @property
    def segmented(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.segmented

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        if not self.segmented:
            return super().segments(size)
        return tuple(piece + 1 for piece in self.inner.segments(size))

    def length(self, size: Sequence[int]) -> int:
        length = self.inner.length(size)
        if not self.segmented:
            return length + 1
        return max(-(-length // piece) * (piece + 1) for piece in self.inner.segments(size))

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        routes = self.inner.routes(size)
        middle = self.inner.positions(size) // 2
        if self.segmented:
            return [
                self._join(path, piece, middle) for path, piece in zip(routes, self.inner.segments(size), strict=True)
            ]
        token = torch.tensor([middle], device="cpu")
        paths: list[Tensor] = []
        for k, route in enumerate(routes):
            reverses = self.mirrored and any(torch.equal(route, earlier.flip(0)) for earlier in routes[:k])
            step = route.numel() - middle if reverses else middle
            moved = route + (route >= middle)  # patches behind the token move up by one; padding stays -1
            paths.append(torch.cat([moved[:step], token, moved[step:]]))
        return paths

    def _join(self, route: Tensor, piece: int, middle: int) -> Tensor:
        """All pieces become one step longer: the token joins the one that is read at step `middle`, the others end in -1."""
        route = route + (route >= middle)
        pieces = cut(route, piece, piece + 1)
        number, step = divmod(min(middle, route.numel() - 1), piece)
        pieces[number, step + 1 :] = pieces[number, step:-1].clone()
        pieces[number, step] = middle
        return pieces.flatten()


def with_token(scan: ScanOrder, *, mirrored: bool = True) -> ScanOrder:
    """Return `scan` over M patches and a class token at position M // 2."""
    return create_scan("with_token", scan=scan.key, mirrored=mirrored, ndim=scan.ndim)
