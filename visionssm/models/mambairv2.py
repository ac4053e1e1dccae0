"""MambaIRv2: image restoration with one scan over positions sorted by what they show, and window attention beside it.

Paper: MambaIRv2: Attentive State Space Restoration, arXiv 2411.15269. Code: csguoh/MambaIR@33d7b34 (Apache-2.0).
Differs from the published code: channels-last inside; padding of any size.
The published sort by category is not stable: the order inside a category, which changes the result, is what torch's sort makes
of it on the device. This is kept, since published outputs depend on it; `sort="stable"` gives the same order everywhere.
The published models draw Gumbel noise for the routing in evaluation too, so that two runs on an image differ, and the published
figures were measured so. Here the most probable category is taken in evaluation: `routing="gumbel"` does as published. In
training both draw, from the generator given to `forward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import RelPosBias
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visionssm.checkpoints.load import PretrainedMixin
from visionssm.checkpoints.mambairv2 import LAYOUT
from visionssm.layers import Linear, RestorationModel, Upsampler
from visionssm.mixers import AttentiveScan
from visionssm.mixers.schedule import ScanChoice, layer_scans

from ._registry import build, register

__all__ = ["MambaIRv2"]

_MASKED = -100.0  # as Swin has it


class WindowAttention(nn.Module):
    """Attention inside windows, with a learned bias per relative position (Swin, arXiv 2103.14030).

    Args:
        dim: C.
        heads: number of heads.
        window: side of a window; those of the image are multiples of it.
        shift: how far the windows are moved to the right and down; what comes from opposite edges is kept apart.
    """

    def __init__(self, dim: int, *, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.qkv = Linear(dim, 3 * dim)
        self.bias = RelPosBias((window, window), heads)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        window, batch, height, width = (
            self.window,
            x.shape[0],
            x.shape[1] // self.window,
            x.shape[2] // self.window,
        )
        qkv = self.qkv(x).view(batch, height, window, width, window, 3, self.heads, x.shape[3] // self.heads)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)  # (3, B, rows, columns, heads, positions, channels)
        bias = self.bias.get_bias()
        if not self.shift:
            y = self._attend(qkv, bias)
        else:  # only the last row and the last column of windows hold what the shift brought together
            inner, last = slice(0, -1), slice(-1, None)
            rows = []
            for i in (inner, last):
                row = [
                    self._attend(qkv[:, :, i, j], bias + self._mask(bias, i == last, j == last)) for j in (inner, last)
                ]
                rows.append(torch.cat(row, 2))
            y = torch.cat(rows, 1)
        y = y.unflatten(4, (window, window)).permute(0, 1, 4, 2, 5, 3, 6)
        y = self.proj(y.reshape(x.shape))
        return y.roll((self.shift, self.shift), (1, 2)) if self.shift else y

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """(3, B, rows, columns, heads, positions, channels), (1, heads, positions, positions) -> (B, rows, ...)."""
        q, k, v = qkv.flatten(1, 3)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)).view(qkv.shape[1:])

    def _mask(self, bias: Tensor, last_row: bool, last_column: bool) -> Tensor:
        """What keeps the parts of a window apart: (positions, positions)."""
        moved = torch.arange(self.window, device=bias.device) >= self.window - self.shift
        part = 2 * int(last_row) * moved[:, None] + int(last_column) * moved
        part = part.flatten()
        return _MASKED * (part[:, None] != part).to(bias.dtype)


class ConvMlp(nn.Module):
    """fc1, GELU, plus a depthwise convolution of it, fc2.

    Args:
        dim: C.
        hidden: channels inside.
        kernel_size: of the convolution.
    """

    def __init__(self, dim: int, hidden: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        h = self.act(self.fc1(x))
        return self.fc2(h + self.act(self.conv(h.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))


class GatedConvMlp(nn.Module):
    """fc1, GELU; one half of the channels, normed and convolved, gates the other; fc2.

    Args:
        dim: C.
        hidden: channels inside, even.
        kernel_size: of the convolution.
    """

    def __init__(self, dim: int, hidden: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(hidden // 2)
        self.conv = nn.Conv2d(hidden // 2, hidden // 2, kernel_size, padding=kernel_size // 2, groups=hidden // 2)
        self.fc2 = Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x, gate = self.act(self.fc1(x)).chunk(2, -1)
        return self.fc2(x * self.conv(self.norm(gate).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class AttentiveLayer(nn.Module):
    """Window attention and MLP, then attentive scan and MLP; both halves also add their input, by a learned scale.

    Args:
        dim: C.
        attention: (B, H, W, C) -> (B, H, W, C).
        mixer: the attentive scan.
        mlp: makes an MLP.
    """

    def __init__(
        self, dim: int, *, attention: WindowAttention, mixer: AttentiveScan, mlp: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.scale1 = nn.Parameter(torch.full((dim,), 1e-4))
        self.scale2 = nn.Parameter(torch.full((dim,), 1e-4))
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp1 = mlp()
        self.norm3 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm4 = nn.LayerNorm(dim)
        self.mlp2 = mlp()

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, H, W, C), noise of the routing or None -> (B, H, W, C)."""
        y = x + self.attention(self.norm1(x))
        x = x * self.scale1 + (y + self.mlp1(self.norm2(y)))
        y = x + self.mixer(self.norm3(x), noise)
        return x * self.scale2 + (y + self.mlp2(self.norm4(y)))


