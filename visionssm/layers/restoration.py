"""What restoration networks share: images in and out at full resolution, residual groups, upsampling heads, a U-Net.

Source of the shapes: SwinIR (arXiv 2108.10257) for the plain frame, Restormer (arXiv 2111.09881) for the U-Net, as MambaIR
(csguoh/MambaIR@33d7b34) and MaIR (XLearning-SCU/2025-CVPR-MaIR@2fb433e) use them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import checkpoint_seq
from torch import Tensor, nn

from .hierarchical import Stage
from .linear import Linear

__all__ = [
    "GroupedRestorationModel",
    "ResidualGroup",
    "RestorationModel",
    "RestorationUNet",
    "ScaledBlock",
    "Upsampler",
    "pad_to_multiple",
]

Upsampler: TypeAlias = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv", "none"]

_RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K
_HEAD_CHANNELS = 64


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirrors an image at its lower and right edge, the edge repeated, until both sides are multiples.

    Args:
        x: (B, C, H, W), of any size: what is missing beyond one mirror image is mirrored again.
        multiple: of the sides that come out.

    Returns:
        (B, C, H', W'); `x` itself where nothing is missing.
    """
    for dim in (2, 3):
        side = x.shape[dim]
        if side % multiple:
            index = torch.arange(side + multiple - side % multiple, device=x.device) % (2 * side)
            x = x.index_select(dim, torch.where(index < side, index, 2 * side - 1 - index))
    return x


def _check_image(x: Tensor, in_chans: int) -> None:
    if x.dim() != 4 or x.shape[1] != in_chans or 0 in x.shape[2:]:
        raise ValueError(f"the image must be (B, {in_chans}, H, W) with H and W of 1 or more, got {tuple(x.shape)}")


