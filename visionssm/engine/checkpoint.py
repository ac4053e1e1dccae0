"""Files that are either whole or not there: atomic writes, verified reads."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from visionssm.data.errors import UserError

__all__ = [
    "BEST",
    "LAST",
    "CheckpointError",
    "find_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "write_atomic",
]

LAST, BEST = "last.pt", "best.pt"
FORMAT = 1


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another run."""


def write_atomic(path: str | Path, data: bytes | memoryview) -> None:
    """Replaces a file in one step: after a crash or a power cut `path` holds the old content or the new, never a part.

    The data is written beside `path`, forced to the disk, and renamed over it; then the folder entry is forced too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # a full disk, an interrupt
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Windows has no handle for a folder, and its rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain Python values atomically, as a torch file that carries a checksum per entry."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomic(path, buffer.getbuffer())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint to the CPU after verifying all its checksums; never runs code from the file.

    Raises:
        CheckpointError: If the file is missing, cut off, damaged, or no checkpoint of this engine.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        OSError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is cut off or damaged ({path.stat().st_size} bytes; {reason})") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: wrong checksum in {damaged}")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a training checkpoint of this version (format {FORMAT})")
    return state


def find_checkpoint(folder: str | Path, resume: str) -> Path | None:
    """The file to resume from.

    Args:
        folder: `checkpoints` folder of the run.
        resume: "auto": `last.pt` if there is one, else None; "never": None; otherwise a path.

    Raises:
        CheckpointError: If a path was given and is not a file.
    """
    if resume == "never":
        return None
    if resume == "auto":
        last = Path(folder) / LAST
        return last if last.is_file() else None
    if not Path(resume).is_file():
        raise CheckpointError(f"--resume {resume}: no such checkpoint")
    return Path(resume)
