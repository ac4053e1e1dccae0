"""The orders of MambaAD (arXiv 2404.06564, lewandofskee/MambaAD@0434452): a base order and its symmetries.

The base is read on the image, its transpose, the image turned counter-clockwise by 90 degrees, the transpose of that, then
all of it reversed. Published for squares; here for any H x W, with `gilbert` for Hilbert and the enclosing power of two for
Morton. Published "8 directions" of the Hilbert curve are 6 on powers of two: there its mirror image is its reversal.
"""

from abc import abstractmethod

from torch import Tensor

from .base import ScanOrder, grid
from .curves import gilbert, morton
from .diagonal import diagonal_zigzag
from .raster import with_reversed
from .registry import register_scan
from .snake import snake

__all__ = ["MambaADHilbert", "MambaADScan", "MambaADSweep", "MambaADZigzag", "MambaADZorder"]


class _Symmetries(ScanOrder):
    """A base order under 1, 2 or 4 symmetries, then reversed.

    Args:
        num_direction: number of routes: 2, 4 or 8.
    """

    num_direction: int = 8

    def check(self) -> None:
        if self.num_direction not in (2, 4, 8):
            raise ValueError(f"scan {self.name!r}: num_direction={self.num_direction!r} is not one of (2, 4, 8)")

    @abstractmethod
    def base(self, image: Tensor) -> Tensor:
        """Return the image in the base order."""

    @property
    def num_routes(self) -> int:
        return self.num_direction

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        image = grid(size)
        views = [image, image.T, image.rot90(), image.rot90().T]
        return with_reversed([self.base(view) for view in views[: self.num_direction // 2]])


@register_scan("mambaad_sweep")
class MambaADSweep(_Symmetries):
    """Rows."""

    def base(self, image: Tensor) -> Tensor:
        return image.flatten()


@register_scan("mambaad_scan")
class MambaADScan(_Symmetries):
    """Snake."""

    adjacency = "faces"

    def base(self, image: Tensor) -> Tensor:
        return snake(image)


@register_scan("mambaad_zorder")
class MambaADZorder(_Symmetries):
    """Morton order."""

    def base(self, image: Tensor) -> Tensor:
        return morton(image)


@register_scan("mambaad_zigzag")
class MambaADZigzag(_Symmetries):
    """Turning anti-diagonals."""

    adjacency = "corners"

    def base(self, image: Tensor) -> Tensor:
        return diagonal_zigzag(image)


@register_scan("mambaad_hilbert")
class MambaADHilbert(_Symmetries):
    """Hilbert curve."""

    adjacency = "corners"

    def base(self, image: Tensor) -> Tensor:
        return image.flatten()[gilbert(image.shape, (1, 0))]
