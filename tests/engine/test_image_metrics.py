"""PSNR and SSIM against scikit-image, and the field's conventions."""

import math

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from visionssm.engine.image_metrics import luma, psnr, ssim, to_uint8

RANDOM = np.random.default_rng(0)
CLEAN = RANDOM.integers(0, 256, (40, 53, 3), dtype=np.uint8)
SPOILED = np.clip(CLEAN + RANDOM.normal(0, 20, CLEAN.shape), 0, 255).astype(np.uint8)
OPTIONS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}


@pytest.mark.parametrize("border", [0, 2, 3])
def test_colour(border: int) -> None:
    inner = (slice(border, 40 - border), slice(border, 53 - border))
    one, two = CLEAN[inner], SPOILED[inner]
    assert psnr(CLEAN, SPOILED, border=border, y_only=False) == pytest.approx(
        peak_signal_noise_ratio(one, two), abs=1e-9
    )
    expected = structural_similarity(one, two, channel_axis=2, **OPTIONS)
    assert ssim(CLEAN, SPOILED, border=border, y_only=False) == pytest.approx(expected, abs=1e-9)


def test_luma_only() -> None:
    one, two = rgb2ycbcr(CLEAN)[..., 0], rgb2ycbcr(SPOILED)[..., 0]
    np.testing.assert_allclose(luma(CLEAN)[..., 0], one, atol=1e-9)
    expected = peak_signal_noise_ratio(one, two, data_range=255)
    assert psnr(CLEAN, SPOILED, border=0, y_only=True) == pytest.approx(expected, abs=1e-9)
    expected = structural_similarity(one, two, **OPTIONS)
    assert ssim(CLEAN, SPOILED, border=0, y_only=True) == pytest.approx(expected, abs=1e-9)


def test_grey_pictures_are_their_own_luma() -> None:
    one, two = CLEAN[..., :1], SPOILED[..., :1]
    assert psnr(one, two, border=1, y_only=True) == psnr(one, two, border=1, y_only=False)
    assert psnr(one, one, border=0, y_only=True) == math.inf
    assert ssim(one, one, border=0, y_only=True) == pytest.approx(1)


def test_quantisation_clips_and_rounds() -> None:
    assert list(to_uint8(np.array([-0.2, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.3]))) == [0, 0, 0, 1, 255, 255]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        psnr(CLEAN, CLEAN[:-1], border=0, y_only=True)
    with pytest.raises(ValueError, match="uint8"):
        ssim(CLEAN / 255, CLEAN / 255, border=0, y_only=True)
    with pytest.raises(ValueError, match="border=20"):
        psnr(CLEAN, SPOILED, border=20, y_only=True)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(CLEAN[:12], SPOILED[:12], border=1, y_only=True)
