"""LocalVMamba: VMamba's first generation with scans through windows, searched layer by layer, and a gate on each route.

Paper: LocalMamba, arXiv 2403.09338. Code: hunto/LocalMamba@75e5d1f (Apache-2.0).
Differs from the published code: the published un-scan of column routes is wrong for H != W and right here;
`unscan="published"` repeats it, for figures that were measured with it (detection, segmentation). With
`merge="search"` and all eight directions a model is the supernet from which directions are chosen.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from timm.layers import DropPath, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from visionssm.checkpoints.load import PretrainedMixin, checkpoint_filter_fn
from visionssm.checkpoints.local_vmamba import LAYOUT
from visionssm.layers import HierarchicalModel, PatchMerging, PatchStem, Stage
from visionssm.layers.typing import drop_path_rates, unscripted
from visionssm.mixers import GatedMerge, ImageScan, SearchMerge
from visionssm.mixers.schedule import ScanChoice, layer_scans
from visionssm.scans import ScanOrder, published_unscan

from ._registry import register

__all__ = ["LocalVMamba"]


class LocalBlock(nn.Module):
    """x + mixer(norm x).

    Args:
        dim: channels.
        mixer: (B, H, W, dim) -> (B, H, W, dim).
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        return x + self.drop_path(self.mixer(self.norm(x)))


class LocalVMamba(PretrainedMixin, HierarchicalModel):
    """Hierarchical LocalMamba.

    Args:
        in_chans: channels of the image.
        num_classes: 0 for no classifier.
        global_pool: "avg", "max", ... or "" for none.
        dim: channels of the first stage; doubled by each further one.
        depths: blocks of each stage.
        d_state: N.
        scan: scan order by name, with options, or one per block. Orders that give each route channels of its own
            have no routes to merge and so no gates.
        merge: "gate", or "search" for a learned mixture of the routes.
        unscan: "published" for the published code's result at H != W, see above.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, falling linearly to 0 at the first.
        local_scan: steps of the segments within which a scan also runs back (LBMamba), 0 for the published choice by length; None
            for no such scan.
        low_rank: rank of the state transition (low-rank SS2D), at most `d_state`; None for all of it.
        shuffle_rate: chance with which the last block's tokens are shuffled in training, falling linearly to 0 at the first.
        global_residual: residual connections past whole stages (Res-VMamba).

    Raises:
        ValueError: unknown `merge` or `unscan`.
    """

    official_layout = LAYOUT

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 9, 2),
        d_state: int = 16,
        scan: ScanChoice = "window",
        merge: Literal["gate", "search"] = "gate",
        unscan: Literal["exact", "published"] = "exact",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_scan: int | None = None,
        low_rank: int | None = None,
        shuffle_rate: float = 0.0,
        global_residual: bool = False,
    ) -> None:
        if merge not in ("gate", "search"):
            raise ValueError(f"merge must be 'gate' or 'search', got {merge!r}")
        if unscan not in ("exact", "published"):
            raise ValueError(f"unscan must be 'exact' or 'published', got {unscan!r}")

        def mixer(width: int, order: ScanOrder) -> ImageScan:
            joint: nn.Module | None = None
            if order.groups == 1:
                joint = GatedMerge(2 * width) if merge == "gate" else SearchMerge(2 * width, order)
            return ImageScan(
                width,
                scan=order,
                d_inner=2 * width,
                d_state=d_state,
                dt_rank=math.ceil(width / 16),
                merge=joint,
                unscan=published_unscan(order) if unscan == "published" else None,
                local_scan=local_scan,
                low_rank=low_rank,
            )

        dims = tuple(dim * 2**i for i in range(len(depths)))
        orders = iter(layer_scans(scan, sum(depths)))
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for i, width in enumerate(dims):
            blocks: list[nn.Module] = [LocalBlock(width, mixer(width, next(orders)), rate) for rate in rates[i]]
            stages.append(Stage(PatchMerging(dims[i - 1], width) if i else nn.Identity(), blocks))
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=PatchStem(in_chans, dim),
            stages=stages,
            dims=dims,
            strides=tuple(4 * 2**i for i in range(len(depths))),
            norm=nn.LayerNorm(dims[-1]),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            global_residual=global_residual,
        )
        self.apply(_init_linear)

    @unscripted
    def no_weight_decay(self) -> set[str]:
        """What the published training leaves out besides vectors: D. (A_log and the dt bias are decayed there.)"""
        return {name for name, _ in self.named_parameters() if name.endswith(".D")}


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# --- variants ---------------------------------------------------------------------------------------------------


