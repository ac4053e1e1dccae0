"""Scores of a classifier: loss, top-1, top-5, per class, confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from visionssm.data.errors import DataError

__all__ = ["Scores", "evaluate_classifier"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation found.

    Args:
        loss: Mean cross-entropy without smoothing.
        top1, top5: Shares of images whose class is the first, or among the first five (or all, if fewer) guesses.
        confusion: (classes, classes) int64; row: the true class, column: the guess.
        count: Images evaluated.
        skipped: Images that could not be read.
    """

    loss: float
    top1: float
    top5: float
    confusion: torch.Tensor
    count: int
    skipped: int = 0

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Images, recall and precision of each class; None where a class has no image or no guess."""
        right = self.confusion.diag()
        images, guesses = self.confusion.sum(1), self.confusion.sum(0)
        return [
            {
                "class": name,
                "images": int(images[i]),
                "recall": float(right[i] / images[i]) if images[i] else None,
                "precision": float(right[i] / guesses[i]) if guesses[i] else None,
            }
            for i, name in enumerate(classes)
        ]

    def summary(self) -> dict[str, float | int]:
        """Everything but the confusion matrix."""
        return {
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "images": self.count,
            "skipped": self.skipped,
        }


@torch.no_grad()  # not inference_mode: a table that a model caches here is used in training later
def evaluate_classifier(
    model: nn.Module,
    loader: Iterable[dict[str, Any]],
    *,
    num_classes: int,
    accelerator: Accelerator,
    shared: bool = False,
    tick: Callable[[int], None] | None = None,
) -> Scores:
    """Runs a classifier over a loader.

    Args:
        model: (B, 3, H, W) -> (B, num_classes); left in evaluation mode.
        loader: Batches of "image", "target" and "problems" (`visionssm.data.classification.build_loader`).
        num_classes: Outputs of the model.
        accelerator: Device and precision.
        shared: Each process has its part of the data; the scores are then those of all parts.
        tick: Called with the number of images after each batch.

    Raises:
        DataError: If there is no readable image.
    """
    device = accelerator.device
    model.eval()
    metrics = MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro", sync_on_compute=shared),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes), sync_on_compute=shared),
            "confusion": MulticlassConfusionMatrix(num_classes, sync_on_compute=shared),
        },
        compute_groups=False,
    ).to(device)
    mean_loss = MeanMetric(sync_on_compute=shared).to(device)
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    for batch in loader:
        counts[1] += len(batch["problems"])
        if batch["image"] is None:
            continue
        images, targets = batch["image"].to(device), batch["target"].to(device)
        with accelerator.autocast():
            logits = model(images)
        logits = logits.float()
        if logits.shape[1] != num_classes:
            raise DataError(f"the model has {logits.shape[1]} outputs, the data set {num_classes} classes")
        metrics.update(logits, targets)
        mean_loss.update(F.cross_entropy(logits, targets), weight=len(targets))
        counts[0] += len(targets)
        if tick is not None:
            tick(len(targets))
    if shared:
        counts = accelerator.reduce(counts, reduction="sum")
    if not counts[0]:
        raise DataError("there is no readable image to evaluate")
    values = metrics.compute()
    return Scores(
        loss=float(mean_loss.compute()),
        top1=float(values["top1"]),
        top5=float(values["top5"]),
        confusion=values["confusion"].cpu().long(),
        count=int(counts[0]),
        skipped=int(counts[1]),
    )
