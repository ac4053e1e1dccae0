"""U-Mamba: nnU-Net's residual U-Net with a Mamba layer at the bottom ("Bot") or along the encoder ("Enc").

Paper: U-Mamba, arXiv 2401.04722. Code: bowang-lab/U-Mamba@28459e3 (Apache-2.0), with dynamic-network-architectures 0.3.1.
A Mamba layer replaces its map: there is no residual around it. Enc's layers swap the roles of tokens and channels where a map
has no more positions than channels; such a network is made for one size, `img_size`. The published networks are sized by
nnU-Net's planner for every data set, so the variants here are its usual widths at the size of a small patch; `dims`, `strides`
and `kernel_sizes` take a plan as nnU-Net writes it. No weights were ever released.
Differs from the published code: in the decoder the 1x1 convolution comes before nearest upsampling, which gives the same map
for a fraction of the work; sizes that are no multiple of the strides are padded; any scan order; under autocast the projections
of a Mamba layer are in half precision (theirs switch it off there), the scan's state is in float32 as ever.

Legend: B batch, S spatial sizes (D, H, W) or (H, W), C channels, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin
from visionssm.checkpoints.u_mamba import LAYOUT
from visionssm.layers.segmentation import CONVS, INSTANCE_NORMS, SegmentationModel
from visionssm.layers.typing import checkpointed, unscripted
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import build, register

__all__ = ["UMamba"]

Sides: TypeAlias = "int | Sequence[int]"  # one for all axes, or one per axis


class ResidualBlock(nn.Module):
    """act(norm(conv(act(norm(conv x)))) + shortcut), nnU-Net's.

    Args:
        in_chans: channels in.
        dim: channels out.
        kernel: sides of the convolutions.
        stride: of the first convolution.
        project: a 1x1 convolution on the shortcut, without a norm; else x itself.
    """

    def __init__(
        self, in_chans: int, dim: int, *, kernel: tuple[int, ...], stride: tuple[int, ...] | int, project: bool
    ) -> None:
        super().__init__()
        conv, norm = CONVS[len(kernel)], INSTANCE_NORMS[len(kernel)]
        padding = tuple(side // 2 for side in kernel)
        self.conv1 = conv(in_chans, dim, kernel, stride, padding)  # pyright: ignore[reportArgumentType]
        self.norm1 = norm(dim, affine=True)
        self.conv2 = conv(dim, dim, kernel, 1, padding)  # pyright: ignore[reportArgumentType]
        self.norm2 = norm(dim, affine=True)
        self.shortcut = conv(in_chans, dim, 1, stride) if project else nn.Identity()  # pyright: ignore[reportArgumentType]
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *S) -> (B, dim, *S / stride)."""
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + self.shortcut(x))


def residual_blocks(
    in_chans: int, dim: int, depth: int, *, kernel: tuple[int, ...], stride: tuple[int, ...] | int = 1
) -> nn.Sequential:
    """A block with a projected shortcut, then `depth` - 1 without."""
    first = ResidualBlock(in_chans, dim, kernel=kernel, stride=stride, project=True)
    return nn.Sequential(
        first, *(ResidualBlock(dim, dim, kernel=kernel, stride=1, project=False) for _ in range(depth - 1))
    )


