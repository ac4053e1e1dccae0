"""MaIR: MambaIR's frame with scans along nested S shapes, whose routes are joined by attention among them, and with MLPs.

Paper: MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration, arXiv 2412.20066.
Code: XLearning-SCU/2025-CVPR-MaIR@2fb433e (without a licence: nothing of it is here but what it computes).
In the plain model every second block of a group shifts its stripes by half their width; in the U-Net none does.
Differs from the published code: channels-last inside; scan parameters of shape (K, ...); tables of any size are made once and
kept; the U-Net pads sides that are no multiples of 8 instead of failing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin
from visionssm.checkpoints.mair import LAYOUT
from visionssm.layers import Mlp
from visionssm.layers.restoration import GroupedRestorationModel, RestorationUNet, ScaledBlock, Upsampler
from visionssm.mixers import ImageScan, ShuffleMerge
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder

from ._registry import build, register

__all__ = ["MaIR", "MaIRUNet"]


class MaIRBlock(ScaledBlock):
    """x * scale + mixer(norm x), then x * scale + mlp(norm x).

    Args:
        dim: C.
        scan: order of the mixer's routes.
        d_state: N.
        ssm_ratio: inner width of the scan over C.
        mlp_ratio: hidden width of the MLP over C.
        drop_path: rate of stochastic depth, for the mixer only.
    """

    def __init__(
        self,
        dim: int,
        *,
        scan: ScanOrder,
        d_state: int,
        ssm_ratio: float,
        mlp_ratio: float,
        drop_path: float = 0.0,
    ) -> None:
        d_inner = int(ssm_ratio * dim)
        mixer = ImageScan(
            dim,
            scan=scan,
            d_inner=d_inner,
            d_state=d_state,
            dt_rank=math.ceil(dim / 16),
            merge=ShuffleMerge(d_inner // scan.groups, scan.num_routes // scan.groups),
        )
        super().__init__(dim, mixer, drop_path)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.mix(x)
        return x * self.scale2 + self.mlp(self.norm2(x))


class MaIR(PretrainedMixin, GroupedRestorationModel):
    """MaIR at one resolution: super-resolution and denoising. Images are in 0..1.

    Args:
        in_chans: channels of the images.
        upscale: size of the output over that of the input.
        upsampler: the head: "pixelshuffle", "pixelshuffledirect", "nearest+conv", or "none" to correct the input.
        dim: C.
        depths: blocks of each residual group.
        d_state: N.
        ssm_ratio: inner width of the scan over C.
        mlp_ratio: hidden width of the MLPs over C.
        scan: scan order of a group by name, with options, or one per block of all groups.
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
        mlp_ratio: float = 2.5,
        scan: ScanChoice = "nested_s",
        img_range: float = 1.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        if isinstance(scan, (list, tuple)):
            scans = layer_scans(scan, sum(depths))
        else:  # the schedule begins anew in every group
            scans = [order for depth in depths for order in layer_scans(scan, depth)]
        super().__init__(
            in_chans=in_chans,
            dim=dim,
            depths=depths,
            block=lambda number, rate: MaIRBlock(
                dim, scan=scans[number], d_state=d_state, ssm_ratio=ssm_ratio, mlp_ratio=mlp_ratio, drop_path=rate
            ),
            upscale=upscale,
            upsampler=upsampler,
            img_range=img_range,
            drop_path_rate=drop_path_rate,
        )


class MaIRUNet(PretrainedMixin, RestorationUNet):
    """MaIR over four resolutions: removal of real noise, blur and haze. Images are in 0..1.

    Args:
        in_chans: channels of the images.
        dim: channels of the finest level.
        depths: blocks per level, the coarsest last.
        refinement: blocks after the last level.
        d_state: N of blocks of width `dim`; grows with the width.
        ssm_ratio: inner width of the scan over the block's.
        mlp_ratio: hidden width of the MLPs over the block's.
        first_mlp_ratio: the same for blocks of width `dim`.
        scan: scan order by name or with options; the same in all blocks.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        dim: int = 48,
        depths: tuple[int, int, int, int] = (4, 6, 6, 8),
        refinement: int = 4,
        d_state: int = 4,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 1.5,
        first_mlp_ratio: float = 4.0,
        scan: ScanChoice = "nested_s",
    ) -> None:
        order = layer_scans(scan, 1)[0]
        super().__init__(
            in_chans=in_chans,
            dim=dim,
            depths=depths,
            refinement=refinement,
            block=lambda width: MaIRBlock(
                width,
                scan=order,
                d_state=d_state * width // dim,
                ssm_ratio=ssm_ratio,
                mlp_ratio=first_mlp_ratio if width == dim else mlp_ratio,
            ),
        )


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    """A record; the files are in a folder of the authors' only, to which their page links."""
    return {
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "first_conv": "conv_first",
        "license": None,  # their repository states none
        "origin_url": "https://github.com/XLearning-SCU/2025-CVPR-MaIR",
        "paper_name": "MaIR: A Locality- and Continuity-Preserving Mamba for Image Restoration",
        "paper_ids": "arXiv:2412.20066",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mair_tiny_light_x2.div2k": _cfg(),
        "mair_tiny_light_x3.div2k": _cfg(),
        "mair_tiny_light_x4.div2k": _cfg(),
        "mair_small_light_x2.div2k": _cfg(),
        "mair_small_light_x3.div2k": _cfg(),
        "mair_small_light_x4.div2k": _cfg(),
        "mair_sr_x2.df2k": _cfg(),
        "mair_sr_x3.df2k": _cfg(),
        "mair_sr_x4.df2k": _cfg(),
        "mair_color_dn.sigma15": _cfg(input_size=(3, 128, 128)),
        "mair_color_dn.sigma25": _cfg(input_size=(3, 128, 128)),
        "mair_color_dn.sigma50": _cfg(input_size=(3, 128, 128)),
        "mair_real_dn.sidd": _cfg(input_size=(3, 128, 128)),
        "mair_deblur.gopro": _cfg(input_size=(3, 128, 128)),
        "mair_dehaze.reside_indoor": _cfg(input_size=(3, 256, 256)),
        "mair_dehaze.reside_outdoor": _cfg(input_size=(3, 256, 256)),
        "mair_dehaze.reside_6k": _cfg(input_size=(3, 256, 256)),
        "mair_nano_x2.untrained": _cfg(license="apache-2.0", origin_url=None),
    }
)

