"""Volumes and their labels: lists of cases, reading with honest errors, preprocessing and augmentation from MONAI's transforms.

Layouts: MSD (dataset.json beside the files, medicaldecathlon.com), BraTS (a folder per case, a file per modality), MONAI's own
JSON lists, and volumes made by MONAI's generator. An image may be a NIfTI file or a folder with one DICOM series.

Legend: C channels (modalities), S = (X, Y, Z) sizes.
"""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    LoadImage,
)
from nibabel.filebasedimages import ImageFileError

from visionssm.data.errors import DataError

__all__ = [
    "Case",
    "CorruptVolume",
    "VolumeDataConfig",
    "find_cases",
    "input_cases",
    "labelled_cases",
    "read_case",
    "split_cases",
]

NIFTI = (".nii", ".nii.gz")
LABELS = ("seg", "label")  # ends of file names that are no input
SPLIT_STREAM = 4  # keeps the seeds of orders of cases apart from all others


class CorruptVolume(DataError):
    """A volume that cannot be read, or does not fit the others of its case; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class VolumeDataConfig:
    """Where the volumes come from and what is done to them before the network.

    Args:
        name: "msd", "brats", "list" (a JSON file of MONAI's form) or "generated" (written to `path` first, as "msd").
        path: folder, or the JSON file.
        channels: modalities in the order of the network's input. For "brats" the ends of the file names ("t2w" for
            "<case>-t2w.nii.gz"); elsewhere just names.
        classes: names by label value, background first.
        regions: name -> label values that are scored as one; empty: every class but the background.
        validation, test: shares of the labelled cases.
        split_seed: which cases.
        axcodes: anatomical order of the axes in memory, such as "RAS"; the first is the slowest of a scan.
        spacing: voxel size to resample to, in mm along `axcodes`, or None for the volumes' own.
        crop: cut away empty margins.
        window: intensities scaled to 0..1 and clipped (CT, in HU), or None: z-scores of each channel over the cropped volume.
        patch: size of training patches.
        samples: patches per epoch, or None for one per case.
        foreground: share of the patches that are centred on a labelled voxel.
        cache: share of the preprocessed cases that is kept in memory.
        workers: loader processes; 0 loads in the training process.
    """

    name: Literal["msd", "brats", "list", "generated"] = "msd"
    path: str = ""
    channels: tuple[str, ...] = ("image",)
    classes: tuple[str, ...] = ("background", "foreground")
    regions: dict[str, list[int]] = field(default_factory=dict)
    validation: float = 0.1
    test: float = 0.2
    split_seed: int = 42
    axcodes: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    crop: bool = True
    window: tuple[float, float] | None = None
    patch: tuple[int, int, int] = (128, 128, 128)
    samples: int | None = None
    foreground: float = 0.33
    cache: float = 1.0
    workers: int = 0

    def __post_init__(self) -> None:
        if sorted(re.sub("[LR]", "x", re.sub("[AP]", "y", re.sub("[SI]", "z", self.axcodes)))) != [
            "x",
            "y",
            "z",
        ]:
            raise DataError(f"data.axcodes={self.axcodes!r} must name one of LR, one of AP and one of SI")
        if not 0 < self.validation < 1 or not 0 <= self.test < 1 - self.validation:
            raise DataError(f"data.validation={self.validation} and data.test={self.test} must leave cases to train on")
        low, high = self.window or (0, 1)
        for name, fits, wanted in (
            ("channels", 0 < len(self.channels) == len(set(self.channels)), "names that differ"),
            ("classes", 1 < len(self.classes) == len(set(self.classes)), "two or more names that differ"),
            ("spacing", all(0 < side < math.inf for side in self.spacing or ()), "sizes above 0, in mm"),
            ("window", -math.inf < low < high < math.inf, "two intensities, the lower first"),
            ("samples", self.samples is None or self.samples >= 1, "at least 1, or null for one per case"),
            ("foreground", 0 <= self.foreground <= 1, "a share, 0 to 1"),
            ("cache", 0 <= self.cache <= 1, "a share, 0 to 1"),
            ("workers", self.workers >= 0, "at least 0"),
        ):
            if not fits:
                raise DataError(f"data.{name}={getattr(self, name)} must be {wanted}")
        for name, values in self.regions.items():
            if not isinstance(values, (list, tuple)) or not values or not set(values) <= set(range(len(self.classes))):
                raise DataError(f"data.regions.{name}={values} must be a list of labels, 0 to {len(self.classes) - 1}")

    @property
    def scored(self) -> dict[str, list[int]]:
        """The regions that scores are given for."""
        return self.regions or {name: [value] for value, name in enumerate(self.classes) if value}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient: a file per channel, or one 4D file with all of them, and the label if there is one."""

    name: str
    images: tuple[str, ...]
    label: str | None = None


