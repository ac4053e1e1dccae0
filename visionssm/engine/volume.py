"""Segmentation of volumes: a run from a folder of cases to an exported, re-loaded and measured network."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from monai.losses import DiceCELoss
from monai.transforms import CenterSpatialCropd, SpatialPadd
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from visionssm.data.sampling import UpdateBatches
from visionssm.data.seeding import seed_of
from visionssm.data.volume_patches import VolumePatches, cached_cases, write_generated
from visionssm.data.volumes import Case, find_cases, split_cases
from visionssm.engine.config import ConfigError
from visionssm.engine.logging import RunLogger
from visionssm.engine.loop import Place, Trainer
from visionssm.engine.run_folder import Run
from visionssm.engine.volume_config import VolumeConfig
from visionssm.engine.volume_files import predict_volumes
from visionssm.engine.volume_metrics import dice, summarise
from visionssm.engine.volume_models import (
    DeepSupervision,
    build_segmenter,
    check_window,
    export_volume_model,
    load_volume_model,
    segment,
)

__all__ = ["VolumeConfig", "VolumeTask", "train_volume"]


class VolumeTask:
    """Batches, loss and scores of a recipe (see `visionssm.engine.loop.Task`)."""

    score = "dice"
    higher_is_better = True

    def __init__(
        self,
        config: VolumeConfig,
        *,
        train: Sequence[Case],
        validation: Sequence[Case],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.patches = VolumePatches(train, config.data, config.augment, seed=config.run.seed)
        rank, world = accelerator.process_index, accelerator.num_processes
        self.count = len(validation)
        self.mine = range(rank, self.count, world)
        keys, patch = ["image", "label"], config.data.patch
        centre = [SpatialPadd(keys, patch), CenterSpatialCropd(keys, patch)] if config.validate == "centre" else []
        self.validation = cached_cases([validation[i] for i in self.mine], config.data, extra=centre)
        self.criterion = (
            DiceCELoss(  # each sample by itself, so that shards and accumulation give what the whole batch does
                to_onehot_y=True,
                softmax=True,
                lambda_dice=config.loss.dice,
                lambda_ce=config.loss.cross_entropy,
            )
        )
        self._loader: Any = None

    def train_loader(self, batches: UpdateBatches) -> Any:
        if self._loader is None:  # once: its workers stay from epoch to epoch
            workers = self.config.data.workers
            self._loader = DataLoader(
                self.patches,
                batch_sampler=batches,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        return self._loader

    def loss(self, model: Callable[..., Any], batch: Any, place: Place, *, teacher: nn.Module | None) -> Tensor:
        device = self.accelerator.device
        image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
        outputs = model(image)
        levels = [logits.float() for logits in (outputs if isinstance(outputs, list) else [outputs])]
        total = torch.zeros((), device=device)
        for i, logits in enumerate(levels):
            target = label if i == 0 else F.interpolate(label.float(), size=logits.shape[2:])
            total = total + 0.5**i * self.criterion(logits, target)
        return total / sum(0.5**i for i in range(len(levels)))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Dice in the preprocessed space, of every region and their mean; both empty count as 1."""
        model.eval()
        config = replace(self.config, inference=replace(self.config.inference, mirror=False))
        regions = config.data.scored
        table = torch.zeros(self.count, len(regions), dtype=torch.float64)
        for place, number in enumerate(self.mine):
            item = self.validation[place]
            guess = segment(model, item["image"], config, self.accelerator).argmax(0).numpy()
            truth = item["label"][0].numpy()
            table[number] = torch.tensor(
                [dice(np.isin(guess, v), np.isin(truth, v), empty=1.0) for v in regions.values()]
            )
        table = self.accelerator.reduce(table.float().to(self.accelerator.device), reduction="sum").cpu()
        means = table.mean(0).tolist()
        return {
            "dice": sum(means) / len(means),
            **{f"dice_{name}": mean for name, mean in zip(regions, means, strict=True)},
        }


def train_volume(
    config: VolumeConfig, *, resume: str = "never", cpu: bool = False, changed_recipe: bool = False
) -> dict[str, Any]:
    """Trains by a recipe and leaves a complete run folder.

    The folder holds config.yaml, log.csv, tensorboard/, checkpoints/{last,best}.pt, and at the end model.safetensors with
    config.json (`load_volume_model`), predictions/ of the test cases (NIfTI and pictures), metrics.json and curves.png. The
    final figures are those of the exported model, loaded again, on the cases' own voxels.

    Args:
        config: The recipe.
        resume: "never", "auto" (continue if there is a checkpoint) or the path of a checkpoint.
        cpu: Stay on the CPU even where there is a GPU.
        changed_recipe: Accept a checkpoint of another recipe.

    Returns:
        What metrics.json holds (on all processes but the main one: an empty dict).

    Raises:
        UserError: For anything in the recipe, the data or the folder that does not fit.
    """
    run = Run(config, resume=resume, cpu=cpu, changed_recipe=changed_recipe)
    accelerator, data = run.accelerator, config.data
    if data.name == "generated" and accelerator.is_main_process:
        write_generated(data.path, classes=len(data.classes) - 1)
    accelerator.wait_for_everyone()
    train, validation, test = split_cases(find_cases(data), data)
    torch.manual_seed(seed_of(config.run.seed))
    model = build_segmenter(config.model, channels=len(data.channels), classes=len(data.classes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _check_sizes(model, config)
    trained = DeepSupervision(model, config.loss.deep, num_classes=len(data.classes)) if config.loss.deep else model
    batches = UpdateBatches(
        length=data.samples or len(train),
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        accumulate=config.run.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )

    def task(logger: RunLogger) -> VolumeTask:
        return VolumeTask(config, train=train, validation=validation, accelerator=accelerator)

    def finish(trainer: Trainer, task: VolumeTask) -> dict[str, Any]:
        export_volume_model(run.folder, run.best_weights(), config)
        saved = load_volume_model(str(run.folder))  # like any user
        found = predict_volumes(saved, test or validation, run.folder / "predictions", accelerator=accelerator)
        return {
            "parameters": parameters,
            "classes": list(data.classes),
            "cases": {"train": len(train), "validation": len(validation), "test": len(test)},
            "epochs": trainer.state.epoch,
            "best_epoch": trainer.state.best_epoch,
            "evaluated_on": "test" if test else "validation",
            "scores": summarise([p.scores for p in found if p.scores is not None]),
        }

    about = f"{parameters:,} parameters; {len(train)} training, {len(validation)} validation, {len(test)} test cases"
    return run.train(trained, task, batches, about=about, finish=finish)


def _check_sizes(model: nn.Module, config: VolumeConfig) -> None:
    """Refuses sizes that the network cannot read, before any data is."""
    check_window(model, config, "data.patch", config.data.patch)
    check_window(model, config, "inference.roi", config.roi)
    strides = cast("list[int]", model.strides)
    if config.loss.deep and any(side % stride for side, stride in zip(config.data.patch, strides, strict=True)):
        raise ConfigError(f"data.patch={config.data.patch} must be multiples of {tuple(strides)} for loss.deep")
