"""GroupMamba's published names: the four scan modules of a layer are stacked; a stage's last norm is its last block."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .layout import Layout

__all__ = ["LAYOUT"]


def _place_norms(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Gives the norm behind a stage's blocks, "stages.i.blocks.last", its index."""
    depths = [len(stage.blocks) for stage in model.stages]  # pyright: ignore
    return {
        re.sub(
            r"^stages\.(\d+)\.blocks\.last\.", lambda m: f"stages.{m[1]}.blocks.{depths[int(m[1])] - 1}.", key
        ): tensor
        for key, tensor in state.items()
    }


LAYOUT = Layout(
    source="Amshaker/GroupMamba@c1800ed classification/models/groupmamba.py",
    wrappers=("model_ema", "model", "state_dict"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^norm([123])\.", r"block\1.last."),
        (r"^norm4\.", "head.neck.norm."),
        (r"^post_network\.0\.", "head.neck.block."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^dist_head\.", "head.fc_dist."),
        (r"^patch_embed1\.conv\.0\.", "stem.conv1."),
        (r"^patch_embed1\.conv\.1\.", "stem.norm1."),
        (r"^patch_embed1\.conv\.3\.", "stem.conv2."),
        (r"^patch_embed1\.conv\.4\.", "stem.norm2."),
        (r"^patch_embed1\.conv\.6\.", "stem.conv3."),
        (r"^patch_embed1\.conv\.7\.", "stem.norm3."),
        (r"^patch_embed1\.proj\.", "stem.conv4."),
        (r"^patch_embed1\.norm\.", "stem.norm4."),
        *((rf"^patch_embed{i + 1}\.proj\.", f"stages.{i}.downsample.conv.") for i in (1, 2, 3)),
        *((rf"^patch_embed{i + 1}\.norm\.", f"stages.{i}.downsample.norm.") for i in (1, 2, 3)),
        *((rf"^block{i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
        (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
        (r"\.conv2d\.", ".conv."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        *((rf"\.mamba_g{i + 1}\.(.+)$", rf".mixer.\1#{i}") for i in range(4)),
    ),
    reshape=(r"\.mixer\.(x_proj|dt_proj|dt_bias|A_log|D|conv\.weight|conv\.bias)$",),
    convert=_place_norms,
)
