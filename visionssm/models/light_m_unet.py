"""LightM-UNet: Mamba layers down, depthwise convolutions up, added skip connections.

Paper: LightM-UNet, arXiv 2403.05246. Code: MrBlankness/LightM-UNet@6b72e27 (Apache-2.0).
Quirks that are kept: the norm before a Mamba layer and the one after it are the same; its shortcut carries the input without
norm; a stage widens at the resolution of the one before, then pools. The repository's "1M" parameters are not what its code
builds: the published configuration has five million. No weights were ever released.
Differs from the published code: sizes that are no multiple of 8 are padded; any scan order.

Legend: B batch, S spatial sizes (D, H, W) or (H, W), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.light_m_unet import LAYOUT
from visionssm.checkpoints.load import PretrainedMixin
from visionssm.layers import Linear
from visionssm.layers.segmentation import CONVS, SegmentationModel
from visionssm.layers.typing import checkpointed, unscripted
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import build, register

__all__ = ["LightMUNet"]

GROUPS = 8  # of every group norm

_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


class MambaLayer(nn.Module):
    """proj(norm(mixer(norm x) + skip_scale * x)), with one norm for both.

    Args:
        in_chans: channels in.
        dim: channels out.
        scan: order of the positions.
        d_state: N.
    """

    def __init__(self, in_chans: int, dim: int, *, scan: ScanOrder, d_state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_chans)
        self.mixer = SequenceScan(
            in_chans,
            scan=scan,
            d_inner=2 * in_chans,
            d_state=d_state,
            dt_rank=math.ceil(in_chans / 16),
        )
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = Linear(in_chans, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *S) -> (B, dim, *S)."""
        x_BSC = x.movedim(1, -1)
        tokens_BLC = x_BSC.flatten(1, -2)
        mixed_BLC = self.mixer(self.norm(tokens_BLC), x_BSC) + self.skip_scale * tokens_BLC
        y_BLC = self.proj(self.norm(mixed_BLC))
        # group norms follow, and torch's for channels-last maps on CPUs adds up in plain float32
        return y_BLC.unflatten(1, x_BSC.shape[1:-1]).movedim(-1, 1).contiguous()


class DownBlock(nn.Module):
    """x + mamba2(relu(norm2(mamba1(relu(norm1 x))))).

    Args:
        dim: C.
        scans: of the two layers.
        d_state: N.
    """

    def __init__(self, dim: int, *, scans: Sequence[ScanOrder], d_state: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, dim)
        self.mamba1 = MambaLayer(dim, dim, scan=scans[0], d_state=d_state)
        self.norm2 = nn.GroupNorm(GROUPS, dim)
        self.mamba2 = MambaLayer(dim, dim, scan=scans[1], d_state=d_state)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        y = self.mamba1(self.act(self.norm1(x)))
        return x + self.mamba2(self.act(self.norm2(y)))


class UpBlock(nn.Module):
    """relu(norm2(conv(relu(norm1 x)) + skip_scale * x)), the convolution separable.

    Args:
        dim: C.
        spatial_dims: 2 or 3.
    """

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, dim)
        self.conv = separable_conv(dim, dim, spatial_dims)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = nn.GroupNorm(GROUPS, dim)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return self.act(self.norm2(self.conv(self.act(self.norm1(x))) + self.skip_scale * x))


