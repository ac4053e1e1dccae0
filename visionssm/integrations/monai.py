"""MONAI: networks in its constructor words, and encoders for its FlexibleUNet; importing this file registers them.

    from visionssm.integrations.monai import SegMamba, VMambaUNet
    FlexibleUNet(in_channels=1, out_channels=3, backbone="vmamba_nd_tiny", spatial_dims=3)

Needs the extra `visionssm[medical]`.

Legend: B batch, S spatial sizes (H, W) or (D, H, W), C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from visionssm.layers import Mlp
from visionssm.layers.segmentation import CONVS, SegmentationModel
from visionssm.layers.typing import checkpointed, drop_path_rates, unscripted
from visionssm.mixers import ImageScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.models import light_m_unet, segmamba, u_mamba
from visionssm.scans import ScanOrder

try:
    from monai.networks.blocks import BaseEncoder
    from monai.networks.nets import FLEXUNET_BACKBONE
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "monai":
        raise
    raise ModuleNotFoundError(
        "visionssm.integrations.monai needs MONAI: pip install 'visionssm[medical]'", name="monai"
    ) from None

__all__ = ["BackboneEncoder", "LightMUNet", "ScanEncoder", "SegMamba", "UMamba", "VMambaUNet"]


def _check_words(spatial_dims: int, in_channels: int, out_channels: int = 1) -> None:
    if spatial_dims not in CONVS:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


class SegMamba(segmamba.SegMamba):
    """SegMamba (arXiv 2401.13560) in MONAI's words; see `visionssm.models.segmamba.SegMamba`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: modalities.
        out_channels: classes, background included.
        feature_size: channels of each stage.
        depths: scan blocks of each stage.
        d_state: N.
        slices: "planes" for any size, "published" for the published network.
        scan: another scan order, or one per block.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        out_channels: int = 4,
        *,
        feature_size: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        slices: Literal["published", "planes"] = "planes",
        scan: ScanChoice | None = None,
    ) -> None:
        _check_words(spatial_dims, in_channels, out_channels)
        super().__init__(
            spatial_dims=spatial_dims,
            in_chans=in_channels,
            num_classes=out_channels,
            dims=feature_size,
            depths=depths,
            d_state=d_state,
            slices=slices,
            scan=scan,
        )


class UMamba(u_mamba.UMamba):
    """U-Mamba (arXiv 2401.04722) in MONAI's words; see `visionssm.models.u_mamba.UMamba`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: modalities.
        out_channels: classes, background included.
        mamba: "bottom" (U-MambaBot) or "encoder" (U-MambaEnc).
        features: channels of each stage.
        strides: of each stage, per axis or one for all; the first must be 1.
        kernel_size: of each stage, per axis or one for all.
        img_size: the size that U-MambaEnc's layers are made for, as published; None for any size.
        d_state: N.
        scan: scan order of the positions, or one per Mamba layer.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        mamba: Literal["bottom", "encoder"] = "bottom",
        features: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[u_mamba.Sides] = (1, 2, 2, 2),
        kernel_size: Sequence[u_mamba.Sides] = (3, 3, 3, 3),
        img_size: u_mamba.Sides | None = None,
        d_state: int = 16,
        scan: ScanChoice = "raster",
    ) -> None:
        _check_words(spatial_dims, in_channels, out_channels)
        super().__init__(
            spatial_dims=spatial_dims,
            in_chans=in_channels,
            num_classes=out_channels,
            mamba=mamba,
            dims=features,
            strides=strides,
            kernel_sizes=kernel_size,
            img_size=img_size,
            d_state=d_state,
            scan=scan,
        )


class LightMUNet(light_m_unet.LightMUNet):
    """LightM-UNet (arXiv 2403.05246) in its own words, which are MONAI's; see `visionssm.models.light_m_unet.LightMUNet`.

    Args:
        spatial_dims: 2 or 3.
        init_filters: channels of the first stage, a multiple of 8.
        in_channels: modalities.
        out_channels: classes, background included.
        blocks_down: blocks of each stage down.
        blocks_up: blocks of each step up, the deepest first.
        d_state: N.
        scan: scan order of the positions, or one per Mamba layer.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        init_filters: int = 32,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        d_state: int = 16,
        scan: ScanChoice = "raster",
    ) -> None:
        _check_words(spatial_dims, in_channels, out_channels)
        super().__init__(
            spatial_dims=spatial_dims,
            in_chans=in_channels,
            num_classes=out_channels,
            dim=init_filters,
            depths=blocks_down,
            up_depths=blocks_up,
            d_state=d_state,
            scan=scan,
        )


