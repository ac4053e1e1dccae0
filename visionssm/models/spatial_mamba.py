"""Spatial-Mamba: a hierarchical backbone with one raster scan whose states are mixed with their neighbours in the image.

Paper: Spatial-Mamba, arXiv 2410.15091. Code: EdwardChasel/Spatial-Mamba@71221eb (Apache-2.0).
Differs from the published code: the merged fusion kernel of evaluation is made from the weights at every call, where theirs is
kept from the first and goes stale; features are channels-last inside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.spatial_mamba import LAYOUT
from visionssm.layers import HierarchicalModel, Mlp, Stage, project
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import StateFusion
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import register

__all__ = ["SpatialMamba"]


class ResidualStem(nn.Module):
    """A strided convolution, a residual pair, and a strided bottleneck: (B, in_chans, H, W) -> (B, H/4, W/4, dim).

    Args:
        in_chans: channels of the image.
        dim: channels out; half as many at stride 2, four times as many before the last convolution.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half, wide = dim // 2, 4 * dim
        self.conv1 = nn.Conv2d(in_chans, half, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, wide, 3, stride=2, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(wide)
        self.conv5 = nn.Conv2d(wide, dim, 1, bias=False)
        self.norm5 = nn.BatchNorm2d(dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = self.act(self.norm1(x))
        x = x + self.norm3(self.conv3(self.act(self.norm2(self.conv2(x)))))
        x = self.act(self.norm4(self.conv4(x)))
        return self.norm5(self.conv5(x)).permute(0, 2, 3, 1)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of a map (B, H, W, C), as the matrix product that it is."""
    return project(x, weight.flatten(1), bias)


class InvertedDownsample(nn.Module):
    """A strided depthwise convolution between two pointwise ones: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C').

    Args:
        dim: C.
        out_dim: C'; four times as many in between.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        wide = 4 * out_dim
        self.conv1 = nn.Conv2d(dim, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride=2, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(wide, out_dim, 1)
        self.norm = nn.BatchNorm2d(out_dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        x = self.act(pointwise(x, self.conv1.weight, self.conv1.bias)).permute(0, 3, 1, 2)
        x = self.act(self.conv2(x)).permute(0, 2, 3, 1)
        return self.norm(pointwise(x, self.conv3.weight, self.conv3.bias).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialMambaBlock(nn.Module):
    """Positions, scan, positions, MLP, each added to its input; positions are a depthwise 3x3 convolution.

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth of scan and MLP.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(self, dim: int, *, mixer: StateFusion, drop_path: float, mlp_ratio: float) -> None:
        super().__init__()
        self.cpe1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.cpe2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.cpe1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.cpe2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SpatialMamba(PretrainedMixin, HierarchicalModel):
    """Spatial-Mamba.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage, even; doubled by each further one.
        depths: blocks of each stage.
        mlp_ratio: hidden width of the MLP over the block's.
        scan: scan order by name, with options, or one per block.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 64,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        mlp_ratio: float = 4.0,
        scan: ScanChoice = "raster",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        dims = tuple(dim * 2**i for i in range(len(depths)))
        scans = iter(layer_scans(scan, sum(depths)))
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, width in enumerate(dims):
            blocks: list[nn.Module] = []
            for rate in rates[i]:
                mixer = StateFusion(width, scan=next(scans), d_inner=2 * width, dt_rank=math.ceil(width / 16))
                blocks.append(SpatialMambaBlock(width, mixer=mixer, drop_path=rate, mlp_ratio=mlp_ratio))
            stages.append(Stage(InvertedDownsample(dims[i - 1], width) if i else nn.Identity(), blocks))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=ResidualStem(in_chans, dim),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
        )
        self.apply(_init_linear)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides other vectors: D. (A_log and the fusion kernels are decayed there.)"""
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
        "license": "apache-2.0",
        "origin_url": "https://github.com/EdwardChasel/Spatial-Mamba",
        "paper_name": "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
        "paper_ids": "arXiv:2410.15091",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "spatial_mamba_tiny.in1k": _cfg(),
        "spatial_mamba_small.in1k": _cfg(),
        "spatial_mamba_base.in1k": _cfg(),
        "spatial_mamba_nano.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

# Google Drive gives no direct address, so these cannot be fetched by name.
_DRIVE = {
    "spatial_mamba_tiny": "19kXoqGSTuKKs4AHbdUSrdKZTwTWenLIW",
    "spatial_mamba_small": "1Wb3sYoWLpgmWrmHMYKwdgDwGPZaqM28O",
    "spatial_mamba_base": "1k8dHp2QRCOqBSgAi36YkhZp_O8LqOPjM",
}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> SpatialMamba:
    if pretrained and variant in _DRIVE:
        cfg = resolve_pretrained_cfg(variant, options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
        if not (cfg.has_weights or cfg.state_dict):
            raise RuntimeError(
                f"the weights of {variant} are on Google Drive, which a program cannot fetch from: download "
                f"https://drive.google.com/file/d/{_DRIVE[variant]}/view and pass the file to visionssm.load_official"
            )
    return build_model_with_cfg(
        SpatialMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def spatial_mamba_tiny(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-T."""
    return _create("spatial_mamba_tiny", pretrained, {}, kwargs)


@register("classification")
def spatial_mamba_small(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-S."""
    return _create("spatial_mamba_small", pretrained, {"depths": (2, 4, 21, 5)}, kwargs)


@register("classification")
def spatial_mamba_base(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-B."""
    return _create("spatial_mamba_base", pretrained, {"dim": 96, "depths": (2, 4, 21, 5)}, kwargs)


@register("classification")
def spatial_mamba_nano(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """A small Spatial-Mamba of our own for small images and tests, about 1 M parameters."""
    return _create("spatial_mamba_nano", pretrained, {"dim": 24, "depths": (1, 1, 2, 1), "mlp_ratio": 2.0}, kwargs)
