"""Maps of several strides from the one map of a plain backbone: the simple feature pyramid.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (ViTDet), arXiv 2203.16527, section 3. Facts of the
published code: facebookresearch/detectron2@02b5c4e, modeling/backbone/vit.py. Differs from it: any power of two is a scale,
and pooling keeps the last row and column of odd maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.layers import LayerNorm2d
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import Tensor, nn

__all__ = ["PyramidFeatures", "SimpleFeaturePyramid", "plain_feature_cfg"]

STRIDES = (4, 8, 16, 32)


class SimpleFeaturePyramid(nn.Module):
    """One map in, one map per scale out, each from the same input: transposed convolutions up, max pooling down.

    Every doubling halves the channels. With `out_channels`, a 1x1 and a 3x3 convolution follow on every level.

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level; None for `in_channels` divided by the scale where it is above 1.
        scales: size of each level relative to the map: powers of two.
        norm_layer: channels -> norm over NCHW maps, between doublings and after each convolution; None for no norms.

    Raises:
        ValueError: a scale is not a power of two, or `in_channels` cannot be halved as often as the largest one asks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        norm_layer: Callable[[int], nn.Module] | None = LayerNorm2d,
    ) -> None:
        super().__init__()
        norm = nn.Identity if norm_layer is None else norm_layer
        self.num_features: list[int] = []
        self.levels = nn.ModuleList()
        for scale in scales:
            doublings = _doublings(scale)
            dim = in_channels >> max(doublings, 0)
            if dim << max(doublings, 0) != in_channels:
                raise ValueError(
                    f"in_channels must be a multiple of {2**doublings} for scale {scale}, got {in_channels}"
                )
            layers: list[nn.Module] = []
            for i in range(doublings):
                width = in_channels >> i
                layers += [norm(width), nn.GELU()] if i else []
                layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
            layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-doublings)]
            if out_channels is not None:
                for size in (1, 3):
                    conv = nn.Conv2d(dim, out_channels, size, padding=size // 2, bias=norm_layer is None)
                    layers += [conv, norm(out_channels)]
                    dim = out_channels
            self.levels.append(nn.Sequential(*layers))
            self.num_features.append(dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one (B, num_features[i], scales[i] H, scales[i] W) per scale, rounded up."""
        return [level(x) for level in self.levels]


def _doublings(scale: float) -> int:
    doublings = round(math.log2(scale)) if scale > 0 else 0
    if 2.0**doublings != scale:
        raise ValueError(f"scales must be powers of two, such as 4.0 or 0.5, got {scale}")
    return doublings


class PyramidFeatures(FeatureGetterNet):
    """timm's features_only wrapper of a plain backbone with a simple feature pyramid over its last map.

    Args:
        model: the backbone.
        out_indices: levels of the pyramid, of strides 4, 8, 16 and 32; others are not built.
        out_channels: see `SimpleFeaturePyramid`.
        norm_layer: see `SimpleFeaturePyramid`.
        norm: apply the backbone's last norm to its map.

    Raises:
        ValueError: the backbone's stride is no power of two.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        *,
        out_channels: int | None = None,
        norm_layer: Callable[[int], nn.Module] | None = LayerNorm2d,
        norm: bool = False,
    ) -> None:
        super().__init__(model, out_indices=(-1,), norm=norm)
        last: Any = self.feature_info
        (channels,), (stride,) = last.channels(), last.reduction()
        levels, _ = feature_take_indices(
            len(STRIDES), list(out_indices) if isinstance(out_indices, Sequence) else out_indices
        )
        scales = [stride / STRIDES[i] for i in levels]
        self.pyramid = SimpleFeaturePyramid(channels, out_channels, scales, norm_layer)
        infos: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": STRIDES[level], "module": f"pyramid.levels.{i}", "index": level}
            for i, (level, channels) in enumerate(zip(levels, self.pyramid.num_features, strict=True))
        ]
        self.feature_info = FeatureInfo(infos, tuple(range(len(infos))))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) -> NCHW maps of the levels."""
        (feature,) = super().forward(x)
        return self.pyramid(feature)


def plain_feature_cfg(options: dict[str, Any]) -> dict[str, Any]:
    """What timm's builder does for `features_only` of a plain backbone; takes `feature_pyramid` out of `options`.

    Args:
        options: a user's options. `feature_pyramid`: False for the maps of the last three blocks, or of fewer, True for a
            pyramid, or a mapping with `SimpleFeaturePyramid`'s `out_channels` and `norm_layer`, and `norm` (see
            `PyramidFeatures`).

    Raises:
        TypeError: `feature_pyramid` is neither, or has unknown keys.
        ValueError: a pyramid without `features_only`, or beside a `feature_cls`.
    """
    pyramid = options.pop("feature_pyramid", False)
    if pyramid is False:
        count = min(3, options.get("depth", 3))
        return {"out_indices": tuple(range(-count, 0)), "feature_cls": "getter"}
    if pyramid is not True and not isinstance(pyramid, Mapping):
        raise TypeError(f"feature_pyramid must be True, False or a mapping of options, got {pyramid!r}")
    if not options.get("features_only") or "feature_cls" in options:
        raise ValueError("feature_pyramid is for features_only=True, without feature_cls")
    return {"out_indices": (0, 1, 2, 3), "feature_cls": PyramidFeatures, **({} if pyramid is True else pyramid)}
