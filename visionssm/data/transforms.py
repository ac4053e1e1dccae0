"""Image -> tensor, for training (timm's or albumentations' augmentation) and for evaluation (timm's)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize

from visionssm.data.errors import DataError, did_you_mean, require_range
from visionssm.data.seeding import seed_of, seeded

__all__ = [
    "AugmentConfig",
    "InputStats",
    "TrainTransform",
    "build_eval_transform",
    "build_plain_transform",
    "build_train_transform",
]

TrainTransform = Callable[[Image.Image, int], torch.Tensor]
"""(RGB image, seed) -> (3, H, W) float32; the seed decides every random choice."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images.

    Args:
        library: "timm" (the fields below), "albumentations" (`pipeline`) or "none" (resize and normalise only).
        scale, ratio: Area and aspect ratio of the random resized crop.
        hflip, vflip: Probabilities of a flip.
        color_jitter: Strength of brightness, contrast and saturation jitter; off with 0 and, as in timm, under auto_augment.
        auto_augment: timm's policy string, such as "rand-m9-mstd0.5-inc1".
        interpolation: "bilinear", "bicubic" or "random".
        random_erasing, erasing_mode: Probability and fill ("const", "rand", "pixel") of random erasing.
        pipeline: For albumentations: a list of {Name: {argument: value}}, applied in order. The training size is filled in
            where a transform takes `size` or `height` and `width` and none is given. Normalisation is added.
    """

    library: Literal["timm", "albumentations", "none"] = "timm"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.4
    auto_augment: str | None = None
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    random_erasing: float = 0.0
    erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    pipeline: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_range(self, "augment", "scale", above=0, most=1)
        require_range(self, "augment", "ratio", above=0)
        require_range(self, "augment", "hflip", "vflip", "random_erasing", least=0, most=1)
        require_range(self, "augment", "color_jitter", least=0)
        for name in ("scale", "ratio"):
            if list(getattr(self, name)) != sorted(getattr(self, name)):
                raise DataError(f"augment.{name}={getattr(self, name)} must ascend")
        if self.pipeline and self.library != "albumentations":
            raise DataError(f"augment.pipeline needs augment.library=albumentations, not {self.library}")


@dataclass(frozen=True, kw_only=True)
class InputStats:
    """What a model expects of its input: size (H, W), mean and std per channel, and the test-time resize.

    `crop_pct` is the share of the shorter side that the centre crop keeps (timm's and torchvision's convention)."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def from_data_config(cls, config: dict[str, Any]) -> InputStats:
        """From the result of `timm.data.resolve_model_data_config`."""
        return cls(
            size=(config["input_size"][1], config["input_size"][2]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )


def build_eval_transform(stats: InputStats) -> Callable[[Image.Image], torch.Tensor]:
    """Resize, centre crop, normalise: RGB image -> (3, H, W) float32."""
    transform: Any = create_transform(
        input_size=(len(stats.mean), *stats.size),
        is_training=False,
        interpolation=stats.interpolation,
        mean=stats.mean,
        std=stats.std,
        crop_pct=stats.crop_pct,
        crop_mode=stats.crop_mode,
    )
    return transform


def build_plain_transform(stats: InputStats) -> TrainTransform:
    """`build_eval_transform` as a function of (image, seed), of which the seed decides nothing."""
    return _Unseeded(build_eval_transform(stats))


def build_train_transform(augment: AugmentConfig, stats: InputStats) -> TrainTransform:
    """The augmentation of a recipe as a function of (image, seed).

    Raises:
        DataError: If albumentations has no such transform or does not take its arguments, or timm no such policy.
    """
    if augment.library == "albumentations":
        return _Albumentations(augment.pipeline, stats)
    if augment.library == "none":
        return build_plain_transform(stats)
    try:
        transform: Any = create_transform(
            input_size=(len(stats.mean), *stats.size),
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation,
            mean=stats.mean,
            std=stats.std,
            re_prob=augment.random_erasing,
            re_mode=augment.erasing_mode,
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"augment.auto_augment={augment.auto_augment!r} is no policy of timm's: {reason}") from error
    _repair_posterize(transform)
    return _Seeded(transform)


@dataclass(frozen=True)
class _Unseeded:
    """Classes, not closures: where loader processes are spawned, all that they need is pickled."""

    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        return self.transform(image)


@dataclass(frozen=True)
class _Seeded:
    transform: Callable[[Image.Image], torch.Tensor]

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        with seeded(seed):
            return self.transform(image)


def _repair_posterize(transform: Any) -> None:
    """timm's policies ask for as few as 0 bits, for which Pillow gave a black image, and now an error."""
    for step in getattr(transform, "transforms", ()):
        policies = getattr(step, "policy", ())
        for op in (*getattr(step, "ops", ()), *(op for policy in policies for op in policy)):
            if getattr(op, "aug_fn", None) is posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return posterize(image, bits_to_keep, **options)


class _Albumentations:
    """An albumentations pipeline, seeded per image."""

    def __init__(self, pipeline: list[dict[str, Any]], stats: InputStats) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
        import albumentations

        self.size = stats.size
        steps = [_step(albumentations, entry, stats.size) for entry in pipeline]
        normalise = albumentations.Normalize(mean=stats.mean, std=stats.std)
        self.pipeline = albumentations.Compose([*steps, normalise])

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        # Compose.set_random_seed would give all its transforms one seed, and so make their choices together.
        for place, transform in enumerate(self.pipeline.transforms):
            transform.set_random_seed(seed_of(seed, place))
        pixels = self.pipeline(image=np.asarray(image))["image"]
        if pixels.shape[:2] != self.size:
            raise DataError(
                f"augment.pipeline gives {pixels.shape[0]}x{pixels.shape[1]} images, training wants "
                f"{self.size[0]}x{self.size[1]}; add a crop or a Resize"
            )
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _step(library: Any, entry: dict[str, Any], size: tuple[int, int]) -> Any:
    """One albumentations transform from {Name: {argument: value}}."""
    if len(entry) != 1:
        raise DataError(f"augment.pipeline: each entry is one {{Name: {{argument: value}}}}, got {entry}")
    ((name, arguments),) = entry.items()
    known = {
        key: value
        for key, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, (library.BasicTransform, library.BaseCompose))
    }
    if name not in known:
        raise DataError(f"augment.pipeline: albumentations has no {name!r}; {did_you_mean(name, known)}")
    arguments = dict(arguments or {})
    accepted = inspect.signature(known[name].__init__).parameters
    if unknown := set(arguments) - set(accepted):
        word = min(unknown)
        raise DataError(f"augment.pipeline: {name} takes no {word!r}; {did_you_mean(word, set(accepted) - {'self'})}")
    if "size" in accepted:
        arguments.setdefault("size", size)
    elif {"height", "width"} <= set(accepted):
        arguments.setdefault("height", size[0])
        arguments.setdefault("width", size[1])
    if "transforms" in arguments:
        arguments["transforms"] = [_step(library, inner, size) for inner in arguments["transforms"]]
    try:
        return known[name](**arguments)
    except (TypeError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise DataError(f"augment.pipeline: {name}: {' '.join(first)}") from error
