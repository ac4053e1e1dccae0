"""Labelled images: timm's readers (folder, tar, Hugging Face) and the embedded digits, with honest errors.

timm's own ImageDataset replaces an unreadable image by the next one and goes on, and its split search falls back to the
whole folder; here both are errors that name the file or folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader, Dataset, Sampler

from visionssm.data.digits import DIGIT_CLASSES, load_digit_images
from visionssm.data.errors import DataError, UserError, did_you_mean, require_range
from visionssm.data.seeding import seed_of
from visionssm.data.transforms import TrainTransform

__all__ = [
    "PICTURE_TYPES",
    "CorruptImage",
    "DataConfig",
    "ImageLoader",
    "LabelledImages",
    "Source",
    "build_loader",
    "open_image",
    "open_source",
]

PICTURE_TYPES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes that are looked for in folders; a file given by name may have any that Pillow reads."""

KINDS = ("digits", "folder", "hfds/<name>")
SYNONYMS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "eval")}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from.

    Args:
        name: "digits" (embedded), "folder" (class folders or tar files, of which timm reads the PNG and JPEG images), or
            "hfds/<name>" (Hugging Face datasets).
        path: For "folder": holds one folder, or one tar file, per split. For "hfds/": its cache folder, if any.
        train_split, validation_split, test_split: Names of the splits; test may be absent. "train" and "validation"
            also find "training", "val", "valid" and "eval".
        image_size: Training and test size in pixels, or None for the model's own.
        crop_pct: Share of the shorter side kept by the centre crop of evaluation, or None for the model's own.
        mean, std: Normalisation, or None for the model's own.
        eval_batch_size: Images per batch and process in evaluation.
        workers: Loader processes; 0 loads in the training process.
        skip_corrupt: Go on when an image cannot be read: in training the next readable one takes its place, in
            evaluation it is left out; either way it is named.
    """

    name: str = "folder"
    path: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    eval_batch_size: int = 256
    workers: int = 4
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        require_range(self, "data", "image_size", "eval_batch_size", least=1)
        require_range(self, "data", "crop_pct", above=0, most=1)
        require_range(self, "data", "std", above=0)
        require_range(self, "data", "workers", least=0)
        if self.name == "digits" and self.path is not None:
            raise DataError(
                f"data.path={self.path} is not read: the digits are embedded; set data.name=folder, or no path"
            )


class CorruptImage(DataError):
    """An image file that cannot be decoded; the message names it."""


class Source(Protocol):
    """Images by index, before any transform."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call a sample in messages: its path where it has one."""
        ...

    def load(self, index: int) -> tuple[Image.Image, int]:
        """(RGB image, class index); raises CorruptImage."""
        ...


def open_image(file: Any, name: str) -> Image.Image:
    """Decodes an image file to RGB of 8 bits; as in timm, EXIF orientation is not applied.

    Args:
        file: Path or binary file object.
        name: What to call it in the error.

    Raises:
        CorruptImage: If it cannot be read in full, or holds 32-bit or float values, of which nothing says what is white.
    """
    try:
        with Image.open(file) as image:
            return _to_rgb(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # what Pillow raises on bad files
        if isinstance(error, FileNotFoundError):
            raise DataError(f"no such image: {name}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"cannot read image {name}: {reason}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Pillow would cut what is above 255 instead of scaling it."""
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen_bits:
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no known range; save it with 8 or 16 bits per channel")
    return image.convert("RGB")


class DigitsSource:
    """The embedded digits (see `visionssm.data.digits`)."""

    classes = DIGIT_CLASSES

    def __init__(self, split: str) -> None:
        self.images, self.targets, self.indices = load_digit_images(split)  # type: ignore[arg-type]
        self.split = split

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"digits/{self.split}/{self.indices[index]}"

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], int(self.targets[index])


class TimmSource:
    """A timm reader (folder, tar, Hugging Face), with its class numbers mapped by name onto `classes`."""

    def __init__(self, reader: Any, *, where: str, classes: Sequence[str] | None) -> None:
        own = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
        if not own:
            raise DataError(f"{where}: the data set does not name its classes")
        names = [name for name, _ in sorted(own.items(), key=lambda item: item[1])]
        if "" in own:
            raise DataError(f"{where} holds images outside any class folder; expected {where}/<class>/<image>")
        self.classes = tuple(classes if classes is not None else names)
        if unknown := [name for name in names if name not in self.classes]:
            raise DataError(
                f"{where} has the class {unknown[0]!r}, which the model or the training split lacks; "
                f"{did_you_mean(unknown[0], self.classes)}"
            )
        place = {name: index for index, name in enumerate(self.classes)}
        self.place = {index: place[name] for name, index in own.items()}
        self.reader, self.where = reader, where

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        name = self.reader.filename(index, absolute=True)
        return str(name) if name else f"{self.where}[{index}]"

    def load(self, index: int) -> tuple[Image.Image, int]:
        try:
            file, target = self.reader[index]
        except OSError as error:
            raise CorruptImage(f"cannot read image {self.name(index)}: {error}") from error
        with file:
            return open_image(file, self.name(index)), self.place[int(target)]


def open_source(config: DataConfig, split: str, *, classes: Sequence[str] | None = None) -> Source:
    """Opens one split of a data set.

    Args:
        config: Which data set.
        split: Which part.
        classes: Class names in the order of the model's outputs; None takes the data set's own (naturally sorted).

    Raises:
        DataError: If folders are missing, a class is empty or unknown, or there is no image.
    """
    if config.name == "digits":
        source: Source = DigitsSource(split)
        if classes is not None and tuple(classes) != source.classes:
            raise DataError(f"the model was trained on the classes {', '.join(classes)}, not on the ten digits")
        return source
    if config.name == "folder":
        root = _split_root(config.path, split)
        try:
            reader = _local_reader(root)
        except (RuntimeError, ValueError, AssertionError, OSError) as error:
            raise DataError(f"{root}: no images found ({' '.join(str(error).split())})") from error
        return TimmSource(reader, where=str(root), classes=classes)
    if config.name.startswith("hfds/"):
        return TimmSource(_hugging_face_reader(config, split), where=f"{config.name}:{split}", classes=classes)
    raise DataError(f"data.name={config.name!r} is not a data set; {did_you_mean(config.name, KINDS)}")


def _local_reader(root: Path) -> Any:
    """timm's reader for a folder or a tar file."""
    if root.is_dir():
        _refuse_empty_classes(root)
        return ReaderImageFolder(str(root), input_key=";".join(PICTURE_TYPES))
    dataset: Any = create_dataset("", root=str(root))
    return dataset.reader


def _hugging_face_reader(config: DataConfig, split: str) -> Any:
    """timm's reader for map-style Hugging Face data sets; streaming ones cannot resume at a sample and are not offered."""
    try:
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError("data.name=hfds/... needs the package `datasets`: pip install datasets") from error
    try:
        dataset: Any = create_dataset(config.name, root=config.path, split=split)
    except (ValueError, OSError, DatasetsError) as error:
        raise DataError(f"{config.name}:{split}: {' '.join(str(error).split())}") from error
    return dataset.reader


def _split_root(path: str | None, split: str) -> Path:
    """The folder or tar file of a split."""
    if not path:
        raise DataError("data.path is not set; give the folder that holds the splits: data.path=/path/to/imagenet")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"data.path={path}: no such folder")
    for name in SYNONYMS.get(split, (split,)):
        for candidate in (root / name, root / f"{name}.tar"):
            if candidate.exists():
                return candidate
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() or entry.suffix == ".tar")
    raise DataError(f"{path} has no split {split!r} (folder or tar); it has: {', '.join(found) or 'nothing'}")