class ResidualGroup(nn.Module):
    """x + conv(blocks(x)): MambaIR's residual state-space group, (B, H, W, C) in and out.

    Args:
        dim: C.
        blocks: modules from (B, H, W, C) to (B, H, W, C).
    """

    def __init__(self, dim: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = cast(Tensor, checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x))
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ScaledBlock(nn.Module):
    """Abstract: x * scale + mixer(norm x), then x * scale + a branch over norm x that a family adds; (B, H, W, C) in and out.

    Args:
        dim: C.
        mixer: (B, H, W, C) -> (B, H, W, C).
        drop_path: rate of stochastic depth, for the mixer only.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)
        self.scale2 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim)

    def mix(self, x: Tensor) -> Tensor:
        """The first half."""
        return x * self.scale1 + self.drop_path(self.mixer(self.norm1(x)))


class _ShuffleHead(nn.Module):
    """Convolutions and pixel shuffling up to the scale, through 64 channels."""

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        if scale != 3 and (scale < 1 or scale & (scale - 1)):
            raise ValueError(f"the 'pixelshuffle' head scales by 3 or by a power of 2, got upscale={scale}")
        self.conv_before = nn.Conv2d(dim, _HEAD_CHANNELS, 3, padding=1)
        self.act = nn.LeakyReLU(0.01)
        steps: list[nn.Module] = []
        for factor in (3,) if scale == 3 else (2,) * (scale.bit_length() - 1):
            steps.append(nn.Conv2d(_HEAD_CHANNELS, factor**2 * _HEAD_CHANNELS, 3, padding=1))
            steps.append(nn.PixelShuffle(factor))
        self.upsample = nn.Sequential(*steps)
        self.conv_last = nn.Conv2d(_HEAD_CHANNELS, out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.act(self.conv_before(x))))


class _DirectHead(nn.Module):
    """One convolution and pixel shuffling: the light models' head."""

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(nn.Conv2d(dim, scale**2 * out_chans, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x)


class _NearestHead(nn.Module):
    """Nearest-neighbour upsampling and convolutions, four times: fewer artefacts for real-world images."""

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        if scale != 4:
            raise ValueError(f"the 'nearest+conv' head scales by 4, got upscale={scale}")
        self.conv_before = nn.Conv2d(dim, _HEAD_CHANNELS, 3, padding=1)
        self.act_before = nn.LeakyReLU(0.01)
        self.conv_up1 = nn.Conv2d(_HEAD_CHANNELS, _HEAD_CHANNELS, 3, padding=1)
        self.conv_up2 = nn.Conv2d(_HEAD_CHANNELS, _HEAD_CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(_HEAD_CHANNELS, _HEAD_CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(_HEAD_CHANNELS, out_chans, 3, padding=1)
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act_before(self.conv_before(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = self.act(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_last(self.act(self.conv_hr(x)))


class _PlainHead(nn.Module):
    """One convolution: the image keeps its size, and what comes out is added to it."""

    def __init__(self, dim: int, out_chans: int, scale: int) -> None:
        super().__init__()
        if scale != 1:
            raise ValueError(f"upsampler 'none' keeps the size, got upscale={scale}")
        self.conv_last = nn.Conv2d(dim, out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_last(x)


_HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "pixelshuffle": _ShuffleHead,
    "pixelshuffledirect": _DirectHead,
    "nearest+conv": _NearestHead,
    "none": _PlainHead,
}


class RestorationModel(nn.Module):
    """Abstract: the plain frame, at one resolution. A family builds the groups and calls `restore` with its body.

    Args:
        in_chans: channels of the images; for 3 the RGB mean of DIV2K is taken off and added back.
        dim: C.
        groups: the body; `grad_checkpointing` of each is switched together.
        upscale: size of the output over that of the input.
        upsampler: the head, see `Upsampler`; "none" gives a correction that is added to the input.
        img_range: factor between the images' values and those inside.
        multiple: sides are padded to multiples of it, by mirroring, and the output is cropped.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        in_chans: int,
        dim: int,
        groups: list[nn.Module],
        upscale: int,
        upsampler: Upsampler,
        img_range: float,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if upsampler not in _HEADS:
            raise ValueError(f"upsampler must be one of {', '.join(map(repr, _HEADS))}, got {upsampler!r}")
        self.in_chans = in_chans
        self.upscale = upscale
        self.img_range = img_range
        self.multiple = multiple
        self.residual = upsampler == "none"
        mean = torch.tensor(_RGB_MEAN if in_chans == 3 else (0.0,)).view(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.norm_first = nn.LayerNorm(dim)
        self.groups = nn.ModuleList(groups)
        self.norm = nn.LayerNorm(dim)
        self.conv_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.head = _HEADS[upsampler](dim, in_chans, upscale)
        self.apply(_init_linear)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        for group in self.groups:
            group.grad_checkpointing = enable  # pyright: ignore

    def no_weight_decay(self) -> set[str]:
        """What the published code marks: A_log and D."""
        return _scan_scalars(self)

    def restore(self, x: Tensor, body: Callable[[Tensor], Tensor]) -> Tensor:
        """The whole frame around `body`, which maps (B, H, W, C) to (B, H, W, C).

        Raises:
            ValueError: `x` is not (B, in_chans, H, W).
        """
        _check_image(x, self.in_chans)
        height, width = x.shape[2] * self.upscale, x.shape[3] * self.upscale
        image = (pad_to_multiple(x, self.multiple) - self.mean) * self.img_range
        shallow = self.conv_first(image)
        deep = self.norm(body(self.norm_first(shallow.permute(0, 2, 3, 1))))
        out = self.head(self.conv_body(deep.permute(0, 3, 1, 2)) + shallow)
        if self.residual:
            out = image + out
        out = out / self.img_range + self.mean
        return out[..., :height, :width].contiguous()


class GroupedRestorationModel(RestorationModel):
    """Abstract: the plain frame around residual groups of blocks. A family says what a block is.

    Args:
        in_chans, dim, upscale, upsampler, img_range: as in `RestorationModel`.
        depths: blocks of each group.
        block: a new block from its number, over all groups, and its rate of stochastic depth.
        drop_path_rate: rate of the last block, falling linearly to 0 at the first.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        dim: int,
        depths: tuple[int, ...],
        block: Callable[[int, float], nn.Module],
        upscale: int,
        upsampler: Upsampler,
        img_range: float,
        drop_path_rate: float,
    ) -> None:
        last = max(sum(depths) - 1, 1)
        numbers = iter(range(sum(depths)))

        def group(depth: int) -> nn.Module:
            return ResidualGroup(
                dim, [block(number, drop_path_rate * number / last) for number in islice(numbers, depth)]
            )

        super().__init__(
            in_chans=in_chans,
            dim=dim,
            groups=[group(depth) for depth in depths],
            upscale=upscale,
            upsampler=upsampler,
            img_range=img_range,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, in_chans, upscale * H, upscale * W).

        Raises:
            ValueError: `x` is not of that shape.
        """
        return self.restore(x, self._body)

    def _body(self, x: Tensor) -> Tensor:
        for group in self.groups:
            x = group(x)
        return x


class _Down(nn.Module):
    """Half the size, twice the channels: convolution to half the channels, then pixel unshuffling; channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # by hand, because torch's pixel_unshuffle leaves an empty batch as it is
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return x.permute(0, 1, 3, 5, 2, 4).flatten(3)


class _Up(nn.Module):
    """Twice the size, half the channels: convolution to twice the channels, then pixel shuffling; channels last."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim * 2, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x.permute(0, 3, 1, 2)), 2).permute(0, 2, 3, 1)


class RestorationUNet(nn.Module):
    """Abstract: a U-Net over four resolutions that corrects an image of the same size. A family says what a block is.

    Widths are C, 2C, 4C, 8C. On the way up a level is joined with its counterpart and reduced, but for the first, whose blocks,
    and the refining ones after them, keep all 2C channels. Sides that are no multiples of 8 are padded by mirroring.

    Args:
        in_chans: channels of the images.
        dim: C.
        depths: blocks per level, the coarsest last.
        refinement: blocks after the last level.
        block: a new block for a width, (B, H, W, width) -> (B, H, W, width).
    """

    def __init__(
        self,
        *,
        in_chans: int,
        dim: int,
        depths: tuple[int, int, int, int],
        refinement: int,
        block: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()

        def stage(width: int, depth: int, downsample: nn.Module | None = None) -> Stage:
            return Stage(downsample or nn.Identity(), [block(width) for _ in range(depth)])

        self.in_chans = in_chans
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)
        downs = [None, _Down(dim), _Down(2 * dim), _Down(4 * dim)]
        self.encoder = nn.ModuleList([stage(dim * 2**i, depths[i], downs[i]) for i in range(4)])
        self.ups = nn.ModuleList([_Up(8 * dim), _Up(4 * dim), _Up(2 * dim)])
        self.reduce = nn.ModuleList(
            [Linear(8 * dim, 4 * dim, bias=False), Linear(4 * dim, 2 * dim, bias=False), nn.Identity()]
        )
        self.decoder = nn.ModuleList([stage(4 * dim, depths[2]), stage(2 * dim, depths[1]), stage(2 * dim, depths[0])])
        self.refinement = stage(2 * dim, refinement)
        self.conv_last = nn.Conv2d(2 * dim, in_chans, 3, padding=1, bias=False)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        for stage in (*self.encoder, *self.decoder, self.refinement):
            stage.grad_checkpointing = enable  # pyright: ignore

    def no_weight_decay(self) -> set[str]:
        """What the published code marks: A_log and D."""
        return _scan_scalars(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, in_chans, H, W).

        Raises:
            ValueError: `x` is not of that shape.
        """
        _check_image(x, self.in_chans)
        image = pad_to_multiple(x, 8)
        y = self.conv_first(image).permute(0, 2, 3, 1)
        skips = []
        for stage in self.encoder:
            y = stage(y)
            skips.append(y)
        skips.pop()
        for up, reduce, stage in zip(self.ups, self.reduce, self.decoder, strict=True):
            y = stage(reduce(torch.cat([up(y), skips.pop()], -1)))
        y = self.conv_last(self.refinement(y).permute(0, 3, 1, 2)) + image
        return y[..., : x.shape[2], : x.shape[3]].contiguous()


def _scan_scalars(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.endswith((".A_log", ".D"))}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
