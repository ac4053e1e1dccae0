"""The two embedded tasks that answer per pixel: semantic maps of digits, noisy photographs.

Every batch is a function of (seed, step), every test image of its index alone.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionssm.data.digits import load_digit_images
from visionssm.data.seeding import seed_of

from .config import DenseConfig
from .images import TEST_PHOTOS, TRAIN_PHOTOS, load_photos, user_photos

__all__ = ["Denoising", "DenseTask", "DigitMaps", "open_task"]

DIGITS_PER_MAP = 3
TEST_STREAM = 1_000_003  # keeps the test images apart from every training seed


class DenseTask(Protocol):
    """A task with an answer per pixel.

    Args:
        outputs: Channels of the answer.
        metric: What `score` returns, the higher the better.
    """

    outputs: int
    metric: str

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Training images (B, 3, S, S) and their targets."""
        ...

    def test(self, count: int) -> tuple[Tensor, Tensor]:
        """Test images and targets, always the same."""
        ...

    def answer(self, images: Tensor, output: Tensor) -> Tensor:
        """The network's answer, from its output (B, outputs, S, S)."""
        ...

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        """A scalar."""
        ...

    def score(self, answer: Tensor, target: Tensor) -> float:
        """The metric over all test images."""
        ...


class DigitMaps:
    """Three digits of 16 x 16 pixels at places of their own on a grey-noise ground; each inked pixel has the digit's class.

    Args:
        config: Size of the map.
    """

    outputs = 11  # ground, then the digits
    metric = "mean IoU"

    def __init__(self, config: DenseConfig) -> None:
        self.size = config.size
        self.digits = {split: self._load(split) for split in ("train", "test")}

    @staticmethod
    def _load(split: str) -> tuple[Tensor, Tensor]:
        images, targets, _ = load_digit_images(split)  # type: ignore[arg-type]
        scans = torch.from_numpy(np.stack([np.asarray(image)[..., 0] for image in images])).float() / 255
        large = F.interpolate(scans[:, None], scale_factor=2, mode="bilinear")[:, 0]
        return large, torch.from_numpy(targets)

    def _draw(self, split: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(seed)
        scans, classes = self.digits[split]
        side, cells = scans.shape[-1], self.size // scans.shape[-1]
        images = torch.from_numpy(random.uniform(0, 0.35, (count, self.size, self.size))).float()
        maps = torch.zeros(count, self.size, self.size, dtype=torch.int64)
        slack = self.size - cells * side  # the grid of places moves by this much
        for image, classes_map in zip(images, maps, strict=True):
            shift = random.integers(0, slack + 1, 2)
            for place in random.choice(cells * cells, DIGITS_PER_MAP, replace=False):
                index = random.integers(len(scans))
                top, left = (
                    int(part) * side + int(move) for part, move in zip(divmod(place, cells), shift, strict=True)
                )
                window = (slice(top, top + side), slice(left, left + side))
                image[window] = torch.maximum(image[window], scans[index])
                classes_map[window][scans[index] > 0.4] = classes[index] + 1
        return images[:, None].expand(-1, 3, -1, -1).contiguous(), maps

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        return self._draw("train", seed_of(seed, step), count)

    def test(self, count: int) -> tuple[Tensor, Tensor]:
        return self._draw("test", seed_of(TEST_STREAM), count)

    def answer(self, images: Tensor, output: Tensor) -> Tensor:
        return output

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(answer, target)

    def score(self, answer: Tensor, target: Tensor) -> float:
        guess = answer.argmax(1)
        shares = []
        for label in range(self.outputs):
            both = ((guess == label) & (target == label)).sum()
            either = ((guess == label) | (target == label)).sum()
            if either > 0:
                shares.append((both / either).item())
        return float(np.mean(shares))


class Denoising:
    """Crops of photographs with Gaussian noise; the network gives the clean image.

    Not the noise to subtract: through a stem of stride 4 a small backbone passes on what is smooth much sooner than what is not.

    Args:
        config: Size of the crops, noise, and whose photographs.

    Raises:
        DataError: a user's folder that does not do.
    """

    outputs = 3
    metric = "PSNR, dB"

    def __init__(self, config: DenseConfig) -> None:
        self.size, self.noise = config.size, config.noise / 255
        if config.photos is None:
            self.photos: dict[str, list[Tensor]] = {
                "train": load_photos(TRAIN_PHOTOS),
                "test": load_photos(TEST_PHOTOS),
            }
        else:
            self.photos = dict(zip(("train", "test"), user_photos(config.photos), strict=True))

    def _crop(self, split: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(seed)
        clean = torch.empty(count, 3, self.size, self.size)
        for index in range(count):
            photos = self.photos[split]
            photo = photos[index % len(photos) if split == "test" else int(random.integers(len(photos)))]
            if min(photo.shape[1:]) < self.size:
                scale = self.size / min(photo.shape[1:])
                photo = F.interpolate(photo[None], scale_factor=scale * 1.01, mode="bilinear")[0]
            top, left = (int(random.integers(extent - self.size + 1)) for extent in photo.shape[1:])
            clean[index] = photo[:, top : top + self.size, left : left + self.size]
        noise = torch.from_numpy(random.standard_normal(clean.shape)).float()
        return clean + self.noise * noise, clean

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        return self._crop("train", seed_of(seed, step), count)

    def test(self, count: int) -> tuple[Tensor, Tensor]:
        return self._crop("test", seed_of(TEST_STREAM), count)

    def answer(self, images: Tensor, output: Tensor) -> Tensor:
        return output

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(answer, target)

    def score(self, answer: Tensor, target: Tensor) -> float:
        errors = (answer.clamp(0, 1) - target).square().flatten(1).mean(1)
        return (-10 * errors.log10()).mean().item()


def open_task(name: str, config: DenseConfig) -> DenseTask:
    """ "segmentation" or "restoration"."""
    return {"segmentation": DigitMaps, "restoration": Denoising}[name](config)
