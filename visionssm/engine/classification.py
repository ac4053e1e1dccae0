"""Image classification: recipe, losses, and a run from an empty folder to an exported, re-loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from visionssm.data.classification import DataConfig, LabelledImages, Source, build_loader, open_source
from visionssm.data.errors import UserError, require_range
from visionssm.data.sampling import EvalBatches, UpdateBatches
from visionssm.data.seeding import seed_of, seeded
from visionssm.data.transforms import AugmentConfig, InputStats, build_plain_transform, build_train_transform
from visionssm.engine.evaluation import Scores, evaluate_classifier
from visionssm.engine.logging import RunLogger
from visionssm.engine.loop import Place, Trainer
from visionssm.engine.models import (
    ModelConfig,
    build_classifier,
    export_classifier,
    input_stats,
    load_classifier,
)
from visionssm.engine.plots import plot_confusion
from visionssm.engine.run_folder import Run
from visionssm.engine.settings import EmaConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["ClassificationConfig", "ClassificationTask", "LossConfig", "MixConfig", "train_classifier"]

MIX_STREAM = 2  # keeps the seeds of mixing apart from all others


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup and cutmix (timm's Mixup); off where both are 0.

    Args:
        mixup, cutmix: Alpha of the beta distribution of the share.
        prob: How often a batch is mixed.
        switch_prob: How often cutmix rather than mixup, where both are on.
        mode: One share per "batch", per "pair" of images, or per image ("elem").
        until: Share of the run after which mixing stops.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"
    until: float = 1.0

    def __post_init__(self) -> None:
        require_range(self, "mix", "mixup", "cutmix", least=0)
        require_range(self, "mix", "prob", "switch_prob", "until", least=0, most=1)

    @property
    def on(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Cross-entropy.

    Args:
        smoothing: Label smoothing.
        mesa: Weight of the cross-entropy to the outputs of the weight average (MESA: Du et al., "Sharpness-Aware Training
            for Free", arXiv 2205.14083; used by Spatial-Mamba). Needs `ema.decay`.
        mesa_start: Share of the run before it sets in.
    """

    smoothing: float = 0.0
    mesa: float = 0.0
    mesa_start: float = 0.25

    def __post_init__(self) -> None:
        require_range(self, "loss", "smoothing", least=0, below=1)
        require_range(self, "loss", "mesa", least=0)
        require_range(self, "loss", "mesa_start", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """A classification recipe."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    def __post_init__(self) -> None:
        if self.loss.mesa and self.ema.decay is None:
            raise UserError("loss.mesa needs a weight average: set ema.decay")


class ClassificationTask:
    """Batches, loss and scores of a recipe (see `visionssm.engine.loop.Task`)."""

    score = "top1"
    higher_is_better = True

    def __init__(
        self,
        config: ClassificationConfig,
        *,
        train: Source,
        validation: Source,
        stats: InputStats,
        accelerator: Accelerator,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.num_classes = len(train.classes)
        self.train_set = LabelledImages(
            train,
            transform=build_train_transform(config.augment, stats),
            seed=config.run.seed,
            replace=config.data.skip_corrupt,
        )
        self.mixer = None
        if (
            config.mix.on
        ):  # smoothing is the loss's business: smoothing mixed labels and mixing smoothed ones is the same
            mix = config.mix
            self.mixer = Mixup(
                mixup_alpha=mix.mixup,
                cutmix_alpha=mix.cutmix,
                prob=mix.prob,
                switch_prob=mix.switch_prob,
                mode=mix.mode,
                label_smoothing=0.0,
                num_classes=self.num_classes,
            )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.loss.smoothing)
        self.skipped: set[str] = set()
        self._report = report
        self._pin = accelerator.device.type == "cuda"
        self._train_loader: Any = None
        self._validation = LabelledImages(validation, transform=build_plain_transform(stats))
        self._validation_loader = self._eval_loader(self._validation, shared=True)

    def train_loader(self, batches: UpdateBatches) -> Any:
        if self._train_loader is None:  # once: its workers stay from epoch to epoch
            self._train_loader = build_loader(
                self.train_set,
                batches,
                workers=self.config.data.workers,
                skip_corrupt=self.config.data.skip_corrupt,
                report=self._skip,
                pin_memory=self._pin,
            )
        return self._train_loader

    def loss(self, model: Callable[..., Tensor], batch: Any, place: Place, *, teacher: nn.Module | None) -> Tensor:
        device = self.accelerator.device
        if batch["image"] is None:
            raise UserError(f"no image of the training set can be read; the first: {batch['problems'][0]}")
        images = batch["image"].to(device, non_blocking=True)
        targets = batch["target"].to(device, non_blocking=True)
        if self.mixer is not None and place.done < self.config.mix.until:
            # One draw for the whole batch is the same on every process; draws per image belong to the shard.
            shard = () if self.config.mix.mode == "batch" else (place.step,)
            key = (self.config.run.seed, place.epoch, place.update, *shard, MIX_STREAM)
            with seeded(seed_of(*key)):
                images, targets = self.mixer(images, targets)
        logits = model(images).float()
        loss = self.criterion(logits, targets)
        if self.config.loss.mesa and teacher is not None and place.done >= self.config.loss.mesa_start:
            with torch.no_grad(), self.accelerator.autocast():
                guess = teacher(images).float().softmax(-1)
            loss = loss + self.config.loss.mesa * F.cross_entropy(logits, guess)
        return loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        scores = self._scores(model, self._validation_loader, shared=True)
        return {"val_loss": scores.loss, "top1": scores.top1, "top5": scores.top5}

    def scores(self, model: nn.Module, source: Source, stats: InputStats) -> Scores:
        """All scores on a source, computed by this process alone."""
        dataset = LabelledImages(source, transform=build_plain_transform(stats))
        return self._scores(model, self._eval_loader(dataset, shared=False), shared=False)

    def _scores(self, model: nn.Module, loader: Any, *, shared: bool) -> Scores:
        return evaluate_classifier(
            model, loader, num_classes=self.num_classes, accelerator=self.accelerator, shared=shared
        )

    def _eval_loader(self, dataset: LabelledImages, *, shared: bool) -> Any:
        data = self.config.data
        batches = EvalBatches(
            length=len(dataset),
            batch_size=data.eval_batch_size,
            rank=self.accelerator.process_index if shared else 0,
            world=self.accelerator.num_processes if shared else 1,
        )
        return build_loader(
            dataset,
            batches,
            workers=data.workers,
            skip_corrupt=data.skip_corrupt,
            report=self._skip,
            pin_memory=self._pin,
        )

    def _skip(self, problem: str) -> None:
        if problem not in self.skipped:
            self.skipped.add(problem)
            self._report(f"skipped: {problem}")


def train_classifier(
    config: ClassificationConfig, *, resume: str = "never", cpu: bool = False, changed_recipe: bool = False
) -> dict[str, Any]:
    """Trains by a recipe and leaves a complete run folder.

    The folder holds config.yaml (the whole recipe), log.csv, tensorboard/, checkpoints/{last,best}.pt, and at the end
    model.safetensors with config.json (`timm.create_model("local-dir:<folder>", pretrained=True)`), metrics.json,
    curves.png and confusion.png. The final figures are those of the exported model, loaded again from the folder.

    Args:
        config: The recipe.
        resume: "never", "auto" (continue if there is a checkpoint) or the path of a checkpoint.
        cpu: Stay on the CPU even where there is a GPU.
        changed_recipe: Accept a checkpoint of another recipe.

    Returns:
        What metrics.json holds (on all processes but the main one: an empty dict).

    Raises:
        UserError: For anything in the recipe, the data or the folder that does not fit; `DivergedError` if training does.
    """
    run = Run(config, resume=resume, cpu=cpu, changed_recipe=changed_recipe)
    accelerator, data = run.accelerator, config.data
    train = open_source(data, data.train_split)
    validation = open_source(data, data.validation_split, classes=train.classes)
    test = None if data.test_split is None else open_source(data, data.test_split, classes=train.classes)

    torch.manual_seed(seed_of(config.run.seed))
    model = build_classifier(config.model, num_classes=len(train.classes), image_size=data.image_size)
    stats = input_stats(model, img_size=data.image_size, mean=data.mean, std=data.std, crop_pct=data.crop_pct)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = UpdateBatches(
        length=len(train),
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        accumulate=config.run.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        even=config.mix.on,
    )

    def task(logger: RunLogger) -> ClassificationTask:
        return ClassificationTask(
            config, train=train, validation=validation, stats=stats, accelerator=accelerator, report=logger.say
        )

    def finish(trainer: Trainer, task: ClassificationTask) -> dict[str, Any]:
        subject = (data.validation_split, validation) if test is None else (data.test_split or "", test)
        export_classifier(model, run.best_weights(), run.folder, classes=train.classes, stats=stats)
        loaded = load_classifier(str(run.folder)).to(accelerator.device)  # through timm, like any user
        scores = task.scores(loaded, subject[1], input_stats(loaded))
        title = f"{config.model.name}, {subject[0]}: top-1 {scores.top1:.4f}"
        plot_confusion(scores.confusion.numpy(), train.classes, run.folder / "confusion.png", title=title)
        return {
            "parameters": parameters,
            "classes": list(train.classes),
            "images": {"train": len(train), "validation": len(validation), "test": len(test) if test else None},
            "epochs": trainer.state.epoch,
            "best_epoch": trainer.state.best_epoch,
            "evaluated_on": subject[0],
            "scores": scores.summary(),
            "per_class": scores.per_class(train.classes),
            "skipped_images": sorted(task.skipped),
        }

    about = (
        f"{parameters:,} parameters, {len(train.classes)} classes, {len(train):,} training and "
        f"{len(validation):,} validation images"
    )
    return run.train(model, task, batches, about=about, finish=finish)
