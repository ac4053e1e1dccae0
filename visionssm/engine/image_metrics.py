"""PSNR and SSIM as the restoration papers compute them: 8 bits, border cut off, on request luma only.

Source of the conventions: BasicSR, which the published code of MambaIR (csguoh/MambaIR@33d7b34) evaluates with.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import correlate1d

__all__ = ["luma", "psnr", "ssim", "to_uint8"]

_SIGMA, _RADIUS = 1.5, 5  # an 11 x 11 window


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Floats in 0..1 -> uint8, clipped and rounded."""
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 1) float64: Y of BT.601 in 16..235, unrounded. Grey pictures pass as they are."""
    if image.shape[2] == 1:
        return image.astype(np.float64)
    return image.astype(np.float64) @ np.array([[65.481], [128.553], [24.966]]) / 255 + 16


def _prepare(one: np.ndarray, two: np.ndarray, border: int, y_only: bool) -> tuple[np.ndarray, np.ndarray]:
    if one.shape != two.shape or one.ndim != 3 or one.dtype != np.uint8 or two.dtype != np.uint8:
        raise ValueError(
            f"both pictures must be (H, W, C) uint8 of one shape, got {one.shape} {one.dtype} and {two.shape} {two.dtype}"
        )
    if min(one.shape[:2]) <= 2 * border:
        raise ValueError(f"border={border} leaves nothing of a picture of shape {one.shape}")
    inner = slice(border, -border or None)
    pair = (one[inner, inner], two[inner, inner])
    first, second = (luma(image) if y_only else image.astype(np.float64) for image in pair)
    return first, second


def psnr(one: np.ndarray, two: np.ndarray, *, border: int, y_only: bool) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures.

    Args:
        one, two: (H, W, C) uint8.
        border: Pixels cut off at each edge; the scale, for super-resolution.
        y_only: Compare the luma instead of all channels.

    Raises:
        ValueError: If the pictures differ in shape or are not uint8.
    """
    first, second = _prepare(one, two, border, y_only)
    error = float(np.mean((first - second) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(one: np.ndarray, two: np.ndarray, *, border: int, y_only: bool) -> float:
    """Structural similarity (Wang et al., 2004): Gaussian window, its inner part only, mean over channels.

    Args, Raises: As in `psnr`; a side must be 11 pixels or more.
    """
    first, second = _prepare(one, two, border, y_only)
    if min(first.shape[:2]) <= 2 * _RADIUS:
        raise ValueError(f"SSIM needs 11 x 11 pixels or more, got {first.shape} inside the border")
    taps = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    inner = slice(_RADIUS, -_RADIUS)

    def smooth(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, taps, 0), taps, 1)[inner, inner]

    mean1, mean2 = smooth(first), smooth(second)
    variance1, variance2 = smooth(first**2) - mean1**2, smooth(second**2) - mean2**2
    covariance = smooth(first * second) - mean1 * mean2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return float(np.mean(score / ((mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2))))
