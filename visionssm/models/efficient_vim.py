"""EfficientViM: three stages of convolutions and a mixer that works on a few hidden states instead of on the tokens.

Paper: EfficientViM, arXiv 2411.15241. Code: mlvlab/EfficientViM@304340c (MIT). timm has the same weights under other names.
Differs from the published code: channels-last inside; maps need not be square, as in the authors' own detection copy; training
returns the mean of both sets of classifiers unless `set_distilled_training` asks for both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.efficient_vim import LAYOUT
from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.layers import ConvNorm, ConvNormStem, HierarchicalModel, InvertedMerging, PooledHead, Residual, Stage
from visionssm.layers.typing import checkpointed, unscripted
from visionssm.mixers import HiddenStateMixer

from ._registry import register

__all__ = ["EfficientViM"]


class StateBlock(nn.Module):
    """Depthwise conv, mixer, depthwise conv, feed-forward, each blended with its input by a learned share per channel.

    Args:
        dim: channels.
        d_state: N.
        mlp_ratio: hidden width of the feed-forward over `dim`.
    """

    def __init__(self, dim: int, *, d_state: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.alpha = nn.Parameter(torch.full((4, dim), 1e-4))
        self.local1 = ConvNorm(dim, dim, 3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mixer = HiddenStateMixer(dim, d_state=d_state)
        self.local2 = ConvNorm(dim, dim, 3, groups=dim)
        self.ffn = nn.Sequential(ConvNorm(dim, hidden), nn.ReLU(), ConvNorm(hidden, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, dim) -> (B, H, W, dim), and the mixer's state, (B, N, dim)."""
        share = torch.sigmoid(self.alpha)
        x = x + share[0] * (self.local1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x)
        mixed, state = self.mixer(self.norm(x))
        x = x + share[1] * (mixed - x)
        x = x + share[2] * (self.local2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x)
        return x + share[3] * (self.ffn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x), state


class StateStage(Stage):
    """A stage that notes the mean of its last state, normed, for the head.

    Args:
        downsample: run before the blocks.
        blocks: of this family.
        dim: channels.
    """

    def __init__(self, downsample: nn.Module, blocks: list[StateBlock], dim: int) -> None:
        super().__init__(downsample, list(blocks))
        self.state_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        notes: list[Tensor] = []
        return self.run(self.downsample(x), notes)

    def run(self, x: Tensor, notes: list[Tensor]) -> Tensor:
        """All blocks, and appends (B, C') to `notes`."""
        state = x
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, state = checkpointed(block, x)
            else:
                x, state = block(x)
        notes.append(self.state_norm(state).mean(1))
        return x


