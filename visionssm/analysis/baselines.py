"""What models are measured beside: timm's classifiers, and MONAI's networks for volumes as their authors set them for BraTS."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch import nn

import visionssm

__all__ = [
    "BASELINES",
    "REPORTED_BY_TIMM",
    "VOLUME_BASELINES",
    "VOLUME_CHANNELS",
    "build_volume_baseline",
    "fitting_baselines",
]

BASELINES = {
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "convnext_tiny": "convnext_tiny",
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "mambaout_tiny": "mambaout_tiny",
}
REPORTED_BY_TIMM = {  # top-1 of the baselines at 224 in their papers, without distillation
    "swin_tiny_patch4_window7_224": 81.3,
    "convnext_tiny": 82.1,
    "deit_tiny_patch16_224": 72.2,
    "deit_small_patch16_224": 79.8,
    "mambaout_tiny": 82.7,
}
VOLUME_CHANNELS = 4  # modalities and classes of BraTS
VOLUME_BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_unetr": ("SwinUNETR", {"feature_size": 48}),
    "segresnet": ("SegResNet", {"init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}),
}


def build_volume_baseline(name: str) -> nn.Module:
    """MONAI's network of a name in `VOLUME_BASELINES`, for four modalities and four classes.

    Raises:
        ModuleNotFoundError: MONAI is not installed.
    """
    network, options = VOLUME_BASELINES[name]
    nets = importlib.import_module("monai.networks.nets")
    return getattr(nets, network)(in_channels=VOLUME_CHANNELS, out_channels=VOLUME_CHANNELS, **options)


def fitting_baselines(models: Sequence[str]) -> list[str]:
    """The baselines of the models' tasks: of classification, too, where none is named; restoration has none."""
    volumes = set(visionssm.list_models(task="volume"))
    images = {*visionssm.list_models(task="restoration"), *volumes}
    found = list(BASELINES) if not models or any(name not in images for name in models) else []
    return [*found, *(VOLUME_BASELINES if any(name in volumes for name in models) else ())]
