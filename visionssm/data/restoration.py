"""Pairs of clean and degraded patches: folders of pictures, paired folders, the embedded photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.utils.misc import natural_key
from torch.utils.data import DataLoader, Dataset

from visionssm.data.classification import PICTURE_TYPES, CorruptImage
from visionssm.data.degradations import DegradationConfig, degrade, degrade_region
from visionssm.data.errors import DataError, UserError, require_range
from visionssm.data.photographs import load_photographs
from visionssm.data.pictures import read_picture
from visionssm.data.sampling import CropBatches, PatchStage
from visionssm.data.seeding import seed_of

__all__ = [
    "PatchSet",
    "PictureSource",
    "RestorationDataConfig",
    "SplitConfig",
    "as_batch",
    "build_patch_loader",
    "load_pair",
    "open_pictures",
]

CROP_STREAM, DEGRADE_STREAM = 1, 2


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Pictures of one part.

    Args:
        clean: Folders of clean pictures, or the one name "photographs" (the embedded ones).
        degraded: Folders of the same pictures, degraded, in the same order; none: degraded on the fly.
        template: Name of a degraded file without suffix, "{}x2" for DIV2K's small pictures.
        limit: At most so many pictures, or None for all.
        crop: Side of a square cut from the middle of each picture, or None for whole pictures; for quick evaluations.
    """

    clean: tuple[str, ...] = ("photographs",)
    degraded: tuple[str, ...] = ()
    template: str = "{}"
    limit: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        require_range(self, "data.<part>", "limit", "crop", least=1)
        if self.degraded and len(self.degraded) != len(self.clean):
            raise DataError(
                f"{len(self.clean)} clean and {len(self.degraded)} degraded folders: give one for each, or none"
            )
        if "{}" not in self.template:
            raise DataError(f"data template {self.template!r} must hold {{}} for the picture's name, as '{{}}x2'")


@dataclass(frozen=True, kw_only=True)
class RestorationDataConfig:
    """Pictures and patches.

    Args:
        train, validation, test: The parts; test may be absent.
        patch_size: Side of the clean patches in pixels, a multiple of the scale.
        stages: Other patch and batch sizes for parts of the run (progressive training), in place of `patch_size` and
            `run.batch_size`.
        flips: Mirror and turn patches at random.
        recolour: Permute the colour channels at random, which makes more of few pictures; not part of any published recipe.
        workers: Loader processes; 0 loads in the training process.
        cache: Decoded pictures kept in memory, per loader process.
    """

    train: SplitConfig = field(default_factory=SplitConfig)
    validation: SplitConfig = field(default_factory=SplitConfig)
    test: SplitConfig | None = None
    patch_size: int = 128
    stages: tuple[PatchStage, ...] = ()
    flips: bool = True
    recolour: bool = False
    workers: int = 4
    cache: int = 0

    def __post_init__(self) -> None:
        require_range(self, "data", "patch_size", least=1)
        require_range(self, "data", "workers", "cache", least=0)


class PictureSource(Protocol):
    """Clean pictures by index, with degraded partners where they exist as files."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def clean(self, index: int) -> np.ndarray:
        """(H, W, C) uint8, sides cut to multiples of the scale."""
        ...

    def degraded(self, index: int) -> np.ndarray | None:
        """(H / scale, W / scale, C) uint8, or None if it is to be made from the clean one."""
        ...


def _channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 with as many channels as the model has; colour becomes grey by the luma of BT.601, as OpenCV and Pillow have it."""
    if pixels.dtype == np.uint16:
        pixels = np.floor(pixels / 257 + 0.5).astype(np.uint8)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, 2)
    return np.floor(pixels @ np.array([[0.299], [0.587], [0.114]]) + 0.5).astype(np.uint8)


def _whole(pixels: np.ndarray, scale: int) -> np.ndarray:
    height, width = (side - side % scale for side in pixels.shape[:2])
    return pixels[:height, :width]


