"""What every run does with its folder: find where to start, train, say on what it ran and what came out."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from visionssm.data.errors import UserError
from visionssm.data.sampling import Batches
from visionssm.engine.checkpoint import BEST, LAST, CheckpointError, find_checkpoint, load_checkpoint, write_atomic
from visionssm.engine.config import dump_config
from visionssm.engine.logging import RunLogger
from visionssm.engine.loop import Task, Trainer, build_accelerator
from visionssm.engine.models import EXPORTED, ModelConfig
from visionssm.engine.plots import plot_curves
from visionssm.engine.settings import EmaConfig, OptimizerConfig, RunSettings, ScheduleConfig

__all__ = ["Recipe", "Run", "environment", "starting_point"]

TaskT = TypeVar("TaskT", bound=Task)

PRECIOUS = (f"checkpoints/{LAST}", *EXPORTED)  # that only `run.overwrite` replaces
RESULTS = (*PRECIOUS, f"checkpoints/{BEST}", "metrics.json", "log.csv", "curves.png", "confusion.png", "pictures.png")


class Recipe(Protocol):
    """The sections that every recipe has."""

    @property
    def run(self) -> RunSettings: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def ema(self) -> EmaConfig: ...


class Run:
    """A training by a recipe, from its folder to its folder.

    Args:
        config: The recipe.
        resume: "never", "auto" (continue if there is a checkpoint) or the path of a checkpoint.
        cpu: Stay on the CPU even where there is a GPU.
        changed_recipe: Accept a checkpoint of another recipe.

    Raises:
        UserError: As `build_accelerator` and `starting_point`.
    """

    def __init__(self, config: Recipe, *, resume: str, cpu: bool, changed_recipe: bool) -> None:
        self.started = time.perf_counter()
        self.config, self.changed_recipe = config, changed_recipe
        self.folder = Path(config.run.output)
        self.accelerator = build_accelerator(config.run, cpu=cpu)
        self.checkpoint = starting_point(config.run, resume, self.accelerator)

    def train(
        self,
        model: nn.Module,
        task: Callable[[RunLogger], TaskT],
        batches: Batches,
        *,
        about: str,
        finish: Callable[[Trainer, TaskT], dict[str, Any]],
    ) -> dict[str, Any]:
        """Trains, and leaves config.yaml, log.csv, tensorboard/, checkpoints/, curves.png and metrics.json.

        Args:
            model: The network.
            task: Makes data, loss and score.
            batches: The training order.
            about: Model and data in a line.
            finish: Called on the main process after training: exports, scores, and gives its part of metrics.json.

        Returns:
            What metrics.json holds (on all processes but the main one: an empty dict).
        """
        config, accelerator = self.config, self.accelerator
        recipe = dump_config(config)
        logger = RunLogger(self.folder, active=accelerator.is_main_process, tensorboard=config.run.tensorboard)
        try:
            built = task(logger)
            trainer = Trainer(
                model,
                built,
                batches,
                run=config.run,
                optimizer=config.optimizer,
                schedule=config.schedule,
                ema=config.ema,
                config=recipe,
                accelerator=accelerator,
                logger=logger,
            )
            if self.checkpoint is not None:
                trainer.resume(self.checkpoint, changed_recipe=self.changed_recipe)
                logger.say(f"resumed {self.checkpoint} at update {trainer.updates_done}")
            elif accelerator.is_main_process:
                for name in RESULTS:  # an interrupted run shall never serve the model or figures of the one before
                    (self.folder / name).unlink(missing_ok=True)
                write_atomic(self.folder / "config.yaml", yaml.safe_dump(recipe, sort_keys=False).encode())
            device = f"{accelerator.num_processes} x {accelerator.device.type}"
            logger.say(f"{config.model.name}: {about}, {device}, output {self.folder}")
            history = trainer.fit()
            metrics: dict[str, Any] = {}
            if accelerator.is_main_process:
                plot_curves(history, self.folder / "curves.png", title=config.model.name)
                metrics = {
                    "model": config.model.name,
                    **finish(trainer, built),
                    "updates": trainer.updates_done,
                    f"best_validation_{built.score}": trainer.state.best_score,
                    "history": history,
                    "seconds": time.perf_counter() - self.started,
                    "environment": environment(accelerator),
                    "config": recipe,
                }
                write_atomic(self.folder / "metrics.json", json.dumps(metrics, indent=2).encode())
            accelerator.wait_for_everyone()
            return metrics
        finally:
            logger.close()

    def best_weights(self) -> dict[str, torch.Tensor]:
        """Of the best epoch: the average, if there is one."""
        best = load_checkpoint(self.folder / "checkpoints" / BEST)
        return best["model"] if best["ema"] is None else best["ema"]


def starting_point(run: RunSettings, resume: str, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, or None for a fresh start; refuses to mix two runs in one folder.

    Args:
        run: Names the folder.
        resume: As in `find_checkpoint`.
        accelerator: All processes must call.

    Raises:
        CheckpointError: If a checkpoint is missing, or not visible to this process.
        UserError: If the folder cannot be one, or holds a run and the recipe does not allow to overwrite it.
    """
    folder = Path(run.output)
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise UserError(f"run.output={folder}: {file} is a file; choose a folder")
    path = find_checkpoint(folder / "checkpoints", resume)
    known = [None if path is None else str(path)]
    broadcast_object_list(known)
    if known[0] is not None and path is None:
        raise CheckpointError(f"{known[0]} is not visible on process {accelerator.process_index}: share the run folder")
    found = [name for name in PRECIOUS if (folder / name).is_file()]
    if path is None and found and not run.overwrite:
        resumable = "continue it with --resume auto, " if found[0] == PRECIOUS[0] else ""
        raise UserError(
            f"{folder} already holds a run ({found[0]}); {resumable}start anew with --overwrite, "
            "or choose another run.output"
        )
    accelerator.wait_for_everyone()
    if path is None and accelerator.is_main_process:
        for events in (folder / "tensorboard").glob("events.*"):
            events.unlink()
    return path


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Device, processes, precision and versions, for metrics.json."""
    cuda = accelerator.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "threads": torch.get_num_threads(),
    }
