"""LocalVim: a plain backbone whose Mamba blocks read the patches along lines and through windows, four routes a block.

Paper: LocalMamba, arXiv 2403.09338. Code: hunto/LocalMamba@75e5d1f (Apache-2.0).
Differs from the published code: hidden state and residual are one stream (the same sum); the routes' parameters are
stacked and share no storage; the model with a class token takes images of any size too; the published un-scan of column routes
is wrong for H != W and right here, and `unscan="published"` repeats it. As published, padding of windows comes
before the causal convolution, so padded steps count. With `merge="search"` and all eight directions a model is the supernet
from which directions are chosen.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.local_vim import LAYOUT
from visionssm.layers import GridRope, PatchEmbed, PlainModel, plain_feature_cfg
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import GatedMerge, SearchMerge, SequenceScan
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder, published_unscan, with_slots, with_token

from ._registry import register

__all__ = ["LocalVim"]


class LocalVimBlock(nn.Module):
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


class LocalVim(PretrainedMixin, PlainModel):
    """Plain LocalMamba.

    Args:
        img_size: side or (H, W) that the position embedding is made for.
        patch_size: side of a patch in pixels; images are zero-padded at the bottom and right to a multiple of it.
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "token", "avg" or ""; None for "token" where there is a class token, else "avg".
        dim: C.
        depth: number of blocks.
        d_state: N.
        class_token: whether there is one, in the middle.
        rope: whether tokens are turned by their place before every block; not together with a class token.
        scan: scan order of the patches by name, with options, or one per block; the class token joins in the middle. Orders
            that give each route channels of its own have no routes to merge and so no gates.
        merge: "gate", or "search" for a learned mixture of the routes.
        unscan: "published" for the published code's result at H != W, see above.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.

    Raises:
        ValueError: unknown `merge` or `unscan`; `rope` with a class token.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        dim: int = 192,
        depth: int = 20,
        d_state: int = 16,
        class_token: bool = False,
        rope: bool = True,
        scan: ScanChoice = "window",
        merge: Literal["gate", "search"] = "gate",
        unscan: Literal["exact", "published"] = "exact",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        shuffle_rate: float = 0.0,
    ) -> None:
        if merge not in ("gate", "search"):
            raise ValueError(f"merge must be 'gate' or 'search', got {merge!r}")
        if unscan not in ("exact", "published"):
            raise ValueError(f"unscan must be 'exact' or 'published', got {unscan!r}")
        if rope and class_token:
            raise ValueError("rope=True needs class_token=False: a class token has no place to be turned by")

        def tokens(order: ScanOrder) -> ScanOrder:
            return with_token(order, mirrored=False) if class_token else order

        patch_embed = PatchEmbed(in_chans, dim, patch_size=patch_size, stride=patch_size, pad=True)
        side = (img_size, img_size) if isinstance(img_size, int) else img_size
        (rates,) = drop_path_rates(drop_path_rate, (depth,))
        blocks: list[nn.Module] = []
        for rate, patches in zip(rates, layer_scans(scan, depth), strict=True):
            joint: nn.Module | None = None
            if patches.groups == 1:
                joint = GatedMerge(2 * dim) if merge == "gate" else SearchMerge(2 * dim, patches)
            table = published_unscan(patches) if unscan == "published" else None
            mixer = SequenceScan(
                dim,
                scan=with_slots(tokens(patches)),
                d_inner=2 * dim,
                d_state=d_state,
                dt_rank=math.ceil(dim / 16),
                merge=joint,
                unscan=None if table is None else tokens(table),
                local_scan=local_scan,
            )
            blocks.append(LocalVimBlock(dim, mixer=mixer, drop_path=rate))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool if global_pool is not None else "token" if class_token else "avg",
            img_size=img_size,
            patch_embed=patch_embed,
            stride=patch_size,
            dim=dim,
            class_token=class_token,
            pos_embed=True,
            prepare=GridRope(patch_embed.grid_size(side), dim) if rope else None,
            blocks=blocks,
            norm=nn.RMSNorm(dim, eps=1e-5),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self._init_weights()

    def _init_weights(self) -> None:
        assert self.pos_embed is not None
        trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)
        for block in self.blocks:
            mixer = block.mixer
            assert isinstance(mixer, SequenceScan)
            # the published code draws the dt projection anew as any linear layer, so that Mamba's step sizes are lost
            trunc_normal_(mixer.x_proj, std=0.02)
            trunc_normal_(mixer.dt_proj, std=0.02)
            nn.init.zeros_(mixer.dt_bias)
            nn.init.kaiming_uniform_(mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                mixer.out_proj.weight.div_(math.sqrt(len(self.blocks)))

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out: tables, biases and D, all of which are vectors there. A_log is decayed."""
        vectors = (".D", ".dt_bias", ".conv_bias")
        return {"pos_embed", "cls_token"} | {name for name, _ in self.named_parameters() if name.endswith(vectors)}

    @unscripted
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Makes the position tables for another image size: the learned one is resized, the fixed ones are computed."""
        super().set_input_size(img_size)
        if isinstance(self.prepare, GridRope):
            self.prepare.set_grid(self.grid_size)  # pyright: ignore[reportCallIssue]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _windows(rows: str) -> list[dict[str, Any]]:
    """Scan options of every layer from a table: a line per layer."""
    return [{"name": "window", "directions": row.split()} for row in rows.strip().splitlines()]


# What the published search chose, for a depth of 20.
_SEARCHED = _windows("""
    h v_flip w7 w7_flip
    h_flip w2_flip w7 w7_flip
    h h_flip v w7
    h h_flip v v_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h_flip v v_flip w7
    h_flip v v_flip w2_flip
    h h_flip v v_flip
    h h_flip v v_flip
    h v v_flip w2
    h v v_flip w2_flip
    h h_flip v_flip w7
    h_flip v v_flip w2
    h h_flip v v_flip
    h v w2 w2_flip
    v v_flip w2 w7
    h h_flip v w2
    h h_flip w2_flip w7
    v v_flip w2 w2_flip
""")
_UNSEARCHED = {"name": "window", "directions": ["h", "h_flip", "w2", "w2_flip"]}


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    base = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"
    return {
        "url": base + file if file else "",
        "custom_load": bool(file),  # published files may carry pickled objects: only our reader takes them safely
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
        "origin_url": "https://github.com/hunto/LocalMamba",
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "local_vim_tiny.in1k": _cfg("local_vim_tiny.ckpt"),
        "local_vim_tiny_middle_cls_token.in1k": _cfg("local_vim_tiny_middle_cls_token.ckpt"),
        # the authors link LocalVMamba-S's file in place of these weights
        "local_vim_small.untrained": _cfg(),
        "local_vim_small_searched.untrained": _cfg(),
        "local_vim_nano.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> LocalVim:
    options = {**defaults, **options}
    return build_model_with_cfg(
        LocalVim,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=plain_feature_cfg(options),
        **options,
    )


@register("classification")
def local_vim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T."""
    return _create("local_vim_tiny", pretrained, {"scan": _SEARCHED}, kwargs)


@register("classification")
def local_vim_tiny_middle_cls_token(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle, without rotary positions."""
    defaults = {"class_token": True, "rope": False, "scan": _SEARCHED}
    return _create("local_vim_tiny_middle_cls_token", pretrained, defaults, kwargs)


@register("classification")
def local_vim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S as the published code builds it under this name: the same four directions in every block."""
    return _create("local_vim_small", pretrained, {"dim": 384, "scan": _UNSEARCHED}, kwargs)


@register("classification")
def local_vim_small_searched(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the searched directions; in the published code a second definition of its name hides it."""
    return _create("local_vim_small_searched", pretrained, {"dim": 384, "scan": _SEARCHED}, kwargs)


@register("classification")
def local_vim_nano(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A small LocalVim of our own for small images and tests, about 1 M parameters."""
    scan = _windows("h h_flip w2 w2_flip\nv v_flip w2 w2_flip\n" * 4)
    defaults = {"img_size": 64, "patch_size": 8, "dim": 96, "depth": 8, "scan": scan}
    return _create("local_vim_nano", pretrained, defaults, kwargs)
