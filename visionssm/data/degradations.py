"""How restoration spoils its pictures: MATLAB's bicubic resize, Gaussian noise, JPEG; deterministic by seed.

Super-resolution papers make their small pictures by MATLAB's `imresize`, which widens its cubic kernel when it shrinks
and mirrors the edge. OpenCV and torch do not, Pillow cuts the kernel off at the edge: a model trained on one and tested
on another loses about a decibel.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from visionssm.data.errors import DataError

__all__ = [
    "DegradationConfig",
    "add_noise",
    "compress_jpeg",
    "cubic_weights",
    "degrade",
    "degrade_region",
    "resize",
]

NOISE_STREAM, JPEG_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """What is done to a clean picture, in this order; the scale is the model's.

    Args:
        noise: Standard deviation of Gaussian noise on the scale 0 to 255, a pair to draw it from, or None. As in the
            field's benchmarks it is neither rounded nor clipped.
        jpeg: Quality, a pair to draw it from, or None. Rounds to 8 bits.
    """

    noise: float | tuple[float, float] | None = None
    jpeg: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = _pair(self.noise)
        if not 0 <= low <= high:
            raise DataError(f"degradation.noise={self.noise!r} must be 0 or more, a pair in ascending order")
        low, high = _pair(self.jpeg if self.jpeg is not None else 1)
        if not 1 <= low <= high <= 100:
            raise DataError(f"degradation.jpeg={self.jpeg!r} must be 1 to 100, a pair in ascending order")


def _pair(value: float | tuple[float, float] | None) -> tuple[float, float]:
    if value is None:
        return 0.0, 0.0
    return value if isinstance(value, tuple) else (value, value)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@lru_cache(maxsize=64)
def cubic_weights(length: int, out_length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Which input samples, with which weights, make each output sample along one axis.

    Args:
        length, out_length: Samples in and out.
        scale: Output over input; below 1 the kernel is widened by 1 / scale.

    Returns:
        indices (out_length, taps) int64, mirrored at the edges (the edge repeated); weights (out_length, taps) float64, of sum 1.
    """
    shrink = min(scale, 1.0)
    width = 4.0 / shrink
    centre = (np.arange(1, out_length + 1) / scale) + 0.5 * (1 - 1 / scale)  # 1-based, as in MATLAB
    left = np.floor(centre - width / 2)
    positions = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - positions))
    weights /= weights.sum(1, keepdims=True)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    indices = mirrored[(positions.astype(np.int64) - 1) % (2 * length)]
    used = np.flatnonzero(weights.any(0))
    return indices[:, used], weights[:, used]


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's `imresize(image, scale, "bicubic")`, with antialiasing.

    Args:
        image: (H, W) or (H, W, C); uint8 and uint16 are rounded and clipped after each axis, as MATLAB does; floats are not.
        scale: Output over input size.

    Returns:
        (ceil(H * scale), ceil(W * scale), ...) of the same dtype; float64 inside.

    Raises:
        DataError: If the scale is not positive or the picture is empty.
    """
    if scale <= 0 or 0 in image.shape[:2]:
        raise DataError(f"cannot resize a picture of shape {image.shape} by {scale}")
    dtype = image.dtype
    for axis in (0, 1):
        length = image.shape[axis]
        indices, weights = cubic_weights(length, math.ceil(length * scale - 1e-9), float(scale))
        image = _apply(np.moveaxis(image, axis, 0), indices, weights)
        if dtype.kind == "u":
            image = np.clip(np.floor(image + 0.5), 0, np.iinfo(dtype).max).astype(dtype)
        image = np.moveaxis(image, 0, axis)
    return np.ascontiguousarray(image, dtype=dtype)


def _apply(image: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of rows, tap by tap: (rows, ...) -> (out_rows, ...) float64."""
    shape = (-1,) + (1,) * (image.ndim - 1)
    out = np.zeros((len(indices), *image.shape[1:]))
    for tap in range(indices.shape[1]):
        out += weights[:, tap].reshape(shape) * image[indices[:, tap]]
    return out


def add_noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Adds Gaussian noise.

    With seed 0 these are the numbers of the field's denoising benchmarks, which draw from numpy's legacy generator.

    Args:
        image: (H, W, C) float, 0..1.
        sigma: Standard deviation on the scale 0 to 255.
        seed: Of the noise.

    Returns:
        float32, unclipped.
    """
    noise = np.random.RandomState(seed).normal(0, sigma / 255.0, image.shape)
    return (image + noise).astype(np.float32)


def compress_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 1 or 3) uint8 -> the same after JPEG; colour at 4:2:0."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.save(buffer, "JPEG", quality=quality, subsampling="4:2:0" if image.shape[2] == 3 else -1)
    return np.asarray(Image.open(buffer)).reshape(image.shape)


def degrade(clean: np.ndarray, config: DegradationConfig, *, scale: int, seed: int = 0) -> np.ndarray:
    """Spoils a whole picture.

    Args:
        clean: (H, W, C) uint8, H and W multiples of `scale`.
        config: What to do.
        scale: How much smaller the result is.
        seed: Decides noise and quality.

    Returns:
        (H / scale, W / scale, C) float32; 0..1 but for noise.

    Raises:
        DataError: If H or W is no multiple.
    """
    if clean.shape[0] % scale or clean.shape[1] % scale:
        raise DataError(f"a picture of {clean.shape[1]}x{clean.shape[0]} cannot be shrunk {scale} times")
    image = resize(clean, 1 / scale) if scale > 1 else clean
    degraded = image.astype(np.float32) / 255
    if config.noise is not None:
        low, high = _pair(config.noise)
        sigma = low if low == high else np.random.default_rng((seed, NOISE_STREAM)).uniform(low, high)
        degraded = add_noise(degraded, sigma, seed)
    if config.jpeg is not None:
        low, high = _pair(config.jpeg)
        quality = int(np.random.default_rng((seed, JPEG_STREAM)).integers(int(low), int(high) + 1))
        rounded = np.clip(np.floor(degraded * 255 + 0.5), 0, 255).astype(np.uint8)
        degraded = compress_jpeg(rounded, quality).astype(np.float32) / 255
    return degraded


def degrade_region(
    clean: np.ndarray, rows: slice, columns: slice, config: DegradationConfig, *, scale: int, seed: int = 0
) -> np.ndarray:
    """What `degrade` gives inside a region, without spoiling the whole picture: resize and JPEG to the last bit.

    Only the noise is another draw.

    Args:
        clean: The whole picture, (H, W, C) uint8, H and W multiples of `scale`.
        rows, columns: The region in `clean`; its bounds are multiples of `scale`.
        config, scale, seed: As in `degrade`.

    Returns:
        (rows / scale, columns / scale, C) float32.
    """
    # JPEG works on blocks of 8 or 16 and smooths its chroma across them; the kernel reaches two samples of the small picture.
    grid, reach = (16 * scale, 16 * scale) if config.jpeg is not None else (scale, 4 * scale)
    spans = [
        slice(max(0, (part.start - reach) // grid * grid), min(side, -(-(part.stop + reach) // grid) * grid))
        for part, side in ((rows, clean.shape[0]), (columns, clean.shape[1]))
    ]
    spoiled = degrade(clean[spans[0], spans[1]], config, scale=scale, seed=seed)
    y, x = ((part.start - span.start) // scale for part, span in zip((rows, columns), spans, strict=True))
    height, width = ((part.stop - part.start) // scale for part in (rows, columns))
    return spoiled[y : y + height, x : x + width]
