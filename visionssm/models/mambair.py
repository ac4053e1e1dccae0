"""MambaIR: image restoration with SS2D blocks at full resolution, and a U-Net of them for real noise.

Paper: MambaIR: A Simple Baseline for Image Restoration with State-Space Model, arXiv 2402.15648.
Code: csguoh/MambaIR@33d7b34 (Apache-2.0).
A learned scale per channel weighs the residual, not the branch, of both halves of a block; the second half is convolutions and
channel attention. Differs from the published code: channels-last inside; scan parameters of shape (K, ...); the U-Net
pads sides that are no multiples of 8 instead of failing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from timm.layers import SEModule
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin
from visionssm.checkpoints.mambair import LAYOUT
from visionssm.layers.restoration import GroupedRestorationModel, RestorationUNet, ScaledBlock, Upsampler
from visionssm.mixers import ImageScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import build, register

__all__ = ["MambaIR", "MambaIRUNet"]


def _conv_attention(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, dim // 3, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(dim // 3, dim, 3, padding=1),
        SEModule(dim, rd_channels=max(1, dim // 30)),
    )


def _light_conv_attention(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, dim // 2, 1),
        nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 1),
        nn.Conv2d(dim, dim, 3, padding=2, dilation=2, groups=dim),
        SEModule(dim, rd_channels=max(1, dim // 30)),
    )


class MambaIRBlock(ScaledBlock):
    """x * scale + mixer(norm x), then x * scale + conv(norm x).

    Args:
        dim: C.
        scan: order of the mixer's routes.
        d_state: N.
        ssm_ratio: inner width of the scan over C.
        light: depthwise instead of full convolutions.
        drop_path: rate of stochastic depth, for the mixer only.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        d_state: int,
        ssm_ratio: float,
        light: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        mixer = ImageScan(dim, scan=scan, d_inner=int(ssm_ratio * dim), d_state=d_state, dt_rank=math.ceil(dim / 16))
        super().__init__(dim, mixer, drop_path)
        self.conv = _light_conv_attention(dim) if light else _conv_attention(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.mix(x)
        return x * self.scale2 + self.conv(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MambaIR(PretrainedMixin, GroupedRestorationModel):
    """MambaIR at one resolution: super-resolution, denoising, removal of JPEG artefacts. Images are in 0..1.

    Args:
        in_chans: channels of the images.
        upscale: size of the output over that of the input.
        upsampler: the head: "pixelshuffle", "pixelshuffledirect", "nearest+conv", or "none" to correct the input.
        dim: C.
        depths: blocks of each residual group.
        d_state: N.
        ssm_ratio: inner width of the scan over C.
        light: blocks with depthwise convolutions, as the models with the head "pixelshuffledirect" have.
        scan: scan order by name, with options, or one per block.
        img_range: factor between the images' values and those inside.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        upscale: int = 2,
        upsampler: Upsampler = "pixelshuffle",
        dim: int = 180,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        light: bool = False,
        scan: ScanChoice = "cross",
        img_range: float = 1.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        scans = layer_scans(scan, sum(depths))
        super().__init__(
            in_chans=in_chans,
            dim=dim,
            depths=depths,
            block=lambda number, rate: MambaIRBlock(
                dim, scan=scans[number], d_state=d_state, ssm_ratio=ssm_ratio, light=light, drop_path=rate
            ),
            upscale=upscale,
            upsampler=upsampler,
            img_range=img_range,
            drop_path_rate=drop_path_rate,
        )


class MambaIRUNet(PretrainedMixin, RestorationUNet):
    """MambaIR over four resolutions: removal of real noise. Images are in 0..1.

    Args:
        in_chans: channels of the images.
        dim: channels of the finest level.
        depths: blocks per level, the coarsest last.
        refinement: blocks after the last level.
        d_state: N, at all levels.
        ssm_ratio: inner width of the scan over the block's.
        scan: scan order by name or with options.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        dim: int = 48,
        depths: tuple[int, int, int, int] = (4, 6, 6, 8),
        refinement: int = 4,
        d_state: int = 16,
        ssm_ratio: float = 1.5,
        scan: ScanChoice = "cross",
    ) -> None:
        order = layer_scans(scan, 1)[0]
        super().__init__(
            in_chans=in_chans,
            dim=dim,
            depths=depths,
            refinement=refinement,
            block=lambda width: MambaIRBlock(width, scan=order, d_state=d_state, ssm_ratio=ssm_ratio),
        )


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(figures: str = "", file: str = "", **kwargs: Any) -> dict[str, Any]:
    """A record; `file` is the name in the authors' mirror, where it is known: the others are on their page only."""
    return {
        "hf_hub_id": "cguoh/MambaIR" if file else None,
        "hf_hub_filename": f"MambaIRv1_ckpt/{file}" if file else None,
        "custom_load": "hf" if file else False,
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "first_conv": "conv_first",
        "license": "apache-2.0",
        "origin_url": "https://github.com/csguoh/MambaIR",
        "paper_name": "MambaIR: A Simple Baseline for Image Restoration with State-Space Model",
        "paper_ids": "arXiv:2402.15648",
        "notes": (f"reported: {figures}",) if figures else None,
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mambair_sr_x2.df2k": _cfg("Urban100 34.15 dB / 0.9446", "MambaIR_classicSRx2.pth"),
        "mambair_sr_x3.df2k": _cfg("Urban100 29.93 dB / 0.8841", "MambaIR_classicSRx3.pth"),
        "mambair_sr_x4.df2k": _cfg("Urban100 27.68 dB / 0.8287", "MambaIR_classicSRx4.pth"),
        "mambair_sr_x4.real": _cfg(),
        "mambair_light_x2.div2k": _cfg("Urban100 32.92 dB / 0.9356"),
        "mambair_light_x3.div2k": _cfg("Urban100 29.00 dB / 0.8689"),
        "mambair_light_x4.div2k": _cfg("Urban100 26.75 dB / 0.8051"),
        "mambair_color_dn.sigma15": _cfg("Urban100 35.17 dB", "ColorDN_MambaIR_level15.pth"),
        "mambair_color_dn.sigma25": _cfg("Urban100 32.99 dB", "ColorDN_MambaIR_level25.pth"),
        "mambair_color_dn.sigma50": _cfg("Urban100 30.07 dB", "ColorDN_MambaIR_level50.pth"),
        "mambair_jpeg_car.q10": _cfg("Classic5 30.27 dB / 0.8256", input_size=(1, 126, 126), mean=(0.0,), std=(1.0,)),
        "mambair_jpeg_car.q30": _cfg("Classic5 33.74 dB / 0.8965", input_size=(1, 126, 126), mean=(0.0,), std=(1.0,)),
        "mambair_jpeg_car.q40": _cfg("Classic5 34.53 dB / 0.9084", input_size=(1, 126, 126), mean=(0.0,), std=(1.0,)),
        "mambair_real_dn.sidd": _cfg("SIDD 39.89 dB / 0.960", input_size=(3, 128, 128)),
        "mambair_nano_x2.untrained": _cfg(),
        "mambair_unet_nano.untrained": _cfg(),
    }
)

