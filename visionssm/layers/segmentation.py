"""The frame of every segmentation network: sizes, padding and cropping around an encoder and a decoder.

Legend: B batch, S spatial sizes (H, W) or (D, H, W), C channels.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .typing import unscripted

__all__ = ["CONVS", "INSTANCE_NORMS", "SegmentationModel", "monai_blocks"]

CONVS = {2: nn.Conv2d, 3: nn.Conv3d}
INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def monai_blocks(network: str) -> Any:
    """`monai.networks.blocks`, of which a network's decoder is made.

    Raises:
        ModuleNotFoundError: MONAI is not installed; the message says whose decoder needs it.
    """
    try:
        return importlib.import_module("monai.networks.blocks")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "monai":
            raise
        raise ModuleNotFoundError(
            f"{network}'s decoder is made of MONAI's blocks: pip install 'visionssm[medical]'", name="monai"
        ) from None


class SegmentationModel(nn.Module):
    """Abstract: images or volumes to logits of the same size, by an encoder, a decoder and a head that a family builds.

    What is no multiple of the total stride is padded by zeros at the end of each axis, and the logits are cropped.

    Args:
        in_chans: channels (modalities) of the input.
        num_classes: classes, background included.
        spatial_dims: 2 or 3.
        strides: total stride of the deepest map along each axis.
        encoder: (B, in_chans, *S) -> list of maps.
        decoder: the input and the encoder's maps -> decoded maps, finest first; says their channels in `channels`.
        head: the finest decoded map to logits.
        further_heads: the same for the coarser maps, finest first, where a family's checkpoints have them; frozen, because only
            `supervise` reads them.
        least: positions that the deepest map must keep (an instance norm needs two).

    Raises:
        ValueError: another rank.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        num_classes: int,
        spatial_dims: int,
        strides: Sequence[int],
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        further_heads: Sequence[nn.Module] = (),
        least: int = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in CONVS:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
        self.in_chans, self.num_classes, self.spatial_dims = in_chans, num_classes, spatial_dims
        self.strides = list(strides)
        self.least = least
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.head: Any = head
        self.further_heads = nn.ModuleList(further_heads).requires_grad_(False)

    def decode(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, *S), padded -> decoded maps, finest first; `head` makes logits of the first."""
        return self.decoder(x, self.encoder(x))

    @unscripted
    def supervise(self, x: Tensor, heads: Sequence[nn.Module]) -> list[Tensor]:
        """(B, in_chans, *S), padded -> logits of the finest map and, by these heads, of the next ones."""
        maps = self.decode(x)
        return [self.head(maps[0]), *(head(level) for head, level in zip(heads, maps[1:], strict=False))]

    @unscripted
    def check_input(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless an input of `shape`, (B, in_chans, *S), can be segmented."""
        if len(shape) != self.spatial_dims + 2 or shape[1] != self.in_chans:
            wanted = "(B, {}, {})".format(self.in_chans, "D, H, W" if self.spatial_dims == 3 else "H, W")
            raise ValueError(f"{type(self).__name__} takes {wanted}, got {tuple(shape)}")
        self.check_size(tuple(shape[2:]))

    @unscripted
    def check_size(self, size: tuple[int, ...]) -> None:
        """Raises ValueError unless an input of these sides can be segmented; a family may ask for more."""
        deepest = math.prod([-(-side // stride) for side, stride in zip(size, self.strides, strict=True)])
        if deepest < self.least:
            strides = str(self.strides[0]) if len(set(self.strides)) == 1 else str(tuple(self.strides))
            raise ValueError(
                f"{size} is too small for {type(self).__name__}: its deepest map, {strides} times smaller, must keep "
                f"{self.least} positions, so at least one side must be larger than {strides}"
            )

    def pad(self, x: Tensor) -> Tensor:
        """Zeros at the end of each axis, up to a multiple of the total stride."""
        padding: list[int] = []
        for axis, stride in enumerate(self.strides):
            padding = [0, -x.shape[axis + 2] % stride] + padding  # noqa: RUF005  (TorchScript has no unpacking); last axis first
        return F.pad(x, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, *S) -> logits (B, num_classes, *S).

        Raises:
            ValueError: a size that cannot be read.
        """
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            self.check_input(x.shape)
        logits = self.head(self.decode(self.pad(x))[0])
        for axis, side in enumerate(x.shape[2:]):
            logits = logits.narrow(axis + 2, 0, side)
        return logits
