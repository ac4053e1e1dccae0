"""The same small backbone trained with each order under one recipe, and what its scores say against the baseline."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from visionssm.data.errors import UserError
from visionssm.data.seeding import seed_of
from visionssm.engine.checkpoint import find_checkpoint
from visionssm.engine.classification import ClassificationConfig, train_classifier
from visionssm.engine.config import build_config, read_recipe
from visionssm.engine.restoration import RestorationConfig, train_restorer
from visionssm.scans import ScanOrder

from .cells import Cell
from .config import DenseConfig, LearningConfig
from .tasks import open_task

__all__ = ["DenseModel", "compare", "learning_cells", "load_dense_model", "measure"]

WEIGHTS = "model.safetensors"


def learning_cells(scans: Sequence[ScanOrder], config: LearningConfig) -> list[Cell]:
    """One cell per order, task and seed.

    Raises:
        UserError: a recipe that does not fit.
    """
    shared = {"model": config.model, "kwargs": config.kwargs}
    tasks: list[dict[str, Any]] = []
    for task in config.tasks:
        if task == "classification":
            tree = {**config.classification, "model": {"name": config.model, "kwargs": config.kwargs}}
            tasks.append({"task": task, "recipe": tree})
        else:
            tasks.append({"task": task, **shared, "dense": dataclasses.asdict(config.dense)})
    for own in config.recipes:
        tasks.append({"task": Path(own.recipe).stem, "trainer": own.trainer, "recipe": read_recipe(own.recipe)})
    names = [task["task"] for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"learning: two tasks have one name: {', '.join(names)}")
    for task in tasks:
        if "recipe" in task:
            schema = _trainer(task).schema
            build_config(schema, _recipe(task["recipe"], "raster", {}, 0, "unused"))
    return [
        Cell("learning", scan.key, {**task, "seed": seed})
        for task in tasks
        for seed in range(config.seeds)
        for scan in scans
    ]


def measure(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains once: score (the higher the better), metric, parameters, seconds."""
    start = time.perf_counter()
    result = _train_by_recipe(scan, params, folder) if "recipe" in params else _train_dense(scan, params, folder)
    return {**result, "seconds": time.perf_counter() - start}


def _recipe(tree: dict[str, Any], name: str, options: dict[str, Any], seed: int, output: str) -> dict[str, Any]:
    model = dict(tree.get("model", {}))
    model["kwargs"] = {**model.get("kwargs", {}), "scan": {"name": name, **options}}
    run = {**tree.get("run", {}), "seed": seed, "output": output, "tensorboard": False, "overwrite": True}
    return {**tree, "model": model, "run": run}


@dataclasses.dataclass(frozen=True)
class _Trainer:
    schema: type
    train: Callable[..., dict[str, Any]]
    score: str
    metric: str


TRAINERS = {
    "classification": _Trainer(ClassificationConfig, train_classifier, "top1", "top-1"),
    "restoration": _Trainer(RestorationConfig, train_restorer, "psnr", "PSNR, dB"),
}


def _trainer(params: dict[str, Any]) -> _Trainer:
    return TRAINERS[params.get("trainer", "classification")]


def _train_by_recipe(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in scan.options.items()}
    tree = _recipe(params["recipe"], scan.name, options, params["seed"], str(folder / "run"))
    resume = "auto" if find_checkpoint(folder / "run" / "checkpoints", "auto") else "never"
    trainer = _trainer(params)
    metrics = trainer.train(build_config(trainer.schema, tree), resume=resume)
    return {
        "score": metrics["scores"][trainer.score],
        "metric": trainer.metric,
        "parameters": metrics["parameters"],
    }


class DenseModel(nn.Module):
    """A backbone's feature maps, brought to one width and size, added up, and spread out to the pixels.

    Args:
        backbone: a timm model made with features_only.
        outputs: channels per pixel.
        width: of the head.
    """

    def __init__(self, backbone: Any, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        channels, self.stride = backbone.feature_info.channels(), backbone.feature_info.reduction()[0]
        self.reduce = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.out = nn.Conv2d(width, outputs * self.stride**2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, outputs, H, W), sides that are multiples of the stride."""
        maps = [reduce(x) for reduce, x in zip(self.reduce, self.backbone(images), strict=True)]
        size = maps[0].shape[-2:]
        joined = maps[0] + sum(F.interpolate(x, size, mode="bilinear") for x in maps[1:])
        return F.pixel_shuffle(self.out(F.gelu(joined)), self.stride)


def build_dense_model(scan: ScanOrder, params: dict[str, Any], outputs: int) -> DenseModel:
    """The model of a dense cell, with fresh weights."""
    kwargs = {**params["kwargs"], "scan": scan}
    if "depths" in kwargs:
        kwargs["out_indices"] = tuple(range(len(kwargs["depths"])))
    return DenseModel(timm.create_model(params["model"], features_only=True, **kwargs), outputs)


def load_dense_model(scan: ScanOrder, params: dict[str, Any], weights: Path) -> DenseModel:
    """The model that a dense cell has trained."""
    model = build_dense_model(scan, params, open_task(params["task"], DenseConfig(**params["dense"])).outputs)
    model.load_state_dict(load_file(weights))
    return model.eval()


def _train_dense(scan: ScanOrder, params: dict[str, Any], folder: Path) -> dict[str, Any]:
    config, seed = DenseConfig(**params["dense"]), params["seed"]
    task = open_task(params["task"], config)
    torch.manual_seed(seed_of(seed))
    model = build_dense_model(scan, params, task.outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.1)
    for step in range(config.steps):
        images, target = task.batch(seed, step, config.batch_size)
        loss = task.loss(task.answer(images, model(images)), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    images, target = task.test(config.test_images)
    with torch.no_grad():
        answers = [task.answer(part, model.eval()(part)) for part in images.split(config.batch_size)]
    score = task.score(torch.cat(answers), target)
    if not math.isfinite(score):
        raise UserError(f"{params['task']} with {scan.name} diverged: its score is {score}")
    save_file(model.state_dict(), folder / WEIGHTS)
    return {"score": score, "metric": task.metric, "parameters": sum(p.numel() for p in model.parameters())}


def compare(scores: dict[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Mean, deviation and paired t-test of each order of one task against the baseline.

    Args:
        scores: of each order, by seed; the same seeds for all.
        baseline: one of them.

    Returns:
        A row per order with mean, std (of the sample), difference, p (two-sided, paired over seeds), and p_holm, which is
        corrected for the number of orders (Holm 1979). The tests are None for the baseline, and p where all differences are
        the same, so that there is nothing to test.
    """
    from scipy.stats import ttest_rel

    base = np.array(scores[baseline])
    rows: list[dict[str, Any]] = []
    for order, values in scores.items():
        these = np.array(values)
        differences = these - base
        varied = order != baseline and float(differences.std()) > 1e-12
        rows.append(
            {
                "order": order,
                "mean": float(these.mean()),
                "std": float(these.std(ddof=1)),
                "seeds": len(values),
                "scores": list(values),
                "difference": None if order == baseline else float(differences.mean()),
                "p": float(ttest_rel(these, base).pvalue) if varied else None,
            }
        )
    tested = sorted((row for row in rows if row["p"] is not None), key=lambda row: row["p"])
    largest = 0.0
    for rank, row in enumerate(tested):
        largest = max(largest, min(1.0, row["p"] * (len(tested) - rank)))
        row["p_holm"] = largest
    for row in rows:
        row.setdefault("p_holm", None)
    return rows
