"""Restores picture files, folders and the frames of videos, and writes the results atomically."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor

from visionssm.data.degradations import resize
from visionssm.data.errors import DataError, UserError
from visionssm.data.pictures import Picture, encode_picture, read_picture
from visionssm.engine.checkpoint import write_atomic
from visionssm.engine.prediction import find_images
from visionssm.engine.restorers import Restorer
from visionssm.engine.tiling import Tiling, fit_tile, model_memory, restore_picture, self_ensemble

__all__ = ["VIDEOS", "FileRestorer", "Job", "find_jobs", "parse_bytes", "video_frames"]

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to restore.

    Args:
        source: Picture or video.
        target: Picture to write; for a video the folder of its frames.
    """

    source: Path
    target: Path

    @property
    def video(self) -> bool:
        return self.source.suffix.lower() in VIDEOS


def parse_bytes(text: str) -> int:
    """ "1.5G", "800M", "2GiB" or plain bytes; K, M, G are powers of 1024.

    Raises:
        UserError: If it is no positive size.
    """
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in ("k", "m", "g") else ""
    try:
        size = int(float(number.removesuffix(unit) if unit else number) * _UNITS[unit])
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UserError(f"{text!r} is not a size such as 2G or 800M")
    return size


def find_jobs(inputs: Sequence[str], output: str, *, suffix: str = ".png") -> list[Job]:
    """What to restore and where to write it: `output/<name><suffix>`, with the folders below an input folder kept.

    Args:
        inputs: Pictures, videos, folders and glob patterns.
        output: Folder of the results; or, for a single picture, a file if it has a suffix.
        suffix: Of the files in the folder.

    Raises:
        DataError: If an input names nothing, two inputs would be written to one file, or a result would replace an input.
    """
    jobs: list[Job] = []
    for entry in inputs:
        path = Path(entry).expanduser()
        if path.is_file() and path.suffix.lower() in VIDEOS:
            jobs.append(Job(source=path, target=Path(output) / path.stem))
            continue
        for found in map(Path, find_images([entry])):
            inner = found.relative_to(path) if path.is_dir() else Path(found.name)
            jobs.append(Job(source=found, target=Path(output) / inner.with_suffix(suffix)))
    if Path(output).suffix and not Path(output).is_dir():
        if len(jobs) != 1 or jobs[0].video:
            raise DataError(f"{len(jobs)} inputs cannot be written to the one file {output}; name a folder")
        jobs = [replace(jobs[0], target=Path(output))]
    targets: dict[Path, Path] = {}
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if target in targets:
            raise DataError(f"{targets[target]} and {job.source} would both be written to {job.target}")
        if target in sources:
            raise DataError(f"{job.target} would replace an input; choose another output")
        targets[target] = job.source
    return jobs


def video_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) uint8 RGB.

    Raises:
        DataError: If it cannot be opened or has no frame.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"cannot read video {path}")
        count = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            count += 1
            yield np.ascontiguousarray(frame[..., ::-1])
        if not count:
            raise DataError(f"the video {path} holds no frame that can be decoded")
    finally:
        capture.release()


