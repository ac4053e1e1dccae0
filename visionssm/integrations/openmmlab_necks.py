"""Necks for backbones that lack the fine maps which detectors read: of one stride throughout, or beginning at 16.

Legend: B batch, C channels, (H, W) size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from visionssm.layers import SimpleFeaturePyramid

__all__ = ["FinerFPN", "SimplePyramid"]

MODELS.register_module(name="LayerNorm2d", module=LayerNorm2d)  # of NCHW maps over channels: the norm of ViTDet's heads


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """A neck for plain backbones: maps of several strides from their last one, as ViTDet does (arXiv 2203.16527).

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level; None leaves the channels to what doubling gives.
        stride: of the map.
        strides: of the levels, apart from the map's own by powers of two.
        num_outs: levels in all; further ones halve the last. None for as many as `strides`.
        init_cfg: MMEngine's.

    Raises:
        ValueError: `num_outs` is less than the number of strides.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        stride: int = 16,
        strides: Sequence[int] = (4, 8, 16, 32),
        num_outs: int | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=None if init_cfg is None else dict(init_cfg))
        self.extra = 0 if num_outs is None else num_outs - len(strides)
        if self.extra < 0:
            raise ValueError(f"num_outs must be at least the number of strides, {len(strides)}, got {num_outs}")
        self.pyramid = SimpleFeaturePyramid(in_channels, out_channels, [stride / wanted for wanted in strides])
        self.channels = [*self.pyramid.num_features, *self.pyramid.num_features[-1:] * self.extra]

    def forward(self, maps: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone, of which the last counts -> one map per level."""
        *_, x = maps
        levels = self.pyramid(x)
        for _ in range(self.extra):
            levels.append(levels[-1][:, :, ::2, ::2])
        return tuple(levels)


@MODELS.register_module()
class FinerFPN(BaseModule):
    """A feature pyramid network that goes on below its finest map, by transposed convolutions.

    Paper: EfficientViT, arXiv 2305.07027; with MobileMamba as in lewandofskee/MobileMamba@0980f48
    downstream/det/backbones/efficientvit_fpn.py, whose names the parameters have. As there, the 3x3 convolutions of the finer
    levels are counted from the finest, the transposed ones from the coarsest.

    Args:
        in_channels: of the backbone's maps, from fine to coarse.
        out_channels: of every level.
        num_finer: levels below the finest map, each of half the stride.
        num_outs: levels in all.
        coarser: how further levels come about: "pool" halves the last, "conv" convolves the backbone's last map, then what
            came of it.
        init_cfg: MMEngine's.

    Raises:
        ValueError: `num_outs` is less than the maps and the finer levels give, or another `coarser`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        num_finer: int,
        num_outs: int,
        coarser: Literal["pool", "conv"] = "pool",
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dict(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform"}))
        self.num_coarser = num_outs - len(in_channels) - num_finer
        if self.num_coarser < 0:
            raise ValueError(f"num_outs must be at least {len(in_channels)} maps + {num_finer} finer, got {num_outs}")
        if coarser not in ("pool", "conv"):
            raise ValueError(f"coarser must be 'pool' or 'conv', got {coarser!r}")
        width = out_channels
        self.lateral_convs = nn.ModuleList(ConvModule(dim, width, 1, act_cfg=None) for dim in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3, padding=1, act_cfg=None) for _ in in_channels)
        self.convolves = coarser == "conv"
        for i in range(self.num_coarser if self.convolves else 0):
            self.fpn_convs.append(ConvModule(width if i else in_channels[-1], width, 3, 2, 1, act_cfg=None))
        self.extra_trans_convs = nn.ModuleList(
            nn.ModuleDict({"conv": nn.ConvTranspose2d(width, width, 2, 2)}) for _ in range(num_finer)
        )
        self.extra_fpn_convs = nn.ModuleList(
            ConvModule(width, width, 3, padding=1, act_cfg=None) for _ in range(num_finer)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """NCHW maps, from fine to coarse -> one map per level."""
        merged = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[2:])
        finer = merged[:1]
        for part in self.extra_trans_convs:
            assert isinstance(part, nn.ModuleDict)
            finer.insert(0, part["conv"](finer[0]))
        levels = [conv(x) for conv, x in zip(self.extra_fpn_convs, finer, strict=False)]  # all but the map itself
        levels += [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=False)]
        last = maps[-1] if self.convolves else levels[-1]
        for i in range(self.num_coarser):
            last = self.fpn_convs[len(merged) + i](last) if self.convolves else last[:, :, ::2, ::2]
            levels.append(last)
        return tuple(levels)
