"""VMamba: a hierarchical backbone that scans every map along four routes (SS2D).

Paper: VMamba: Visual State Space Model, arXiv 2401.10166. Code: MzeroMiko/VMamba@2ed52ea (MIT).
Two generations were released: "v0" (gated blocks without MLP, state size 16, patch merging) and s2l*/s1l* (block with MLP,
state size 1, no gate, convolutional stem and downsampling).
Differs from the published code: channels-last inside instead of a choice of layouts, and scan parameters of shape (K, ...).
"""

from __future__ import annotations

import math
from typing import Any

from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.vmamba import LAYOUT
from visionssm.layers import ConvDownsample, ConvStem, HierarchicalModel, Mlp, PatchMerging, PatchStem, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import ImageScan
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import register

__all__ = ["VMamba"]


class ScanBlock(nn.Module):
    """x + mixer(norm x): the first generation's block.

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return x + self.drop_path(self.mixer(self.norm1(x)))


class ScanMlpBlock(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x): the second generation's block.

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VMamba(PretrainedMixin, HierarchicalModel):
    """VMamba of either generation.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage; doubled by each further one.
        depths: blocks of each stage.
        d_state: N.
        ssm_ratio: inner width of the scan over the block's.
        mlp_ratio: hidden width of the MLP over the block's; 0 for blocks without one.
        gate: whether the scan's output is gated.
        conv_bias: whether the depthwise convolution before the scan has a bias.
        conv_stem: 3x3 convolutions in stem and downsampling (second generation) instead of patch embedding and merging.
        scan: scan order by name, with options, or one per block.
        merge: how the routes of a scan are joined: "sum", "mean", "gated", "shuffle", "route" or "concat".
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        low_rank: rank of the state transition (low-rank SS2D), at most `d_state`; None for all of it.
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
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        gate: bool = False,
        conv_bias: bool = False,
        conv_stem: bool = True,
        scan: ScanChoice = "cross",
        merge: str = "sum",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        low_rank: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        dims = tuple(dim * 2**i for i in range(len(depths)))
        scans = layer_scans(scan, sum(depths))
        rates = drop_path_rates(drop_path_rate, depths)
        downsample = ConvDownsample if conv_stem else PatchMerging
        stages = []
        for i, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                mixer = ImageScan(
                    width,
                    scan=scans[sum(depths[:i]) + j],
                    d_inner=int(ssm_ratio * width),
                    d_state=d_state,
                    dt_rank=math.ceil(width / 16),
                    conv_bias=conv_bias,
                    gate=gate,
                    merge=merge,
                    local_scan=local_scan,
                    low_rank=low_rank,
                )
                rate = rates[i][j]
                block = ScanMlpBlock(width, mixer, rate, mlp_ratio) if mlp_ratio else ScanBlock(width, mixer, rate)
                blocks.append(block)
            stages.append(Stage(downsample(dims[i - 1], width) if i else nn.Identity(), blocks))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=ConvStem(in_chans, dim) if conv_stem else PatchStem(in_chans, dim),
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
        """What the published training leaves out besides vectors: D. (A_log and the dt bias are decayed there.)"""
        return {name for name, _ in self.named_parameters() if name.endswith(".D")}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": _RELEASES + file if file else "",
        # published files carry pickled configs, which only our reader takes safely
        "custom_load": bool(file),
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
        "paper_name": "VMamba: Visual State Space Model",
        "paper_ids": "arXiv:2401.10166",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vmamba_v0_tiny.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
        "vmamba_v0_small.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
        "vmamba_v0_base.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
        "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_s1l8.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vmamba_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_V0 = {"d_state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "gate": True, "conv_bias": True, "conv_stem": False}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> VMamba:
    return build_model_with_cfg(
        VMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def vmamba_v0_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-T."""
    return _create("vmamba_v0_tiny", pretrained, {**_V0, "depths": (2, 2, 9, 2)}, kwargs)


@register("classification")
def vmamba_v0_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-S."""
    return _create("vmamba_v0_small", pretrained, {**_V0, "depths": (2, 2, 27, 2)}, kwargs)


@register("classification")
def vmamba_v0_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-B."""
    return _create("vmamba_v0_base", pretrained, {**_V0, "dim": 128, "depths": (2, 2, 27, 2)}, kwargs)


@register("classification")
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s2l5]."""
    return _create("vmamba_tiny_s2l5", pretrained, {"depths": (2, 2, 5, 2), "ssm_ratio": 2.0}, kwargs)


@register("classification")
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s2l15]."""
    return _create("vmamba_small_s2l15", pretrained, {"depths": (2, 2, 15, 2), "ssm_ratio": 2.0}, kwargs)


@register("classification")
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s2l15]."""
    return _create("vmamba_base_s2l15", pretrained, {"dim": 128, "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}, kwargs)


@register("classification")
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s1l8]."""
    return _create("vmamba_tiny_s1l8", pretrained, {"depths": (2, 2, 8, 2)}, kwargs)


@register("classification")
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s1l20]."""
    return _create("vmamba_small_s1l20", pretrained, {"depths": (2, 2, 20, 2)}, kwargs)


@register("classification")
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s1l20]."""
    return _create("vmamba_base_s1l20", pretrained, {"dim": 128, "depths": (2, 2, 20, 2)}, kwargs)


@register("classification")
def vmamba_nano(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A small VMamba of our own for small images and tests, about 1 M parameters."""
    return _create("vmamba_nano", pretrained, {"dim": 32, "depths": (1, 1, 2, 1), "mlp_ratio": 2.0}, kwargs)
