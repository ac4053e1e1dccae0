"""PlainMamba: a plain backbone of direction-aware scans over patches, along four continuous routes.

Paper: PlainMamba, arXiv 2403.17695. Code: ChenhongyiYang/PlainMamba@0975a1d (Apache-2.0).
The published scan reads dt, B and C in raster order whatever the route, and counts the dt bias twice; released weights depend
on both, so both are kept. `align="exact"` gives every position its own dt, B and C, for training anew.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Tuple  # noqa: UP035  (TorchScript reads these)

import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.plain_mamba import LAYOUT
from visionssm.layers import PlainModel, plain_feature_cfg
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import DirectionScan
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import register

__all__ = ["PlainMamba"]


class ConvPatchEmbed(nn.Module):
    """A convolution of stride 2, some of stride 1, then patches of 8: (B, in_chans, H, W) -> (B, H', W', dim).

    Args:
        in_chans: channels of the image.
        dim: channels out.
        convs: number of 3x3 convolutions.
    """

    def __init__(self, in_chans: int, dim: int, *, convs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.act = nn.ReLU()
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(64, dim, 8, stride=8)

    @unscripted
    def grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:  # noqa: UP006
        """Patches along (H, W) for an image of `img_size`: a last patch may be padded."""
        return math.ceil(math.ceil(img_size[0] / 2) / 8), math.ceil(math.ceil(img_size[1] / 2) / 8)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H', W', dim)."""
        x = self.convs(self.act(self.norm1(self.conv1(x))))  # in NCHW: no slower, and rounds as the published code does
        x = F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8))
        return self.proj(x).permute(0, 2, 3, 1)


class LocalConv(nn.Module):
    """GELU(BatchNorm(depthwise 3x3 convolution)).

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return self.act(self.norm(self.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class PlainMambaBlock(nn.Module):
    """x + mixer(norm x) over patches, which a local convolution may then replace.

    Args:
        dim: C.
        mixer: (B, H, W, C) -> (B, H, W, C).
        drop_path: rate of stochastic depth.
        local: whether the convolution follows.
    """

    def __init__(self, dim: int, *, mixer: DirectionScan, drop_path: float, local: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.local = LocalConv(dim) if local else nn.Identity()

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """(B, L, C), (B, H, W, C) -> (B, L, C)."""
        x = tokens.view_as(patches)
        x = x + self.drop_path(self.mixer(self.norm(x)))
        return self.local(x).flatten(1, 2)


class PlainMamba(PretrainedMixin, PlainModel):
    """PlainMamba.

    Args:
        img_size: side or (H, W) that the position embedding is made for.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg" or "".
        dim: C.
        depth: number of blocks.
        d_state: N.
        stem_convs: 3x3 convolutions in the stem.
        local_blocks: indices of the blocks that end in a local convolution.
        scan: scan order by name, with options, or one per block.
        align: which position's dt, B and C the scan takes, see `DirectionScan`; released weights need "published".
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        stem_convs: int = 2,
        local_blocks: tuple[int, ...] = (),
        scan: ScanChoice = "continuous",
        align: Literal["published", "exact"] = "published",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
    ) -> None:
        if not set(local_blocks) <= set(range(depth)):
            raise ValueError(f"local_blocks must lie in 0..{depth - 1}, got {local_blocks}")
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        blocks: list[nn.Module] = []
        for i, (rate, order) in enumerate(zip(rates, layer_scans(scan, depth), strict=True)):
            mixer = DirectionScan(
                dim,
                scan=order,
                d_inner=2 * dim,
                d_state=d_state,
                dt_rank=math.ceil(dim / 16),
                align=align,
                local_scan=local_scan,
            )
            blocks.append(PlainMambaBlock(dim, mixer=mixer, drop_path=rate, local=i in local_blocks))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            img_size=img_size,
            patch_embed=ConvPatchEmbed(in_chans, dim, convs=stem_convs),
            stride=16,
            dim=dim,
            class_token=False,
            pos_embed=True,
            blocks=blocks,
            norm=nn.LayerNorm(dim, eps=1e-6),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self.apply(_init_linear)
        trunc_normal_(self.pos_embed, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.01)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides norms and biases: positions, directions, A_log and D."""
        kept = (".A_log", ".D", ".direction_B")
        return {"pos_embed"} | {name for name, _ in self.named_parameters() if name.endswith(kept)}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "ChenhongyiYang/PlainMamba" if file else None,
        "hf_hub_filename": file or None,
        "custom_load": "hf"
        if file
        else False,  # published files carry more than tensors, which only our reader takes safely
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.conv1",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/ChenhongyiYang/PlainMamba",
        "paper_name": "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        "paper_ids": "arXiv:2403.17695",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "plain_mamba_l1.in1k": _cfg("l1.pth"),
        "plain_mamba_l2.in1k": _cfg("l2.pth"),
        "plain_mamba_l3.in1k": _cfg("l3.pth"),
        "plain_mamba_nano.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> PlainMamba:
    options = {**defaults, **options}
    return build_model_with_cfg(
        PlainMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=plain_feature_cfg(options),
        **options,
    )


@register("classification")
def plain_mamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1."""
    return _create("plain_mamba_l1", pretrained, {"stem_convs": 1, "local_blocks": (0,)}, kwargs)


@register("classification")
def plain_mamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2."""
    return _create("plain_mamba_l2", pretrained, {"dim": 384}, kwargs)


@register("classification")
def plain_mamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3."""
    return _create("plain_mamba_l3", pretrained, {"dim": 448, "depth": 36}, kwargs)


@register("classification")
def plain_mamba_nano(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """A small PlainMamba of our own for small images and tests, about 1 M parameters."""
    defaults = {"img_size": 64, "dim": 96, "depth": 8, "stem_convs": 1, "local_blocks": (0,)}
    return _create("plain_mamba_nano", pretrained, defaults, kwargs)