class AttentiveGroup(nn.Module):
    """x + conv(layers(x)).

    Args:
        dim: C.
        layers: of the group.
    """

    def __init__(self, dim: int, layers: list[AttentiveLayer]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.layers = nn.ModuleList(layers)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, draw: bool, generator: torch.Generator | None) -> Tensor:
        """(B, H, W, C), whether to draw noise, its source -> (B, H, W, C)."""
        y = x
        for layer in self.layers:
            assert isinstance(layer, AttentiveLayer)
            # drawn here, so that a layer that is run again for its gradients takes the same ways
            noise = layer.mixer.draw_noise(y, generator) if draw else None
            again = self.grad_checkpointing
            y = cast(Tensor, checkpoint(layer, y, noise, use_reentrant=False) if again else layer(y, noise))
        return x + self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MambaIRv2(PretrainedMixin, RestorationModel):
    """MambaIRv2: super-resolution, denoising, removal of JPEG artefacts. Images are in 0..1.

    Args:
        in_chans: channels of the images.
        upscale: size of the output over that of the input.
        upsampler: the head: "pixelshuffle", "pixelshuffledirect", "nearest+conv", or "none" to correct the input.
        dim: C.
        depths: layers of each group.
        heads: of the window attention.
        window: side of a window; images are mirrored at their lower and right edge up to multiples of it.
        d_state: N.
        categories: into which the positions are sorted.
        rank: of the matrix of the categories' prompts.
        mlp_ratio: inner width of MLPs and scan over C.
        light: gated MLPs, as the light models have.
        routing: how categories are chosen in evaluation: "argmax", or "gumbel" for chance, as published.
        sort: the order of positions inside a category, "published" or "stable", see `AttentiveScan`.
        scan: None for positions sorted by category; or a scan order by name or options, or one per layer, along whose routes the
            scan runs instead.
        img_range: factor between the images' values and those inside.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        upscale: int = 2,
        upsampler: Upsampler = "pixelshuffle",
        dim: int = 174,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        heads: int = 6,
        window: int = 16,
        d_state: int = 16,
        categories: int = 128,
        rank: int = 64,
        mlp_ratio: float = 2.0,
        light: bool = False,
        routing: Literal["argmax", "gumbel"] = "argmax",
        sort: Literal["published", "stable"] = "published",
        scan: ScanChoice | None = None,
        img_range: float = 1.0,
    ) -> None:
        if routing not in ("argmax", "gumbel"):
            raise ValueError(f"routing must be 'argmax' or 'gumbel', got {routing!r}")
        if dim % heads:
            raise ValueError(f"dim={dim} is not divisible into heads={heads}")
        hidden = int(dim * mlp_ratio)
        orders = iter([None] * sum(depths) if scan is None else layer_scans(scan, sum(depths)))

        def layer(index: int) -> AttentiveLayer:
            return AttentiveLayer(
                dim,
                attention=WindowAttention(dim, heads=heads, window=window, shift=window // 2 if index % 2 else 0),
                mixer=AttentiveScan(
                    dim,
                    d_inner=hidden,
                    d_state=d_state,
                    dt_rank=math.ceil(hidden / 16),
                    categories=categories,
                    rank=rank,
                    sort=sort,
                    scan=next(orders),
                ),
                mlp=partial(GatedConvMlp if light else ConvMlp, dim, hidden),
            )

        super().__init__(
            in_chans=in_chans,
            dim=dim,
            groups=[AttentiveGroup(dim, [layer(i) for i in range(depth)]) for depth in depths],
            upscale=upscale,
            upsampler=upsampler,
            img_range=img_range,
            multiple=window,
        )
        self.routing = routing

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Restores images.

        Args:
            x: (B, in_chans, H, W).
            generator: source of the routing noise, where there is any; None for torch's own.

        Returns:
            (B, in_chans, upscale * H, upscale * W).

        Raises:
            ValueError: `x` is not of that shape.
        """
        return self.restore(x, partial(self._body, generator=generator))

    def _body(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        draw = self.training or self.routing == "gumbel"
        for group in self.groups:
            x = group(x, draw, generator)
        return x


# --- variants ---------------------------------------------------------------------------------------------------

_RELEASE = "https://github.com/csguoh/MambaIR/releases/download/v1.0/"


def _cfg(file: str = "", figures: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": f"{_RELEASE}mambairv2_{file}.pth" if file else "",
        "custom_load": bool(file),
        "num_classes": 0,
        "input_size": (3, 64, 64),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": 1.0,
        "first_conv": "conv_first",
        "license": "apache-2.0",
        "origin_url": "https://github.com/csguoh/MambaIR",
        "paper_name": "MambaIRv2: Attentive State Space Restoration",
        "paper_ids": "arXiv:2411.15269",
        "notes": (f"reported, with random routing: {figures}",) if figures else None,
        **kwargs,
    }


_GREY = {"input_size": (1, 126, 126), "mean": (0.0,), "std": (1.0,)}

default_cfgs = generate_default_cfgs(
    {
        "mambairv2_light_x2.div2k": _cfg("lightSR_x2", "Urban100 33.26 dB / 0.9378"),
        "mambairv2_light_x3.div2k": _cfg("lightSR_x3", "Urban100 29.01 dB / 0.8689"),
        "mambairv2_light_x4.div2k": _cfg("lightSR_x4", "Urban100 26.82 dB / 0.8079"),
        "mambairv2_sr_small_x2.df2k": _cfg("classicSR_Small_x2"),
        "mambairv2_sr_small_x3.df2k": _cfg("classicSR_Small_x3"),
        "mambairv2_sr_small_x4.df2k": _cfg("classicSR_Small_x4"),
        "mambairv2_sr_base_x2.df2k": _cfg("classicSR_Base_x2", "Urban100 34.49 dB / 0.9468"),
        "mambairv2_sr_base_x3.df2k": _cfg("classicSR_Base_x3", "Urban100 30.28 dB / 0.8905"),
        "mambairv2_sr_base_x4.df2k": _cfg("classicSR_Base_x4", "Urban100 27.89 dB / 0.8344"),
        "mambairv2_sr_large_x2.df2k": _cfg("classicSR_Large_x2"),
        "mambairv2_sr_large_x3.df2k": _cfg("classicSR_Large_x3"),
        "mambairv2_sr_large_x4.df2k": _cfg("classicSR_Large_x4"),
        "mambairv2_color_dn.sigma15": _cfg("ColorDN_15", "Urban100 35.42 dB"),
        "mambairv2_jpeg_car.q10": _cfg("jpeg_q10", "Classic5 30.37 dB / 0.8269", **_GREY),
        "mambairv2_jpeg_car.q30": _cfg("jpeg_q30", "Classic5 33.81 dB / 0.8970", **_GREY),
        "mambairv2_jpeg_car.q40": _cfg("jpeg_q40", "Classic5 34.64 dB / 0.9093", **_GREY),
        "mambairv2_nano_x2.untrained": _cfg(),
    }
)

_LIGHT: dict[str, Any] = {
    "upsampler": "pixelshuffledirect",
    "dim": 48,
    "depths": (5, 5, 5, 5),
    "heads": 4,
    "d_state": 8,
    "categories": 64,
    "rank": 32,
    "mlp_ratio": 1.0,
    "light": True,
}
_SMALL: dict[str, Any] = {"dim": 132, "depths": (4,) * 6, "heads": 4}
_BASE: dict[str, Any] = {"dim": 174, "depths": (6,) * 6, "heads": 6}
_LARGE: dict[str, Any] = {"dim": 174, "depths": (6,) * 9, "heads": 6}
_SAME_SIZE: dict[str, Any] = {**_BASE, "upscale": 1, "upsampler": "none"}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> MambaIRv2:
    return build(MambaIRv2, variant, pretrained, **{**defaults, **options})


@register("restoration")
def mambairv2_light_x2(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-light, twice the size."""
    return _create("mambairv2_light_x2", pretrained, {**_LIGHT, "upscale": 2}, kwargs)


@register("restoration")
def mambairv2_light_x3(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-light, three times the size."""
    return _create("mambairv2_light_x3", pretrained, {**_LIGHT, "upscale": 3}, kwargs)


@register("restoration")
def mambairv2_light_x4(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-light, four times the size."""
    return _create("mambairv2_light_x4", pretrained, {**_LIGHT, "upscale": 4}, kwargs)


@register("restoration")
def mambairv2_sr_small_x2(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-S for super-resolution, twice the size."""
    return _create("mambairv2_sr_small_x2", pretrained, {**_SMALL, "upscale": 2}, kwargs)


@register("restoration")
def mambairv2_sr_small_x3(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-S for super-resolution, three times the size."""
    return _create("mambairv2_sr_small_x3", pretrained, {**_SMALL, "upscale": 3}, kwargs)


@register("restoration")
def mambairv2_sr_small_x4(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-S for super-resolution, four times the size."""
    return _create("mambairv2_sr_small_x4", pretrained, {**_SMALL, "upscale": 4}, kwargs)


@register("restoration")
def mambairv2_sr_base_x2(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-B for super-resolution, twice the size."""
    return _create("mambairv2_sr_base_x2", pretrained, {**_BASE, "upscale": 2}, kwargs)


@register("restoration")
def mambairv2_sr_base_x3(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-B for super-resolution, three times the size."""
    return _create("mambairv2_sr_base_x3", pretrained, {**_BASE, "upscale": 3}, kwargs)


@register("restoration")
def mambairv2_sr_base_x4(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-B for super-resolution, four times the size."""
    return _create("mambairv2_sr_base_x4", pretrained, {**_BASE, "upscale": 4}, kwargs)


@register("restoration")
def mambairv2_sr_large_x2(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-L for super-resolution, twice the size."""
    return _create("mambairv2_sr_large_x2", pretrained, {**_LARGE, "upscale": 2}, kwargs)


@register("restoration")
def mambairv2_sr_large_x3(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-L for super-resolution, three times the size."""
    return _create("mambairv2_sr_large_x3", pretrained, {**_LARGE, "upscale": 3}, kwargs)


@register("restoration")
def mambairv2_sr_large_x4(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2-L for super-resolution, four times the size."""
    return _create("mambairv2_sr_large_x4", pretrained, {**_LARGE, "upscale": 4}, kwargs)


@register("restoration")
def mambairv2_color_dn(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2 for Gaussian noise in colour images, of standard deviation 15 of 255."""
    return _create("mambairv2_color_dn", pretrained, _SAME_SIZE, kwargs)


@register("restoration")
def mambairv2_jpeg_car(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """MambaIRv2 for JPEG artefacts in grey images, of quality 10, 30 or 40 by the weights' tag."""
    return _create("mambairv2_jpeg_car", pretrained, {**_SAME_SIZE, "in_chans": 1}, kwargs)


@register("restoration")
def mambairv2_nano_x2(pretrained: bool = False, **kwargs: Any) -> MambaIRv2:
    """A small MambaIRv2 of our own for tests and demonstrations, about 0.2 M parameters, twice the size."""
    options = {**_LIGHT, "dim": 40, "depths": (4, 4), "window": 8, "upscale": 2}
    return _create("mambairv2_nano_x2", pretrained, options, kwargs)