def _refuse_empty_classes(root: Path) -> None:
    """A leaf folder without an image would silently drop a class and shift the numbers of all after it."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if not subfolders and not any(os.path.splitext(name)[1].lower() in PICTURE_TYPES for name in files):
            what = "class folder" if Path(folder) != root else "folder"
            raise DataError(f"the {what} {folder} holds no images ({', '.join(PICTURE_TYPES)}); fill or remove it")


class LabelledImages(Dataset[dict[str, Any]]):
    """Transformed samples by (epoch, index).

    A sample is {"image": (3, H, W), "target": int, "index": int, "problems": [str]}. A loader's worker cannot raise a
    readable error into the main process, so an unreadable image travels as text in "problems"; `build_loader`'s loader
    raises it there, or lets it pass if the recipe says so.
    """

    def __init__(self, source: Source, *, transform: TrainTransform, seed: int = 0, replace: bool = False) -> None:
        self.source, self.transform, self.seed, self.replace = source, transform, seed, replace

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        problems: list[str] = []
        for other in range(index, index + (len(self) if self.replace else 1)):
            try:
                image, target = self.source.load(other % len(self))
            except CorruptImage as error:
                problems.append(str(error))
                continue
            tensor = self.transform(image, seed_of(self.seed, epoch, index))
            return {"image": tensor, "target": target, "index": index, "problems": problems}
        return {"image": None, "target": -1, "index": index, "problems": problems}


class ImageLoader(DataLoader[dict[str, Any]]):
    """A DataLoader that raises on unreadable images, or reports each of them once."""

    skip_corrupt = False
    report: Callable[[str], None] | None = None

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            for problem in batch["problems"]:
                if not self.skip_corrupt:
                    raise CorruptImage(f"{problem} (data.skip_corrupt=true would skip it)")
                if self.report is not None:
                    self.report(problem)
            yield batch


def _collate(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the readable samples; "image" is None where no one is left."""
    samples = list(samples)
    readable = [sample for sample in samples if sample["image"] is not None]
    return {
        "image": torch.stack([sample["image"] for sample in readable]) if readable else None,
        "target": torch.as_tensor(np.array([sample["target"] for sample in readable], dtype=np.int64)),
        "index": [sample["index"] for sample in readable],
        "problems": [problem for sample in samples for problem in sample["problems"]],
    }


def build_loader(
    dataset: LabelledImages,
    batches: Sampler[list[tuple[int, int]]],
    *,
    workers: int = 0,
    skip_corrupt: bool = False,
    report: Callable[[str], None] | None = None,
    pin_memory: bool = False,
) -> ImageLoader:
    """A loader of {"image": (B, 3, H, W) float32, "target": (B,) int64, "index": [int], "problems": [str]}.

    Args:
        dataset: The samples.
        batches: Which samples form which batch.
        workers: Loader processes.
        skip_corrupt: See `DataConfig`.
        report: Called with the name and the reason of each image skipped.
        pin_memory: Page-locked batches, for GPUs.

    Raises:
        CorruptImage: While iterating, if an image cannot be read and `skip_corrupt` is off.
    """
    if workers < 0:
        raise UserError(f"data.workers={workers} must be 0 or more")
    loader = ImageLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )
    loader.skip_corrupt, loader.report = skip_corrupt, report
    return loader
