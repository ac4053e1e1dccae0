"""MSVMamba: a hierarchical backbone that scans most of its routes at half resolution, and one at full.

Paper: Multi-Scale VMamba, arXiv 2405.14174. Code: YuHengsss/MSVMamba@c394019 (nano, micro, tiny) and, branch v2, @fca4a39 (v3_*);
neither carries a licence.
The generations differ in stem and downsampling, in the feed-forward's norm (before it, or after), in what the scan's norm
sees and in how the half map is brought to full size.
A graph that is exported for open sizes needs an example of more than 64 pixels a side: the last coarse map has 1 there.
Differs from the published code: channels-last inside; each scan owns its parameters, which are stacked there.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.msvmamba import LAYOUT
from visionssm.layers import ConvDownsample, ConvStem, HierarchicalModel, PatchMerging, PatchStem, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import MultiScaleScan
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import register, require_file

__all__ = ["MSVMamba"]


class LocalFeedForward(nn.Module):
    """Pointwise convolution, t + depthwise 3x3 convolution of t, GELU, pointwise convolution.

    Args:
        dim: channels.
        hidden: width in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = self.conv1(x.permute(0, 3, 1, 2))
        return self.conv2(self.act(x + self.local(x))).permute(0, 2, 3, 1)


class MSVMambaBlock(nn.Module):
    """x + mixer(norm x), then x + ffn(norm x), or x + norm(ffn x).

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the feed-forward over `dim`.
        post_norm: whether the second norm follows the feed-forward.
    """

    def __init__(self, dim: int, *, mixer: MultiScaleScan, drop_path: float, mlp_ratio: float, post_norm: bool) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = LocalFeedForward(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        y = self.norm2(self.ffn(x)) if self.post_norm else self.ffn(self.norm2(x))
        return x + self.drop_path(y)


class MSVMamba(PretrainedMixin, HierarchicalModel):
    """MSVMamba of either generation.

    Args:
        generation: 1 for nano, micro and tiny, 3 for v3_*: see above.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage; doubled by each further one.
        depths: blocks of each stage.
        d_state: N.
        ssm_ratio: inner width of the scan over the block's.
        mlp_ratio: hidden width of the feed-forward over the block's.
        gate: whether the scan's output is gated.
        scan: scan order by name, with options, or one per block: see `MultiScaleScan`.
        stage_norms: norms on the maps of all stages as they leave, instead of last norm and classifier, as the published
            detectors have them.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).

    Raises:
        ValueError: unknown generation.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        generation: Literal[1, 3] = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 96,
        depths: tuple[int, ...] = (1, 2, 9, 2),
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 2.0,
        gate: bool = True,
        scan: ScanChoice = "multi_scale",
        stage_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        if generation not in (1, 3):
            raise ValueError(f"generation must be 1 or 3, got {generation!r}")
        third = generation == 3
        dims = tuple(dim * 2**i for i in range(len(depths)))
        scans = iter(layer_scans(scan, sum(depths)))
        downsample = ConvDownsample if third else PatchMerging
        stages = []
        for i, (width, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks: list[nn.Module] = []
            for rate in rates:
                mixer = MultiScaleScan(
                    width,
                    scan=next(scans),
                    d_inner=int(ssm_ratio * width),
                    d_state=d_state,
                    dt_rank=math.ceil(width / 16),
                    gate=gate,
                    norm="sum" if third else "routes",
                    upsample="nearest" if third else "bilinear",
                    local_scan=local_scan,
                )
                blocks.append(MSVMambaBlock(width, mixer=mixer, drop_path=rate, mlp_ratio=mlp_ratio, post_norm=third))
            smaller = downsample(dims[i - 1], width) if i else nn.Identity()
            stages.append(Stage(smaller, blocks, out_norm=nn.LayerNorm(width) if stage_norms else None))
        super().__init__(
            in_chans=in_chans,
            num_classes=0 if stage_norms else num_classes,
            global_pool=global_pool,
            stem=ConvStem(in_chans, dim) if third else PatchStem(in_chans, dim),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.Identity() if stage_norms else nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
        )
        self.generation = generation
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


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "YuhengSSS/MSVMamba" if file else None,
        "hf_hub_filename": file or None,
        "custom_load": "hf"
        if file
        else False,  # published files carry pickled configs, which only our reader takes safely
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "none",  # the authors state none: the files are pointed to, and may not be passed on
        "origin_url": "https://github.com/YuHengsss/MSVMamba",
        "paper_name": "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
        "paper_ids": "arXiv:2405.14174",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "msvmamba_nano.in1k": _cfg(),
        "msvmamba_micro.in1k": _cfg(),
        "msvmamba_tiny.in1k": _cfg(),
        "msvmamba_v3_tiny.in1k": _cfg("msvmambav3_tiny_224.pth"),
        "msvmamba_v3_small.in1k": _cfg("msvmambav3_small_224.pth"),
        "msvmamba_v3_base.in1k": _cfg("msvmambav3_base_224.pth"),
        "msvmamba_pico.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
        "msvmamba_v3_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_DRIVE = "https://drive.google.com/drive/folders/"
_BY_HAND = {
    "msvmamba_nano": _DRIVE + "1J41w3ApitQhp2O3wHmJoOs4U032uqebK",
    "msvmamba_micro": _DRIVE + "1jfl2GmuKcUB8sPwRlyHK_wT0MjqgljYk",
    "msvmamba_tiny": _DRIVE + "1ddNWk89ohcxxMuVEaJ2Y5A6xeBKgA7lU",
}

_V3 = {"generation": 3, "ssm_ratio": 1.0, "mlp_ratio": 4.0, "gate": False}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> MSVMamba:
    if pretrained:
        require_file(variant, _BY_HAND, options)
    return build_model_with_cfg(
        MSVMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def msvmamba_nano(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-N."""
    return _create("msvmamba_nano", pretrained, {"dim": 48, "depths": (1, 2, 5, 2)}, kwargs)


@register("classification")
def msvmamba_micro(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-M."""
    return _create("msvmamba_micro", pretrained, {"dim": 64, "depths": (1, 2, 5, 2)}, kwargs)


@register("classification")
def msvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T."""
    return _create("msvmamba_tiny", pretrained, {}, kwargs)


@register("classification")
def msvmamba_pico(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A small MSVMamba of our own for small images and tests, about 1 M parameters; the authors have a nano themselves."""
    return _create("msvmamba_pico", pretrained, {"dim": 24, "depths": (1, 1, 1, 1)}, kwargs)


@register("classification")
def msvmamba_v3_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-T."""
    return _create("msvmamba_v3_tiny", pretrained, {**_V3, "depths": (2, 2, 9, 2)}, kwargs)


@register("classification")
def msvmamba_v3_small(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-S."""
    return _create("msvmamba_v3_small", pretrained, {**_V3, "depths": (2, 3, 20, 2)}, kwargs)


@register("classification")
def msvmamba_v3_base(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-B."""
    defaults = {**_V3, "dim": 128, "depths": (2, 4, 18, 2), "gate": True}
    return _create("msvmamba_v3_base", pretrained, defaults, kwargs)


@register("classification")
def msvmamba_v3_nano(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A small MSVMambav3 of our own for small images and tests, about 1 M parameters."""
    defaults = {**_V3, "dim": 32, "depths": (1, 1, 1, 1), "mlp_ratio": 2.0}
    return _create("msvmamba_v3_nano", pretrained, defaults, kwargs)
