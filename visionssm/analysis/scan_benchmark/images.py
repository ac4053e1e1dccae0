"""The photographs inside scikit-image and scikit-learn; no download."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from visionssm.data.classification import open_image
from visionssm.data.errors import DataError

__all__ = ["TEST_PHOTOS", "TRAIN_PHOTOS", "load_photos", "square_photos", "user_photos"]

TRAIN_PHOTOS = ("astronaut", "coffee", "rocket", "brick", "grass", "gravel", "china.jpg", "coins")
TEST_PHOTOS = ("chelsea", "flower.jpg", "camera", "moon")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@lru_cache(maxsize=16)
def _photo(name: str) -> np.ndarray:
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(name)
    from skimage import data

    return getattr(data, name)()


def load_photos(names: tuple[str, ...]) -> list[Tensor]:
    """Embedded photographs by name, each (3, H, W) float32 in 0..1."""
    return [_tensor(_photo(name)) for name in names]


def user_photos(folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """A user's photographs, sorted by name: for training, and every fourth for testing.

    Raises:
        DataError: fewer than four images in the folder, or one that cannot be read.
    """
    root = Path(folder).expanduser()
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _ENDINGS) if root.is_dir() else []
    if len(files) < 4:
        raise DataError(f"{folder} must be a folder with at least 4 images ({', '.join(_ENDINGS)}), found {len(files)}")
    photos = [_tensor(np.asarray(open_image(file, str(file)))) for file in files]
    return [photo for i, photo in enumerate(photos) if i % 4 != 3], photos[3::4]


def square_photos(names: tuple[str, ...], size: int | tuple[int, int]) -> Tensor:
    """The middle squares of photographs, resized with anti-aliasing: (P, 3, H, W) in 0..1."""
    sides = (size, size) if isinstance(size, int) else size
    squares = []
    for photo in load_photos(names):
        side = min(photo.shape[1:])
        top, left = ((extent - side) // 2 for extent in photo.shape[1:])
        square = photo[None, :, top : top + side, left : left + side]
        squares.append(F.interpolate(square, sides, mode="bilinear", antialias=True))
    return torch.cat(squares).clamp_(0, 1)


def _tensor(pixels: np.ndarray) -> Tensor:
    image = Image.fromarray(pixels).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
