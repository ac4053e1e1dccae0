"""Vim: a plain backbone of bidirectional Mamba blocks over patches, with the class token in their middle.

Paper: Vision Mamba, arXiv 2401.09417. Code: hustvl/Vim@dd0358a (Apache-2.0).
Differs from the published code: the hidden state and the residual, carried as a pair there, are one stream here (the same
sum); the two routes' parameters are stacked; images of another size resize the position embedding on the way.
When a checkpoint of another grid is loaded, the class token's entry is taken from the middle, where the published models have
it; `position_resize="published"` does as the published code, which takes the first entry for it.

LBVim (LBMamba, arXiv 2506.15976; cvlab-stonybrook/LBMamba@5215551, no licence stated) is the same backbone with one route in a
layer, forward and backward in turns, scanned back within short segments; no class token, mean pooling. No weights are published,
and its largest variant, with an attention head, is not here.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.layers import DropPath, lecun_normal_, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.vim import LAYOUT
from visionssm.layers import PatchEmbed, PlainModel, plain_feature_cfg
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import with_token

from ._registry import register

__all__ = ["Vim"]


class VimBlock(nn.Module):
    """x + mixer(norm x) over tokens.

    Args:
        dim: C.
        mixer: (tokens (B, L, C), patches (B, H, W, C)) -> (B, L, C).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, *, mixer: SequenceScan, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """(B, L, C), (B, H, W, C) -> (B, L, C)."""
        return tokens + self.drop_path(self.mixer(self.norm(tokens), patches))