class MergingWithConvs(nn.Module):
    """x + depthwise conv x, `InvertedMerging`, x + depthwise conv x.

    Args:
        dim: channels in.
        out_dim: channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.local1 = Residual(ConvNorm(dim, dim, 3, groups=dim))
        self.merging = InvertedMerging(dim, out_dim, hidden=4 * out_dim)
        self.local2 = Residual(ConvNorm(out_dim, out_dim, 3, groups=out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, ceil(H/2), ceil(W/2), out_dim)."""
        return self.local2(self.merging(self.local1(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class FusedLinear(nn.Module):
    """A linear layer for each part of the channels; the mean of their results with learned weights.

    Args:
        dim: sum of `parts`.
        num_classes: of each layer.
        parts: channels of each layer.
    """

    def __init__(self, dim: int, num_classes: int, *, parts: tuple[int, ...]) -> None:
        super().__init__()
        assert dim == sum(parts)
        self.parts = parts
        self.out_features = num_classes
        self.linears = nn.ModuleList(nn.Linear(part, num_classes) for part in parts)
        self.weights = nn.Parameter(torch.ones(len(parts)))
        self.apply(_init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, num_classes)."""
        vectors = x.split(self.parts, -1)
        logits = torch.stack([linear(vectors[i]) for i, linear in enumerate(self.linears)], -1)
        return (logits * self.weights.softmax(0)).sum(-1)


class EfficientViM(PretrainedMixin, HierarchicalModel):
    """EfficientViM. It has no scan order: its mixer sees the tokens as a set, and only its convolutions see where they are.

    The features that go to the head are what each stage noted of its hidden states, as channels with one value per image, and
    the last map; every part has a classifier of its own.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dims: channels of each stage.
        depths: blocks of each stage.
        d_states: N of each stage.
        mlp_ratio: hidden width of the feed-forward over the block's.
        distilled: a second set of classifiers, trained on a teacher's labels.
        drop_rate: dropout before the classifiers.
        global_residual: residual connections past whole stages (Res-VMamba).
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: tuple[int, ...] = (128, 192, 320),
        depths: tuple[int, ...] = (2, 2, 2),
        d_states: tuple[int, ...] = (49, 25, 9),
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        drop_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        stages: list[Stage] = []
        for i, (dim, depth, d_state) in enumerate(zip(dims, depths, d_states, strict=True)):
            blocks = [StateBlock(dim, d_state=d_state, mlp_ratio=mlp_ratio) for _ in range(depth)]
            stages.append(StateStage(MergingWithConvs(dims[i - 1], dim) if i else nn.Identity(), blocks, dim))
        parts = (*dims, dims[-1])
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=ConvNormStem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            strides=tuple(16 * 2**i for i in range(len(depths))),
            norm=nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            global_residual=global_residual,
            head=PooledHead(
                sum(parts),
                num_classes,
                global_pool,
                neck=nn.Identity(),
                drop_rate=drop_rate,
                distilled=distilled,
                linear=partial(FusedLinear, parts=parts),
            ),
        )

    @unscripted
    def set_distilled_training(self, enable: bool = True) -> None:
        """While training, return the logits of both sets of classifiers, (labels', teacher's), instead of their mean."""
        self.head.distilled_training = enable

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """A and D, which are vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A", ".D"))}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(weights: str = "", *, distilled: bool = False, **kwargs: Any) -> dict[str, Any]:
    heads = ("fc", "fc_dist") if distilled else ("fc",)
    return {
        # the authors' files lie on Google Drive, which gives no direct address; timm keeps them, under the same keys
        "hf_hub_id": f"timm/efficientvim_{weights}" if weights else None,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (4, 4),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1.conv",
        "classifier": tuple(f"head.{head}.linears.{i}" for head in heads for i in range(4)),
        "license": "mit",
        "origin_url": "https://github.com/mlvlab/EfficientViM",
        "paper_name": "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
        "paper_ids": "arXiv:2411.15241",
        **kwargs,
    }


def _cfgs() -> dict[str, Any]:
    cfgs: dict[str, Any] = {}
    for size in ("m1", "m2", "m3", "m4"):
        shape: dict[str, Any] = {"input_size": (3, 256, 256)} if size == "m4" else {}
        for tag in ("e300_in1k", "e450_in1k"):
            cfgs[f"efficient_vim_{size}.{tag}"] = _cfg(f"{size}.{tag}", **shape)
        cfgs[f"efficient_vim_{size}_dist.in1k"] = _cfg(f"{size}_dist.in1k", distilled=True, **shape)
    small: dict[str, Any] = {"license": "apache-2.0", "input_size": (3, 64, 64), "pool_size": (1, 1)}
    return {**cfgs, "efficient_vim_nano.untrained": _cfg(**small)}


default_cfgs = generate_default_cfgs(_cfgs())

_M1: dict[str, Any] = {}
_M2 = {"dims": (128, 256, 512)}
_M3 = {"dims": (224, 320, 512)}
_M4 = {"dims": (224, 320, 512), "depths": (3, 4, 2), "d_states": (64, 32, 16)}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> EfficientViM:
    return build_model_with_cfg(
        EfficientViM,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def efficient_vim_m1(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M1."""
    return _create("efficient_vim_m1", pretrained, _M1, kwargs)


@register("classification")
def efficient_vim_m1_dist(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M1 with classifiers for a teacher's labels."""
    return _create("efficient_vim_m1_dist", pretrained, {**_M1, "distilled": True}, kwargs)


@register("classification")
def efficient_vim_m2(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M2."""
    return _create("efficient_vim_m2", pretrained, _M2, kwargs)


@register("classification")
def efficient_vim_m2_dist(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M2 with classifiers for a teacher's labels."""
    return _create("efficient_vim_m2_dist", pretrained, {**_M2, "distilled": True}, kwargs)


@register("classification")
def efficient_vim_m3(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M3."""
    return _create("efficient_vim_m3", pretrained, _M3, kwargs)


@register("classification")
def efficient_vim_m3_dist(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M3 with classifiers for a teacher's labels."""
    return _create("efficient_vim_m3_dist", pretrained, {**_M3, "distilled": True}, kwargs)


@register("classification")
def efficient_vim_m4(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M4."""
    return _create("efficient_vim_m4", pretrained, _M4, kwargs)


@register("classification")
def efficient_vim_m4_dist(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """EfficientViM-M4 with classifiers for a teacher's labels."""
    return _create("efficient_vim_m4_dist", pretrained, {**_M4, "distilled": True}, kwargs)


@register("classification")
def efficient_vim_nano(pretrained: bool = False, **kwargs: Any) -> EfficientViM:
    """A small EfficientViM of our own for small images and tests, about 1 M parameters."""
    defaults = {"dims": (48, 80, 128), "depths": (1, 1, 1), "d_states": (16, 9, 4), "mlp_ratio": 2.0}
    return _create("efficient_vim_nano", pretrained, defaults, kwargs)
