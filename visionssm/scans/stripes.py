"""Stripe by stripe: the nested S of MaIR."""

import dataclasses

import torch
from torch import Tensor

from .base import ScanOrder, grid
from .registry import register_scan
from .snake import snake

__all__ = ["NestedS"]


@register_scan("nested_s")
class NestedS(ScanOrder):
    """A snake inside each vertical stripe: MaIR (arXiv 2412.20066, XLearning-SCU/2025-CVPR-MaIR@2fb433e).

    Stripes with borders 0, s, 2s, ... (or 0, d, d + s, ... with shift d) are walked downwards and upwards in turn, their rows
    to and fro. Four routes: the image, the image turned by 180 degrees, and the transposes of both. Layers take turns
    with the stripes shifted by half their width.

    Args:
        scan_len: width s of a stripe.
        shift: width d of the first stripe, 0..s - 1; 0 = as wide as the others.
    """

    scan_len: int = 4
    shift: int = 0

    num_routes = 4

    def check(self) -> None:
        if self.scan_len < 1 or not 0 <= self.shift < self.scan_len:
            raise ValueError(
                f"scan 'nested_s' needs scan_len >= 1 and 0 <= shift < scan_len, "
                f"got scan_len={self.scan_len!r}, shift={self.shift!r}"
            )

    def _stripes(self, image: Tensor) -> Tensor:
        first = self.shift or self.scan_len
        stripes = [image[:, :first], *image[:, first:].split(self.scan_len, dim=1)]
        return torch.cat([snake(s.flip(0) if i % 2 else s) for i, s in enumerate(stripes) if s.numel()])

    def paths(self, size: tuple[int, ...]) -> list[Tensor]:
        image = grid(size)
        turned = image.rot90(2)
        return [self._stripes(view) for view in (image, turned, image.T, turned.T)]

    def _layer(self, index: int, depth: int) -> ScanOrder:
        shift = (self.shift + self.scan_len // 2 * (index % 2)) % self.scan_len
        return dataclasses.replace(self, shift=shift)
