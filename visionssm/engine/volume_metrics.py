"""Scores of segmented volumes: Dice, and the 95th percentile of surface distances, as BraTS papers report them."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["VolumeScores", "dice", "hd95", "score_regions", "summarise"]

EMPTY_HD95 = 50.0  # mm, where one of the two is empty: what SegMamba's metric script counts


@dataclass(frozen=True, kw_only=True)
class VolumeScores:
    """Scores of one case, by region.

    Args:
        dice: 2 |A and B| / (|A| + |B|).
        hd95: in mm.
    """

    dice: dict[str, float]
    hd95: dict[str, float]


def dice(guess: np.ndarray, truth: np.ndarray, *, empty: float = 0.0) -> float:
    """Dice of two masks.

    Args:
        guess, truth: bool, of one shape.
        empty: the value where both are empty: 1 during training, 0 in the published metric script.
    """
    total = int(guess.sum()) + int(truth.sum())
    return 2 * int((guess & truth).sum()) / total if total else empty


def hd95(guess: np.ndarray, truth: np.ndarray, *, spacing: Sequence[float]) -> float:
    """95th percentile of the distances of each surface's voxels to the other surface, of both directions together (medpy's).

    Args:
        guess, truth: bool, of one shape.
        spacing: mm from voxel to voxel along each axis.

    Returns:
        mm; 50 where a mask is empty.
    """
    if not guess.any() or not truth.any():
        return EMPTY_HD95
    box = ndimage.find_objects((guess | truth).astype(np.uint8))[0]  # all distances lie between voxels in it
    guess, truth = (np.pad(mask[box], 1) for mask in (guess, truth))
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (guess, truth)]
    distances = [
        ndimage.distance_transform_edt(~other, sampling=spacing)[one]  # pyright: ignore
        for one, other in (surfaces, surfaces[::-1])
    ]
    return float(np.percentile(np.concatenate(distances), 95))


def score_regions(
    guess: np.ndarray, truth: np.ndarray, regions: Mapping[str, Sequence[int]], *, spacing: Sequence[float]
) -> VolumeScores:
    """Scores of label volumes, region by region; empty masks count as in the published metric script.

    Args:
        guess, truth: integer, of one shape.
        regions: name -> label values.
        spacing: mm from voxel to voxel along each axis.
    """
    masks = {name: (np.isin(guess, values), np.isin(truth, values)) for name, values in regions.items()}
    return VolumeScores(
        dice={name: dice(*pair) for name, pair in masks.items()},
        hd95={name: hd95(*pair, spacing=spacing) for name, pair in masks.items()},
    )


def summarise(scores: Sequence[VolumeScores]) -> dict[str, Any]:
    """Means over the cases, per region and over the regions."""
    names = list(scores[0].dice)
    by_region = {
        kind: {name: float(np.mean([getattr(score, kind)[name] for score in scores])) for name in names}
        for kind in ("dice", "hd95")
    }
    means = {f"mean_{kind}": float(np.mean(list(values.values()))) for kind, values in by_region.items()}
    return {**means, **by_region, "cases": len(scores)}