def separable_conv(in_chans: int, dim: int, spatial_dims: int, *, kernel: int = 3, bias: bool = False) -> nn.Sequential:
    """A depthwise convolution, then one over channels."""
    conv = CONVS[spatial_dims]
    depthwise = conv(in_chans, in_chans, kernel, padding=kernel // 2, groups=in_chans, bias=bias)
    return nn.Sequential(depthwise, conv(in_chans, dim, 1, bias=bias))


class Encoder(nn.Module):
    """A separable convolution, then stages.

    Args:
        stem: the convolution.
        stages: the first at full resolution, each further one widening and halving before its blocks.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S) -> one map per stage, finest first."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                maps.append(checkpointed(stage, x))
            else:
                maps.append(stage(x))
            x = maps[-1]
        return maps


class Up(nn.Module):
    """Narrows, doubles the resolution, adds the encoder's map, blocks.

    Args:
        in_chans: channels in; half as many out.
        depth: blocks.
        spatial_dims: 2 or 3.
    """

    def __init__(self, in_chans: int, depth: int, spatial_dims: int) -> None:
        super().__init__()
        self.conv = CONVS[spatial_dims](in_chans, in_chans // 2, 1, bias=False)
        self.resize = nn.Upsample(scale_factor=2.0, mode=_LINEAR[spatial_dims], align_corners=False)
        self.blocks = nn.Sequential(*(UpBlock(in_chans // 2, spatial_dims) for _ in range(depth)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_chans, *S / 2), (B, in_chans / 2, *S) -> (B, in_chans / 2, *S)."""
        return self.blocks(self.resize(self.conv(x)) + skip)


class Decoder(nn.Module):
    """Upsampling steps, the deepest first.

    Args:
        ups: one per step.
        channels: of the decoded maps, finest first.
    """

    def __init__(self, ups: Sequence[nn.Module], *, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.ups = nn.ModuleList(ups)

    def forward(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """The input (not read), the encoder's maps -> decoded maps, finest first."""
        y = maps[-1]
        decoded: list[Tensor] = []
        for i, up in enumerate(self.ups):
            y = up(y, maps[len(maps) - 2 - i])
            decoded.append(y)
        return decoded[::-1]


class LightMUNet(PretrainedMixin, SegmentationModel):
    """LightM-UNet.

    Args:
        in_chans: channels (modalities) of the input.
        num_classes: classes, background included.
        dim: channels of the first stage, a multiple of 8; each further stage has twice as many.
        depths: blocks of each stage down, two or more stages.
        up_depths: blocks of each step up, the deepest first.
        d_state: N.
        scan: scan order of the positions, or one per Mamba layer.
        spatial_dims: 3 for volumes, 2 for images.

    Raises:
        ValueError: an argument that is not accepted.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 1,
        num_classes: int = 3,
        dim: int = 32,
        depths: Sequence[int] = (1, 2, 2, 4),
        up_depths: Sequence[int] = (1, 1, 1),
        d_state: int = 16,
        scan: ScanChoice = "raster",
        spatial_dims: int = 3,
    ) -> None:
        if spatial_dims not in CONVS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
        if dim < GROUPS or dim % GROUPS:
            raise ValueError(f"dim must be a multiple of {GROUPS}, got {dim}")
        if len(depths) < 2 or len(up_depths) != len(depths) - 1:
            raise ValueError(
                f"depths {tuple(depths)} must have two stages or more, and up_depths {tuple(up_depths)} one entry less"
            )
        dims = [dim << i for i in range(len(depths))]
        scans = iter(layer_scans(scan, 2 * sum(depths) + len(depths) - 1, ndim=spatial_dims))
        stages = []
        for i, depth in enumerate(depths):
            widen = MambaLayer(dims[i - 1], dims[i], scan=next(scans), d_state=d_state) if i else nn.Identity()
            pool = _POOLS[spatial_dims](2) if i else nn.Identity()
            blocks = [DownBlock(dims[i], scans=(next(scans), next(scans)), d_state=d_state) for _ in range(depth)]
            stages.append(nn.Sequential(widen, pool, *blocks))
        ups = [Up(width, depth, spatial_dims) for width, depth in zip(dims[:0:-1], up_depths, strict=True)]
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            spatial_dims=spatial_dims,
            strides=[2 ** (len(depths) - 1)] * spatial_dims,
            encoder=Encoder(separable_conv(in_chans, dim, spatial_dims), stages),
            decoder=Decoder(ups, channels=dims[:-1]),
            head=nn.Sequential(
                nn.GroupNorm(GROUPS, dim),
                nn.ReLU(),
                *separable_conv(dim, num_classes, spatial_dims, kernel=1, bias=True),
            ),
            least=1,
        )

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """Nothing: the published training decays everything."""
        return set()

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: the stages down are run again in the backward pass."""
        self.encoder.grad_checkpointing = enable


# --- variants ---------------------------------------------------------------------------------------------------

_PAPER = {"paper_name": "LightM-UNet: Mamba Assists in Lightweight UNet for Medical Image Segmentation",
          "paper_ids": "arXiv:2403.05246", "origin_url": "https://github.com/MrBlankness/LightM-UNet",
          "license": "apache-2.0", "classifier": "head.3"}  # fmt: skip
default_cfgs = generate_default_cfgs(
    {
        "light_m_unet_2d.untrained": {"num_classes": 2, "input_size": (3, 512, 512), **_PAPER},
        "light_m_unet_3d.untrained": {"num_classes": 3, "input_size": (1, 64, 64, 64), **_PAPER},
        "light_m_unet_nano.untrained": {"num_classes": 2, "input_size": (1, 64, 64, 64), **_PAPER},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> LightMUNet:
    if pretrained:
        raise ValueError(f"there are no weights of {variant}: LightM-UNet's authors released none")
    return build(LightMUNet, variant, False, **{**defaults, **options})


@register("volume")
def light_m_unet_2d(pretrained: bool = False, **kwargs: Any) -> LightMUNet:
    """LightM-UNet for images (chest X-rays: three channels, two classes)."""
    return _create("light_m_unet_2d", pretrained, {"in_chans": 3, "num_classes": 2, "spatial_dims": 2}, kwargs)


@register("volume")
def light_m_unet_3d(pretrained: bool = False, **kwargs: Any) -> LightMUNet:
    """LightM-UNet for volumes (liver CT: one channel, three classes)."""
    return _create("light_m_unet_3d", pretrained, {}, kwargs)


@register("volume")
def light_m_unet_nano(pretrained: bool = False, **kwargs: Any) -> LightMUNet:
    """A small LightM-UNet of our own for tests and demonstrations, about 0.1 M parameters."""
    defaults = {"num_classes": 2, "dim": 16, "depths": (1, 1, 1), "up_depths": (1, 1), "d_state": 8}
    return _create("light_m_unet_nano", pretrained, defaults, kwargs)
