"""VSSD: a hierarchical backbone that mixes by non-causal state space duality, and by attention in its last stage.

Paper: VSSD, arXiv 2407.18559. Code: YuHengsss/VSSD@87b753b (no licence).
Differs from the published code: channels-last inside; sizes round up everywhere, as in the published detection backbone alone
(the classifier takes multiples of 32); the causal form, which no released model uses, is left out; gradients of one image are
right on CPUs, where torch's BatchNorm differentiates wrongly in the memory layout of the published code.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.vssd import LAYOUT
from visionssm.layers import ConvNorm, HierarchicalModel, Mlp, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import NonCausalScan

from ._registry import register

__all__ = ["VSSD"]


class DeepStem(nn.Module):
    """A strided convolution, a residual pair, a strided convolution to 4 C and a pointwise one to C, all with BatchNorm.

    Args:
        in_chans: channels of the image.
        dim: C.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, dim // 2, 3, stride=2)
        self.conv2 = ConvNorm(dim // 2, dim // 2, 3)
        self.conv3 = ConvNorm(dim // 2, dim // 2, 3)
        self.conv4 = ConvNorm(dim // 2, 4 * dim, 3, stride=2)
        self.conv5 = ConvNorm(4 * dim, dim)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        x = self.act(self.conv1(x.contiguous(memory_format=torch.channels_last)))
        x = x + self.conv3(self.act(self.conv2(x)))
        return self.conv5(self.act(self.conv4(x))).permute(0, 2, 3, 1)


class WideDownsample(nn.Module):
    """Pointwise convolution to 8 C, depthwise strided one, each with ReLU; pointwise one to C' with BatchNorm.

    Args:
        dim: C.
        out_dim: C'.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        hidden = 8 * dim
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, out_dim, 1)
        self.norm = nn.BatchNorm2d(out_dim)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C')."""
        x = self.act(self.conv2(self.act(self.conv1(x.permute(0, 3, 1, 2)))))
        return self.norm(self.conv3(x)).permute(0, 2, 3, 1)


class MapAttention(nn.Module):
    """Attention of all positions of a map to all.

    Args:
        dim: channels.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return self.attn(x.flatten(1, 2)).view_as(x)


class VSSDBlock(nn.Module):
    """x + conv x, x + mixer(norm x), x + conv x, x + mlp(norm x).

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the MLP over `dim`.
    """

    def __init__(self, dim: int, *, mixer: nn.Module, drop_path: float, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.pos_conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        x = x + self.pos_conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.pos_conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VSSD(PretrainedMixin, HierarchicalModel):
    """VSSD. It has no scan order: its mixer sees the tokens as a set, and only its convolutions see where they are.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage; doubled by each further one.
        depths: blocks of each stage; the last stage's have attention.
        heads: heads of each stage's mixers.
        d_state: N.
        ssd_ratio: inner width of the mixer over the block's.
        mlp_ratio: hidden width of the MLP over the block's.
        stage_norms: norms on the maps of all stages as they leave, instead of last norm and classifier, as the published
            detectors have them.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 64,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        heads: tuple[int, ...] = (2, 4, 8, 16),
        d_state: int = 64,
        ssd_ratio: float = 2.0,
        mlp_ratio: float = 4.0,
        stage_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        dims = tuple(dim * 2**i for i in range(len(depths)))
        stages = []
        for i, (width, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks: list[nn.Module] = []
            for rate in rates:
                if i == len(depths) - 1:
                    mixer: nn.Module = MapAttention(width, heads[i])
                else:
                    mixer = NonCausalScan(width, heads=heads[i], d_inner=int(ssd_ratio * width), d_state=d_state)
                blocks.append(VSSDBlock(width, mixer=mixer, drop_path=rate, mlp_ratio=mlp_ratio))
            smaller = WideDownsample(dims[i - 1], width) if i else nn.Identity()
            stages.append(Stage(smaller, blocks, out_norm=nn.LayerNorm(width) if stage_norms else None))
        super().__init__(
            in_chans=in_chans,
            num_classes=0 if stage_norms else num_classes,
            global_pool=global_pool,
            stem=DeepStem(in_chans, dim),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.Identity() if stage_norms else nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            global_residual=global_residual,
        )
        self.apply(_init_linear)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """A_log, D and the dt bias, which are vectors here and not decayed in the published training either."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": "YuhengSSS/VSSD" if file else None,
        "hf_hub_filename": file or None,
        # published files carry pickled configs, which only our reader takes safely
        "custom_load": "hf" if file else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "license": "none",  # the authors state none: the files are pointed to, and may not be passed on
        "origin_url": "https://github.com/YuHengsss/VSSD",
        "paper_name": "VSSD: Vision Mamba with Non-Causal State Space Duality",
        "paper_ids": "arXiv:2407.18559",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vssd_micro.in1k": _cfg("vssd_micro_best.pth"),
        "vssd_tiny.in1k": _cfg("vssd_tiny_best_ema.pth"),
        "vssd_tiny.mesa_in1k": _cfg("vssd_tiny_e300_with_mesa.pth"),
        "vssd_small.in1k": _cfg("vssd_small_best_ema.pth"),
        "vssd_small.mesa_in1k": _cfg("vssd_small_e300_with_mesa.pth"),
        "vssd_base.in1k": _cfg("vssd_base_best_ema.pth"),
        "vssd_base.mesa_in1k": _cfg("vssd_base_e300_with_mesa.pth"),
        "vssd_nano.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> VSSD:
    return build_model_with_cfg(
        VSSD,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def vssd_micro(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-M."""
    return _create("vssd_micro", pretrained, {"dim": 48, "depths": (2, 2, 8, 4), "d_state": 48}, kwargs)


@register("classification")
def vssd_tiny(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-T."""
    return _create("vssd_tiny", pretrained, {}, kwargs)


@register("classification")
def vssd_small(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-S."""
    return _create("vssd_small", pretrained, {"depths": (3, 4, 21, 5)}, kwargs)


@register("classification")
def vssd_base(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-B."""
    return _create("vssd_base", pretrained, {"dim": 96, "depths": (3, 4, 21, 5), "heads": (3, 6, 12, 24)}, kwargs)


@register("classification")
def vssd_nano(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """A small VSSD of our own for small images and tests, about 1 M parameters."""
    defaults = {"dim": 24, "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 8), "d_state": 16, "mlp_ratio": 2.0}
    return _create("vssd_nano", pretrained, defaults, kwargs)
