"""MambaIRv2's published names."""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import RelPosBias
from torch import Tensor, nn

from .layout import CheckpointError, Layout

__all__ = ["LAYOUT"]

_INDEX = "relative_position_index_SA"


def _check_index(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Drops the table of relative positions, which is computed, if it is what is computed.

    Raises:
        CheckpointError: it is not.
    """
    if _INDEX not in state:
        return state
    state = dict(state)
    index = state.pop(_INDEX)
    biases = [module for module in model.modules() if isinstance(module, RelPosBias)]
    for bias in biases[:1]:
        wanted = cast(Tensor, bias.relative_position_index).to(index.device)
        if index.numel() != wanted.numel() or not torch.equal(index.flatten().long(), wanted):
            raise CheckpointError(
                f"{_INDEX!r} of shape {tuple(index.shape)} is not the table of relative positions in windows of "
                f"{bias.window_size}: the weights were trained with other windows"
            )
    return state


LAYOUT = Layout(
    source="csguoh/MambaIR@33d7b34 basicsr/archs/mambairv2_arch.py, mambairv2light_arch.py",
    wrappers=("params", "params_ema", "state_dict"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^patch_embed\.norm\.", "norm_first."),
        (r"^conv_after_body\.", "conv_body."),
        (r"^conv_before_upsample\.0\.", "head.conv_before."),
        (r"^(upsample|conv_last|conv_up1|conv_up2|conv_hr)\.", r"head.\1."),
        (r"^layers\.(\d+)\.residual_group\.layers\.", r"groups.\1.layers."),
        (r"^layers\.(\d+)\.conv\.", r"groups.\1.conv."),
        (r"\.wqkv\.", ".attention.qkv."),
        (r"\.win_mhsa\.proj\.", ".attention.proj."),
        (r"\.win_mhsa\.relative_position_bias_table$", ".attention.bias.relative_position_bias_table"),
        (r"\.embeddingA\.weight$", ".mixer.prompt_basis"),
        (r"\.assm\.embeddingB\.weight$", ".mixer.prompt"),
        (r"\.assm\.route\.0\.", ".mixer.router.fc1."),
        (r"\.assm\.route\.2\.", ".mixer.router.fc2."),
        (r"\.assm\.in_proj\.0\.", ".mixer.in_proj."),
        (r"\.assm\.CPE\.0\.", ".mixer.conv."),
        (r"\.assm\.selectiveScan\.", ".mixer."),
        (r"\.assm\.", ".mixer."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"\.convffn([12])\.dwconv\.depthwise_conv\.0\.", r".mlp\1.conv."),
        (r"\.convffn([12])\.sg\.", r".mlp\1."),
        (r"\.convffn([12])\.", r".mlp\1."),
    ),
    reshape=(r"\.A_log$", r"\.D$", r"\.in_proj\.weight$"),
    convert=_check_index,
)