class FileRestorer:
    """Restores decoded pictures of any kind with one model.

    Colour in a model for grey pictures goes through channel by channel; grey in a model for colour as three equal channels, whose
    mean is kept. Transparency is enlarged bicubically. 16 bits stay 16 bits.

    Args:
        restorer: The model.
        accelerator: Device and precision.
        tiling: How to cut; its tile size is replaced where `memory` is given.
        ensemble: Mean over the eight symmetries.
        memory: Bytes that a picture's restoration may take beside the loaded program, or None.
        tick: Called after each tile with the number of tiles done and of all.
    """

    def __init__(
        self,
        restorer: Restorer,
        *,
        accelerator: Accelerator,
        tiling: Tiling,
        ensemble: bool = False,
        memory: int | None = None,
        tick: Callable[[int, int], None] | None = None,
    ) -> None:
        self.scale, self.channels = restorer.scale, restorer.channels
        self.accelerator, self.tiling, self.memory, self.tick = accelerator, tiling, memory, tick
        model = restorer.model.to(accelerator.device).eval()

        def restore(x: Tensor) -> Tensor:
            with accelerator.autocast():
                return model(x)

        self.restore = self_ensemble(restore) if ensemble else restore
        if memory is not None and tiling.mode != "tiles":
            raise UserError("a memory bound chooses the tile size, so it needs tiles")
        self.per_pixel = 0.0
        if memory is not None:
            self.per_pixel = model_memory(model, self.restore, self.channels, accelerator.device)

    def __call__(self, picture: Picture) -> Picture:
        """The restored picture, of the same kind.

        Raises:
            UserError: If it does not fit the memory bound.
        """
        pixels = picture.pixels
        if pixels.shape[2] == self.channels:
            restored = self._restore(pixels)
        elif self.channels == 1:
            parts = [self._restore(np.ascontiguousarray(pixels[..., i : i + 1])) for i in range(pixels.shape[2])]
            restored = np.concatenate(parts, 2)
        else:
            restored = self._restore(pixels.repeat(self.channels, 2))
            restored = np.rint(restored.mean(2, keepdims=True, dtype=np.float32)).astype(pixels.dtype)
        alpha = picture.alpha
        if alpha is not None and self.scale > 1:
            alpha = resize(alpha, self.scale)
        return replace(picture, pixels=restored, alpha=alpha)

    def _restore(self, pixels: np.ndarray) -> np.ndarray:
        tiling = self.tiling
        if self.memory is not None:
            tile = fit_tile(
                self.memory,
                per_pixel=self.per_pixel,
                size=(pixels.shape[0], pixels.shape[1]),
                scale=self.scale,
                channels=self.channels,
                itemsize=pixels.itemsize,
                overlap=tiling.overlap,
            )
            tiling = replace(tiling, tile=tile)
        device: torch.device = self.accelerator.device
        return restore_picture(self.restore, pixels, scale=self.scale, tiling=tiling, device=device, tick=self.tick)

    def run(self, job: Job, *, compare: bool = False, convert: bool = False) -> Picture:
        """Restores one file, which appears whole or not at all.

        Args:
            job: Which, and where to.
            compare: Also write `<target>_compare.png`: the input, enlarged, beside the result.
            convert: See `read_picture`.

        Returns:
            The picture as read (of a video: its last frame).

        Raises:
            CorruptImage, UserError: If it cannot be read, restored or written.
        """
        if job.video:
            count, frame = 0, None
            for count, frame in enumerate(video_frames(job.source), 1):
                self._write(Picture(pixels=frame), job.target / f"{count:06d}.png", compare)
            assert frame is not None
            return Picture(pixels=frame, note=f"{count} frames")
        picture = read_picture(job.source, convert=convert)
        self._write(picture, job.target, compare)
        return picture

    def _write(self, picture: Picture, target: Path, compare: bool) -> None:
        restored = self(picture)
        data = encode_picture(restored, target.suffix)
        try:
            write_atomic(target, data)
            if compare:
                beside = side_by_side(picture.pixels, restored.pixels, self.scale)
                write_atomic(target.with_name(f"{target.stem}_compare.png"), encode_picture(beside))
        except OSError as error:
            raise DataError(f"cannot write {target}: {os.strerror(error.errno or 0)}") from error


def side_by_side(before: np.ndarray, after: np.ndarray, scale: int) -> Picture:
    """The input, enlarged bicubically, beside the result, with a caption above each; 8 bits."""
    images = []
    for image, text in ((before, "input" if scale == 1 else f"input, bicubic x{scale}"), (after, "restored")):
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        if image is not after and scale > 1 and image.shape[:2] != after.shape[:2]:
            image = resize(image, scale)
        banner = Image.new("L", (image.shape[1], 16), 255)
        ImageDraw.Draw(banner).text((4, 2), text, fill=0)
        images.append(np.concatenate([np.asarray(banner)[..., None].repeat(image.shape[2], 2), image]))
    gap = np.full((images[0].shape[0], 4, images[0].shape[2]), 255, np.uint8)
    return Picture(pixels=np.concatenate([images[0], gap, images[1]], 1))
