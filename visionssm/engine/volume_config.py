"""A recipe for volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from visionssm.data.volume_patches import PatchAugmentConfig
from visionssm.data.volumes import VolumeDataConfig
from visionssm.engine.config import ConfigError
from visionssm.engine.models import ModelConfig
from visionssm.engine.settings import EmaConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["InferenceConfig", "VolumeConfig", "VolumeLossConfig"]


@dataclass(frozen=True, kw_only=True)
class VolumeLossConfig:
    """Dice of each sample plus cross-entropy.

    Args:
        dice, cross_entropy: weights.
        deep: levels of the decoder that are supervised besides the output, each half as heavy as the one before.
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    deep: int = 0

    def __post_init__(self) -> None:
        if not (min(self.dice, self.cross_entropy) >= 0 and 0 < self.dice + self.cross_entropy < math.inf):
            raise ConfigError(
                f"loss.dice={self.dice} and loss.cross_entropy={self.cross_entropy} must be at least 0, and one of them above it"
            )
        if self.deep < 0:
            raise ConfigError(f"loss.deep={self.deep} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Sliding windows.

    Args:
        roi: window; None for the training patch.
        overlap: of neighbouring windows, 0 to 1.
        gaussian: weigh a window's middle more than its border.
        batch_size: windows at a time.
        mirror: average over all eight flips.
    """

    roi: tuple[int, int, int] | None = None
    overlap: float = 0.5
    gaussian: bool = True
    batch_size: int = 2
    mirror: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"inference.overlap={self.overlap} must be at least 0 and less than 1")
        if self.batch_size < 1:
            raise ConfigError(f"inference.batch_size={self.batch_size} must be at least 1")
        if self.roi is not None and min(self.roi) < 1:
            raise ConfigError(f"inference.roi={self.roi} must be sizes of at least 1")


@dataclass(frozen=True, kw_only=True)
class VolumeConfig:
    """A recipe for volumes.

    Args:
        validate: what is scored after each epoch: whole "volumes" by sliding windows, or one patch at the "centre" of each.
        run, model, data, augment, loss, inference, optimizer, schedule, ema: sections.
    """

    run: RunConfig
    model: ModelConfig
    data: VolumeDataConfig
    augment: PatchAugmentConfig = field(default_factory=PatchAugmentConfig)
    loss: VolumeLossConfig = field(default_factory=VolumeLossConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    validate: Literal["volumes", "centre"] = "volumes"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    @property
    def roi(self) -> tuple[int, int, int]:
        return self.inference.roi or self.data.patch
