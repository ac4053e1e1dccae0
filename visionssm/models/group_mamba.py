"""GroupMamba: a hierarchical backbone whose channel groups are scanned in one direction each, and modulated together.

Paper: GroupMamba, arXiv 2407.13772. Code: Amshaker/GroupMamba@c1800ed (MIT).
Differs from the published code: the four scans of a layer are one; column routes have right gradients at H != W too; training
returns the mean of both classifiers unless `set_distilled_training` asks for both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.group_mamba import LAYOUT
from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.layers import ConvDownsample, HierarchicalModel, Linear, Mlp, PooledHead, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import GroupScan
from visionssm.mixers.group_scan import GroupLinear
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import register, require_file

__all__ = ["GroupMamba"]

_GROUPS = 4


class DeepStem(nn.Module):
    """Three convolutions with BatchNorm and ReLU, the first strided, then a strided one with LayerNorm.

    Args:
        in_chans: channels of the image.
        hidden: channels of the first three.
        dim: channels out.
    """

    def __init__(self, in_chans: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, hidden, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(hidden)
        self.conv4 = nn.Conv2d(hidden, dim, 3, stride=2, padding=1)
        self.norm4 = nn.LayerNorm(dim)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        x = self.act(self.norm3(self.conv3(x)))
        return self.norm4(self.conv4(x).permute(0, 2, 3, 1))


class ModulatedGroups(nn.Module):
    """Norm, scan of the channel groups, times input and gate, the same norm again, linear.

    Args:
        dim: channels.
        scan: order of the routes.
        local_scan: see the model.
    """

    def __init__(self, dim: int, scan: ScanOrder, local_scan: int | None) -> None:
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, dim // 16)
        self.act = nn.ReLU()
        self.fc2 = Linear(dim // 16, dim)
        rank = math.ceil(dim // _GROUPS / 16)
        self.mixer = GroupScan(dim, scan=scan, groups=_GROUPS, d_state=1, dt_rank=rank, local_scan=local_scan)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        u = self.norm(x)
        gate = torch.sigmoid(self.fc2(self.act(self.fc1(u.mean((1, 2), keepdim=True)))))
        return self.proj(self.norm(self.mixer(u) * self.skip_scale * u * gate))


class LocalMlp(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, linear.

    Args:
        dim: channels.
        hidden: width in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class GroupMambaBlock(nn.Module):
    """x + groups(x), then x + mlp(norm x).

    Args:
        dim: channels.
        scan: order of the routes.
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the MLP over `dim`.
        local_scan: see the model.
    """

    def __init__(
        self, dim: int, *, scan: ScanOrder, drop_path: float, mlp_ratio: float, local_scan: int | None
    ) -> None:
        super().__init__()
        self.attn = ModulatedGroups(dim, scan, local_scan)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = LocalMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """c + norm(groups(c)), then c + mlp(norm c), of the class token alone.

    Args:
        dim: channels.
        scan: order of the routes, of which each has one step here.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(self, dim: int, *, scan: ScanOrder, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ModulatedGroups(dim, scan, None)  # of one token there is nothing to run back over
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, c: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        c = c + self.norm1(self.attn(c.unsqueeze(1).unsqueeze(1)).squeeze(1).squeeze(1))
        return c + self.mlp(self.norm2(c))


class ClassNeck(nn.Module):
    """The class block and the norm after it.

    Args:
        dim: channels.
        scan: order of the routes.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(self, dim: int, *, scan: ScanOrder, mlp_ratio: float) -> None:
        super().__init__()
        self.block = ClassBlock(dim, scan=scan, mlp_ratio=mlp_ratio)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, c: Tensor) -> Tensor:
        """(B, dim) -> (B, dim)."""
        return self.norm(self.block(c))


class GroupMamba(PretrainedMixin, HierarchicalModel):
    """GroupMamba.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: how the class token is made: "avg", "max", ...; "" for none, and features without class block.
        stem_dim: channels inside the stem.
        dims: channels of each stage, multiples of 4.
        depths: blocks of each stage.
        mlp_ratios: hidden width of the MLP over the block's, per stage.
        scan: scan order by name, with options, or one per block and one for the class block: see `GroupScan`.
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
        stem_dim: int = 32,
        dims: tuple[int, ...] = (64, 128, 348, 448),
        depths: tuple[int, ...] = (3, 4, 9, 3),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        scan: ScanChoice = "group",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        scans = iter(layer_scans(scan, sum(depths) + 1))
        last = len(dims) - 1
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks: list[nn.Module] = [
                GroupMambaBlock(
                    dims[i], scan=next(scans), drop_path=rate, mlp_ratio=mlp_ratios[i], local_scan=local_scan
                )
                for rate in rates
            ]
            if i < last:
                blocks.append(nn.LayerNorm(dims[i], eps=1e-6))
            stages.append(Stage(ConvDownsample(dims[i - 1], dims[i]) if i else nn.Identity(), blocks))
        neck = ClassNeck(dims[last], scan=next(scans), mlp_ratio=mlp_ratios[last])
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=DeepStem(in_chans, stem_dim, dims[0]),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.Identity(),  # the class block reads the last map as it is
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
            head=PooledHead(dims[last], num_classes, global_pool, neck=neck, drop_rate=drop_rate, distilled=True),
        )
        self.apply(_init_weights)

    @unscripted
    def set_distilled_training(self, enable: bool = True) -> None:
        """While training, return the logits of both classifiers, (labels', teacher's), instead of their mean."""
        self.head.distilled_training = enable

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides other vectors: D. (A_log and the dt bias are decayed there.)"""
        vectors = (".D", ".out_norm.weight", ".out_norm.bias")
        return {name for name, _ in self.named_parameters() if name.endswith(vectors)}


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, GroupLinear)):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
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
        "classifier": ("head.fc", "head.fc_dist"),
        "license": "mit",
        "origin_url": "https://github.com/Amshaker/GroupMamba",
        "paper_name": "GroupMamba: Efficient Group-Based Visual State Space Model",
        "paper_ids": "arXiv:2407.13772",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "group_mamba_tiny.in1k": _cfg(),
        "group_mamba_small.in1k": _cfg(),
        "group_mamba_base.in1k": _cfg(),
        "group_mamba_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

# Google Drive gives no direct address, so these cannot be fetched by name.
_BY_HAND = {
    "group_mamba_tiny": "https://drive.google.com/file/d/1TrYYs0uGZbja_2ONQLyfiNdp8C5ZYP1o/view",
    "group_mamba_small": "https://drive.google.com/file/d/1vTN9ynDcsDuOVrcT9GcQ5nBSk-hXySlh/view",
    "group_mamba_base": "https://drive.google.com/file/d/1A_srBeDYpsinU5W3PAEADu1saoz413EU/view",
}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> GroupMamba:
    if pretrained:
        require_file(variant, _BY_HAND, options)
    return build_model_with_cfg(
        GroupMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def group_mamba_tiny(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-T."""
    return _create("group_mamba_tiny", pretrained, {}, kwargs)


@register("classification")
def group_mamba_small(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-S."""
    defaults = {"stem_dim": 64, "dims": (64, 128, 348, 512), "depths": (3, 4, 16, 3)}
    return _create("group_mamba_small", pretrained, defaults, kwargs)


@register("classification")
def group_mamba_base(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-B."""
    defaults = {"stem_dim": 64, "dims": (96, 192, 424, 512), "depths": (3, 6, 21, 3)}
    return _create("group_mamba_base", pretrained, defaults, kwargs)


@register("classification")
def group_mamba_nano(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """A small GroupMamba of our own for small images and tests, about 1 M parameters."""
    defaults = {
        "stem_dim": 16,
        "dims": (24, 48, 100, 136),
        "depths": (1, 1, 2, 1),
        "mlp_ratios": (4.0, 4.0, 4.0, 2.0),
    }
    return _create("group_mamba_nano", pretrained, defaults, kwargs)