# --- lists ------------------------------------------------------------------------------------------------------


def find_cases(config: VolumeDataConfig) -> list[Case]:
    """All labelled cases of a data set, by name.

    Raises:
        DataError: no such folder or list, no case, or a case without one of its files; the message names it.
    """
    path = Path(config.path).expanduser()
    cases = _brats_cases(path, config.channels) if config.name == "brats" else _listed_cases(path)
    if not cases:
        raise DataError(f"{path} holds no labelled cases in the layout {config.name!r}")
    for case in cases:
        for file in (*case.images, *([case.label] if case.label else [])):
            if not Path(file).exists():
                raise DataError(f"case {case.name}: {file} is missing")
    return sorted(cases, key=lambda case: case.name)


def _brats_cases(path: Path, channels: Sequence[str]) -> list[Case]:
    if not path.is_dir():
        raise DataError(f"no such folder: {path}")
    cases = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        files = {file.name: str(file) for file in folder.iterdir() if file.name.endswith(NIFTI)}
        if not files:
            continue
        ends = {end: [file for file in files.values() if _ends_in(file, end)] for end in (*channels, "seg")}
        for end, found in ends.items():
            if len(found) != 1:
                what = "is missing" if not found else "is there more than once"
                there = ", ".join(sorted(files))
                raise DataError(
                    f"case {folder.name}: {end} ({folder.name}-{end}.nii.gz) {what}; the folder has {there}"
                )
        cases.append(Case(name=folder.name, images=tuple(ends[end][0] for end in channels), label=ends["seg"][0]))
    return cases


def _ends_in(file: str, *ends: str) -> bool:
    return any(re.search(rf"(^|[-_]){re.escape(end)}\.nii(\.gz)?$", file) for end in ends)


def _listed_cases(path: Path) -> list[Case]:
    file = path / "dataset.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no such list of cases: {file}")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["training"]
        images = [[row["image"]] if isinstance(row["image"], str) else list(row["image"]) for row in rows]
        files = [tuple(str(file.parent / image) for image in channels) for channels in images]
        labels = [str(file.parent / row["label"]) for row in rows]
        names = _distinct_names([channels[0] for channels in files])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f'{file} is not a list {{"training": [{{"image": ..., "label": ...}}]}}: {error!r}') from error
    if twice := sorted({channels[0] for channels, name in zip(files, names, strict=True) if names.count(name) > 1}):
        raise DataError(f"{file} lists more than one case of {', '.join(twice[:3])}; each image may come up once")
    return [Case(name=n, images=i, label=label) for n, i, label in zip(names, files, labels, strict=True)]


