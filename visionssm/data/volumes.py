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
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, create_test_image_3d
from monai.data import Dataset as TransformDataset
from monai.transforms import (
    Compose,
    CropForegroundd,
    FgBgToIndicesd,
    Lambdad,
    LoadImage,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
    Transform,
)
from nibabel.filebasedimages import ImageFileError
from torch import Tensor
from torch.utils.data import Dataset

from visionssm.data.errors import DataError
from visionssm.data.seeding import seed_of

__all__ = [
    "Case",
    "PatchAugmentConfig",
    "VolumeDataConfig",
    "VolumePatches",
    "build_preprocessing",
    "cached_cases",
    "find_cases",
    "input_cases",
    "read_case",
    "split_cases",
    "write_generated",
]

NIFTI = (".nii", ".nii.gz")
CROP_STREAM, SPLIT_STREAM = 3, 4  # keep the seeds of patches and of their order apart from all others


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
        for name, values in self.regions.items():
            if not values or not set(values) <= set(range(len(self.classes))):
                raise DataError(f"data.regions.{name}={values} must name labels 0 to {len(self.classes) - 1}")

    @property
    def scored(self) -> dict[str, list[int]]:
        """The regions that scores are given for."""
        return self.regions or {name: [value] for value, name in enumerate(self.classes) if value}


@dataclass(frozen=True, kw_only=True)
class PatchAugmentConfig:
    """nnU-Net's augmentation of patches: chances, and the strengths of the spatial part.

    Args:
        rotate, scale: chances of a rotation up to `degrees` about each axis, and of a zoom within `zoom`.
        noise, blur, brightness, contrast, low_resolution, gamma, gamma_inverted: chances.
        mirror: chance of a flip of each axis.
        degrees: largest rotation.
        zoom: smallest and largest zoom.
    """

    rotate: float = 0.2
    scale: float = 0.2
    noise: float = 0.1
    blur: float = 0.2
    brightness: float = 0.15
    contrast: float = 0.15
    low_resolution: float = 0.25
    gamma: float = 0.3
    gamma_inverted: float = 0.1
    mirror: float = 0.5
    degrees: float = 30.0
    zoom: tuple[float, float] = (0.7, 1.4)


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


def _ends_in(file: str, channel: str) -> bool:
    return re.search(rf"[-_]{re.escape(channel)}\.nii(\.gz)?$", file) is not None


def _listed_cases(path: Path) -> list[Case]:
    file = path / "dataset.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no such list of cases: {file}")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["training"]
        cases = []
        for row in rows:
            images = [row["image"]] if isinstance(row["image"], str) else list(row["image"])
            name = re.sub(r"\.nii(\.gz)?$", "", Path(images[0]).name)
            cases.append(
                Case(
                    name=name,
                    images=tuple(str(file.parent / image) for image in images),
                    label=str(file.parent / row["label"]),
                )
            )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is not a list {{"training": [{{"image": ..., "label": ...}}]}}: {error!r}') from error
    return cases


def input_cases(inputs: Sequence[str], channels: Sequence[str]) -> list[Case]:
    """Cases to predict: NIfTI files, DICOM folders, or folders with a NIfTI file per channel.

    Raises:
        DataError: an input that is none of these; the message names it.
    """
    cases = []
    for entry in inputs:
        path = Path(entry).expanduser()
        files = sorted(str(file) for file in path.iterdir() if file.name.endswith(NIFTI)) if path.is_dir() else []
        if not path.exists():
            raise DataError(f"no such volume: {entry}")
        if files and len(channels) > 1:
            ends = [[file for file in files if _ends_in(file, channel)] for channel in channels]
            for channel, found in zip(channels, ends, strict=True):
                if len(found) != 1:
                    raise DataError(
                        f"{entry}: channel {channel!r} needs one file *-{channel}.nii.gz, found {len(found)}"
                    )
            cases.append(Case(name=path.name, images=tuple(found[0] for found in ends)))
        elif files:
            cases += [Case(name=re.sub(r"\.nii(\.gz)?$", "", Path(file).name), images=(file,)) for file in files]
        elif path.is_dir() or path.name.endswith(NIFTI):
            cases.append(Case(name=re.sub(r"\.nii(\.gz)?$", "", path.name), images=(str(path),)))
        else:
            raise DataError(f"{entry} is neither a NIfTI file ({', '.join(NIFTI)}) nor a folder")
    return cases


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


# --- transforms -------------------------------------------------------------------------------------------------


class ReadCase(Transform):
    """`read_case` as MONAI's transforms are called."""

    def __init__(self, config: VolumeDataConfig) -> None:
        self.config = config

    def __call__(self, case: Case) -> dict[str, Any]:
        return read_case(case, self.config)


def build_preprocessing(config: VolumeDataConfig, *, labelled: bool) -> Compose:
    """What is done to every case before the network, invertible: orientation, spacing, crop, intensities."""
    keys = ["image", "label"] if labelled else ["image"]
    steps: list[Any] = [Orientationd(keys, axcodes=config.axcodes, labels=None)]
    if config.spacing is not None:
        steps.append(Spacingd(keys, pixdim=config.spacing, mode=["bilinear", "nearest"][: len(keys)]))
    if config.crop:
        steps.append(CropForegroundd(keys, source_key="image", select_fn=_not_zero, allow_smaller=False))
    if config.window is not None:
        low, high = config.window
        steps.append(ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True))
    else:
        steps.append(NormalizeIntensityd("image", channel_wise=True))
    return Compose(steps)


