"""Mamba-ND: a stack of Mamba layers, each along one route; for images, for volumes under UNETR's decoder, for videos.

Paper: Mamba-ND, arXiv 2402.05892. Code: jacklishufan/Mamba-ND@4f70284, which carries no licence.
The shortcut of a layer carries its normed input, as published: there is no stream of residuals. One layer halves the map, so
here every layer is a stage of the hierarchical frame; a feature is what a layer returns.
Differs from the published code: the order of columns is right at H != W, where theirs fails; volumes of any size are taken; the
last layer of the volume encoder, whose output nobody reads there, is left out (and out of its files). The classifier of videos
has no registered variants, because there is no task for it here: it is built by its class, and `load_official` reads its files.

Legend: B batch, S spatial sizes (H, W) or (D, H, W), C channels.
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
from visionssm.checkpoints.mamba_nd import LAYOUT, VIDEO_LAYOUT, VOLUME_LAYOUT
from visionssm.layers import HierarchicalModel, PatchMerging, PooledHead, PositionStem, Stage, plain_feature_cfg
from visionssm.layers.plain import resize_positions
from visionssm.layers.segmentation import SegmentationModel
from visionssm.layers.typing import checkpointed, drop_path_rates, unscripted
from visionssm.layers.unetr import UnetrDecoder
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import build, register

__all__ = ["MambaND", "MambaNDSegmenter", "MambaNDVideo"]


class MambaNDBlock(nn.Module):
    """u + mixer(u) with u = norm x.

    Args:
        dim: channels.
        scan: order of the positions.
        d_state: N.
        drop_path: rate of stochastic depth.
        local_scan: see the model.
    """

    def __init__(
        self, dim: int, *, scan: ScanOrder, d_state: int, drop_path: float, local_scan: int | None = None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = SequenceScan(
            dim,
            scan=scan,
            d_inner=2 * dim,
            d_state=d_state,
            dt_rank=math.ceil(dim / 16),
            local_scan=local_scan,
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S, dim) -> (B, *S, dim)."""
        u = self.norm(x)
        return u + self.drop_path(self.mixer(u.flatten(1, -2), u).view_as(u))


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
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.

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
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
    ) -> None:
        if not set(merge_after) <= set(range(depth)):
            raise ValueError(f"merge_after must lie in 0..{depth - 1}, got {merge_after}")
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        stages, strides, stride = [], [], patch_size
        for i, (rate, order) in enumerate(zip(rates, layer_scans(scan, depth), strict=True)):
            blocks: list[nn.Module] = [
                MambaNDBlock(dim, scan=order, d_state=d_state, drop_path=rate, local_scan=local_scan)
            ]
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
            shuffle_rate=shuffle_rate,
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


# --- volumes ----------------------------------------------------------------------------------------------------


class VolumeEncoder(nn.Module):
    """Patches of a volume or clip, positions, layers; the maps of some of them.

    Args:
        in_chans: channels of the volume.
        dim: channels.
        patch_size: sides of a patch; what does not fill a patch is not seen.
        img_size: sides that the position embedding is made for.
        d_state: N.
        scans: one per layer.
        taken: indices of the layers whose maps are returned, the last of them included.
        drop_path_rate: stochastic depth of the last layer, falling linearly to 0 at the first.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        dim: int,
        patch_size: tuple[int, int, int],
        img_size: tuple[int, int, int],
        d_state: int,
        scans: list[ScanOrder],
        taken: tuple[int, ...],
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        (rates,) = drop_path_rates(drop_path_rate, (len(scans),))
        self.grad_checkpointing = False
        self.taken = list(taken)
        grid = [side // patch for side, patch in zip(img_size, patch_size, strict=True)]
        self.patch_embed = nn.Conv3d(in_chans, dim, patch_size, stride=patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *grid))
        self.layers = nn.ModuleList(
            MambaNDBlock(dim, scan=scan, d_state=d_state, drop_path=rate)
            for scan, rate in zip(scans, rates, strict=True)
        )
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S) -> maps (B, dim, *S / patch_size, rounded down), in the order of the layers."""
        x = self.patch_embed(x)
        positions = F.interpolate(self.pos_embed, size=x.shape[2:], mode="trilinear", align_corners=False)
        x = (x + positions).movedim(1, -1)  # at its own size the embedding is not changed
        maps: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108  (TorchScript prunes statements)
                x = checkpointed(layer, x)
            else:
                x = layer(x)
            if i in self.taken:
                maps.append(x.movedim(-1, 1).contiguous())
        return maps


class MambaNDSegmenter(PretrainedMixin, SegmentationModel):
    """Mamba-ND for volumes: UNETR with Mamba layers, as published for BTCV.

    Args:
        in_chans: channels (modalities) of the volume.
        num_classes: classes, background included.
        dim: channels of the encoder.
        feature_size: channels of the finest decoded map.
        img_size: side or sides that the position embedding is made for, multiples of 16; it is resized for others.
        taken: indices of the layers whose maps the decoder gets, four; the last is the encoder's last layer.
        d_state: N.
        scan: scan order by name, with options, or one per layer.
        drop_path_rate: stochastic depth of the encoder's last layer, falling linearly to 0 at the first.

    Raises:
        ValueError: an argument that is not accepted.
        ModuleNotFoundError: MONAI is not installed.
    """

    official_layout = VOLUME_LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 1,
        num_classes: int = 14,
        dim: int = 384,
        feature_size: int = 32,
        img_size: int | tuple[int, int, int] = 96,
        taken: tuple[int, ...] = (6, 12, 18, 22),
        d_state: int = 16,
        scan: ScanChoice = "nd_3d",
        drop_path_rate: float = 0.0,
    ) -> None:
        sides = (img_size,) * 3 if isinstance(img_size, int) else tuple(img_size)
        if len(sides) != 3 or any(side < 16 or side % 16 for side in sides):
            raise ValueError(f"img_size must be a multiple of 16 or three of them, got {img_size}")
        if len(taken) != 4 or list(taken) != sorted(set(taken)) or taken[0] < 0:
            raise ValueError(f"taken must be four layers in their order, got {taken}")
        encoder = VolumeEncoder(
            in_chans=in_chans,
            dim=dim,
            patch_size=(16, 16, 16),
            img_size=sides,
            d_state=d_state,
            scans=layer_scans(scan, taken[-1] + 1, ndim=3),
            taken=taken,
            drop_path_rate=drop_path_rate,
        )
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            spatial_dims=3,
            strides=[16] * 3,
            encoder=encoder,
            decoder=UnetrDecoder("Mamba-ND", in_chans=in_chans, dim=dim, feature_size=feature_size),
            head=nn.Conv3d(feature_size, num_classes, 1),
            least=1,
        )

    @unscripted
    def resize_position_tables(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's position embedding for this model's grid."""
        table, ours = state.get("encoder.pos_embed"), self.encoder.pos_embed
        if table is None or table.ndim != 5 or table.shape[1] != ours.shape[1] or table.shape == ours.shape:
            return state  # as it is, or not a map of that width: the strict check after this names the key
        resized = F.interpolate(table.float(), size=ours.shape[2:], mode="trilinear", align_corners=False)
        return {**state, "encoder.pos_embed": resized.to(table.dtype)}

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """Positions, biases, and D."""
        kept = (".D", ".dt_bias", ".conv_bias", ".pos_embed")
        return {name for name, _ in self.named_parameters() if name.endswith(kept)}

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: layers are run again in the backward pass."""
        self.encoder.grad_checkpointing = enable


class MambaNDVideo(PretrainedMixin, nn.Module):
    """Mamba-ND for videos: UCF-101 and HMDB-51 as by default, Kinetics-400 with patches of one frame and `head_norm`.

    Args:
        in_chans: channels of a frame.
        num_classes: 0 for no classifier.
        dim: channels.
        depth: number of layers.
        patch_size: frames, rows and columns of a patch; what does not fill a patch is not seen.
        img_size: frames, rows and columns that the position embedding is made for; it is resized for others.
        head_norm: whether a norm precedes the classifier.
        d_state: N.
        scan: scan order by name, with options, or one per layer.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last layer, falling linearly to 0 at the first.
    """

    official_layout = VIDEO_LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 400,
        dim: int = 384,
        depth: int = 36,
        patch_size: tuple[int, int, int] = (2, 16, 16),
        img_size: tuple[int, int, int] = (32, 224, 224),
        head_norm: bool = False,
        d_state: int = 16,
        scan: ScanChoice = "nd_3d",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dim
        self.encoder = VolumeEncoder(
            in_chans=in_chans,
            dim=dim,
            patch_size=patch_size,
            img_size=img_size,
            d_state=d_state,
            scans=layer_scans(scan, depth, ndim=3),
            taken=(depth - 1,),
            drop_path_rate=drop_path_rate,
        )
        self.norm = nn.LayerNorm(dim) if head_norm else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) -> (B, dim, T', H', W').

        Raises:
            ValueError: another shape.
        """
        if not torch.jit.is_scripting() and (x.dim() != 5 or x.shape[1] != self.in_chans):
            raise ValueError(f"MambaNDVideo takes (B, {self.in_chans}, T, H, W), got {list(x.shape)}")
        return self.encoder(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) -> (B, num_classes)."""
        return self.head(self.head_drop(self.norm(self.forward_features(x).mean((2, 3, 4)))))

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: layers are run again in the backward pass."""
        self.encoder.grad_checkpointing = enable


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
        "pool_size": (14, 14),
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


def _volume_cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    taken = ("hf_hub_id", "hf_hub_filename", "custom_load", "license", "origin_url", "paper_name", "paper_ids")
    common = {key: _cfg(file)[key] for key in taken}
    return {"num_classes": 14, "input_size": (1, 96, 96, 96), "classifier": "head", **common, **kwargs}


default_cfgs = generate_default_cfgs(
    {
        "mamba_nd_2d_small.in1k": _cfg("in1k/mamba2d_s.pth"),
        "mamba_nd_2d_base.in1k": _cfg("in1k/mamba2d_b.pth"),
        "mamba_nd_3d_small.btcv": _volume_cfg("btcv/mamband-s.pt"),
        "mamba_nd_3d_small_plus.btcv": _volume_cfg("btcv/mamband-s_plus.pt"),
        "mamba_nd_3d_base.btcv": _volume_cfg("btcv/mamband-b-32.pt"),
        "mamba_nd_3d_base_64.btcv": _volume_cfg("btcv/mamband-b-64.pt"),
        "mamba_nd_3d_nano.untrained": _volume_cfg(license="apache-2.0", num_classes=2, input_size=(1, 64, 64, 64)),
        "mamba_nd_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(4, 4)),
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


def _segmenter(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> MambaNDSegmenter:
    return build(MambaNDSegmenter, variant, pretrained, **{**defaults, **options})


@register("volume")
def mamba_nd_3d_small(pretrained: bool = False, **kwargs: Any) -> MambaNDSegmenter:
    """Mamba-ND-S for BTCV: one channel, fourteen classes, windows of 96 voxels."""
    return _segmenter("mamba_nd_3d_small", pretrained, {}, kwargs)


@register("volume")
def mamba_nd_3d_small_plus(pretrained: bool = False, **kwargs: Any) -> MambaNDSegmenter:
    """Mamba-ND-S+ for BTCV."""
    return _segmenter("mamba_nd_3d_small_plus", pretrained, {"dim": 512}, kwargs)


@register("volume")
def mamba_nd_3d_base(pretrained: bool = False, **kwargs: Any) -> MambaNDSegmenter:
    """Mamba-ND-B for BTCV, decoder of width 32."""
    return _segmenter("mamba_nd_3d_base", pretrained, {"dim": 768}, kwargs)


@register("volume")
def mamba_nd_3d_base_64(pretrained: bool = False, **kwargs: Any) -> MambaNDSegmenter:
    """Mamba-ND-B for BTCV, decoder of width 64."""
    return _segmenter("mamba_nd_3d_base_64", pretrained, {"dim": 768, "feature_size": 64}, kwargs)


@register("volume")
def mamba_nd_3d_nano(pretrained: bool = False, **kwargs: Any) -> MambaNDSegmenter:
    """A small Mamba-ND for volumes of our own, for tests and demonstrations, about 1 M parameters."""
    defaults = {"num_classes": 2, "dim": 48, "feature_size": 8, "img_size": 64, "taken": (1, 2, 3, 5), "d_state": 8}
    return _segmenter("mamba_nd_3d_nano", pretrained, defaults, kwargs)
