"""SegMamba: a volume encoder of tri-orientated Mamba blocks under a residual U-Net decoder.

Paper: SegMamba, arXiv 2401.13560. Code: ge-xing/SegMamba@cff3597 (no licence; written anew from what it computes).
The decoder is made of MONAI's blocks, so building the model needs the extra `visionssm[medical]`; importing this file does not.
Differs from the published code: the third route cuts the tokens into fixed numbers of chunks there, which are planes at an
input of 128 only (`slices="published"`), and may follow the real depth here (`slices="planes"`), which takes any size; all three
routes start from Mamba's step sizes, of which the published code gives two the plain initial values of a linear layer; images
work as well as volumes. No weights were ever released.

Legend: B batch, S spatial sizes (D, H, W) or (H, W), C channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin
from visionssm.checkpoints.segmamba import LAYOUT
from visionssm.layers.channels_last import channels_last_in_inference, use_channels_last
from visionssm.layers.segmentation import CONVS, INSTANCE_NORMS, SegmentationModel, monai_blocks
from visionssm.layers.typing import checkpointed, unscripted
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder, create_scan

from ._registry import build, register

__all__ = ["ResidualDecoder", "SegMamba", "SegMambaEncoder"]

PUBLISHED_SLICES = 64  # chunks of the third route in the first stage, halved by each further one


class GatedConv(nn.Module):
    """x + conv1(conv3(conv3 x) + conv1 x), each convolution followed by instance norm and ReLU ("GSC").

    Args:
        dim: C.
        spatial_dims: 2 or 3.
    """

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        conv, norm = CONVS[spatial_dims], INSTANCE_NORMS[spatial_dims]
        self.conv1 = conv(dim, dim, 3, padding=1)
        self.conv2 = conv(dim, dim, 3, padding=1)
        self.conv3 = conv(dim, dim, 1)
        self.conv4 = conv(dim, dim, 1)
        self.norm = norm(dim)  # no parameters, so one serves all
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        y = self.act(self.norm(self.conv1(x)))
        y = self.act(self.norm(self.conv2(y))) + self.act(self.norm(self.conv3(x)))
        return x + self.act(self.norm(self.conv4(y)))


class ScanBlock(nn.Module):
    """x + mixer(norm x) over the positions as tokens.

    Args:
        dim: C.
        scan: order of the positions.
        d_state: N.
    """

    def __init__(self, dim: int, scan: ScanOrder, d_state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = SequenceScan(dim, scan=scan, d_inner=2 * dim, d_state=d_state, dt_rank=math.ceil(dim / 16))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        x_BSC = x.movedim(1, -1)
        tokens_BLC = x_BSC.flatten(1, -2)
        tokens_BLC = tokens_BLC + self.mixer(self.norm(tokens_BLC), x_BSC)
        return tokens_BLC.view(x_BSC.shape).movedim(-1, 1)


class FeatureMlp(nn.Module):
    """What leaves a stage: instance norm, then an MLP over channels.

    Args:
        dim: C.
        spatial_dims: 2 or 3.
    """

    def __init__(self, dim: int, spatial_dims: int) -> None:
        super().__init__()
        self.norm = INSTANCE_NORMS[spatial_dims](dim)
        self.fc1 = CONVS[spatial_dims](dim, 2 * dim, 1)
        self.act = nn.GELU()
        self.fc2 = CONVS[spatial_dims](2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return self.fc2(self.act(self.fc1(self.norm(x))))


class Stage(nn.Module):
    """Downsampling by 2, a gated convolution, scan blocks.

    Args:
        in_chans: channels in.
        dim: channels out.
        first: the stem: a 7x7x7 convolution, without a norm before it.
        scans: one per block.
        d_state: N.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        first: bool,
        scans: Sequence[ScanOrder],
        d_state: int,
        spatial_dims: int,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        conv = CONVS[spatial_dims]
        self.norm = nn.Identity() if first else INSTANCE_NORMS[spatial_dims](in_chans)
        self.downsample = conv(in_chans, dim, 7, 2, padding=3) if first else conv(in_chans, dim, 2, 2)
        self.gated_conv = GatedConv(dim, spatial_dims)
        self.blocks = nn.Sequential(*(ScanBlock(dim, scan, d_state) for scan in scans))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *S) -> (B, dim, *S/2)."""
        x = self.downsample(self.norm(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpointed(self.gated_conv, x)
            for block in self.blocks:
                x = checkpointed(block, x)
            return x
        return self.blocks(self.gated_conv(x))


class SegMambaEncoder(nn.Module):
    """Stages, and what the decoder gets of each.

    Args:
        in_chans: channels of the volume.
        dims: channels of each stage.
        depths: scan blocks of each stage.
        d_state: N.
        scans: one per block.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        dims: Sequence[int],
        depths: Sequence[int],
        d_state: int,
        scans: Sequence[ScanOrder],
        spatial_dims: int,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            before = sum(depths[:i])
            stages.append(
                Stage(
                    dims[i - 1] if i else in_chans,
                    dim,
                    first=i == 0,
                    scans=scans[before : before + depth],
                    d_state=d_state,
                    spatial_dims=spatial_dims,
                )
            )
        self.stages = nn.ModuleList(stages)
        self.features = nn.ModuleList(FeatureMlp(dim, spatial_dims) for dim in dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S) -> one map per stage, (B, C, *S/2), (B, C', *S/4), ..."""
        maps: list[Tensor] = []
        for stage, feature in zip(self.stages, self.features):  # noqa: B905  (TorchScript knows no strict)
            x = stage(x)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                maps.append(checkpointed(feature, x))
            else:
                maps.append(feature(x))
        return maps

    @unscripted
    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether blocks are run again in the backward pass."""
        self.grad_checkpointing = enable
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable


class ResidualDecoder(nn.Module):
    """UNETR's decoder from MONAI's residual blocks, over maps whose strides are 2, 4, 8, ...

    Args:
        in_chans: channels of the volume, which is the first skip connection.
        dims: channels of the maps.
        spatial_dims: 2 or 3.

    Raises:
        ModuleNotFoundError: MONAI is not installed.
    """

    def __init__(self, *, in_chans: int, dims: Sequence[int], spatial_dims: int = 3) -> None:
        super().__init__()
        blocks = monai_blocks("SegMamba")
        kwargs: dict[str, Any] = {"norm_name": "instance", "res_block": True}
        widths = [*dims, 2 * dims[-1]]  # of the skip connections, the finest first
        self.channels = tuple(dims)
        self.grad_checkpointing = False
        self.first = blocks.UnetrBasicBlock(spatial_dims, in_chans, widths[0], 3, 1, **kwargs)
        self.skips = nn.ModuleList(
            blocks.UnetrBasicBlock(spatial_dims, width, wider, 3, 1, **kwargs)
            for width, wider in itertools.pairwise(widths)
        )
        self.ups: Any = nn.ModuleList(
            blocks.UnetrUpBlock(spatial_dims, wider, width, 3, 2, **kwargs)
            for width, wider in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.last = blocks.UnetrBasicBlock(spatial_dims, widths[0], widths[0], 3, 1, **kwargs)
        use_channels_last(self, inplace=True)  # MONAI's norms follow convolutions

    def forward(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """(B, in_chans, *S), the encoder's maps -> decoded maps of strides 1, 2, 4, ..., with `channels`."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return self._decode_again(x, maps)
        skips = [self.first(x)]
        for i, skip in enumerate(self.skips):
            skips.append(skip(maps[i]))
        y = skips.pop()
        decoded: list[Tensor] = []
        for up in self.ups:
            # MONAI's block in two steps: its transposed convolution forgets the memory format
            y = channels_last_in_inference(up.transp_conv(y))
            y = up.conv_block(torch.cat((y, skips.pop()), dim=1))
            decoded.append(y)
        decoded[-1] = self.last(decoded[-1])
        return decoded[::-1]

    @unscripted
    def _decode_again(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """The same, each block run again in the backward pass."""
        skips = [checkpointed(skip, y) for skip, y in zip((self.first, *self.skips), (x, *maps), strict=True)]
        decoded = [skips.pop()]
        for up in self.ups:
            decoded.append(checkpointed(up, decoded[-1], skips.pop()))
        decoded[-1] = checkpointed(self.last, decoded[-1])
        return decoded[:0:-1]

    @unscripted
    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether blocks are run again in the backward pass."""
        self.grad_checkpointing = enable


class SegMamba(PretrainedMixin, SegmentationModel):
    """SegMamba.

    Args:
        in_chans: channels (modalities) of the volume.
        num_classes: classes, background included.
        dims: channels of each stage.
        depths: scan blocks of each stage.
        d_state: N.
        slices: how the third route is cut: "published" has 64, 32, ... chunks in the stages, whatever the volume, and takes
            only sizes that divide so; "planes" cuts planes along the first axis, takes any size, and pads what is no multiple of
            the total stride by zeros at the end.
        scan: another scan order of the right rank instead, or one per block; any size, as with "planes".
        spatial_dims: 3 for volumes, 2 for images.

    Raises:
        ValueError: an argument that is not accepted.
        ModuleNotFoundError: MONAI is not installed.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 4,
        num_classes: int = 4,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        slices: Literal["published", "planes"] = "published",
        scan: ScanChoice | None = None,
        spatial_dims: int = 3,
    ) -> None:
        if slices not in ("published", "planes"):
            raise ValueError(f"slices must be 'published' or 'planes', got {slices!r}")
        if len(dims) != len(depths):
            raise ValueError(f"dims {tuple(dims)} and depths {tuple(depths)} must have one entry per stage")
        if spatial_dims not in CONVS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
        any_size = slices == "planes" or scan is not None
        counts = tuple(0 if any_size else PUBLISHED_SLICES >> i for i in range(len(dims)))
        if scan is None:
            scan = [
                create_scan("tri_orientated", ndim=spatial_dims, nslices=count)
                for count, depth in zip(counts, depths, strict=True)
                for _ in range(depth)
            ]
        encoder = SegMambaEncoder(
            in_chans=in_chans,
            dims=dims,
            depths=depths,
            d_state=d_state,
            scans=layer_scans(scan, sum(depths), ndim=spatial_dims),
            spatial_dims=spatial_dims,
        )
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            spatial_dims=spatial_dims,
            strides=[2 ** len(dims)] * spatial_dims,
            encoder=encoder,
            decoder=ResidualDecoder(in_chans=in_chans, dims=dims, spatial_dims=spatial_dims),
            head=CONVS[spatial_dims](dims[0], num_classes, 1),
        )
        use_channels_last(self)
        self.any_size = any_size
        self.slices = counts

    def decode(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S), padded -> decoded maps, finest first."""
        x = channels_last_in_inference(x)
        return self.decoder(x, self.encoder(x))

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """Nothing: the published training decays everything."""
        return set()

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: every block of encoder and decoder is run again in the backward pass."""
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.set_grad_checkpointing(enable)

    @unscripted
    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError unless an input of these sides can be segmented."""
        stride = self.strides[0]
        whole = all(side % stride == 0 for side in size)
        grids = [math.prod([side >> i + 1 for side in size]) for i in range(len(self.slices))]
        cut = whole and all(grid % count == 0 for grid, count in zip(grids, self.slices, strict=True) if count)
        if not self.any_size and not cut:
            factors = "".join(f"({axis}/{stride})" for axis in "DHW"[-len(size) :])
            raise ValueError(
                f"SegMamba with slices='published' takes sides that are multiples of {stride} with {factors} divisible "
                f"by {self.slices[-1]}, got {size}; slices='planes' takes any size"
            )
        super().check_size(size)


# --- variants ---------------------------------------------------------------------------------------------------

_PAPER = {"paper_name": "SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation",
          "paper_ids": "arXiv:2401.13560", "origin_url": "https://github.com/ge-xing/SegMamba"}  # fmt: skip
default_cfgs = generate_default_cfgs(
    {
        "segmamba_brats2023.untrained": {
            "num_classes": 4,
            "input_size": (4, 128, 128, 128),
            "classifier": "head",
            **_PAPER,
        },
        "segmamba_nano.untrained": {
            "num_classes": 2,
            "input_size": (1, 64, 64, 64),
            "classifier": "head",
            **_PAPER,
        },
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> SegMamba:
    if pretrained:
        raise ValueError(f"there are no weights of {variant}: SegMamba's authors released none")
    return build(SegMamba, variant, False, **{**defaults, **options})


@register("volume")
def segmamba_brats2023(pretrained: bool = False, **kwargs: Any) -> SegMamba:
    """SegMamba as published for BraTS 2023: four modalities, four classes, windows of 128 voxels."""
    return _create("segmamba_brats2023", pretrained, {}, kwargs)


@register("volume")
def segmamba_nano(pretrained: bool = False, **kwargs: Any) -> SegMamba:
    """A small SegMamba of our own for tests and demonstrations, about 0.5 M parameters, any size."""
    defaults = {
        "in_chans": 1,
        "num_classes": 2,
        "dims": (8, 16, 32),
        "depths": (1, 1, 1),
        "d_state": 8,
        "slices": "planes",
    }
    return _create("segmamba_nano", pretrained, defaults, kwargs)