def _windows(rows: str) -> list[dict[str, Any]]:
    """Scan options of every layer from a table: a line per layer."""
    return [{"name": "window", "directions": row.split()} for row in rows.strip().splitlines()]


# What the published search chose.
_TINY = _windows("""
    h h_flip w7 w7_flip
    h_flip v_flip w2 w2_flip
    h_flip v_flip w2_flip w7
    h_flip v v_flip w2
    h h_flip v_flip w2_flip
    h_flip v_flip w2 w2_flip
    h w2_flip w7 w7_flip
    h h_flip v v_flip
    h v_flip w7 w7_flip
    h_flip v w2 w7_flip
    v v_flip w2 w7_flip
    h h_flip v_flip w2_flip
    v_flip w2_flip w7 w7_flip
    h_flip v_flip w2_flip w7_flip
    h_flip v w7 w7_flip
""")

_SMALL = _windows("""
    h v v_flip w7_flip
    h h_flip v w7
    h_flip v v_flip w7
    h_flip v w2_flip w7
    h_flip v w2_flip w7
    h_flip v_flip w2 w7_flip
    h_flip v v_flip w7
    h v v_flip w7
    h v v_flip w7
    h v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w2
    v v_flip w2_flip w7
    h h_flip v w2
    h_flip v v_flip w7_flip
    h h_flip v v_flip
    h v v_flip w7_flip
    h v v_flip w7_flip
    h h_flip v_flip w7
    h_flip v_flip w2_flip w7
    h_flip v v_flip w7_flip
    v v_flip w7 w7_flip
    h v v_flip w7_flip
    h_flip v v_flip w2
    h v v_flip w2_flip
    h h_flip v w7
    h h_flip w7 w7_flip
    h v_flip w2 w2_flip
    h v_flip w2 w7
    h v v_flip w7_flip
    h_flip v w2_flip w7
    h_flip v_flip w7 w7_flip
    h v w7 w7_flip
""")


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    base = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"
    return {
        "url": base + file if file else "",
        "custom_load": bool(file),  # published files may carry pickled objects: only our reader takes them safely
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hunto/LocalMamba",
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "local_vmamba_tiny.untrained": _cfg(),  # the authors never released these weights ("retraining")
        "local_vmamba_small.in1k": _cfg("local_vssm_small.ckpt"),
        "local_vmamba_nano.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], options: dict[str, Any]) -> LocalVMamba:
    return build_model_with_cfg(
        LocalVMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**defaults, **options},
    )


@register("classification")
def local_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T. No weights were released."""
    return _create("local_vmamba_tiny", pretrained, {"scan": _TINY}, kwargs)


@register("classification")
def local_vmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S."""
    return _create("local_vmamba_small", pretrained, {"depths": (2, 2, 27, 2), "scan": _SMALL}, kwargs)


@register("classification")
def local_vmamba_nano(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A small LocalVMamba of our own for small images and tests, about 1 M parameters."""
    scan = _windows("h h_flip w2 w2_flip\nv v_flip w2 w2_flip\n" * 2 + "h h_flip v v_flip")
    return _create("local_vmamba_nano", pretrained, {"dim": 32, "depths": (1, 1, 2, 1), "scan": scan}, kwargs)
