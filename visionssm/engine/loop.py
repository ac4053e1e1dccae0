"""The training loop: updates, averages, logs and checkpoints for any task.

All state that decides what comes next is in the checkpoint or is a function of (seed, epoch, update): the order of
the data (`UpdateBatches`), augmentation, drop path. A run that is killed at any moment and resumed therefore continues
with the same bits as one that was left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from visionssm.data.errors import UserError
from visionssm.data.sampling import Batches
from visionssm.data.seeding import seed_of
from visionssm.engine.checkpoint import BEST, LAST, CheckpointError, load_checkpoint, save_checkpoint
from visionssm.engine.config import config_changes
from visionssm.engine.logging import RunLogger
from visionssm.engine.settings import (
    EmaConfig,
    OptimizerConfig,
    RunSettings,
    ScheduleConfig,
    build_optimizer,
    build_schedule,
)
from visionssm_kernels import keep_memory

__all__ = ["DivergedError", "Place", "Task", "Trainer", "build_accelerator", "open_accelerator"]

# What may differ when a run is resumed, because it does not change what is computed (rounding apart).
FREE_KEYS = (
    "data.cache",
    "data.eval_batch_size",
    "data.path",
    "data.workers",
    "run.accumulate",
    "run.checkpoint_every",
    "run.keep_memory",
    "run.log_every",
    "run.output",
    "run.overwrite",
    "run.tensorboard",
)
STEP_STREAM = 1  # keeps the seeds of training steps apart from those of the sample order and of augmentation


class DivergedError(UserError):
    """The loss or the gradient is no longer finite; the message says at which update."""


@dataclass(frozen=True)
class Place:
    """Where in the run a micro-batch stands."""

    epoch: int
    update: int
    step: int
    done: float
    """Share of the run's updates already made, 0 to 1."""


class Task(Protocol):
    """What differs between trainings: data, loss and score."""

    score: str
    """The metric of `evaluate` that chooses the best epoch."""
    higher_is_better: bool

    def train_loader(self, batches: Any) -> Any:
        """Iterable of micro-batches in the order of `batches`, the object that the trainer was given."""
        ...

    def loss(self, model: Callable[..., Tensor], batch: Any, place: Place, *, teacher: nn.Module | None) -> Tensor:
        """Mean loss of a micro-batch, a float32 scalar; `teacher` is the weight average, if there is one."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation data, the same on all processes."""
        ...


@dataclass
class TrainerState:
    """What a checkpoint holds beside tensors."""

    epoch: int = 0
    update: int = 0
    """Updates done in this epoch."""
    loss_sum: float = 0.0
    norm_sum: float = 0.0
    measured: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None


def open_accelerator(precision: str, *, cpu: bool = False, compile_backend: str | None = None) -> Accelerator:
    """accelerate's device, precision ("no", "bf16", "fp16") and torch.compile backend.

    Raises:
        UserError: If they are not to be had together.
    """
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu, dynamo_backend=compile_backend)
    except ValueError as error:
        raise UserError(f"precision {precision}, compile {compile_backend}: {error}") from error
    if precision == "fp16" and accelerator.scaler is None:  # accelerate would train in float32 without a word
        raise UserError(f"precision fp16 needs a GPU, this is {accelerator.device.type}; use bf16 or no")
    return accelerator


def build_accelerator(run: RunSettings, *, cpu: bool = False) -> Accelerator:
    """accelerate's view of the launch: one process, or several under `accelerate launch` or `torchrun`.

    Raises:
        UserError: If the precision is not available on the device, or freed memory cannot be kept.
    """
    accelerator = open_accelerator(run.precision, cpu=cpu, compile_backend=run.compile)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if run.keep_memory and accelerator.device.type == "cpu" and not keep_memory():
        raise UserError("run.keep_memory=true needs glibc, and this system has another C library")
    if run.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    return accelerator


