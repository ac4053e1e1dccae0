"""Mixers: what a block does between its norm and its residual; rank-generic, any scan order.

Two kinds, because a causal convolution along a route does not commute with the permutation: `ImageScan` convolves in
image space, then scans (VMamba's SS2D); `SequenceScan` convolves along each route, then scans (Vim's bidirectional Mamba).
Two relatives of the first share one set of parameters among all routes: `DirectionScan` is told by which move each step
arrives (PlainMamba); `StateFusion` mixes the states in image space before they are read out (Spatial-Mamba).
`GroupScan` is the first for every channel group alone (GroupMamba); `MultiScaleScan` scans a map at full and at half size
(MSVMamba).
`AttentiveScan` makes its order from the image itself (MambaIRv2).
`NonCausalScan` (VSSD) and `HiddenStateMixer` (EfficientViM) have none: every token reads one sum over all of them.
"""

from .attentive import AttentiveScan
from .direction_scan import DirectionScan
from .group_scan import GroupScan
from .image_scan import ImageScan
from .merges import GatedMerge, SearchMerge
from .multi_scale import MultiScaleScan
from .noncausal import HiddenStateMixer, NonCausalScan
from .sequence_scan import SequenceScan
from .shuffle_merge import ShuffleMerge
from .state_fusion import StateFusion

__all__ = [
    "AttentiveScan",
    "DirectionScan",
    "GatedMerge",
    "GroupScan",
    "HiddenStateMixer",
    "ImageScan",
    "MultiScaleScan",
    "NonCausalScan",
    "SearchMerge",
    "SequenceScan",
    "ShuffleMerge",
    "StateFusion",
]
