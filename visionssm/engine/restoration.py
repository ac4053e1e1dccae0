"""Image restoration: recipe, losses, and a run from an empty folder to an exported, re-loaded and measured model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from visionssm.data.degradations import DegradationConfig, resize
from visionssm.data.errors import UserError, require_range
from visionssm.data.restoration import (
    PatchSet,
    PictureSource,
    RestorationDataConfig,
    build_patch_loader,
    load_pair,
    open_pictures,
)
from visionssm.data.sampling import CropBatches, PatchStage
from visionssm.data.seeding import seed_of, seeded
from visionssm.engine.image_metrics import psnr, ssim, to_uint8
from visionssm.engine.logging import RunLogger
from visionssm.engine.loop import Place, Trainer
from visionssm.engine.models import ModelConfig
from visionssm.engine.plots import plot_restoration
from visionssm.engine.restorers import build_restorer, export_restorer, load_restorer, scale_of
from visionssm.engine.run_folder import Run
from visionssm.engine.settings import EmaConfig, OptimizerConfig, ScheduleConfig, UpdatesRunConfig
from visionssm.engine.tiling import Tiling, restore_picture

__all__ = [
    "MetricConfig",
    "PixelLossConfig",
    "RestorationConfig",
    "RestorationTask",
    "evaluate_restorer",
    "train_restorer",
]

MIX_STREAM = 3
SHOWN = 4  # pictures in pictures.png


@dataclass(frozen=True, kw_only=True)
class PixelLossConfig:
    """Distance of the restored from the clean picture.

    Args:
        name: "l1", or "charbonnier": sqrt(d² + eps).
        eps: Of Charbonnier's; added under the root as it is, as the published recipes have it, not squared.
    """

    name: Literal["l1", "charbonnier"] = "l1"
    eps: float = 1e-3

    def __post_init__(self) -> None:
        require_range(self, "loss", "eps", above=0)


@dataclass(frozen=True, kw_only=True)
class MixupConfig:
    """Blends pairs of patches, clean and degraded alike (as Restormer does); off without `alpha`.

    Args:
        alpha: Of the beta distribution of the share, or None.
        prob: How often a batch is blended.
    """

    alpha: float | None = None
    prob: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "mix", "alpha", above=0)
        require_range(self, "mix", "prob", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """How pictures are compared: at 8 bits.

    Args:
        y_only: Luma only, as for super-resolution and JPEG.
        border: Pixels left out at each edge; None: the scale, or 0 where the size stays.
        tiling: How evaluation cuts pictures.
    """

    y_only: bool = True
    border: int | None = None
    tiling: Tiling = field(default_factory=Tiling)

    def __post_init__(self) -> None:
        require_range(self, "metric", "border", least=0)

    def border_at(self, scale: int) -> int:
        return self.border if self.border is not None else (scale if scale > 1 else 0)


@dataclass(frozen=True, kw_only=True)
class RestorationConfig:
    """A restoration recipe."""

    run: UpdatesRunConfig
    model: ModelConfig
    data: RestorationDataConfig = field(default_factory=RestorationDataConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    loss: PixelLossConfig = field(default_factory=PixelLossConfig)
    mix: MixupConfig = field(default_factory=MixupConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    def stages(self, scale: int) -> tuple[PatchStage, ...]:
        """The patch and batch sizes over the run.

        Raises:
            UserError: If they do not fit the scale or the run.
        """
        plain = PatchStage(until=self.run.updates, patch_size=self.data.patch_size, batch_size=self.run.batch_size)
        stages = self.data.stages or (plain,)
        if stages[-1].until != self.run.updates:
            raise UserError(f"the last of data.stages must end with the run, at update {self.run.updates}")
        for stage in stages:
            if stage.patch_size < scale or stage.patch_size % scale:
                raise UserError(f"a patch size of {stage.patch_size} must be a multiple of the model's scale, {scale}")
        return stages


class RestorationTask:
    """Batches, loss and scores of a recipe (see `visionssm.engine.loop.Task`)."""

    score = "psnr"
    higher_is_better = True

    def __init__(
        self,
        config: RestorationConfig,
        *,
        train: PictureSource,
        validation: PictureSource,
        scale: int,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.scale, self.accelerator, self.validation = config, scale, accelerator, validation
        self.patches = PatchSet(
            train,
            config.degradation,
            scale=scale,
            flips=config.data.flips,
            recolour=config.data.recolour,
            seed=config.run.seed,
        )
        self._loader: Any = None

    def train_loader(self, batches: Any) -> Any:
        if self._loader is None:  # once: its workers stay
            pin = self.accelerator.device.type == "cuda"
            self._loader = build_patch_loader(self.patches, batches, workers=self.config.data.workers, pin_memory=pin)
        return self._loader

    def loss(self, model: Callable[..., Tensor], batch: Any, place: Place, *, teacher: nn.Module | None) -> Tensor:
        device, config = self.accelerator.device, self.config
        degraded = batch["degraded"].to(device, non_blocking=True)
        clean = batch["clean"].to(device, non_blocking=True)
        if config.mix.alpha is not None:
            random = np.random.default_rng((config.run.seed, place.epoch, place.update, place.step, MIX_STREAM))
            if random.random() < config.mix.prob:
                share = float(random.beta(config.mix.alpha, config.mix.alpha))
                order = torch.from_numpy(random.permutation(len(clean))).to(device)
                degraded, clean = (share * x + (1 - share) * x[order] for x in (degraded, clean))
        restored = model(degraded).float()
        if config.loss.name == "l1":
            return F.l1_loss(restored, clean)
        return ((restored - clean).square() + config.loss.eps).sqrt().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        rows = evaluate_restorer(
            model,
            self.validation,
            self.config.degradation,
            metric=self.config.metric,
            scale=self.scale,
            accelerator=self.accelerator,
            crop=self.config.data.validation.crop,
            indices=range(rank, len(self.validation), world),
        )
        sums = torch.tensor(
            [sum(row["psnr"] for row in rows), sum(row["ssim"] for row in rows), len(rows)],
            dtype=torch.float64,
        )
        if world > 1:
            reduced: Any = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
            sums = reduced.cpu()
        return {"psnr": float(sums[0] / sums[2]), "ssim": float(sums[1] / sums[2])}


def evaluate_restorer(
    model: nn.Module,
    source: PictureSource,
    degradation: DegradationConfig,
    *,
    metric: MetricConfig,
    scale: int,
    accelerator: Accelerator,
    crop: int | None = None,
    indices: range | None = None,
    wrap: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] | None = None,
    keep: Callable[[str, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Restores pictures and compares them with the clean ones, beside bicubic upscaling (or the input as it is).

    Args:
        model: (1, C, h, w) -> (1, C, s h, s w); left in evaluation mode.
        source: The pictures.
        degradation: Where they have no degraded files.
        metric: How to compare, and how to cut.
        scale: s.
        accelerator: Device and precision.
        crop: See `SplitConfig`.
        indices: Which pictures; None for all.
        wrap: Around the network, such as `self_ensemble`.
        keep: Called with name, baseline, restored and clean picture (uint8), and the row.

    Returns:
        A row per picture: picture, width, height, baseline_psnr, psnr, baseline_ssim, ssim, seconds.
    """
    model.eval()

    def restore(x: Tensor) -> Tensor:
        with accelerator.autocast():
            return model(x)

    run = restore if wrap is None else wrap(restore)
    rows = []
    border, y_only = metric.border_at(scale), metric.y_only
    for index in range(len(source)) if indices is None else indices:
        clean, degraded = load_pair(source, index, degradation, scale=scale, crop=crop)
        start = time.perf_counter()
        restored = to_uint8(
            restore_picture(run, degraded, scale=scale, tiling=metric.tiling, device=accelerator.device)
        )
        seconds = time.perf_counter() - start
        plain = to_uint8(degraded)
        baseline = resize(plain, scale) if scale > 1 else plain
        row: dict[str, Any] = {
            "picture": source.name(index),
            "width": clean.shape[1],
            "height": clean.shape[0],
        }
        for prefix, image in (("baseline_", baseline), ("", restored)):
            row[f"{prefix}psnr"] = psnr(image, clean, border=border, y_only=y_only)
            row[f"{prefix}ssim"] = ssim(image, clean, border=border, y_only=y_only)
        row["seconds"] = seconds
        rows.append(row)
        if keep is not None:
            keep(source.name(index), baseline, restored, clean, row)
    return rows


