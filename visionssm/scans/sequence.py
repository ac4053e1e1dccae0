"""Orders of a plain sequence; images and volumes are read in raster order first."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

from .base import ScanOrder, grid
from .registry import register_scan

__all__ = ["LocalBidirectional", "SequenceReorder"]


@register_scan("sequence_reorder")
class SequenceReorder(ScanOrder):
    """As it comes, and every rate-th: MambaMIL's SRMamba (arXiv 2403.06800, isyangshu/MambaMIL@9aea39e).

    For route 1 the sequence is padded to a multiple of the rate, written in rows of that width and read column by column; the
    padding is scanned where it then lies.

    Args:
        rate: width of a row.
    """

    rate: int = 10

    ndims = (1, 2, 3)
    num_routes = 2
    padded = True

    def check(self) -> None:
        if self.rate < 1:
            raise ValueError(f"scan 'sequence_reorder': rate={self.rate!r} must be a positive integer")

    def length(self, size: Sequence[int]) -> int:
        return -(-math.prod(size) // self.rate) * self.rate

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        sequence = grid(size).flatten()
        rows = pad(sequence, (0, -sequence.numel() % self.rate), value=-1).view(-1, self.rate)
        return [sequence, rows.T.flatten()]


@register_scan("local_bidirectional")
class LocalBidirectional(ScanOrder):
    """Forwards, and backwards inside short segments: LBMamba (arXiv 2506.15976, cvlab-stonybrook/LBMamba@5215551).

    Segments start at multiples of their length, the last may be short, and the backward state restarts at each. Both routes share
    their parameters and a token's own input counts once: the result is the sum of both scans less C . (dt B u).

    Args:
        segment: length of a segment; 0 = as the published kernel: 4 up to 128 tokens, 8 up to 256, else 16.
    """

    segment: int = 0

    ndims = (1, 2, 3)
    num_routes = 2
    segmented = True

    def check(self) -> None:
        if self.segment < 0:
            raise ValueError(f"scan 'local_bidirectional': segment={self.segment!r} must be 0 or a positive integer")

    def segments(self, size: Sequence[int]) -> tuple[int, ...]:
        length = math.prod(size)
        return length, self.segment or (4 if length <= 128 else 8 if length <= 256 else 16)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        sequence = grid(size).flatten()
        _, segment = self.segments(size)
        padded = pad(sequence, (0, -sequence.numel() % segment), value=-1)
        backwards = padded.view(-1, segment).flip(1).flatten()
        return [sequence, backwards[backwards >= 0]]