class Vim(PretrainedMixin, PlainModel):
    """Vision Mamba.

    Args:
        img_size: side or (H, W) that the position embedding is made for.
        patch_size: side of a patch in pixels.
        stride: pixels from patch to patch.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "token", "avg" or ""; None for "token" where there is a class token, else "avg".
        class_token: whether there is one, in the middle; the published detectors have none. Weights of a model that has one are
            taken without it.
        dim: C.
        depth: number of blocks.
        d_state: N.
        scan: scan order of the patches by name, with options, or one per block; the class token joins in the middle.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
        position_resize: how a checkpoint's position embedding is resized to another grid, see above.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        class_token: bool = True,
        dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        scan: ScanChoice = "bidirectional",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
        position_resize: Literal["exact", "published"] = "exact",
    ) -> None:
        if position_resize not in ("exact", "published"):
            raise ValueError(f"position_resize must be 'exact' or 'published', got {position_resize!r}")
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        blocks: list[nn.Module] = []
        for rate, order in zip(rates, layer_scans(scan, depth), strict=True):
            mixer = SequenceScan(
                dim,
                scan=with_token(order) if class_token else order,
                d_inner=2 * dim,
                d_state=d_state,
                dt_rank=math.ceil(dim / 16),
                scale=order.groups / order.num_routes,
                local_scan=local_scan,
            )
            blocks.append(VimBlock(dim, mixer=mixer, drop_path=rate))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool if global_pool is not None else "token" if class_token else "avg",
            img_size=img_size,
            patch_embed=PatchEmbed(in_chans, dim, patch_size=patch_size, stride=stride),
            stride=stride,
            dim=dim,
            class_token=class_token,
            pos_embed=True,
            blocks=blocks,
            norm=nn.RMSNorm(dim, eps=1e-5),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self.position_resize = position_resize
        self._init_weights()

    def _init_weights(self) -> None:
        lecun_normal_(self.patch_embed.proj.weight)
        nn.init.zeros_(self.patch_embed.proj.bias)
        for table in (self.pos_embed, self.cls_token):
            if table is not None:
                trunc_normal_(table, std=0.02)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            assert isinstance(block, VimBlock)
            with torch.no_grad():
                # the published code scales out_proj down by depth, and leaves every dt bias but the first route's at zero
                block.mixer.out_proj.weight.div_(math.sqrt(len(self.blocks)))
                block.mixer.dt_bias[1:].zero_()

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out: tables, biases and D, all of which are vectors there. A_log is decayed."""
        vectors = (".D", ".dt_bias", ".conv_bias")
        return {"pos_embed", "cls_token"} | {name for name, _ in self.named_parameters() if name.endswith(vectors)}

    @unscripted
    def resize_position_tables(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's position embedding for this model's grid."""
        table = state.get("pos_embed")
        if self.cls_token is None and "cls_token" in state and table is not None:
            place = 0 if self.position_resize == "published" else (table.shape[1] - 1) // 2
            state = {name: tensor for name, tensor in state.items() if name != "cls_token"}
            return super().resize_position_tables(
                {**state, "pos_embed": torch.cat([table[:, :place], table[:, place + 1 :]], 1)}
            )
        ours = self.state_dict()["pos_embed"]
        if self.position_resize == "published" and table is not None and table.shape != ours.shape:
            middle = (table.shape[1] - 1) // 2  # the first entry becomes the token's, the others the grid
            table = torch.cat([table[:, 1 : middle + 1], table[:, :1], table[:, middle + 1 :]], 1)
            resized = super().resize_position_tables({**state, "pos_embed": table})["pos_embed"]
            middle = (resized.shape[1] - 1) // 2
            token = resized[:, middle : middle + 1]
            return {
                **state,
                "pos_embed": torch.cat([token, resized[:, :middle], resized[:, middle + 1 :]], 1),
            }
        return super().resize_position_tables(state)


# --- variants ---------------------------------------------------------------------------------------------------


def _cfg(repo: str = "", file: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": f"hustvl/{repo}" if repo else None,
        "hf_hub_filename": file or None,
        # published files carry pickled arguments, which only our reader takes safely
        "custom_load": "hf" if repo else False,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "paper_ids": "arXiv:2401.09417",
        **kwargs,
    }


def _local_cfg() -> dict[str, Any]:
    return _cfg(
        license="none",  # the authors state none
        origin_url="https://github.com/cvlab-stonybrook/LBMamba",
        paper_name="LBMamba: Locally Bi-directional Mamba",
        paper_ids="arXiv:2506.15976",
    )


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_stride8.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        "vim_small_stride8.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
        "vim_nano.untrained": _cfg(input_size=(3, 64, 64)),
        "lbvim_tiny.untrained": _local_cfg(),
        "lbvim_300.untrained": _local_cfg(),
        "lbvim_small.untrained": _local_cfg(),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> Vim:
    options = {**defaults, **options}
    return build_model_with_cfg(
        Vim,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=plain_feature_cfg(options),
        **options,
    )


@register("classification")
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti."""
    return _create("vim_tiny", pretrained, {}, kwargs)


@register("classification")
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti+, fine-tuned with overlapping patches."""
    return _create("vim_tiny_stride8", pretrained, {"stride": 8}, kwargs)


@register("classification")
def vim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S."""
    return _create("vim_small", pretrained, {"dim": 384}, kwargs)


@register("classification")
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S+, fine-tuned with overlapping patches."""
    return _create("vim_small_stride8", pretrained, {"dim": 384, "stride": 8}, kwargs)


@register("classification")
def vim_base(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B."""
    return _create("vim_base", pretrained, {"dim": 768}, kwargs)


@register("classification")
def vim_nano(pretrained: bool = False, **kwargs: Any) -> Vim:
    """A small Vim of our own for small images and tests, about 1 M parameters."""
    return _create(
        "vim_nano", pretrained, {"img_size": 64, "patch_size": 8, "stride": 8, "dim": 96, "depth": 12}, kwargs
    )


_LOCAL = {"class_token": False, "scan": {"name": "alternate", "scan": "bidirectional"}, "local_scan": 0}


@register("classification")
def lbvim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """LBVim-Ti."""
    return _create("lbvim_tiny", pretrained, _LOCAL, kwargs)


@register("classification")
def lbvim_300(pretrained: bool = False, **kwargs: Any) -> Vim:
    """LBVim with 300 channels."""
    return _create("lbvim_300", pretrained, {**_LOCAL, "dim": 300}, kwargs)


@register("classification")
def lbvim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """LBVim-S."""
    return _create("lbvim_small", pretrained, {**_LOCAL, "dim": 384}, kwargs)