class Trainer:
    """Trains one model on one task.

    Args:
        model: The network, on the CPU or on the accelerator's device.
        task: Data, loss and score.
        batches: The training order.
        run, optimizer, schedule, ema: Recipe sections.
        config: The whole recipe as plain values; kept in checkpoints and compared when resuming.
        accelerator: Device, precision and processes.
        logger: Where to report.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        batches: Batches,
        *,
        run: RunSettings,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        ema: EmaConfig,
        config: Mapping[str, Any],
        accelerator: Accelerator,
        logger: RunLogger,
    ) -> None:
        self.task, self.batches, self.run, self.config = task, batches, run, config
        self.accelerator, self.logger = accelerator, logger
        self.clip = optimizer.clip_grad or math.inf
        self.folder = Path(run.output) / "checkpoints"
        self.model = model.to(accelerator.device)
        self.ema = None
        if ema.decay is not None:
            self.ema = ModelEmaV3(self.model, decay=ema.decay, use_warmup=ema.warmup)
        inner = build_optimizer(optimizer, self.model, batch_size=run.batch_size)
        self.schedule = build_schedule(
            schedule, inner, optimizer_config=optimizer, run=run, updates_per_epoch=batches.updates_per_epoch
        )
        self.wrapped, self.optimizer = accelerator.prepare(self.model, inner)
        self.schedule.step_update(0)
        self.state = TrainerState()
        self._pending: tuple[int, Tensor, Tensor] | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The weights that are evaluated and exported: the average, if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def updates_done(self) -> int:
        return self.state.epoch * self.batches.updates_per_epoch + self.state.update

    def fit(self) -> list[dict[str, float]]:
        """Trains from the current state to the last epoch.

        Returns:
            One row of metrics per epoch.

        Raises:
            DivergedError: At the first update whose loss or gradient is not finite.
        """
        self.logger.history(self.state.history)
        while self.state.epoch < self.run.epochs:
            start, first = time.perf_counter(), self.state.update
            self._train_epoch()
            seconds = time.perf_counter() - start
            images = self.batches.samples(first, self.batches.updates_per_epoch)
            self._end_epoch(images_per_second=images / max(seconds, 1e-9))
        return self.state.history

    def resume(self, path: Path, *, changed_recipe: bool = False) -> None:
        """Continues from a checkpoint.

        Args:
            path: The file.
            changed_recipe: Accept a recipe that differs from the checkpoint's.

        Raises:
            CheckpointError: If the file is damaged, or is of another recipe or model.
        """
        saved = load_checkpoint(path)
        changes = config_changes(saved["config"], self.config)
        told = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes.items() if key not in FREE_KEYS]
        if told and not changed_recipe:
            raise CheckpointError(
                f"{path} is of another recipe: {'; '.join(told)}. Undo the change, start in another folder, or "
                "accept it with --changed-recipe"
            )
        if (self.ema is None) != (saved["ema"] is None):
            raise CheckpointError(f"{path} was made {'with' if self.ema is None else 'without'} ema.decay")
        try:
            self.model.load_state_dict(saved["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(saved["ema"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this model: {' '.join(str(error).split())[:300]}") from error
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.state = TrainerState(**saved["state"])
        self.schedule.step_update(self.updates_done)

    def _train_epoch(self) -> None:
        state, batches = self.state, self.batches
        batches.epoch, batches.first_update = state.epoch, state.update
        total = batches.updates_per_epoch
        self.wrapped.train()
        self.logger.start_epoch(f"epoch {state.epoch + 1}/{self.run.epochs}", total=total, done=state.update)
        loader = iter(self.task.train_loader(batches))
        start, first = time.perf_counter(), state.update
        while state.update < total:
            pending = self._update(loader)
            self._settle()  # only now: reading the loss of the update before does not hold up this one
            self._pending = pending
            state.update += 1
            every = self.run.checkpoint_every
            if every is not None and state.update % every == 0 and state.update < total:
                self._save(LAST)
            rate = batches.samples(first, state.update) / (time.perf_counter() - start)
            mean = state.loss_sum / state.measured if state.measured else None
            self.logger.step(loss=mean, images_per_second=rate)
        self._settle()
        self.logger.end_epoch()

    def _update(self, loader: Iterator[Any]) -> tuple[int, Tensor, Tensor]:
        """One optimizer update; returns its number, loss and gradient norm, still on the device."""
        state, accelerator = self.state, self.accelerator
        number = self.updates_done
        updates = self.run.epochs * self.batches.updates_per_epoch
        total = torch.zeros((), device=accelerator.device)
        self.optimizer.zero_grad()
        for step in range(self.run.accumulate):
            batch = next(loader)
            shard = step * accelerator.num_processes + accelerator.process_index
            torch.manual_seed(seed_of(self.run.seed, state.epoch, state.update, shard, STEP_STREAM))
            last = step == self.run.accumulate - 1
            place = Place(state.epoch, state.update, shard, number / updates)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                teacher = None if self.ema is None else self.ema.module
                loss = self.task.loss(self.wrapped, batch, place, teacher=teacher)
                accelerator.backward(loss / self.run.accumulate)
            total += loss.detach() / self.run.accumulate
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.schedule.step_update(number + 1)
        if self.ema is not None:
            self.ema.update(self.model, step=number + 1)
        mean: Any = accelerator.reduce(total, reduction="mean")
        return number + 1, mean, norm

    def _settle(self) -> None:
        """Checks and counts the last update whose numbers have not been read yet."""
        if self._pending is None:
            return
        (number, loss, norm), self._pending = self._pending, None
        loss, norm = float(loss), float(norm)
        scaled = self.accelerator.scaler is not None  # then an infinite gradient only skips the update
        if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
            last = self.folder / LAST
            kept = f"{last} is the last good checkpoint" if last.is_file() else "no checkpoint had been written yet"
            raise DivergedError(
                f"training diverged at update {number} (epoch {self.state.epoch + 1}): loss {loss}, gradient norm "
                f"{norm}; {kept}. Lower optimizer.lr, set optimizer.clip_grad, or use run.precision=no"
            )
        self.state.loss_sum += loss
        self.state.measured += 1
        if math.isfinite(norm):
            self.state.norm_sum += norm
        if number % self.run.log_every == 0:
            lr = max(group["lr"] for group in self.optimizer.param_groups)
            self.logger.scalars({"train/loss": loss, "train/gradient_norm": norm, "train/lr": lr}, update=number)

    def _end_epoch(self, *, images_per_second: float) -> None:
        """Evaluates, logs, and saves: the best first, so that a kill in between repeats the epoch's end."""
        state = self.state
        if self.accelerator.num_processes > 1:  # batch norm statistics differ between processes: the first one's count
            for model in (self.model, *([] if self.ema is None else [self.ema.module])):
                distribute_bn(model, self.accelerator.num_processes, reduce=False)
        metrics = self.task.evaluate(self.eval_model)
        row = {
            "epoch": state.epoch + 1,
            "updates": self.updates_done,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": state.loss_sum / max(state.measured, 1),
            "gradient_norm": state.norm_sum / max(state.measured, 1),
            **metrics,
            "images_per_second": images_per_second,
        }
        score, sign = metrics[self.task.score], 1 if self.task.higher_is_better else -1
        better = state.best_score is None or sign * score > sign * state.best_score
        state.history.append(row)
        state.epoch, state.update = state.epoch + 1, 0
        state.loss_sum, state.norm_sum, state.measured = 0.0, 0.0, 0
        if better:
            state.best_epoch, state.best_score = state.epoch, score
            self._save(BEST)
        self._save(LAST)
        self.logger.history(state.history)
        self.logger.scalars({f"epoch/{key}": value for key, value in row.items()}, update=self.updates_done)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        self.logger.say(
            f"epoch {state.epoch}/{self.run.epochs}  train loss {row['train_loss']:.4f}  {shown}  "
            f"{images_per_second:,.0f} img/s{'  best' if better else ''}"
        )

    def _save(self, name: str) -> None:
        self._settle()
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        save_checkpoint(
            self.folder / name,
            {
                "config": dict(self.config),
                "state": vars(self.state),
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            },
        )
