"""Tiling against a direct transcription of the published rule, exactness of every blend, memory."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tolerances import TOLERANCES
from visionssm.data.errors import UserError
from visionssm.engine.tiling import (
    Tiling,
    fit_tile,
    model_memory,
    published_spans,
    restore_picture,
    self_ensemble,
    tile_spans,
)

FLOAT = TOLERANCES[torch.float32]


def picture(height: int, width: int, channels: int = 3, dtype: type = np.float32) -> np.ndarray:
    values = np.random.default_rng(height * width).random((height, width, channels))
    return values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


def enlarge(scale: int):
    """Each pixel repeated: no matter how a picture is cut, the result is the same."""
    return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def blur(x: Tensor) -> Tensor:
    """Looks beyond its pixel and knows where its tile ends, so that cuts show."""
    return F.avg_pool2d(x, 13, 1, 6, count_include_pad=True)


def published_rule(restore, image: Tensor, scale: int) -> Tensor:
    """The published cut, piece by piece, as the field describes it: (1, C, H, W) -> (1, C, s H, s W)."""
    _, channels, height, width = image.shape
    rows, columns = height // 200 + 1, width // 200 + 1
    image = F.pad(image, (0, -width % columns, 0, -height % rows), "reflect")
    high, wide = image.shape[2] // rows, image.shape[3] // columns
    up, side = high // 10, wide // 10
    out = torch.full((1, channels, image.shape[2] * scale, image.shape[3] * scale), torch.nan)
    for i in range(rows):
        for j in range(columns):
            top, left = (0 if i == 0 else up), (0 if j == 0 else side)
            bottom, right = (0 if i == rows - 1 else up), (0 if j == columns - 1 else side)
            y, x = i * high, j * wide
            piece = image[:, :, y - top : y + high + bottom, x - left : x + wide + right]
            core = restore(piece)[:, :, top * scale : (top + high) * scale, left * scale : (left + wide) * scale]
            out[:, :, y * scale : (y + high) * scale, x * scale : (x + wide) * scale] = core
    return out[:, :, : height * scale, : width * scale]


@pytest.mark.parametrize("size", [(64, 80), (199, 200), (200, 401), (403, 611), (601, 199)])
@pytest.mark.parametrize("scale", [1, 2])
def test_the_published_cut_is_reproduced_to_the_bit(size: tuple[int, int], scale: int) -> None:
    def restore(x: Tensor) -> Tensor:
        return enlarge(scale)(blur(x))

    image = picture(*size)
    expected = published_rule(restore, torch.from_numpy(image.transpose(2, 0, 1)[None]), scale)
    got = restore_picture(restore, image, scale=scale, tiling=Tiling())
    assert np.array_equal(got, expected[0].permute(1, 2, 0).numpy())
    assert [(s.start, s.stop) for s in published_spans(401)[0]] == [(0, 147), (121, 281), (255, 402)]
    if max(size) >= 200:
        whole = restore_picture(restore, image, scale=scale, tiling=Tiling(mode="whole"))
        assert not np.array_equal(got, whole)


@pytest.mark.parametrize("blend", ["linear", "cut"])
@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((1, 1), 8, 4), ((50, 70), 16, 8), ((50, 70), 17, 0), ((64, 33), 32, 5), ((5, 90), 64, 32)],
)
def test_every_pixel_comes_from_its_place(size: tuple[int, int], tile: int, overlap: int, blend: str) -> None:
    tiling = Tiling(mode="tiles", tile=tile, overlap=overlap, blend=blend)
    image = picture(*size)
    got = restore_picture(enlarge(2), image, scale=2, tiling=tiling)
    np.testing.assert_allclose(got, image.repeat(2, 0).repeat(2, 1), **FLOAT)
    for dtype in (np.uint8, np.uint16):
        image = picture(*size, 1, dtype)
        got = restore_picture(enlarge(3), image, scale=3, tiling=tiling)
        assert got.dtype == dtype
        assert np.array_equal(got, image.repeat(3, 0).repeat(3, 1))


def test_overlap_hides_the_seams() -> None:
    image = picture(112, 112, 1)
    whole = restore_picture(blur, image, scale=1, tiling=Tiling(mode="whole"))

    def error(overlap: int, blend: str) -> float:
        tiling = Tiling(mode="tiles", tile=40, overlap=overlap, blend=blend)
        return float(np.abs(restore_picture(blur, image, scale=1, tiling=tiling) - whole).max())

    assert error(12, "cut") < 1e-6 < error(4, "cut") < error(0, "cut")  # the blur reaches 6 pixels
    assert error(12, "linear") < error(0, "linear")


def test_tiles_cover_an_axis_with_the_overlap_asked_for() -> None:
    for length in range(1, 80):
        for overlap in (0, 1, 7, 8):
            spans = tile_spans(length, 16, overlap, "cut")
            assert sum(span.weights.sum() for span in spans) == length  # each sample once
            assert spans[-1].stop == length
            assert all(b.start <= a.stop - overlap for a, b in pairwise(spans))
            assert all(a.start < b.start for a, b in pairwise(spans))


def test_the_ensemble_is_the_mean_over_the_symmetries() -> None:
    weights = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))

    def restore(x: Tensor) -> Tensor:
        return enlarge(2)(F.conv2d(x, weights, padding=1))

    x = torch.rand(1, 1, 9, 14)
    kernels = [torch.rot90(k, turn, (2, 3)) for k in (weights, weights.flip(3)) for turn in range(4)]
    expected = sum(enlarge(2)(F.conv2d(x, kernel, padding=1)) for kernel in kernels) / 8
    torch.testing.assert_close(self_ensemble(restore)(x), expected, **FLOAT)


def test_progress_counts_tiles() -> None:
    seen: list[tuple[int, int]] = []
    tiling = Tiling(mode="tiles", tile=16, overlap=0)
    restore_picture(enlarge(1), picture(30, 40), scale=1, tiling=tiling, tick=lambda *count: seen.append(count))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile=0 must be at least 1"),
        ({"tile": 16, "overlap": 9}, "overlap=9 must be 0 to 8"),
        ({"overlap": -1}, "overlap=-1"),
        ({"blend": "cubic"}, "blend 'cubic'"),
        ({"mode": "some"}, "tiling 'some'"),
    ],
)
def test_impossible_tilings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tiling(**{"mode": "tiles", **options})


def test_what_does_not_restore_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to restore"):
        restore_picture(enlarge(1), np.zeros((0, 5, 3), np.uint8), scale=1, tiling=Tiling())
    with pytest.raises(UserError, match="not 2 times the size"):
        restore_picture(enlarge(1), picture(8, 8), scale=2, tiling=Tiling())

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(UserError, match="a tile of 9x8 does not fit into memory"):
        restore_picture(full, picture(8, 9), scale=1, tiling=Tiling())


def test_memory_counts_the_tensors_alive_together() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([x] * 10, 1)  # 10 channels beside
            z = y * 2  # 20
            del y
            return z[:, :1] + 0  # 11

    model = Wide()
    assert model_memory(model, model, 1) == pytest.approx(20 * 4 * 2)


def test_the_largest_tile_within_a_bound() -> None:
    options = {
        "per_pixel": 1000.0,
        "size": (500, 700),
        "scale": 2,
        "channels": 3,
        "itemsize": 1,
        "overlap": 16,
    }
    tiles = [fit_tile(limit * 2**20, **options) for limit in (40, 80, 160, 4000)]
    assert tiles == sorted(tiles)
    assert 32 < tiles[0] < tiles[1] < tiles[2] < 700 == tiles[3]
    with pytest.raises(UserError, match=r"4 MiB is too small for a picture of 700x500.* need \d+ MiB"):
        fit_tile(4 * 2**20, **options)
