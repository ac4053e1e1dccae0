"""What every run does with its folder: find where to start, say on what it ran."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from visionssm.data.errors import UserError
from visionssm.engine.checkpoint import BEST, LAST, CheckpointError, find_checkpoint
from visionssm.engine.settings import RunSettings

__all__ = ["environment", "starting_point"]


def starting_point(run: RunSettings, resume: str, accelerator: Accelerator) -> Path | None:
    """The checkpoint to resume from, or None for a fresh start; refuses to mix two runs in one folder.

    Args:
        run: Names the folder.
        resume: As in `find_checkpoint`.
        accelerator: All processes must call.

    Raises:
        CheckpointError: If a checkpoint is missing, or not visible to this process.
        UserError: If the folder holds a run and the recipe does not allow to overwrite it.
    """
    folder = Path(run.output)
    path = find_checkpoint(folder / "checkpoints", resume)
    known = [None if path is None else str(path)]
    broadcast_object_list(known)
    if known[0] is not None and path is None:
        raise CheckpointError(f"{known[0]} is not visible on process {accelerator.process_index}: share the run folder")
    last = folder / "checkpoints" / LAST
    if path is None and last.is_file() and not run.overwrite:
        raise UserError(
            f"{folder} already holds a run; continue it with --resume auto, start anew with --overwrite, "
            "or choose another run.output"
        )
    accelerator.wait_for_everyone()
    if path is None and accelerator.is_main_process:
        for name in (LAST, BEST):
            (folder / "checkpoints" / name).unlink(missing_ok=True)
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
