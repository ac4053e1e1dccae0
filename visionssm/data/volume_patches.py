"""Training patches of volumes: MONAI's transforms with caching, nnU-Net's augmentation, and volumes made by MONAI's generator."""

# MONAI types what it returns as arrays or tensors of any kind.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import CacheDataset, MetaTensor, create_test_image_3d
from monai.data import Dataset as TransformDataset
from monai.transforms import (
    Compose,
    CropForegroundd,
    FgBgToIndicesd,
    Lambdad,
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
from torch import Tensor
from torch.utils.data import Dataset

from visionssm.data.errors import DataError
from visionssm.data.seeding import seed_of
from visionssm.data.volumes import SPLIT_STREAM, Case, VolumeDataConfig, read_case

__all__ = ["PatchAugmentConfig", "VolumePatches", "build_preprocessing", "cached_cases", "write_generated"]

CROP_STREAM = 3  # keeps the seeds of patches apart from all others


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


def build_augmentation(config: PatchAugmentConfig, *, ndim: int = 3) -> list[Any]:
    """nnU-Net's augmentation of a patch, or of a plane, in its order."""
    both = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "padding_mode": "zeros"}
    gamma: dict[str, Any] = {"gamma": (0.7, 1.5), "retain_stats": True}
    angle = np.deg2rad(config.degrees)
    linear = "trilinear" if ndim == 3 else "bilinear"
    zoom = [(low - 1, high - 1) for low, high in [config.zoom] * ndim]
    steps: list[tuple[float, Any]] = [
        (config.rotate, lambda p: RandAffined(prob=p, rotate_range=[angle] * (3 if ndim == 3 else 1), **both)),
        (config.scale, lambda p: RandAffined(prob=p, scale_range=zoom, **both)),
        (config.noise, lambda p: RandGaussianNoised("image", prob=p, std=0.3)),
        (config.blur, lambda p: RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=p)),
        (config.brightness, lambda p: RandScaleIntensityd("image", factors=0.25, prob=p)),
        (
            config.contrast,
            lambda p: RandScaleIntensityFixedMeand("image", factors=0.25, preserve_range=True, prob=p),
        ),
        (
            config.low_resolution,
            lambda p: RandSimulateLowResolutiond("image", prob=p, zoom_range=(0.5, 1.0), upsample_mode=linear),
        ),
        (config.gamma_inverted, lambda p: RandAdjustContrastd("image", prob=p, invert_image=True, **gamma)),
        (config.gamma, lambda p: RandAdjustContrastd("image", prob=p, **gamma)),
        *(
            (config.mirror, lambda p, axis=axis: RandFlipd(["image", "label"], prob=p, spatial_axis=axis))
            for axis in range(ndim)
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
        steps = build_augmentation(augment)
        if config.patch[-1] == 1:  # a plane is turned, zoomed and blurred in itself
            steps = [Lambdad(keys, _plane), *build_augmentation(augment, ndim=2), Lambdad(keys, _volume)]
        self.augment = Compose([Lambdad(keys, _own_copy), *steps])

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


def _plane(volume: Tensor) -> Tensor:
    return volume[..., 0]


def _volume(plane: Tensor) -> Tensor:
    return plane[..., None]


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