_SCAN4: dict[str, Any] = {"scan": {"name": "nested_s", "scan_len": 4}}
_SCAN8: dict[str, Any] = {"scan": {"name": "nested_s", "scan_len": 8}}
_LIGHT: dict[str, Any] = {
    "upsampler": "pixelshuffledirect",
    "dim": 60,
    "depths": (6, 6, 6, 6),
    "mlp_ratio": 1.6,
}
_TINY: dict[str, Any] = {**_LIGHT, **_SCAN8, "d_state": 1, "ssm_ratio": 1.1}
_SMALL: dict[str, Any] = {**_LIGHT, **_SCAN4, "d_state": 16, "ssm_ratio": 1.4}


def _create(
    variant: str,
    pretrained: bool,
    defaults: dict[str, Any],
    options: dict[str, Any],
    cls: Callable[..., nn.Module] = MaIR,
) -> nn.Module:
    return build(cls, variant, pretrained, **{**defaults, **options})


@register("restoration")
def mair_tiny_light_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Tiny, light, twice the size."""
    return _create("mair_tiny_light_x2", pretrained, {**_TINY, "upscale": 2}, kwargs)


@register("restoration")
def mair_tiny_light_x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Tiny, light, three times the size."""
    return _create("mair_tiny_light_x3", pretrained, {**_TINY, "upscale": 3}, kwargs)


@register("restoration")
def mair_tiny_light_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Tiny, light, four times the size."""
    return _create("mair_tiny_light_x4", pretrained, {**_TINY, "upscale": 4}, kwargs)


@register("restoration")
def mair_small_light_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Small, light, twice the size."""
    return _create("mair_small_light_x2", pretrained, {**_SMALL, "upscale": 2}, kwargs)


@register("restoration")
def mair_small_light_x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Small, light, three times the size."""
    return _create("mair_small_light_x3", pretrained, {**_SMALL, "upscale": 3}, kwargs)


@register("restoration")
def mair_small_light_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR-Small, light, four times the size."""
    return _create("mair_small_light_x4", pretrained, {**_SMALL, "upscale": 4}, kwargs)


@register("restoration")
def mair_sr_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR for super-resolution, twice the size."""
    return _create("mair_sr_x2", pretrained, {**_SCAN8, "upscale": 2}, kwargs)


@register("restoration")
def mair_sr_x3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR for super-resolution, three times the size."""
    return _create("mair_sr_x3", pretrained, {**_SCAN8, "upscale": 3}, kwargs)


@register("restoration")
def mair_sr_x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR for super-resolution, four times the size."""
    return _create("mair_sr_x4", pretrained, {**_SCAN8, "upscale": 4}, kwargs)


@register("restoration")
def mair_color_dn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaIR for Gaussian noise in colour images, of standard deviation 15, 25 or 50 of 255 by the weights' tag."""
    options = {**_SCAN4, "upscale": 1, "upsampler": "none", "ssm_ratio": 1.3, "mlp_ratio": 2.0}
    return _create("mair_color_dn", pretrained, options, kwargs)


@register("restoration")
def mair_real_dn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The U-Net of MaIR for a camera's own noise."""
    return _create("mair_real_dn", pretrained, _SCAN4, kwargs, MaIRUNet)


@register("restoration")
def mair_deblur(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The U-Net of MaIR for motion blur."""
    return _create("mair_deblur", pretrained, _SCAN4, kwargs, MaIRUNet)


@register("restoration")
def mair_dehaze(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The smaller U-Net of MaIR, for haze."""
    sizes = {"dim": 24, "depths": (2, 2, 3, 4), "refinement": 2}
    options = {**_SCAN8, **sizes, "ssm_ratio": 1.2, "mlp_ratio": 2.0, "first_mlp_ratio": 2.0}
    return _create("mair_dehaze", pretrained, options, kwargs, MaIRUNet)


@register("restoration")
def mair_nano_x2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small MaIR of our own for tests and demonstrations, about 0.2 M parameters, twice the size."""
    return _create("mair_nano_x2", pretrained, {**_TINY, "dim": 48, "depths": (4, 4), "upscale": 2}, kwargs)
