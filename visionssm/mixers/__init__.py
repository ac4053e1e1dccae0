"""Mixers: what a block does between its norm and its residual; rank-generic, any scan order.

Two kinds, because a causal convolution along a route does not commute with the permutation: `ImageScan` convolves in
image space, then scans (VMamba's SS2D); `SequenceScan` convolves along each route, then scans (Vim's bidirectional Mamba).
"""

from .image_scan import ImageScan
from .sequence_scan import SequenceScan

__all__ = ["ImageScan", "SequenceScan"]
