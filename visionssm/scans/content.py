"""Orders that are read off the image: per-image tables, made by a module that learns with the model.

An order here says what is sorted by and holds the options; `visionssm.mixers.content` has the modules, which every mixer runs.
Its `routes` are those of an image without content, all of whose positions are alike: the raster, as all sorts are stable.
"""

from torch import Tensor

from .base import ScanOrder, grid
from .registry import register_scan

__all__ = ["Adaptive", "Cluster", "Semantic"]


def _positive(scan: ScanOrder, **options: int) -> None:
    for option, value in options.items():
        if value < 1:
            raise ValueError(f"scan {scan.name!r}: {option}={value!r} must be a positive integer")


@register_scan("semantic")
class Semantic(ScanOrder):
    """By a learned category of every position: MambaIRv2's semantic neighbours (arXiv 2411.15269, csguoh/MambaIR@33d7b34).

    Each category has a learned prompt that is added to the readout C of its positions, which is how the categories are learned.

    Args:
        categories: number of categories.
        rank: of the matrix of prompts.
    """

    categories: int = 64
    rank: int = 32

    ndims = (2, 3)
    num_routes = 1
    content = True

    def check(self) -> None:
        _positive(self, categories=self.categories, rank=self.rank)

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()]


@register_scan("cluster")
class Cluster(ScanOrder):
    """By the nearest of some centres in cosine distance: CMIC's content-aware Mamba (arXiv 2508.02192, UnoC-727/CMIC@e4ae3fd).

    Centres follow the features by steps of k-means in training, averaged over time; each one's prompt, a linear function of
    it, is added to the readout C of its positions.

    Args:
        clusters: number of centres.
        iterations: steps of k-means per training step, besides the first assignment.
        decay: what an average keeps of itself per training step.
    """

    clusters: int = 64
    iterations: int = 4
    decay: float = 0.999

    ndims = (2, 3)
    num_routes = 1
    content = True

    def check(self) -> None:
        _positive(self, clusters=self.clusters, iterations=self.iterations)
        if not 0 <= self.decay < 1:
            raise ValueError(f"scan 'cluster': decay={self.decay!r} must lie in 0..1, 1 excluded")

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()]


@register_scan("adaptive")
class Adaptive(ScanOrder):
    """By learned scores, one route per group: ASM-UNet (arXiv 2508.07237, YqunYang/ASM-UNet@4f5aa5d).

    A position's score is a learned function of where it lies in the raster plus a learned function of what it shows. A sort has
    no gradient: the score is a further input of the scan, by which it is learned.

    Args:
        scores: number of groups, each with its own function of the place.
        vector: length of the vectors that are stretched over the raster.
    """

    scores: int = 3
    vector: int = 2048

    ndims = (2, 3)
    content = True

    def check(self) -> None:
        _positive(self, scores=self.scores, vector=self.vector)

    @property
    def num_routes(self) -> int:
        return self.scores

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        return [grid(size).flatten()] * self.scores