class _ScanBlock(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x): VMamba's block, of any rank."""

    def __init__(self, dim: int, scan: ScanOrder, d_state: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = ImageScan(
            dim,
            scan=scan,
            d_inner=dim,
            d_state=d_state,
            dt_rank=math.ceil(dim / 16),
            conv_bias=False,
            gate=False,
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S, C) -> (B, *S, C)."""
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _Stage(nn.Module):
    """A convolution of stride 2, LayerNorm, blocks; channels first outside. An odd last row is left out, as FlexibleUNet asks."""

    def __init__(self, conv: nn.Module, norm: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.blocks = conv, norm, nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C', *floor(S/2))."""
        x = F.pad(x, [1, 0] * (x.dim() - 2))  # at the start only: the same as on both sides where S is even
        x = self.norm(self.conv(x).movedim(1, -1))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for block in self.blocks:
                x = checkpointed(block, x)
        else:
            x = self.blocks(x)
        return x.movedim(-1, 1)


_ND: dict[str, dict[str, Any]] = {
    "vmamba_nd_nano": {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)},
    "vmamba_nd_tiny": {"dims": (32, 64, 128, 256, 512), "depths": (1, 2, 2, 4, 2)},
    "vmamba_nd_small": {"dims": (48, 96, 192, 384, 768), "depths": (2, 2, 2, 8, 2)},
}