class PositionMamba(nn.Module):
    """mixer(norm x), the positions as tokens.

    Args:
        dim: C.
        scan: order of the positions.
        d_state: N.
    """

    def __init__(self, dim: int, *, scan: ScanOrder, d_state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = _mamba(dim, scan, d_state)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        x_BSC = x.movedim(1, -1)
        tokens_BLC = self.mixer(self.norm(x_BSC.flatten(1, -2)), x_BSC)
        return tokens_BLC.transpose(1, 2).reshape(x.shape)


class ChannelMamba(nn.Module):
    """mixer(norm x), the channels as tokens, in their own order.

    Args:
        length: L, the width of a token.
        d_state: N.
    """

    def __init__(self, length: int, *, d_state: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(length)
        self.mixer = _mamba(length, None, d_state)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) of L positions -> (B, C, *S)."""
        return self.mixer(self.norm(x.flatten(2)), None).reshape(x.shape)


def _mamba(dim: int, scan: ScanOrder | None, d_state: int) -> SequenceScan:
    return SequenceScan(dim, scan=scan, d_inner=2 * dim, d_state=d_state, dt_rank=math.ceil(dim / 16))


class Encoder(nn.Module):
    """The stem and stages of residual blocks, each followed by its Mamba layer if it has one.

    Args:
        stem: blocks at full resolution.
        stages: blocks, the first strided.
        mixers: one per stage, `nn.Identity()` for none; what it returns is the skip connection and the next stage's input.
    """

    def __init__(self, *, stem: nn.Module, stages: Sequence[nn.Module], mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S) -> one map per stage, finest first."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage, mixer in zip(self.stages, self.mixers):  # noqa: B905  (TorchScript knows no strict)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                maps.append(checkpointed(mixer, checkpointed(stage, x)))
            else:
                maps.append(mixer(stage(x)))
            x = maps[-1]
        return maps


class Up(nn.Module):
    """Upsampling to the next finer map, joined with it, residual blocks.

    Args:
        in_chans: channels in.
        dim: channels out, and of the skip connection.
        depth: residual blocks.
        stride: factor per axis.
        kernel: sides of the convolutions.
        skip: whether there is a skip connection.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        depth: int,
        *,
        stride: tuple[int, ...],
        kernel: tuple[int, ...],
        skip: bool,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.conv = CONVS[len(kernel)](in_chans, dim, 1)
        self.resize = nn.Upsample(scale_factor=tuple(float(side) for side in stride), mode="nearest")
        self.blocks = residual_blocks(2 * dim if skip else dim, dim, depth, kernel=kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_chans, *S / stride), (B, dim, *S) -> (B, dim, *S)."""
        x = self.resize(self.conv(x))
        return self.blocks(torch.cat([x, skip], 1) if self.skip else x)


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


class UMamba(PretrainedMixin, SegmentationModel):
    """U-Mamba.

    Args:
        in_chans: channels (modalities) of the input.
        num_classes: classes, background included.
        mamba: "bottom": one layer over the deepest map (Bot); "encoder": after every stage of volumes, after every second of
            images, the last included (Enc).
        dims: channels of each stage.
        strides: of each stage, per axis or one for all; the first must be 1.
        kernel_sizes: of each stage, per axis or one for all.
        depth: residual blocks of a stage; the coarser half of the encoder and the finest step of the decoder have one, as
            published.
        img_size: the size that Enc's layers are made for: side or one per axis, a multiple of the strides; then channels are
            the tokens where there are at least as many as positions. None: positions are the tokens everywhere, and any size
            is taken.
        d_state: N.
        scan: scan order of the positions, or one per Mamba layer.
        spatial_dims: 3 for volumes, 2 for images; in images the finest decoder step has no skip connection.

    Raises:
        ValueError: an argument that is not accepted.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 1,
        num_classes: int = 2,
        mamba: Literal["bottom", "encoder"] = "bottom",
        dims: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[Sides] = (1, 2, 2, 2),
        kernel_sizes: Sequence[Sides] = (3, 3, 3, 3),
        depth: int = 2,
        img_size: Sides | None = None,
        d_state: int = 16,
        scan: ScanChoice = "raster",
        spatial_dims: int = 3,
    ) -> None:
        if mamba not in ("bottom", "encoder"):
            raise ValueError(f"mamba must be 'bottom' or 'encoder', got {mamba!r}")
        if spatial_dims not in CONVS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
        stages = len(dims)
        if not len(strides) == len(kernel_sizes) == stages or stages < 2:
            raise ValueError(
                f"dims {tuple(dims)}, strides {tuple(strides)} and kernel_sizes {tuple(kernel_sizes)} must have one entry per "
                "stage, two or more"
            )
        steps = [_per_axis("strides", sides, spatial_dims) for sides in strides]
        kernels = [_per_axis("kernel_sizes", sides, spatial_dims) for sides in kernel_sizes]
        if set(steps[0]) != {1}:
            raise ValueError(f"the first of strides must be 1, got {steps[0]}")
        total = [math.prod(axis) for axis in zip(*steps, strict=True)]
        fixed = None if img_size is None else _per_axis("img_size", img_size, spatial_dims)
        if fixed is not None and any(side % stride for side, stride in zip(fixed, total, strict=True)):
            raise ValueError(f"img_size must be multiples of {tuple(total)}, got {fixed}")

        alternate = [i for i in range(stages) if spatial_dims == 3 or i % 2 != stages % 2]
        layers = alternate if mamba == "encoder" else [stages - 1]
        mixers: list[nn.Module] = [nn.Identity() for _ in dims]
        for i, order in zip(layers, layer_scans(scan, len(layers), ndim=spatial_dims), strict=True):
            positions = math.prod(_divide(fixed, steps[: i + 1])) if fixed is not None and mamba == "encoder" else 0
            if 0 < positions <= dims[i]:
                mixers[i] = ChannelMamba(positions, d_state=d_state)
            else:
                mixers[i] = PositionMamba(dims[i], scan=order, d_state=d_state)

        half = math.ceil(stages / 2)
        depths = [depth] * half + [1] * (stages - half)
        inputs = [dims[0], *dims]
        encoder = Encoder(
            stem=residual_blocks(in_chans, dims[0], depths[0], kernel=kernels[0]),
            stages=[
                residual_blocks(inputs[i], dims[i], depths[i], kernel=kernels[i], stride=steps[i])
                for i in range(stages)
            ],
            mixers=mixers,
        )
        several = math.ceil((stages - 1) / 2 + 0.5)  # decoder steps with more than one block, the deepest
        ups = [
            Up(
                dims[i + 1],
                dims[i],
                depth if number < several else 1,
                stride=steps[i + 1],
                kernel=kernels[i],
                skip=spatial_dims == 3 or i > 0,
            )
            for number, i in enumerate(range(stages - 2, -1, -1))
        ]
        heads = [CONVS[spatial_dims](dim, num_classes, 1) for dim in dims[:-1]]
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            spatial_dims=spatial_dims,
            strides=total,
            encoder=encoder,
            decoder=Decoder(ups, channels=dims[:-1]),
            head=heads[0],
            further_heads=heads[1:],
        )
        self.fixed_size = fixed if any(isinstance(mixer, ChannelMamba) for mixer in mixers) else None
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    @unscripted
    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError unless an input of these sides can be segmented."""
        if self.fixed_size is not None and size != self.fixed_size:
            raise ValueError(
                f"this U-Mamba has channels as tokens and takes only the size it is made for, img_size={self.fixed_size}, "
                f"got {size}; img_size=None takes any size"
            )
        super().check_size(size)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """Nothing: the published training decays everything."""
        return set()

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: the encoder's stages and layers are run again in the backward pass."""
        self.encoder.grad_checkpointing = enable