_LIGHT = {
    "upsampler": "pixelshuffledirect",
    "dim": 60,
    "depths": (6, 6, 6, 6),
    "d_state": 10,
    "ssm_ratio": 1.2,
    "light": True,
}
_SAME_SIZE = {"upscale": 1, "upsampler": "none", "ssm_ratio": 1.2}


def _create(
    variant: str,
    pretrained: bool,
    defaults: dict[str, Any],
    options: dict[str, Any],
    cls: Callable[..., nn.Module] = MambaIR,
) -> nn.Module:
    return build(cls, variant, pretrained, **{**defaults, **options})


@register("restoration")
def mambair_sr_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR for super-resolution, twice the size."""
    return _create("mambair_sr_x2", pretrained, {"upscale": 2}, kwargs)


@register("restoration")
def mambair_sr_x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR for super-resolution, three times the size."""
    return _create("mambair_sr_x3", pretrained, {"upscale": 3}, kwargs)


@register("restoration")
def mambair_sr_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR for super-resolution, four times the size; also for real-world images."""
    return _create("mambair_sr_x4", pretrained, {"upscale": 4}, kwargs)


@register("restoration")
def mambair_light_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR-light, twice the size."""
    return _create("mambair_light_x2", pretrained, {**_LIGHT, "upscale": 2}, kwargs)


@register("restoration")
def mambair_light_x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR-light, three times the size."""
    return _create("mambair_light_x3", pretrained, {**_LIGHT, "upscale": 3}, kwargs)


@register("restoration")
def mambair_light_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR-light, four times the size."""
    return _create("mambair_light_x4", pretrained, {**_LIGHT, "upscale": 4}, kwargs)


@register("restoration")
def mambair_color_dn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR for Gaussian noise in colour images, of standard deviation 15, 25 or 50 of 255 by the weights' tag."""
    return _create("mambair_color_dn", pretrained, _SAME_SIZE, kwargs)


@register("restoration")
def mambair_jpeg_car(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MambaIR for JPEG artefacts in grey images, of quality 10, 30 or 40 by the weights' tag."""
    return _create("mambair_jpeg_car", pretrained, {**_SAME_SIZE, "in_chans": 1}, kwargs)


@register("restoration")
def mambair_real_dn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The U-Net of MambaIR for a camera's own noise."""
    return _create("mambair_real_dn", pretrained, {}, kwargs, MambaIRUNet)


@register("restoration")
def mambair_nano_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small MambaIR of our own for tests and demonstrations, about 0.2 M parameters, twice the size."""
    return _create("mambair_nano_x2", pretrained, {**_LIGHT, "dim": 48, "depths": (4, 4), "upscale": 2}, kwargs)


@register("restoration")
def mambair_unet_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small U-Net of our own for tests and demonstrations, about 0.5 M parameters."""
    options = {"dim": 12, "depths": (1, 1, 1, 2), "refinement": 1, "d_state": 4}
    return _create("mambair_unet_nano", pretrained, options, kwargs, MambaIRUNet)
