"""Mamba-ND's published names: mmpretrain's classifier, whose patch merging joins neighbours in another order than ours."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .layout import Layout

__all__ = ["LAYOUT"]


def _reorder_merging(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Neighbours of a 2x2 cell: published channel, row, column, the last fastest; ours column, row, channel."""

    def ours(tensor: Tensor) -> Tensor:
        cells = tensor.unflatten(-1, (-1, 2, 2)).movedim(-3, -1)  # (..., row, column, channel)
        return cells.transpose(-3, -2).flatten(-3)

    merging = re.compile(r"\.blocks\.1\.(norm|reduction)\.(weight|bias)$")
    return {key: ours(tensor) if merging.search(key) else tensor for key, tensor in state.items()}


LAYOUT = Layout(
    source="jacklishufan/Mamba-ND@4f70284 image_classification/src/mamba.py",
    wrappers=("ema_state_dict", "state_dict"),
    ignore=(r"^steps$",),  # the counter of mmengine's average
    renames=(
        (r"^(module\.)+", ""),
        (r"^backbone\.", ""),
        (r"^pos_embed$", "stem.pos_embed"),
        (r"^patch_embed\.projection\.", "stem.conv1."),
        (r"^layers\.(\d+)\.down_sample_layer\.", r"stages.\1.blocks.1."),
        (r"^layers\.(\d+)\.", r"stages.\1.blocks.0."),
        (r"\.conv1d\.weight$", ".conv_weight"),
        (r"\.conv1d\.bias$", ".conv_bias"),
        (r"\.x_proj\.weight$", ".x_proj"),
        (r"\.dt_proj\.weight$", ".dt_proj"),
        (r"\.dt_proj\.bias$", ".dt_bias"),
        (r"^ln1\.", "norm."),
        (r"^ln2\.", "head.neck."),
    ),
    reshape=(r"\.mixer\.(conv_weight|conv_bias|x_proj|dt_proj|dt_bias|A_log|D)$",),
    convert=_reorder_merging,
)
