"""Mamba-ND, the 2D models: a plain stack of Mamba layers that read the map along one route each, in turn.

Paper: Mamba-ND, arXiv 2402.05892. Code: jacklishufan/Mamba-ND@4f70284, which carries no licence.
The shortcut of a layer carries its normed input, as published: there is no stream of residuals. One layer halves the map, so
here every layer is a stage of the hierarchical frame; a feature is what a layer returns.
Differs from the published code: the order of columns is right at H != W, where theirs fails.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.mamba_nd import LAYOUT
from visionssm.layers import HierarchicalModel, PatchMerging, PooledHead, PositionStem, Stage, plain_feature_cfg
from visionssm.layers.plain import resize_positions
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import RouteTable, ScanOrder

from ._registry import register

__all__ = ["MambaND"]


class MambaNDBlock(nn.Module):
    """u + mixer(u) with u = norm x.

    Args:
        dim: channels.
        scan: order of the positions.
        d_state: N.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, *, scan: ScanOrder, d_state: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.route_table = RouteTable(scan)
        self.mixer = SequenceScan(
            dim, routes=scan.num_routes, d_inner=2 * dim, d_state=d_state, dt_rank=math.ceil(dim / 16)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        u = self.norm(x)
        return u + self.drop_path(self.mixer(u.flatten(1, 2), self.route_table(u)).view_as(u))


class MambaND(PretrainedMixin, HierarchicalModel):
    """Mamba-ND for images.

    Args:
        img_size: side or (H, W) that the position embedding is made for.
        patch_size: side of a patch in pixels.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none, and features without the norm that follows pooling.
        dim: channels.
        depth: number of layers.
        merge_after: indices of the layers after which the map is halved.
        d_state: N.
        scan: scan order by name, with options, or one per layer.
        pos_drop_rate: dropout after the position embedding.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last layer, falling linearly to 0 at the first.

    Raises:
        ValueError: `merge_after` names layers that are not there.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 384,
        depth: int = 24,
        merge_after: tuple[int, ...] = (9,),
        d_state: int = 16,
        scan: ScanChoice = "nd_2d",
        pos_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not set(merge_after) <= set(range(depth)):
            raise ValueError(f"merge_after must lie in 0..{depth - 1}, got {merge_after}")
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        stages, strides, stride = [], [], patch_size
        for i, (rate, order) in enumerate(zip(rates, layer_scans(scan, depth), strict=True)):
            blocks: list[nn.Module] = [MambaNDBlock(dim, scan=order, d_state=d_state, drop_path=rate)]
            if i in merge_after:
                blocks.append(PatchMerging(dim, dim))
                stride *= 2
            stages.append(Stage(nn.Identity(), blocks))
            strides.append(stride)
        neck = nn.LayerNorm(dim, eps=1e-6)
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=PositionStem(in_chans, dim, patch_size=patch_size, img_size=img_size, drop_rate=pos_drop_rate),
            stages=stages,
            dims=(dim,) * depth,
            strides=tuple(strides),
            norm=nn.LayerNorm(dim, eps=1e-6),
            drop_rate=drop_rate,
            head=PooledHead(dim, num_classes, global_pool, neck=neck, drop_rate=drop_rate),
        )
        trunc_normal_(self.stem.pos_embed, std=0.02)
        if num_classes:
            trunc_normal_(self.head.fc.weight, std=2e-5)
            nn.init.zeros_(self.head.fc.bias)

    @unscripted
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Makes the position embedding for another image size, resizing its values."""
        old, self.stem.grid_size = self.stem.grid_size, self.stem.grid_of(img_size)
        if self.stem.grid_size != old:
            with torch.no_grad():
                table = resize_positions(self.stem.pos_embed, old, self.stem.grid_size)
            self.stem.pos_embed = nn.Parameter(table.to(self.stem.pos_embed.dtype), self.stem.pos_embed.requires_grad)

    @unscripted
    def resize_position_tables(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's position embedding for this model's grid; checkpoints of square images only."""
        table = state.get("stem.pos_embed")
        if (
            table is None
            or table.shape == self.stem.pos_embed.shape
            or math.isqrt(table.shape[1]) ** 2 != table.shape[1]
        ):
            return state  # as it is, or not a square: the strict check after this names the key
        side = math.isqrt(table.shape[1])
        resized = resize_positions(table, (side, side), self.stem.grid_size)
        return {**state, "stem.pos_embed": resized.to(table.dtype)}

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out: positions, biases, and D, which is a vector there. (A_log is decayed.)"""
        kept = (".D", ".dt_bias", ".conv_bias")
        return {"stem.pos_embed"} | {name for name, _ in self.named_parameters() if name.endswith(kept)}


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "jacklishufan/Mamba-ND" if file else None,
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
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "none",  # the authors state none: the files are pointed to, and may not be passed on
        "origin_url": "https://github.com/jacklishufan/Mamba-ND",
        "paper_name": "Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data",
        "paper_ids": "arXiv:2402.05892",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mamba_nd_2d_small.in1k": _cfg("in1k/mamba2d_s.pth"),
        "mamba_nd_2d_base.in1k": _cfg("in1k/mamba2d_b.pth"),
        "mamba_nd_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> MambaND:
    options = {**defaults, **options}
    return build_model_with_cfg(
        MambaND,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=plain_feature_cfg(options),
        **options,
    )


@register("classification")
def mamba_nd_2d_small(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba2D-S/8."""
    return _create("mamba_nd_2d_small", pretrained, {}, kwargs)


@register("classification")
def mamba_nd_2d_base(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba2D-B/8."""
    return _create("mamba_nd_2d_base", pretrained, {"dim": 768}, kwargs)


@register("classification")
def mamba_nd_nano(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """A small Mamba-ND of our own for small images and tests, about 1 M parameters."""
    defaults = {"img_size": 64, "dim": 96, "depth": 8, "merge_after": (3,)}
    return _create("mamba_nd_nano", pretrained, defaults, kwargs)