def _distinct_names(files: Sequence[str]) -> list[str]:
    """Names of cases: of their files, with as many of the folders before them as tell all cases apart, if any do."""
    places = [Path(_without_ending(os.path.abspath(file))).parts[1:] for file in files]
    for depth in range(1, max(map(len, places), default=0) + 1):
        names = ["_".join(place[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [place[-1] for place in places]


def _without_ending(file: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", file)


def input_cases(inputs: Sequence[str], channels: Sequence[str]) -> list[Case]:
    """Cases to predict: NIfTI files, DICOM folders, folders with a file per channel or with a file per case, folders of those.

    Of a folder's files, those that end in "seg" or "label" are left out, and where some end in the only channel, all others.
    Cases of one name take the names of their folders before it.

    Raises:
        DataError: an input that is none of these, or lacks a channel; the message names it.
    """
    found = [place for entry in inputs for place in _input_places(Path(entry).expanduser(), channels)]
    names = _distinct_names([str(place) for place, _ in found])
    return [Case(name=name, images=files) for name, (_, files) in zip(names, found, strict=True)]


def _input_places(path: Path, channels: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """What each case is named after, and its files."""
    if not path.exists():
        raise DataError(f"no such volume: {path}")
    if not path.is_dir():
        if not path.name.endswith(NIFTI):
            raise DataError(f"{path} is neither a NIfTI file ({', '.join(NIFTI)}) nor a folder")
        return [(path, (str(path),))]
    entries = sorted(path.iterdir())
    files = [entry for entry in entries if entry.name.endswith(NIFTI)]
    folders = [entry for entry in entries if entry.is_dir()]
    if files:
        return _places_of_files(path, files, channels)
    if folders and len(folders) == len(entries):
        return [place for folder in folders for place in _input_places(folder, channels)]
    return [(path, (str(path),))]  # a DICOM series


def _places_of_files(
    folder: Path, files: Sequence[Path], channels: Sequence[str]
) -> list[tuple[Path, tuple[str, ...]]]:
    images = [file for file in files if not _ends_in(file.name, *(set(LABELS) - set(channels)))]
    if not images:
        raise DataError(f"{folder} holds nothing but labels: {', '.join(file.name for file in files)}")
    found = [[file for file in images if _ends_in(file.name, channel)] for channel in channels]
    if len(channels) == 1:
        if not found[0] and len(images) > 1 and len(files) - len(images) == 1:
            names = ", ".join(file.name for file in images)
            raise DataError(
                f"{folder} holds several files of one case ({names}), none of them *-{channels[0]}.nii.gz; name one"
            )
        return [(file, (str(file),)) for file in found[0] or images]
    if not any(found):  # each file holds all channels
        return [(file, (str(file),)) for file in images]
    for channel, matches in zip(channels, found, strict=True):
        if len(matches) != 1:
            what = f"*-{channel}.nii.gz"
            raise DataError(f"{folder}: channel {channel!r} needs one file {what}, found {len(matches)}")
    return [(folder, tuple(str(matches[0]) for matches in found))]


def split_cases(cases: Sequence[Case], config: VolumeDataConfig) -> tuple[list[Case], list[Case], list[Case]]:
    """Training, validation and test cases, by chance.

    Raises:
        DataError: a part would be empty though its share is not 0.
    """
    order = np.random.default_rng(config.split_seed).permutation(len(cases))
    test, validation = (round(share * len(cases)) for share in (config.test, config.validation))
    parts = np.split(order, [len(cases) - test - validation, len(cases) - test])
    for share, part, name in zip(
        (1.0, config.validation, config.test), parts, ("train", "validation", "test"), strict=True
    ):
        if share and not len(part):
            raise DataError(f"{len(cases)} cases are too few for a {name} split (data.validation, data.test)")
    train, validate, tested = ([cases[i] for i in sorted(part)] for part in parts)
    return train, validate, tested


def labelled_cases(config: VolumeDataConfig, path: str, split: str, *, layout: str | None = None) -> list[Case]:
    """The cases of one split of a data set, as training would cut it.

    Args:
        config: of the training: layout, channels, shares.
        path: folder or list, in place of the training's.
        split: "train", "validation" or "test", or "all".
        layout: in place of the training's.

    Raises:
        DataError: unknown split, and as `find_cases` and `split_cases`.
    """
    name = layout or ("msd" if config.name == "generated" else config.name)
    config = replace(config, path=path, name=name)
    splits = ("train", "validation", "test")
    if split not in (*splits, "all"):
        raise DataError(f"a data set of volumes has the splits {', '.join(splits)} and all, not {split!r}")
    cases = find_cases(config)
    if split != "all":
        cases = split_cases(cases, config)[splits.index(split)]
    if not cases:
        raise DataError(f"{path} has no cases for {split}: data.{split}={getattr(config, split, 0)}")
    return cases


# --- reading ----------------------------------------------------------------------------------------------------


def read_volume(path: str) -> MetaTensor:
    """A volume as float32 (C, *S) with its affine.

    Args:
        path: NIfTI file of 3 or 4 dimensions, or a folder with a DICOM series.

    Raises:
        CorruptVolume: it cannot be read, or is no such volume.
    """
    try:
        if Path(path).is_dir():
            volume = LoadImage(reader="PydicomReader", image_only=True, ensure_channel_first=True)(path)
            data, affine = np.asarray(volume, dtype=np.float32), np.asarray(volume.affine)
        else:
            image = nibabel.load(path)  # pyright: ignore
            if (stored := image.get_data_dtype()).kind not in "iuf":  # pyright: ignore
                what = "colours" if stored.names else f"{stored} values"
                raise ValueError(f"it holds {what}, but a volume has one real number per voxel and channel")
            data, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine  # pyright: ignore
            data = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    except FileNotFoundError as error:
        raise DataError(f"no such volume: {path}") from error
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        ImageFileError,
        gzip.BadGzipFile,
        zlib.error,
        IndexError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptVolume(f"cannot read volume {path}: {reason}") from error
    if data.ndim != 4 or not data.size:
        raise CorruptVolume(f"{path} is no volume: its shape is {data.shape[1:]}")
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise CorruptVolume(f"{path} lies nowhere: its affine is {np.round(affine[:3], 4).tolist()}")
    if not np.isfinite(data).all():
        raise CorruptVolume(f"{path} holds values that are not finite")
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(data)), affine=torch.from_numpy(affine))


def _check_fits(volume: MetaTensor, path: str, first: MetaTensor, first_path: str) -> None:
    if volume.shape[1:] != first.shape[1:]:
        raise CorruptVolume(
            f"{path} has shape {tuple(volume.shape[1:])}, but {first_path} has {tuple(first.shape[1:])}"
        )
    if not torch.allclose(volume.affine, first.affine, rtol=1e-3, atol=1e-3):
        sizes = [tuple(round(side, 4) for side in v.pixdim.tolist()) for v in (volume, first)]
        if sizes[0] != sizes[1]:
            raise CorruptVolume(f"{path} has spacing {sizes[0]}, but {first_path} has {sizes[1]}")
        raise CorruptVolume(f"{path} lies elsewhere in space than {first_path}")


def read_case(case: Case, config: VolumeDataConfig) -> dict[str, Any]:
    """A case as {"name", "image": (C, *S) float32, "label": (1, *S) uint8 if there is one}.

    Raises:
        CorruptVolume: unreadable, channels missing, channels or label of another shape or spacing, unknown labels.
    """
    volumes = [read_volume(path) for path in case.images]
    for volume, path in zip(volumes[1:], case.images[1:], strict=True):
        _check_fits(volume, path, volumes[0], case.images[0])
    image = MetaTensor(torch.cat([volume.as_tensor() for volume in volumes]), affine=volumes[0].affine)
    if len(image) != len(config.channels):
        files, needed = ", ".join(case.images), ", ".join(config.channels)
        raise CorruptVolume(f"case {case.name} has {len(image)} channel(s) ({files}), but needs {needed}")
    if not image.any():
        raise CorruptVolume(f"case {case.name} holds nothing but zeros ({', '.join(case.images)})")
    item: dict[str, Any] = {"name": case.name, "image": image}
    if case.label is not None:
        label = read_volume(case.label)
        _check_fits(label, case.label, image, case.images[0])
        if len(label) != 1:
            raise CorruptVolume(f"{case.label} has {len(label)} channels, but a label has one")
        values = torch.unique(label.as_tensor())
        if unknown := [v for v in values.tolist() if v not in range(len(config.classes))]:
            raise CorruptVolume(
                f"{case.label} holds the labels {unknown[:5]}, but the classes are 0..{len(config.classes) - 1}"
            )
        item["label"] = MetaTensor(label.as_tensor().to(torch.uint8), affine=label.affine)
    return item