class Photographs:
    """The embedded photographs (see `visionssm.data.photographs`)."""

    def __init__(self, split: str, *, scale: int, channels: int, limit: int | None) -> None:
        pictures = load_photographs(split)  # type: ignore[arg-type]
        self.names = list(pictures)[:limit]
        self.pictures = [_whole(_channels(pictures[name], channels), scale) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def clean(self, index: int) -> np.ndarray:
        return self.pictures[index]

    def degraded(self, index: int) -> np.ndarray | None:
        return None


class Folders:
    """Picture files, searched with all folders below, with or without degraded partners."""

    def __init__(self, config: SplitConfig, *, scale: int, channels: int, cache: int) -> None:
        self.pairs: list[tuple[Path, Path | None]] = []
        partners = config.degraded or (None,) * len(config.clean)
        for clean, degraded in zip(config.clean, partners, strict=True):
            self.pairs += _pairs(clean, degraded, config.template)
        self.pairs = self.pairs[: config.limit]
        self.scale, self.channels, self.cache = scale, channels, cache
        self._read = lru_cache(maxsize=cache)(self._decode)

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded pictures, which cannot be pickled: every loader process keeps its own."""
        return {name: value for name, value in vars(self).items() if name != "_read"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._read = lru_cache(maxsize=self.cache)(self._decode)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def clean(self, index: int) -> np.ndarray:
        path, partner = self.pairs[index]
        pixels = _whole(self._read(path), self.scale)
        if partner is not None:
            height, width = (side * self.scale for side in self._read(partner).shape[:2])
            if not 0 <= pixels.shape[0] - height < self.scale or not 0 <= pixels.shape[1] - width < self.scale:
                raise DataError(
                    f"{partner} is {width // self.scale}x{height // self.scale}, which times {self.scale} is not the size of "
                    f"{path}, {pixels.shape[1]}x{pixels.shape[0]}"
                )
        return pixels

    def degraded(self, index: int) -> np.ndarray | None:
        partner = self.pairs[index][1]
        return None if partner is None else self._read(partner)

    def _decode(self, path: Path) -> np.ndarray:
        return np.ascontiguousarray(_channels(read_picture(path, convert=True).pixels, self.channels))


def _pairs(clean: str, degraded: str | None, template: str) -> list[tuple[Path, Path | None]]:
    types = PICTURE_TYPES
    for folder in (clean, *(() if degraded is None else (degraded,))):
        if not Path(folder).expanduser().is_dir():
            raise DataError(f"no such folder of pictures: {folder}")
    root = Path(clean).expanduser()
    paths = sorted((p for p in root.rglob("*") if p.suffix.lower() in types), key=lambda p: natural_key(str(p)))
    if not paths:
        raise DataError(f"the folder {clean} holds no pictures ({', '.join(types)})")
    if degraded is None:
        return [(path, None) for path in paths]
    other = Path(degraded).expanduser()
    known = {str(p.relative_to(other).with_suffix("")): p for p in other.rglob("*") if p.suffix.lower() in types}
    pairs: list[tuple[Path, Path | None]] = []
    for path in paths:
        key = str(path.relative_to(root).with_name(template.format(path.stem)))
        if key not in known:
            raise DataError(f"{degraded} has no degraded picture {key!r} for {path}")
        pairs.append((path, known[key]))
    return pairs


def open_pictures(config: SplitConfig, split: str, *, scale: int, channels: int, cache: int = 0) -> PictureSource:
    """Opens one part.

    Args:
        config: Which pictures.
        split: Part of the embedded photographs, where those are asked for.
        scale, channels: Of the model.
        cache: Pictures kept decoded.

    Raises:
        DataError: If a folder is missing or empty, or a picture lacks its partner.
    """
    if config.clean == ("photographs",):
        if config.degraded:
            raise DataError("the embedded photographs are degraded on the fly: leave `degraded` empty")
        return Photographs(split, scale=scale, channels=channels, limit=config.limit)
    return Folders(config, scale=scale, channels=channels, cache=cache)


def load_pair(
    source: PictureSource, index: int, degradation: DegradationConfig, *, scale: int, crop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A whole picture for evaluation, degraded as if by the field's files: always the same.

    Returns:
        clean (H, W, C) uint8, degraded (H / scale, W / scale, C) float32.
    """
    clean, degraded = source.clean(index), source.degraded(index)
    if degraded is None:
        degraded = degrade(clean, degradation, scale=scale)
    else:
        degraded = degraded.astype(np.float32) / 255
        clean = clean[: degraded.shape[0] * scale, : degraded.shape[1] * scale]
    if crop is not None:
        side = [min(crop // scale, length) for length in degraded.shape[:2]]
        y, x = ((length - part) // 2 for length, part in zip(degraded.shape[:2], side, strict=True))
        degraded = degraded[y : y + side[0], x : x + side[1]]
        clean = clean[y * scale : (y + side[0]) * scale, x * scale : (x + side[1]) * scale]
    return clean, degraded


class PatchSet(Dataset[dict[str, Any]]):
    """Random patches by (update, place, picture, patch size): {"degraded": (C, h, w), "clean": (C, H, W), "problem": str | None}.

    Every choice is a function of the seed, the update and the place in the batch.
    """

    def __init__(
        self,
        source: PictureSource,
        degradation: DegradationConfig,
        *,
        scale: int,
        flips: bool,
        recolour: bool = False,
        seed: int,
    ) -> None:
        self.source, self.degradation, self.scale, self.seed = source, degradation, scale, seed
        self.flips, self.recolour = flips, recolour

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int, int, int]) -> dict[str, Any]:
        update, place, index, size = key
        random = np.random.default_rng((self.seed, update, place, CROP_STREAM))
        try:
            clean = self.source.clean(index)
            degraded = self.source.degraded(index)
            if min(clean.shape[:2]) < size:
                raise DataError(
                    f"{self.source.name(index)} is {clean.shape[1]}x{clean.shape[0]}, smaller than data.patch_size={size}"
                )
        except DataError as error:  # a worker cannot raise a readable error into the main process
            return {"degraded": None, "clean": None, "problem": str(error)}
        limits = clean.shape if degraded is None else [side * self.scale for side in degraded.shape[:2]]
        y, x = (int(random.integers((side - size) // self.scale + 1)) for side in limits[:2])
        small = size // self.scale
        rows, columns = (slice(p * self.scale, p * self.scale + size) for p in (y, x))
        if degraded is None:
            seed = seed_of(self.seed, update, place, DEGRADE_STREAM)
            patch = degrade_region(clean, rows, columns, self.degradation, scale=self.scale, seed=seed)
        else:
            patch = degraded[y : y + small, x : x + small].astype(np.float32) / 255
        pair = [patch, clean[rows, columns].astype(np.float32) / 255]
        if self.flips:
            turn = random.integers(2, size=3)
            pair = [dihedral(image, *map(bool, turn)) for image in pair]
        if self.recolour:
            order = random.permutation(pair[0].shape[2])
            pair = [image[..., order] for image in pair]
        low, high = (torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in pair)
        return {"degraded": low, "clean": high, "problem": None}


def dihedral(image: np.ndarray, mirror: bool, flip: bool, transpose: bool) -> np.ndarray:
    """One of the eight symmetries of the square, on (H, W, C)."""
    image = image[:, ::-1] if mirror else image
    image = image[::-1] if flip else image
    return image.swapaxes(0, 1) if transpose else image


class PatchLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that raises, in the main process, what kept a worker from making a patch."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if batch["problem"] is not None:
                raise CorruptImage(batch["problem"])
            yield batch


def as_batch(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks patches; the first problem, if there is one, comes in their place."""
    problem = next((sample["problem"] for sample in samples if sample["problem"] is not None), None)
    if problem is not None:
        return {"degraded": None, "clean": None, "problem": problem}
    stacked = {key: torch.stack([sample[key] for sample in samples]) for key in ("degraded", "clean")}
    return {**stacked, "problem": None}


def build_patch_loader(
    patches: PatchSet, batches: CropBatches, *, workers: int = 0, pin_memory: bool = False
) -> PatchLoader:
    """A loader of {"degraded": (B, C, h, w), "clean": (B, C, H, W)} float32, 0..1.

    Raises:
        DataError: While iterating, if a picture is unreadable or too small.
    """
    if workers < 0:
        raise UserError(f"data.workers={workers} must be 0 or more")
    return PatchLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=as_batch,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )
