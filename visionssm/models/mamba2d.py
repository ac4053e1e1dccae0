"""Mamba2D (M2D): a native two-dimensional scan beside a local branch in two stages, attention with rotary positions in two.

Paper: Mamba2D, arXiv 2412.16146. Code: cocoalex00/Mamba2D@9acb361, which carries no licence. Not Mamba-ND's "Mamba2D".
A learned scale multiplies the shortcut of each residual, not its branch; every stage ends with a norm, which the next one reads.
Differs from the published code: maps of a single row or column are taken; the state stays float32 in half precision; blocks from
the bottom right corner scan backwards instead of turning the map around.

Legend: B batch, H rows, W columns, L = H * W, C channels, E channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features_fx import register_notrace_module
from timm.models.metaformer import StarReLU
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.mamba2d import LAYOUT
from visionssm.layers import HierarchicalModel, Linear, Mlp, PooledHead, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.mixers.wavefront import WavefrontScan
from visionssm.scans import ScanOrder

from ._registry import register

__all__ = ["Mamba2D"]

HEAD_DIM = 32


class Stem(nn.Module):
    """A 7x7 convolution of stride 4, then LayerNorm (MetaFormer, arXiv 2210.13452).

    Args:
        in_chans: channels of the image.
        dim: channels out.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, 7, stride=4, padding=2)
        self.norm1 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, (H + 1) // 4, (W + 1) // 4, dim), rounded down."""
        return self.norm1(self.conv1(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, without a norm.

    Args:
        dim: channels in.
        out_dim: channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LocalBranch(nn.Module):
    """LayerNorm, an inverted bottleneck around a 3x3 depthwise convolution, StarReLU twice.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False)
        self.act2 = StarReLU()
        self.reduce = Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.act1(self.expand(self.norm(x)))
        return self.reduce(self.act2(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


class ScanMixer(nn.Module):
    """The scan plus the local branch.

    Args:
        dim: C.
        reverse: scan from the bottom right corner.
        scan: routes to scan along instead.
        d_state: N.
    """

    def __init__(self, dim: int, *, reverse: bool, scan: ScanOrder | None, d_state: int) -> None:
        super().__init__()
        self.scan = WavefrontScan(dim, d_state=d_state, dt_rank=math.ceil(dim / 16), reverse=reverse, scan=scan)
        self.local = LocalBranch(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.scan(x) + self.local(x)


@register_notrace_module  # it makes its tables from the size, which FX does not know
class GridRotation(nn.Module):
    """Turns neighbouring channels by angles that grow with the row in the first half of a head, with the column in the second."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.count = head_dim // 4  # angles of each half

    def forward(self, x_BnLE: Tensor, map_BHWC: Tensor) -> Tensor:
        """Heads (B, heads, L, E), turned; the map only tells the grid."""
        height, width = map_BHWC.shape[1], map_BHWC.shape[2]
        speeds = torch.pow(10000.0, -torch.arange(self.count, device=x_BnLE.device) / self.count)
        rows = torch.arange(height, device=x_BnLE.device)[:, None] * speeds
        columns = torch.arange(width, device=x_BnLE.device)[:, None] * speeds
        half = [height, width, self.count]
        angles = torch.cat([rows[:, None].expand(half), columns[None].expand(half)], -1).flatten(0, 1)
        cos, sin = angles.cos().to(x_BnLE.dtype), angles.sin().to(x_BnLE.dtype)
        even, odd = x_BnLE.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


class RotaryAttention(nn.Module):
    """Attention over all positions; queries and keys are turned, then normed.

    Args:
        dim: C, a multiple of 32.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = dim // HEAD_DIM, HEAD_DIM
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.rotate = GridRotation(HEAD_DIM)
        self.q_norm = nn.LayerNorm(HEAD_DIM)
        self.k_norm = nn.LayerNorm(HEAD_DIM)
        self.proj = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(self.rotate(q, x)), self.k_norm(self.rotate(k, x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2)).view_as(x)


class Mamba2DBlock(nn.Module):
    """scale1 * x + mixer(norm1 x), then scale2 * x + mlp(norm2 x), the scales per channel and learned.

    Args:
        dim: C.
        mixer: (B, H, W, C) -> (B, H, W, C).
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, mixer: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.scale2 = nn.Parameter(torch.ones(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.scale1 * x + self.drop_path(self.mixer(self.norm1(x)))
        return self.scale2 * x + self.drop_path(self.mlp(self.norm2(x)))


class Mamba2D(PretrainedMixin, HierarchicalModel):
    """Mamba2D.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dims: channels of each stage.
        depths: blocks of each stage.
        scan_stages: how many stages scan; the others attend, and their channels must be multiples of 32.
        d_state: N.
        mlp_ratio: hidden width of the MLPs over the block's.
        scan: None for the native scan, whose odd blocks start from the bottom right; or a scan order by name or options, or one
            per scanning block, along whose routes an ordinary selective scan runs instead.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).

    Raises:
        ValueError: an argument that is not accepted.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, ...] = (32, 64, 160, 256),
        depths: tuple[int, ...] = (3, 3, 9, 3),
        scan_stages: int = 2,
        d_state: int = 16,
        mlp_ratio: float = 4.0,
        scan: ScanChoice | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        if len(dims) != len(depths):
            raise ValueError(f"dims {dims} and depths {depths} must have one entry per stage")
        if any(dim % HEAD_DIM for dim in dims[scan_stages:]):
            raise ValueError(f"dims of the attending stages must be multiples of {HEAD_DIM}, got {dims[scan_stages:]}")
        count = sum(depths[:scan_stages])
        orders = iter([None] * count if scan is None else layer_scans(scan, count))
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks: list[nn.Module] = []
            for j in range(depth):
                mixer = (
                    ScanMixer(dim, reverse=j % 2 == 1, scan=next(orders), d_state=d_state)
                    if i < scan_stages
                    else RotaryAttention(dim)
                )
                blocks.append(Mamba2DBlock(dim, mixer, mlp_ratio=mlp_ratio, drop_path=rates[i][j]))
            blocks.append(nn.LayerNorm(dim))
            stages.append(Stage(Downsample(dims[i - 1], dim) if i else nn.Identity(), blocks))
        width, hidden = dims[-1], 4 * dims[-1]
        neck = nn.Sequential(nn.LayerNorm(width), Linear(width, hidden), nn.GELU(), nn.LayerNorm(hidden))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=Stem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            strides=tuple(4 << i for i in range(len(dims))),
            norm=nn.Identity(),
            drop_rate=drop_rate,
            global_residual=global_residual,
            head=PooledHead(hidden, num_classes, global_pool, neck=neck, drop_rate=drop_rate),
        )
        self.num_features = dims[-1]  # of forward_features; the head widens them

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """A_log, D and the dt bias, as published; vectors are left out by every optimizer here."""
        kept = (".A_log", ".D", ".dt_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(kept)}


# --- variants ---------------------------------------------------------------------------------------------------

_URL = "https://github.com/cocoalex00/Mamba2D/releases/download/v2.0.0/"


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": _URL + file if file else None,
        "custom_load": bool(file),  # published files carry more than tensors, which only our reader takes safely
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
        "origin_url": "https://github.com/cocoalex00/Mamba2D",
        "paper_name": "Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks",
        "paper_ids": "arXiv:2412.16146",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mamba2d_nano.in1k": _cfg("M2D-N-backbone.ckpt"),
        "mamba2d_tiny.in1k": _cfg("M2D-T-backbone.ckpt"),
        "mamba2d_small.in1k": _cfg("M2D-S-backbone.ckpt"),
        "mamba2d_pico.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> Mamba2D:
    return build_model_with_cfg(
        Mamba2D,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def mamba2d_nano(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-N."""
    return _create("mamba2d_nano", pretrained, {}, kwargs)


@register("classification")
def mamba2d_tiny(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-T."""
    return _create("mamba2d_tiny", pretrained, {"dims": (64, 128, 320, 512)}, kwargs)


@register("classification")
def mamba2d_small(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-S."""
    defaults = {"dims": (96, 192, 384, 576), "depths": (3, 12, 14, 3)}
    return _create("mamba2d_small", pretrained, defaults, kwargs)


@register("classification")
def mamba2d_pico(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """A small M2D of our own for small images and tests, about 1 M parameters; the authors have a nano themselves."""
    defaults = {"dims": (16, 32, 64, 128), "depths": (2, 1, 2, 1)}
    return _create("mamba2d_pico", pretrained, defaults, kwargs)