def _per_axis(name: str, sides: Sides, spatial_dims: int) -> tuple[int, ...]:
    per_axis = (sides,) * spatial_dims if isinstance(sides, int) else tuple(sides)
    if len(per_axis) != spatial_dims or min(per_axis) < 1:
        raise ValueError(f"{name} must be sides of at least 1, one or {spatial_dims} of them, got {sides!r}")
    return per_axis


def _divide(size: tuple[int, ...], steps: Sequence[tuple[int, ...]]) -> list[int]:
    """Sides of a map after strides, from a multiple of them."""
    return [side // math.prod(axis) for side, axis in zip(size, zip(*steps, strict=True), strict=True)]


# --- variants ---------------------------------------------------------------------------------------------------

_PAPER = {"paper_name": "U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation",
          "paper_ids": "arXiv:2401.04722", "origin_url": "https://github.com/bowang-lab/U-Mamba",
          "license": "apache-2.0", "classifier": "head"}  # fmt: skip
default_cfgs = generate_default_cfgs(
    {
        "u_mamba_bot_2d.untrained": {"num_classes": 7, "input_size": (3, 64, 64), **_PAPER},
        "u_mamba_enc_2d.untrained": {"num_classes": 7, "input_size": (3, 64, 64), "fixed_input_size": True, **_PAPER},
        "u_mamba_bot_3d.untrained": {"num_classes": 14, "input_size": (1, 16, 32, 32), **_PAPER},
        "u_mamba_enc_3d.untrained": {
            "num_classes": 14,
            "input_size": (1, 16, 32, 32),
            "fixed_input_size": True,
            **_PAPER,
        },
        "u_mamba_nano.untrained": {"num_classes": 2, "input_size": (1, 64, 64, 64), **_PAPER},
    }
)

_2D: dict[str, Any] = {"in_chans": 3, "num_classes": 7, "spatial_dims": 2}
_3D: dict[str, Any] = {"in_chans": 1, "num_classes": 14, "strides": (1, (1, 2, 2), 2, 2), "spatial_dims": 3}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> UMamba:
    if pretrained:
        raise ValueError(f"there are no weights of {variant}: U-Mamba's authors released none")
    return build(UMamba, variant, False, **{**defaults, **options})


@register("volume")
def u_mamba_bot_2d(pretrained: bool = False, **kwargs: Any) -> UMamba:
    """U-MambaBot for images (endoscopy: three channels, seven classes), four stages."""
    return _create("u_mamba_bot_2d", pretrained, _2D, kwargs)


@register("volume")
def u_mamba_enc_2d(pretrained: bool = False, **kwargs: Any) -> UMamba:
    """U-MambaEnc for images (endoscopy: three channels, seven classes), four stages, made for 64 x 64."""
    return _create("u_mamba_enc_2d", pretrained, {**_2D, "mamba": "encoder", "img_size": 64}, kwargs)


@register("volume")
def u_mamba_bot_3d(pretrained: bool = False, **kwargs: Any) -> UMamba:
    """U-MambaBot for volumes (abdominal CT and MR: one channel, fourteen classes), four stages."""
    return _create("u_mamba_bot_3d", pretrained, _3D, kwargs)


@register("volume")
def u_mamba_enc_3d(pretrained: bool = False, **kwargs: Any) -> UMamba:
    """U-MambaEnc for volumes (abdominal CT and MR: one channel, fourteen classes), four stages, made for 16 x 32 x 32."""
    return _create("u_mamba_enc_3d", pretrained, {**_3D, "mamba": "encoder", "img_size": (16, 32, 32)}, kwargs)


@register("volume")
def u_mamba_nano(pretrained: bool = False, **kwargs: Any) -> UMamba:
    """A small U-MambaEnc of our own for tests and demonstrations, about 0.1 M parameters, any size."""
    defaults = {
        "mamba": "encoder",
        "dims": (8, 16, 32),
        "strides": (1, 2, 2),
        "kernel_sizes": (3, 3, 3),
        "d_state": 8,
    }
    return _create("u_mamba_nano", pretrained, defaults, kwargs)
