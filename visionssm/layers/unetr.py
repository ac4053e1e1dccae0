"""UNETR's decoder, which takes any encoder of one stride.

Legend: B batch, S spatial sizes (D, H, W).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .segmentation import monai_blocks

__all__ = ["UnetrDecoder"]


class UnetrDecoder(nn.Module):
    """UNETR's decoder (arXiv 2103.10504) from MONAI's blocks, over four maps of stride 16.

    Args:
        network: whose decoder this is, for the error.
        in_chans: channels of the volume, which is the first skip connection.
        dim: channels of the maps.
        feature_size: channels of the finest decoded map.

    Raises:
        ModuleNotFoundError: MONAI is not installed.
    """

    def __init__(self, network: str, *, in_chans: int, dim: int, feature_size: int) -> None:
        super().__init__()
        blocks = monai_blocks(network)
        widths = [feature_size << i for i in range(4)]
        kwargs: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        grow: dict[str, Any] = {**kwargs, "stride": 1, "upsample_kernel_size": 2, "conv_block": True}
        self.channels = tuple(widths)
        self.first = blocks.UnetrBasicBlock(3, in_chans, feature_size, stride=1, **kwargs)
        self.skips = nn.ModuleList(
            blocks.UnetrPrUpBlock(3, dim, width, num_layer=2 - i, **grow) for i, width in enumerate(widths[1:])
        )
        self.ups = nn.ModuleList(
            blocks.UnetrUpBlock(3, wider, width, upsample_kernel_size=2, **kwargs)
            for wider, width in zip([dim, *widths[:0:-1]], widths[::-1], strict=True)
        )

    def forward(self, x: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """(B, in_chans, *S), the encoder's maps -> decoded maps of strides 1, 2, 4, 8, with `channels`."""
        skips = [self.first(x)]
        for i, skip in enumerate(self.skips):
            skips.append(skip(maps[i]))
        y = maps[-1]
        decoded: list[Tensor] = []
        for up in self.ups:
            y = up(y, skips.pop())
            decoded.append(y)
        return decoded[::-1]