class ScanEncoder(nn.Module, BaseEncoder):
    """VMamba's blocks (arXiv 2401.10166) as an encoder of images or volumes whose maps have the strides 2, 4, 8, ...

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        pretrained: there are no weights, so only False is accepted.
        dims: channels of each stage.
        depths: blocks of each stage.
        d_state: N.
        mlp_ratio: hidden width of the MLP over the block's.
        scan: scan order by name, with options, or one per block.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        pretrained: bool = False,
        *,
        dims: Sequence[int] = _ND["vmamba_nd_tiny"]["dims"],
        depths: Sequence[int] = _ND["vmamba_nd_tiny"]["depths"],
        d_state: int = 1,
        mlp_ratio: float = 2.0,
        scan: ScanChoice = "cross",
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_words(spatial_dims, in_channels)
        if pretrained:
            raise ValueError("pretrained=True: there are no weights of this encoder; the 2D backbones have some")
        if len(dims) != len(depths):
            raise ValueError(f"dims {tuple(dims)} and depths {tuple(depths)} must have one entry per stage")
        self.channels = tuple(dims)
        scans = iter(layer_scans(scan, sum(depths), ndim=spatial_dims))
        rates = drop_path_rates(drop_path_rate, tuple(depths))
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            conv = CONVS[spatial_dims](dims[i - 1] if i else in_channels, dim, 3, stride=2)
            blocks: list[nn.Module] = [_ScanBlock(dim, next(scans), d_state, mlp_ratio, rate) for rate in rates[i]]
            self.stages.append(_Stage(conv, nn.LayerNorm(dim), blocks))

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        for stage in self.stages:
            assert isinstance(stage, _Stage)
            stage.grad_checkpointing = enable

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, *S) -> one map per stage, (B, C, *floor(S/2)), ..."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """The names under which FlexibleUNet knows this."""
        return list(_ND)

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """Constructor arguments of each name."""
        return [{"spatial_dims": 3, "in_channels": 1, "pretrained": False, **sizes} for sizes in _ND.values()]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Channels of the maps of each name."""
        return [sizes["dims"] for sizes in _ND.values()]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Number of maps of each name."""
        return [len(sizes["dims"]) for sizes in _ND.values()]


def _doubling(dim: int) -> tuple[int, ...]:
    return tuple(dim << i for i in range(4))


_BACKBONES: dict[str, tuple[int, ...]] = {  # channels of the stages
    "vmamba_nano": _doubling(32),
    "vmamba_tiny_s1l8": _doubling(96),
    "vmamba_tiny_s2l5": _doubling(96),
    "vmamba_small_s1l20": _doubling(96),
    "vmamba_small_s2l15": _doubling(96),
    "vmamba_base_s1l20": _doubling(128),
    "vmamba_base_s2l15": _doubling(128),
    "local_vmamba_tiny": _doubling(96),
    "local_vmamba_small": _doubling(96),
    "spatial_mamba_tiny": _doubling(64),
    "spatial_mamba_small": _doubling(64),
    "spatial_mamba_base": _doubling(96),
    "efficient_vmamba_tiny": _doubling(48),
    "efficient_vmamba_small": _doubling(64),
    "efficient_vmamba_base": _doubling(96),
    "msvmamba_nano": _doubling(48),
    "msvmamba_micro": _doubling(64),
    "msvmamba_tiny": _doubling(96),
    "group_mamba_tiny": (64, 128, 348, 448),
    "group_mamba_small": (64, 128, 348, 512),
    "group_mamba_base": (96, 192, 424, 512),
    "vssd_micro": _doubling(48),
    "vssd_tiny": _doubling(64),
    "vssd_small": _doubling(64),
    "vssd_base": _doubling(96),
    "mamba2d_tiny": (64, 128, 320, 512),
    "mamba2d_small": (96, 192, 384, 576),
}


class BackboneEncoder(nn.Module, BaseEncoder):
    """A hierarchical 2D backbone of this package, with its ImageNet weights on request, as an encoder.

    The backbones begin at a stride of 4; the map of stride 2 comes from a convolution of its own, with instance norm.
    FlexibleUNet takes sides that are multiples of 32 with these.

    Args:
        model_name: a hierarchical model of `visionssm.list_models(task="classification")`.
        spatial_dims: 2.
        in_channels: channels of the image.
        pretrained: load the registered weights, fitted to `in_channels`.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(self, model_name: str, spatial_dims: int = 2, in_channels: int = 3, pretrained: bool = False) -> None:
        super().__init__()
        _check_words(spatial_dims, in_channels)
        if spatial_dims != 2:
            raise ValueError(f"{model_name} is a 2D backbone; for volumes take one of {', '.join(_ND)}")
        self.backbone = timm.create_model(model_name, pretrained=pretrained, features_only=True, in_chans=in_channels)
        channels = self.backbone.feature_info.channels()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        self.channels = (channels[0] // 2, *channels)
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, self.channels[0], 3, stride=2, padding=1),
            nn.InstanceNorm2d(self.channels[0]),
            nn.LeakyReLU(0.01),
        )

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks are run again in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> maps of the strides 2, 4, 8, 16, 32."""
        return [self.first(x), *self.backbone(x)]

    @classmethod
    def get_encoder_names(cls) -> list[str]:
        """The names under which FlexibleUNet knows this."""
        return list(_BACKBONES)

    @classmethod
    def get_encoder_parameters(cls) -> list[dict[str, Any]]:
        """Constructor arguments of each name."""
        return [{"model_name": name, "spatial_dims": 2, "in_channels": 3, "pretrained": False} for name in _BACKBONES]

    @classmethod
    def num_channels_per_output(cls) -> list[tuple[int, ...]]:
        """Channels of the maps of each name."""
        return [(channels[0] // 2, *channels) for channels in _BACKBONES.values()]

    @classmethod
    def num_outputs(cls) -> list[int]:
        """Number of maps of each name."""
        return [5] * len(_BACKBONES)


class VMambaUNet(SegmentationModel):
    """SegMamba's decoder over another encoder: a 2D or 3D U-Net, by default of VMamba blocks.

    Images of any size: what is no multiple of the encoder's stride is padded by zeros at the end, and the logits are cropped.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        encoder: a name known to FlexibleUNet ("vmamba_nd_tiny", "vmamba_tiny_s1l8", MONAI's own "resnet18", ...), or an encoder
            whose maps have the strides 2, 4, 8, ... and the channels `encoder.channels`.
        pretrained: load the encoder's weights.

    Raises:
        ValueError: an argument that is not accepted.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        *,
        encoder: str | nn.Module = "vmamba_nd_tiny",
        pretrained: bool = False,
    ) -> None:
        _check_words(spatial_dims, in_channels, out_channels)
        if isinstance(encoder, str):
            known = FLEXUNET_BACKBONE.register_dict
            if encoder not in known:
                raise ValueError(f"unknown encoder {encoder!r}: choose one of {', '.join(known)}")
            words = {"spatial_dims": spatial_dims, "in_channels": in_channels, "pretrained": pretrained}
            channels: Sequence[int] = known[encoder]["feature_channel"]
            encoder = known[encoder]["type"](**{**known[encoder]["parameter"], **words})
        elif pretrained:
            raise ValueError("pretrained=True loads weights of an encoder given by name; this one is given as a module")
        else:
            channels = encoder.channels  # pyright: ignore
        assert isinstance(encoder, nn.Module)
        super().__init__(
            in_chans=in_channels,
            num_classes=out_channels,
            spatial_dims=spatial_dims,
            strides=[2 ** len(channels)] * spatial_dims,
            encoder=encoder,
            decoder=segmamba.ResidualDecoder(in_chans=in_channels, dims=channels, spatial_dims=spatial_dims),
            head=CONVS[spatial_dims](channels[0], out_channels, 1),
        )

    @unscripted
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: blocks of the decoder, and of the encoder if it can, are run again in the backward pass."""
        self.decoder.set_grad_checkpointing(enable)
        if hasattr(self.encoder, "set_grad_checkpointing"):
            self.encoder.set_grad_checkpointing(enable)


FLEXUNET_BACKBONE.register_class(ScanEncoder)
FLEXUNET_BACKBONE.register_class(BackboneEncoder)
