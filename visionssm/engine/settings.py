"""Recipe sections that every trainer shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import MultiStepLRScheduler, create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from visionssm.data.errors import did_you_mean, require_range
from visionssm.engine.config import ConfigError

__all__ = [
    "EmaConfig",
    "OptimizerConfig",
    "RunConfig",
    "RunSettings",
    "ScheduleConfig",
    "UpdatesRunConfig",
    "build_optimizer",
    "build_schedule",
]

SCHEDULES = (
    "cosine",
    "tanh",
    "constant",
    "poly",
)  # timm's that need no more than the fields of ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Abstract: how a run is carried out, whatever its length is counted in.

    Args:
        output: Run folder.
        seed: Decides the weights, the order of the data and every random choice.
        batch_size: Samples per optimizer update, over all processes and accumulation steps.
        accumulate: Forward passes per update and process.
        precision: "no" (float32), "bf16" or "fp16" (GPUs only, with loss scaling).
        compile: torch.compile backend ("inductor"), or None.
        deterministic: Ask torch for deterministic GPU algorithms; CPUs are deterministic anyway.
        threads: CPU threads per process, or None for torch's choice. Rounding depends on it, so set it where the same
            bits are wanted on machines with different numbers of cores.
        keep_memory: On CPUs, keep freed memory in the process: large tensors cost less time, and the run holds about a third
            more memory (`visionssm_kernels.keep_memory`).
        checkpoint_every: Updates between checkpoints inside an epoch; None: only at the end of each epoch.
        log_every: Updates between TensorBoard points.
        tensorboard: Write TensorBoard events.
        overwrite: Start anew in a folder that holds a run; otherwise that is an error.
    """

    output: str
    seed: int = 0
    batch_size: int = 1024
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: str | None = None
    deterministic: bool = False
    threads: int | None = None
    keep_memory: bool = False
    checkpoint_every: int | None = None
    log_every: int = 50
    tensorboard: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name}={getattr(self, name)} must be at least 1")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ConfigError(f"run.checkpoint_every={self.checkpoint_every} must be at least 1, or null")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"run.threads={self.threads} must be at least 1, or null")
        if self.seed < 0:
            raise ConfigError(f"run.seed={self.seed} must not be negative")

    @property
    def epochs(self) -> int:
        """Parts of the run, each with an evaluation at its end."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunSettings):
    """A run of passes over the training set.

    Args:
        epochs: Passes, warm-up included.
    """

    epochs: int = 300


@dataclass(frozen=True, kw_only=True)
class UpdatesRunConfig(RunSettings):
    """A run of optimizer updates; what other sections call an epoch is the stretch between two evaluations.

    Args:
        updates: Length of the run.
        evaluate_every: Updates between evaluations; divides `updates`.
    """

    batch_size: int = 32
    updates: int = 500_000
    evaluate_every: int = 5_000

    def __post_init__(self) -> None:
        if self.evaluate_every < 1 or self.updates < 1 or self.updates % self.evaluate_every:
            raise ConfigError(
                f"run.updates={self.updates} must be a multiple of run.evaluate_every={self.evaluate_every}, both at least 1"
            )
        super().__post_init__()

    @property
    def epochs(self) -> int:
        return self.updates // self.evaluate_every


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, by its name in timm.

    Args:
        name: Such as "adamw", "sgd", "lamb".
        lr: Learning rate at the end of the warm-up.
        lr_base_batch: If set, all learning rates are for this batch size and grow in proportion to the actual one.
        weight_decay: Not applied to 1-D parameters nor to those the model's `no_weight_decay()` names.
        betas, momentum: Where the optimizer has them.
        layer_decay: Factor on the learning rate per layer counted from the head.
        clip_grad: Largest norm of the whole gradient, or None.
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_base_batch: int | None = None
    weight_decay: float = 0.05
    betas: tuple[float, float] | None = None
    momentum: float = 0.9
    layer_decay: float | None = None
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        require_range(self, "optimizer", "lr", "weight_decay", least=0)
        require_range(self, "optimizer", "betas", "momentum", least=0, below=1)
        require_range(self, "optimizer", "layer_decay", above=0, most=1)
        require_range(self, "optimizer", "clip_grad", above=0)
        require_range(self, "optimizer", "lr_base_batch", least=1)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the run, stepped per update; names and meaning as in timm.

    Args:
        name: "cosine", "tanh", "poly", "constant" or "multistep".
        warmup_epochs: Linear warm-up from `warmup_lr`, inside `run.epochs`.
        warmup_lr, min_lr: First and last learning rate.
        power: Exponent of "poly".
        warmup_prefix: Start the curve after the warm-up (Swin, VMamba) instead of cutting off its beginning (DeiT, Vim).
        milestones, decay_rate: For "multistep": after so many updates each, warm-up included, the learning rate is multiplied.
    """

    name: str = "cosine"
    warmup_epochs: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    power: float = 0.9
    warmup_prefix: bool = False
    milestones: tuple[int, ...] = ()
    decay_rate: float = 0.5

    def __post_init__(self) -> None:
        require_range(self, "schedule", "warmup_lr", "min_lr", least=0)
        require_range(self, "schedule", "power", "decay_rate", above=0)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the weights (timm's ModelEmaV3); what is evaluated and exported if `decay` is set.

    Args:
        decay: Such as 0.9999, or None for no average.
        warmup: Let the decay grow from 0 in short runs.
    """

    decay: float | None = None
    warmup: bool = False

    def __post_init__(self) -> None:
        require_range(self, "ema", "decay", least=0, below=1)


def build_optimizer(config: OptimizerConfig, model: nn.Module, *, batch_size: int) -> torch.optim.Optimizer:
    """timm's optimizer for a model, with its no-decay and layer-decay parameter groups.

    Raises:
        ConfigError: If timm does not know the optimizer or the model gives no layer groups.
    """
    if config.name not in (known := [str(name) for name in list_optimizers()]):
        raise ConfigError(f"optimizer.name={config.name!r} is unknown; {did_you_mean(config.name, known)}")
    if config.layer_decay is not None and not hasattr(model, "group_matcher"):
        raise ConfigError(f"optimizer.layer_decay needs a model with group_matcher(); {type(model).__name__} has none")
    options: dict[str, Any] = {} if config.betas is None else {"betas": config.betas}
    return create_optimizer_v2(
        model,
        opt=config.name,
        lr=config.lr * _lr_factor(config, batch_size),
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        layer_decay=config.layer_decay,
        **options,
    )


def build_schedule(
    config: ScheduleConfig,
    optimizer: torch.optim.Optimizer,
    *,
    optimizer_config: OptimizerConfig,
    run: RunSettings,
    updates_per_epoch: int,
) -> Scheduler:
    """timm's schedule, a pure function of the number of updates done.

    Raises:
        ConfigError: If the warm-up does not fit or timm does not know the schedule.
    """
    if not 0 <= config.warmup_epochs < run.epochs:
        raise ConfigError(f"schedule.warmup_epochs={config.warmup_epochs} must be less than run.epochs={run.epochs}")
    if config.name not in (*SCHEDULES, "multistep"):
        known = (*SCHEDULES, "multistep")
        raise ConfigError(f"schedule.name={config.name!r} is unknown; {did_you_mean(config.name, known)}")
    if (config.name == "multistep") != bool(config.milestones) or list(config.milestones) != sorted(
        set(config.milestones)
    ):
        raise ConfigError(
            f"schedule.milestones={list(config.milestones)} must ascend, and be given for schedule.name=multistep only"
        )
    factor = _lr_factor(optimizer_config, run.batch_size)
    if config.name == "multistep":
        return MultiStepLRScheduler(
            optimizer,
            decay_t=[milestone + 1 for milestone in config.milestones],  # timm's steps come one early
            decay_rate=config.decay_rate,
            warmup_t=config.warmup_epochs * updates_per_epoch,
            warmup_lr_init=config.warmup_lr * factor,
            warmup_prefix=False,
            t_in_epochs=False,
        )
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=run.epochs - (config.warmup_epochs if config.warmup_prefix else 0),
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr * factor,
        min_lr=config.min_lr * factor,
        warmup_prefix=config.warmup_prefix,
        decay_rate=config.power if config.name == "poly" else 0.1,  # for others timm's default, which they do not use
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    assert schedule is not None
    return schedule


def _lr_factor(config: OptimizerConfig, batch_size: int) -> float:
    return batch_size / config.lr_base_batch if config.lr_base_batch else 1.0