def train_restorer(
    config: RestorationConfig, *, resume: str = "never", cpu: bool = False, changed_recipe: bool = False
) -> dict[str, Any]:
    """Trains by a recipe and leaves a complete run folder.

    The folder holds config.yaml (the whole recipe), log.csv, tensorboard/, checkpoints/{last,best}.pt, and at the end
    model.safetensors with config.json (`load_restorer(folder)`), metrics.json, curves.png and pictures.png. The final
    figures are those of the exported model, loaded again from the folder, on whole pictures.

    Args, Raises: As in `visionssm.engine.classification.train_classifier`.

    Returns:
        What metrics.json holds (on all processes but the main one: an empty dict).
    """
    run = Run(config, resume=resume, cpu=cpu, changed_recipe=changed_recipe)
    accelerator, data = run.accelerator, config.data
    torch.manual_seed(seed_of(config.run.seed))
    model = build_restorer(config.model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scale, channels = scale_of(model), int(getattr(model, "in_chans"))  # noqa: B009  see load_restorer

    def pictures(split: str, part: Any) -> PictureSource:
        return open_pictures(part, split, scale=scale, channels=channels, cache=data.cache)

    train, validation = pictures("train", data.train), pictures("validation", data.validation)
    test = None if data.test is None else pictures("test", data.test)
    batches = CropBatches(
        pictures=len(train),
        stages=config.stages(scale),
        updates_per_epoch=config.run.evaluate_every,
        seed=config.run.seed,
        accumulate=config.run.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )

    def task(logger: RunLogger) -> RestorationTask:
        return RestorationTask(config, train=train, validation=validation, scale=scale, accelerator=accelerator)

    def finish(trainer: Trainer, task: RestorationTask) -> dict[str, Any]:
        subject = ("validation", validation) if test is None else ("test", test)
        export_restorer(model, run.best_weights(), run.folder, config=config.model, degradation=config.degradation)
        rows = _score_and_draw(config, run.folder, subject[1], accelerator)
        keys = ("baseline_psnr", "psnr", "baseline_ssim", "ssim")
        return {
            "parameters": parameters,
            "scale": scale,
            "images": {"train": len(train), "validation": len(validation), "test": len(test) if test else None},
            "best_update": trainer.state.best_epoch * config.run.evaluate_every,
            "evaluated_on": subject[0],
            "scores": {key: float(np.mean([row[key] for row in rows])) for key in keys},
            "per_picture": rows,
        }

    about = (
        f"{parameters:,} parameters, scale {scale}, {len(train):,} training and {len(validation):,} validation "
        f"pictures, {config.run.updates:,} updates"
    )
    return run.train(model, task, batches, about=about, finish=finish)


def _score_and_draw(
    config: RestorationConfig, folder: Path, source: PictureSource, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """Loads the exported model like any user would, scores it and draws its pictures."""
    loaded = load_restorer(str(folder))
    shown: list[tuple[str, list[np.ndarray], list[str]]] = []

    def keep(name: str, baseline: np.ndarray, restored: np.ndarray, clean: np.ndarray, row: dict[str, Any]) -> None:
        if len(shown) < SHOWN:
            plain = "bicubic" if loaded.scale > 1 else "degraded"
            captions = [
                f"{plain} {row['baseline_psnr']:.2f} dB",
                f"restored {row['psnr']:.2f} dB",
                "original",
            ]
            shown.append((name, [baseline, restored, clean], captions))

    with seeded(seed_of(config.run.seed)):  # for models that draw random numbers in evaluation too
        rows = evaluate_restorer(
            loaded.model.to(accelerator.device),
            source,
            loaded.degradation,
            metric=config.metric,
            scale=loaded.scale,
            accelerator=accelerator,
            keep=keep,
        )
    plot_restoration(shown, folder / "pictures.png", title=config.model.name)
    return rows
