"""MobileMamba: three stages whose mixer scans a part of the channels, convolves another and passes the rest.

Paper: MobileMamba, arXiv 2411.15941. Code: lewandofskee/MobileMamba@0980f48 (MIT).
Differs from the published code: the wavelet transform is sums of pixels instead of convolutions with fixed filters, which files
may hold or not; convolutions and their norms become one with `timm.models.reparameterize_model`; images of a batch do not
mix, as they do in the published code's path for CPUs, which adds up forward routes over the batch.
A graph that is exported for open sizes needs an example of more than 128 pixels a side: the last wavelets have 1 there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.mobile_mamba import LAYOUT
from visionssm.layers import (
    ConvNorm,
    ConvNormStem,
    HierarchicalModel,
    InvertedMerging,
    LinearNorm,
    PooledHead,
    Residual,
    Stage,
    haar,
    inverse_haar,
)
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import ImageScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import register, require_file

__all__ = ["MobileMamba"]


class WaveletConv(nn.Module):
    """Haar transform, depthwise convolution of every sub-band, times a factor, and back.

    Args:
        dim: channels.
        kernel_size: side of the kernel.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * dim, 4 * dim, kernel_size, padding=kernel_size // 2, groups=4 * dim, bias=False)
        self.scale = nn.Parameter(torch.full((4 * dim, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        bands = self.conv(haar(x).flatten(1, 2)) * self.scale
        return F.pad(inverse_haar(bands.unflatten(1, (-1, 4))), (0, -(x.shape[3] % 2), 0, -(x.shape[2] % 2)))


class WideBranch(nn.Module):
    """The scan, times a factor per channel, plus convolutions of wavelets.

    Args:
        dim: channels.
        scan: order of the routes.
        kernel_size: side of the wavelets' kernel.
        ssm_ratio: inner width of the scan over `dim`.
        local_scan: see the model.
    """

    def __init__(
        self, dim: int, *, scan: ScanOrder, kernel_size: int, ssm_ratio: float, local_scan: int | None
    ) -> None:
        super().__init__()
        self.mixer = ImageScan(
            dim,
            scan=scan,
            d_inner=int(ssm_ratio * dim),
            d_state=1,
            dt_rank=math.ceil(dim / 16),
            project=LinearNorm,
            local_scan=local_scan,
        )
        for parameter in (self.mixer.dt_proj, self.mixer.dt_bias):
            nn.init.uniform_(parameter, 0, 0.1)
        self.scale = nn.Parameter(torch.ones(dim, 1, 1))
        self.wavelets = WaveletConv(dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        return self.scale * self.mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + self.wavelets(x)


class SplitMixer(nn.Module):
    """Scans the first channels, convolves the next, passes the rest; then ReLU and a pointwise convolution of all.

    Args:
        dim: channels.
        scan: order of the routes.
        wide: share of the channels that is scanned, rounded to a multiple of 16.
        local: share of the channels that is convolved.
        kernel_size: side of the kernels of both.
        ssm_ratio: inner width of the scan over its channels.
        local_scan: see the model.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        wide: float,
        local: float,
        kernel_size: int,
        ssm_ratio: float,
        local_scan: int | None,
    ) -> None:
        super().__init__()
        scanned = (int(wide * dim) + 8) // 16 * 16
        convolved = min(int(local * dim), dim - scanned)
        self.parts = (scanned, convolved, dim - scanned - convolved)
        self.wide = WideBranch(scanned, scan=scan, kernel_size=kernel_size, ssm_ratio=ssm_ratio, local_scan=local_scan)
        self.local = nn.Sequential(
            ConvNorm(convolved, convolved, kernel_size, groups=convolved),
            nn.ReLU(),
            ConvNorm(convolved, convolved, groups=convolved),
        )
        self.act = nn.ReLU()
        self.proj = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        wide, local, rest = x.split(self.parts, 1)
        return self.proj(self.act(torch.cat([self.wide(wide), self.local(local), rest], 1)))


def _local(dim: int) -> Residual:
    return Residual(ConvNorm(dim, dim, 3, groups=dim))


def _ffn(dim: int) -> Residual:
    return Residual(nn.Sequential(ConvNorm(dim, 2 * dim), nn.ReLU(), ConvNorm(2 * dim, dim)))


class MobileMambaBlock(nn.Module):
    """x + chain(x), where each link of the chain is a residual of its own: conv, feed-forward, mixer, conv, feed-forward.

    Args:
        dim: channels.
        mixer: (B, dim, H, W) -> (B, dim, H, W).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, *, mixer: SplitMixer, drop_path: float) -> None:
        super().__init__()
        self.local0 = _local(dim)
        self.ffn0 = _ffn(dim)
        self.mixer = Residual(mixer)
        self.local1 = _local(dim)
        self.ffn1 = _ffn(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        y = self.mixer(self.ffn0(self.local0(x.permute(0, 3, 1, 2))))
        return x + self.drop_path(self.ffn1(self.local1(y)).permute(0, 2, 3, 1))


class MergingWithPairs(nn.Module):
    """Conv and feed-forward, `InvertedMerging`, conv and feed-forward.

    Args:
        dim: channels in.
        out_dim: channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_local(dim), _ffn(dim))
        self.merging = InvertedMerging(dim, out_dim, hidden=4 * dim)
        self.after = nn.Sequential(_local(out_dim), _ffn(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        return self.after(self.merging(self.before(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class MobileMamba(PretrainedMixin, HierarchicalModel):
    """MobileMamba.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dims: channels of each stage.
        depths: blocks of each stage.
        wide: share of the channels that is scanned, per stage.
        local: share of the channels that is convolved, per stage.
        kernels: side of the mixers' kernels, per stage.
        ssm_ratio: inner width of the scan over its channels.
        scan: scan order by name, with options, or one per block.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
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
        dims: tuple[int, ...] = (200, 376, 448),
        depths: tuple[int, ...] = (2, 3, 2),
        wide: tuple[float, ...] = (0.8, 0.7, 0.6),
        local: tuple[float, ...] = (0.2, 0.2, 0.3),
        kernels: tuple[int, ...] = (7, 5, 3),
        ssm_ratio: float = 2.0,
        scan: ScanChoice = "bidirectional",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        scans = iter(layer_scans(scan, sum(depths)))
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks: list[nn.Module] = []
            for rate in rates:
                mixer = SplitMixer(
                    dim,
                    scan=next(scans),
                    wide=wide[i],
                    local=local[i],
                    kernel_size=kernels[i],
                    ssm_ratio=ssm_ratio,
                    local_scan=local_scan,
                )
                blocks.append(MobileMambaBlock(dim, mixer=mixer, drop_path=rate))
            stages.append(Stage(MergingWithPairs(dims[i - 1], dim) if i else nn.Identity(), blocks))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=ConvNormStem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            strides=tuple(16 * 2**i for i in range(len(depths))),
            norm=nn.Identity(),  # the head norms what is pooled
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
            head=PooledHead(dims[-1], num_classes, global_pool, neck=nn.BatchNorm1d(dims[-1]), drop_rate=drop_rate),
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, Residual):  # starts as the identity
                last = [part for part in module.modules() if isinstance(part, ConvNorm)][-1]
                nn.init.zeros_(last.norm.weight)
        if isinstance(self.head.fc, nn.Linear):
            trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides other vectors: D. (A_log and the dt bias are decayed there.)"""
        return {name for name, _ in self.named_parameters() if name.endswith(".D")}


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(size: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (-(-size // 64), -(-size // 64)),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/lewandofskee/MobileMamba",
        "paper_name": "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network",
        "paper_ids": "arXiv:2411.15941",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mobile_mamba_t2.in1k": _cfg(192),
        "mobile_mamba_t4.in1k": _cfg(192),
        "mobile_mamba_s6.in1k": _cfg(224),
        "mobile_mamba_b1.in1k": _cfg(256),
        "mobile_mamba_b2.in1k": _cfg(384),
        "mobile_mamba_b4.in1k": _cfg(512),
        "mobile_mamba_nano.untrained": _cfg(64, license="apache-2.0"),
    }
)

# Google Drive gives no direct address, so these cannot be fetched by name.
_DRIVE = "https://drive.google.com/file/d/"
_BY_HAND = {
    "mobile_mamba_t2": _DRIVE + "1LXh5wjVEUu5Kj1foclC9zmlKsy7JpMQ-/view",
    "mobile_mamba_t4": _DRIVE + "17-5Q93_cEhBYMDzWTq4sDcc4_c_ezwpd/view",
    "mobile_mamba_s6": _DRIVE + "13en_zNB2wuHmnHKZMUQDe4KizlaTCHbP/view",
    "mobile_mamba_b1": _DRIVE + "1ODO1XM2luMfczbDLJxHrEl-ie7yUscAC/view",
    "mobile_mamba_b2": _DRIVE + "1tJJZqeP09D_IAKKFuQtJQOYm4eNGjr1r/view",
    "mobile_mamba_b4": _DRIVE + "1MiGLHSldK2JpbQEe-7VlmFsaCdugDnYR/view",
}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> MobileMamba:
    if pretrained:
        require_file(variant, _BY_HAND, options)
    return build_model_with_cfg(
        MobileMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def mobile_mamba_t2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T2."""
    return _create("mobile_mamba_t2", pretrained, {"dims": (144, 272, 368), "depths": (1, 2, 2)}, kwargs)


@register("classification")
def mobile_mamba_t4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T4."""
    return _create("mobile_mamba_t4", pretrained, {"dims": (176, 368, 448), "depths": (1, 2, 2)}, kwargs)


@register("classification")
def mobile_mamba_s6(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-S6."""
    return _create("mobile_mamba_s6", pretrained, {"dims": (192, 384, 448), "depths": (1, 2, 2)}, kwargs)


@register("classification")
def mobile_mamba_b1(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1."""
    return _create("mobile_mamba_b1", pretrained, {}, kwargs)


@register("classification")
def mobile_mamba_b2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B2: B1 trained on larger images."""
    return _create("mobile_mamba_b2", pretrained, {}, kwargs)


@register("classification")
def mobile_mamba_b4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B4: B1 trained on still larger images."""
    return _create("mobile_mamba_b4", pretrained, {}, kwargs)


@register("classification")
def mobile_mamba_nano(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """A small MobileMamba of our own for small images and tests, about 1 M parameters."""
    return _create("mobile_mamba_nano", pretrained, {"dims": (56, 88, 136), "depths": (1, 1, 1)}, kwargs)
