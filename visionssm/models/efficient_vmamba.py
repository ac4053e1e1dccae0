"""EfficientVMamba: atrous scans beside a convolution in the early stages, inverted residuals in the late ones.

Paper: EfficientVMamba, arXiv 2403.09977. Code: TerryPei/EfficientVMamba@0bc5ee2 (its README says Apache-2.0, but the licence's
file is missing).
Differs from the published code: channels-last in the stages that scan; the quarter maps are never cut out of the map, their
routes are read from it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from visionssm.checkpoints.efficient_vmamba import LAYOUT
from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.layers import HierarchicalModel, PatchMerging, PatchStem, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import GatedMerge, ImageScan
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import register, require_file

__all__ = ["EfficientVMamba"]


class DualBlock(nn.Module):
    """x + gate(mixer(norm x)) + gate(convolutions of norm x); one gate serves both.

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, *, mixer: ImageScan, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.conv_branch = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )
        self.merge = GatedMerge(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        u = self.norm(x)
        local = self.conv_branch(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        both = torch.stack([self.mixer(u).flatten(1, 2), local.flatten(1, 2)], 2)
        return x + self.drop_path(self.merge(both).view_as(x))


class InvertedBlock(nn.Module):
    """timm's inverted residual of expansion 4 with squeeze-excitation, channels last.

    Args:
        dim: channels.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, *, drop_path: float) -> None:
        super().__init__()
        squeeze: Any = partial(SqueezeExcite, rd_ratio=0.125)
        self.conv = InvertedResidual(dim, dim, exp_ratio=4.0, se_layer=squeeze, drop_path_rate=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class EfficientVMamba(PretrainedMixin, HierarchicalModel):
    """EfficientVMamba.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage; doubled by each further one.
        depths: blocks of each stage.
        scan_stages: how many stages scan, the first ones; the others are of inverted residuals.
        d_state: N.
        ssm_ratio: inner width of the scan over the block's.
        scan: scan order by name, with options, or one per block that scans.
        stage_norms: norms on the maps of all stages as they leave, instead of last norm and classifier, as the published
            detectors have them.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        low_rank: rank of the state transition (low-rank SS2D), at most `d_state`; None for all of it.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).

    Raises:
        ValueError: more stages shall scan than there are.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 48,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        scan_stages: int = 2,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        scan: ScanChoice = "skip",
        stage_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        low_rank: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        if not 0 <= scan_stages <= len(depths):
            raise ValueError(f"scan_stages must be 0..{len(depths)}, got {scan_stages}")
        dims = tuple(dim * 2**i for i in range(len(depths)))
        scans = iter(layer_scans(scan, sum(depths[:scan_stages])))
        stages = []
        for i, (width, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks: list[nn.Module] = []
            for rate in rates:
                if i >= scan_stages:
                    blocks.append(InvertedBlock(width, drop_path=rate))
                    continue
                mixer = ImageScan(
                    width,
                    scan=next(scans),
                    d_inner=int(ssm_ratio * width),
                    d_state=d_state,
                    dt_rank=math.ceil(width / 16),
                    local_scan=local_scan,
                    low_rank=low_rank,
                )
                blocks.append(DualBlock(width, mixer=mixer, drop_path=rate))
            smaller = PatchMerging(dims[i - 1], width) if i else nn.Identity()
            stages.append(Stage(smaller, blocks, out_norm=nn.LayerNorm(width) if stage_norms else None))
        super().__init__(
            in_chans=in_chans,
            num_classes=0 if stage_norms else num_classes,
            global_pool=global_pool,
            stem=PatchStem(in_chans, dim),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.Identity() if stage_norms else nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
        )
        self.apply(_init_linear)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides other vectors: D. (A_log and the dt bias are decayed there.)"""
        return {name for name, _ in self.named_parameters() if name.endswith(".D")}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "none",  # the README names Apache-2.0 without its file: the weights are pointed to, not passed on
        "origin_url": "https://github.com/TerryPei/EfficientVMamba",
        "paper_name": "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        "paper_ids": "arXiv:2403.09977",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "efficient_vmamba_tiny.in1k": _cfg(),
        "efficient_vmamba_small.in1k": _cfg(),
        "efficient_vmamba_base.in1k": _cfg(),
        "efficient_vmamba_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

# The names of the files in these repositories are not known.
_BY_HAND = {
    f"efficient_vmamba_{size.lower()}": f"https://huggingface.co/TerryPei/EfficientVMamba-{size}"
    for size in ("Tiny", "Small", "Base")
}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> EfficientVMamba:
    if pretrained:
        require_file(variant, _BY_HAND, options)
    return build_model_with_cfg(
        EfficientVMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def efficient_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T."""
    return _create("efficient_vmamba_tiny", pretrained, {}, kwargs)


@register("classification")
def efficient_vmamba_small(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S, of the width that was trained (64), not that of the published config (96)."""
    return _create("efficient_vmamba_small", pretrained, {"dim": 64}, kwargs)


@register("classification")
def efficient_vmamba_base(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B."""
    return _create("efficient_vmamba_base", pretrained, {"dim": 96, "depths": (2, 2, 9, 2)}, kwargs)


@register("classification")
def efficient_vmamba_nano(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """A small EfficientVMamba of our own for small images and tests, about 1 M parameters."""
    return _create("efficient_vmamba_nano", pretrained, {"dim": 24, "depths": (1, 1, 2, 1)}, kwargs)
