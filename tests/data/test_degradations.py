"""MATLAB's resize against its definition and Pillow, regions against whole pictures, noise and JPEG."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tolerances import TOLERANCES
from visionssm.data.degradations import (
    DegradationConfig,
    add_noise,
    compress_jpeg,
    degrade,
    degrade_region,
    resize,
)
from visionssm.data.errors import DataError
from visionssm.data.photographs import PHOTOGRAPHS, load_photographs

EXACT = TOLERANCES[torch.float64]


def photograph(height: int = 96, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_resize(line: list[float], scale: float) -> list[float]:
    """One axis of imresize from its definition: every sample of the mirrored, endless line, no tables."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    out, shrink = [], min(1.0, scale)
    for i in range(math.ceil(len(line) * scale)):
        centre = (i + 0.5) / scale - 0.5
        total = weight = 0.0
        for j in range(math.floor(centre - 3 / shrink), math.ceil(centre + 3 / shrink) + 1):
            mirrored = j % (2 * len(line))
            mirrored = min(mirrored, 2 * len(line) - 1 - mirrored)
            share = kernel((centre - j) * shrink)
            total, weight = total + share * line[mirrored], weight + share
        out.append(total / weight)
    return out


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4, 0.7])
@pytest.mark.parametrize("length", [3, 12, 25])
def test_resize_is_its_definition(scale: float, length: int) -> None:
    line = np.random.default_rng(1).random(length)
    image = np.stack([line, line], 1)  # constant across the other axis, which therefore changes nothing
    np.testing.assert_allclose(resize(image, scale)[:, 0], slow_resize(list(line), scale), **_numpy(EXACT))


def _numpy(tolerance: dict[str, float]) -> dict[str, float]:
    return {"rtol": tolerance["rtol"], "atol": tolerance["atol"]}


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2])
def test_inside_it_is_the_antialiased_bicubic_of_pillow(scale: float) -> None:
    image = photograph()[..., 0].astype(np.float32)
    ours = resize(image, scale)
    theirs = np.asarray(Image.fromarray(image).resize((ours.shape[1], ours.shape[0]), Image.Resampling.BICUBIC))
    inner = (slice(3 * math.ceil(scale), -3 * math.ceil(scale)),) * 2  # Pillow cuts the kernel off at the edge
    np.testing.assert_allclose(ours[inner], theirs[inner], rtol=1e-4, atol=1e-2)
    assert np.abs(ours - theirs).max() > 1


def test_integers_are_rounded_after_each_axis() -> None:
    image = photograph()
    small = resize(image, 0.5)
    assert small.dtype == np.uint8
    rows = np.stack([[slow_resize(list(image[:, x, c]), 0.5) for x in range(20)] for c in range(3)], -1)
    rows = np.clip(np.floor(rows.swapaxes(0, 1) + 0.5), 0, 255)
    expected = [slow_resize(list(np.concatenate([rows[7, :, 0], rows[7, ::-1, 0]])), 0.5)[i] for i in range(3)]
    assert list(small[7, 2:3, 0]) == [math.floor(np.clip(expected[2], 0, 255) + 0.5)]
    assert np.abs(small - resize(image.astype(float), 0.5)).max() > 0.5  # clipping shows in noise
    assert resize((image.astype(np.uint16) * 257), 2).dtype == np.uint16


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2),
        ({}, 3),
        ({}, 4),
        ({"jpeg": 30}, 1),
        ({"jpeg": 40}, 2),
        ({"jpeg": (20, 60)}, 1),
    ],
)
def test_a_region_is_degraded_as_in_the_whole_picture(config: dict, scale: int) -> None:
    clean, degradation = photograph(), DegradationConfig(**config)
    whole = degrade(clean, degradation, scale=scale, seed=3)
    assert whole.shape == (96 // scale, 120 // scale, 3)
    for y, x, side in ((0, 0, 24), (36, 48, 24), (72, 96, 24), (12, 84, 36)):
        region = degrade_region(clean, slice(y, y + side), slice(x, x + side), degradation, scale=scale, seed=3)
        expected = whole[y // scale : (y + side) // scale, x // scale : (x + side) // scale]
        assert np.array_equal(region, expected)


def test_noise_is_that_of_the_benchmarks() -> None:
    clean = photograph()
    noisy = degrade(clean, DegradationConfig(noise=25.0), scale=1)
    np.random.seed(0)  # noqa: NPY002  the published test draws so
    drawn = np.random.normal(0, 25 / 255.0, clean.shape)  # noqa: NPY002
    assert np.array_equal(noisy, (clean.astype(np.float32) / 255 + drawn).astype(np.float32))
    assert noisy.min() < 0  # not clipped
    assert np.array_equal(add_noise(noisy, 10, 5), add_noise(noisy, 10, 5))
    assert not np.array_equal(add_noise(noisy, 10, 5), add_noise(noisy, 10, 6))


def test_ranges_are_drawn_by_the_seed() -> None:
    flat = np.full((128, 128, 1), 128, np.uint8)
    config = DegradationConfig(noise=(0.0, 50.0))
    spreads = [float(degrade(flat, config, scale=1, seed=seed).std()) * 255 for seed in range(6)]
    assert max(spreads) > 25 > min(spreads)
    assert max(spreads) < 51


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    image = photograph()[..., :channels]
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=10)
    expected = np.asarray(Image.open(buffer)).reshape(image.shape)
    assert np.array_equal(compress_jpeg(image, 10), expected)
    assert np.array_equal(degrade(image, DegradationConfig(jpeg=10), scale=1), expected.astype(np.float32) / 255)


@pytest.mark.parametrize(
    "config", [{"noise": -1.0}, {"noise": (5.0, 1.0)}, {"jpeg": 0}, {"jpeg": 101}, {"jpeg": (50, 10)}]
)
def test_impossible_degradations_are_refused(config: dict) -> None:
    with pytest.raises(DataError, match="degradation"):
        DegradationConfig(**config)


def test_sizes_must_fit() -> None:
    with pytest.raises(DataError, match="120x95 cannot be shrunk 2 times"):
        degrade(photograph(95), DegradationConfig(), scale=2)
    with pytest.raises(DataError, match="cannot resize"):
        resize(np.zeros((0, 3)), 2)


def test_photographs_are_there_and_no_scene_is_in_two_parts() -> None:
    seen = [name for names in PHOTOGRAPHS.values() for name in names]
    assert len(seen) == len(set(seen))
    for split, names in PHOTOGRAPHS.items():
        pictures = load_photographs(split)
        assert tuple(pictures) == names
        assert all(p.dtype == np.uint8 and p.shape[2] == 3 and min(p.shape[:2]) >= 192 for p in pictures.values())
    with pytest.raises(DataError, match="did you mean train"):
        load_photographs("trian")