def _not_zero(image: Tensor) -> Tensor:
    return image != 0


def build_augmentation(config: PatchAugmentConfig) -> list[Any]:
    """nnU-Net's augmentation of a patch, in its order."""
    both = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    gamma: dict[str, Any] = {"gamma": (0.7, 1.5), "retain_stats": True}
    angle = np.deg2rad(config.degrees)
    zoom = [(low - 1, high - 1) for low, high in [config.zoom] * 3]
    steps: list[tuple[float, Any]] = [
        (config.rotate, lambda p: RandAffined(prob=p, rotate_range=[angle] * 3, **both)),
        (config.scale, lambda p: RandAffined(prob=p, scale_range=zoom, **both)),
        (config.noise, lambda p: RandGaussianNoised("image", prob=p, std=0.3)),
        (config.blur, lambda p: RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=p)),
        (config.brightness, lambda p: RandScaleIntensityd("image", factors=0.25, prob=p)),
        (
            config.contrast,
            lambda p: RandScaleIntensityFixedMeand("image", factors=0.25, preserve_range=True, prob=p),
        ),
        (config.low_resolution, lambda p: RandSimulateLowResolutiond("image", prob=p, zoom_range=(0.5, 1.0))),
        (config.gamma_inverted, lambda p: RandAdjustContrastd("image", prob=p, invert_image=True, **gamma)),
        (config.gamma, lambda p: RandAdjustContrastd("image", prob=p, **gamma)),
        *(
            (config.mirror, lambda p, axis=axis: RandFlipd(["image", "label"], prob=p, spatial_axis=axis))
            for axis in range(3)
        ),
    ]
    return [build(chance) for chance, build in steps if chance > 0]


def cached_cases(cases: Sequence[Case], config: VolumeDataConfig, *, extra: Sequence[Any] = ()) -> Any:
    """Preprocessed cases by index, `config.cache` of them kept in memory (MONAI's CacheDataset)."""
    transform = Compose([ReadCase(config), *build_preprocessing(config, labelled=True).transforms, *extra])
    if config.cache <= 0:
        return TransformDataset(list(cases), transform)
    try:
        return CacheDataset(
            list(cases), transform, cache_rate=config.cache, num_workers=1, progress=False, copy_cache=False
        )
    except RuntimeError as error:  # how MONAI reports what its transforms raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        raise cause or error from None


class VolumePatches(Dataset[dict[str, Any]]):
    """Training patches; item (epoch, i) is the same whatever was drawn before. All cases come up equally often.

    Args:
        cases: of the training split.
        config: preprocessing and patches.
        augment: augmentation.
        seed: of the run.
    """

    def __init__(
        self, cases: Sequence[Case], config: VolumeDataConfig, augment: PatchAugmentConfig, *, seed: int
    ) -> None:
        self.length, self.seed = config.samples or len(cases), seed
        keys = ["image", "label"]
        ready = [SpatialPadd(keys, config.patch), FgBgToIndicesd("label")]
        self.cases = cached_cases(cases, config, extra=ready)
        crop = RandCropByPosNegLabeld(
            keys,
            "label",
            config.patch,
            pos=config.foreground,
            neg=1 - config.foreground,
            fg_indices_key="label_fg_indices",
            bg_indices_key="label_bg_indices",
        )
        self.crop = crop
        self.augment = Compose([Lambdad(keys, _own_copy), *build_augmentation(augment)])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        epoch, place = index
        number = epoch * self.length + place
        turn, place = divmod(number, len(self.cases))
        order = np.random.default_rng(seed_of(self.seed, turn, SPLIT_STREAM)).permutation(len(self.cases))
        seed = seed_of(self.seed, *index, CROP_STREAM)
        self.crop.set_random_state(seed)
        self.augment.set_random_state(seed)
        item = self.augment(self.crop(dict(self.cases[int(order[place])]))[0])
        return {key: item[key].as_tensor() for key in ("image", "label")} | {"name": item["name"]}


def _own_copy(volume: MetaTensor) -> MetaTensor:
    return volume.clone()  # a crop is a view of the cache


def write_generated(
    folder: str | Path,
    *,
    cases: int = 16,
    size: int = 64,
    classes: int = 3,
    seed: int = 0,
    noise: float = 0.3,
) -> None:
    """Balls of several kinds in noise from MONAI's generator as a data set in MSD's layout; an existing one is kept.

    Args:
        folder: gets dataset.json, imagesTr/ and labelsTr/.
        cases: number of volumes.
        size: side in voxels of 1.5 mm.
        classes: kinds of balls, told apart by their intensity.
        seed: of the generator.
        noise: largest uniform noise, over the darkest kind's intensity.
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        return
    rows = []
    for number in range(cases):
        name = f"volume_{number:03d}.nii.gz"
        image, label = create_test_image_3d(
            size, size, size, num_objs=10, rad_max=size // 5, rad_min=size // 16 + 2, noise_max=noise,
            num_seg_classes=classes, random_state=np.random.RandomState(seed_of(seed, number)),
        )  # fmt: skip
        affine = np.diag([1.5, 1.5, 1.5, 1.0])
        for part, data in (
            ("imagesTr", (1000 * image).astype(np.float32)),
            ("labelsTr", label.astype(np.uint8)),
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data, affine), folder / part / name)  # pyright: ignore
        rows.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    content = {"name": "generated", "labels": {"background": 0}, "numTraining": cases, "training": rows}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))
