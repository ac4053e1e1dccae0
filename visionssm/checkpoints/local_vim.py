"""LocalVim's published names: tensors of a route carry its index, and are stacked here."""

import torch
from torch import Tensor, nn

from visionssm.layers import GridRope, rope_tables

from .layout import CheckpointError, Layout

__all__ = ["LAYOUT"]


def _check_rope(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Drops the tables of rotary positions, which are computed, if they are what is computed.

    Raises:
        CheckpointError: they are not; the message names the key.
    """
    if not isinstance(getattr(model, "prepare", None), GridRope):
        return state  # tables are then unexpected, as the strict check after this says
    state = dict(state)
    for index, key in enumerate(("rope.freqs_cos", "rope.freqs_sin")):
        table = state.pop(key, None)
        if table is None:
            continue
        side = round(table.shape[0] ** 0.5)
        wanted = rope_tables((side, side), table.shape[-1])[index].to(table.device)
        if wanted.shape != table.shape or not torch.allclose(table.float(), wanted, rtol=0, atol=1e-4):
            raise CheckpointError(
                f"{key!r} should hold the fixed {('cosines', 'sines')[index]} of rotary positions on a {side} x {side} grid, "
                f"but the file's {tuple(table.shape)} are other values: these weights were trained with other positions"
            )
    return state


LAYOUT = Layout(
    source="hunto/LocalMamba@75e5d1f classification/lib/models/local_vim.py",
    wrappers=("model", "state_dict", "ema_model"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^layers\.", "blocks."),
        (r"^norm_f\.", "norm."),
        (r"\.(A_log|D)_(\d+)$", r".\1#\2"),
        (r"\.conv1d_(\d+)\.(weight|bias)$", r".conv_\2#\1"),
        (r"\.x_proj_(\d+)\.weight$", r".x_proj#\1"),
        (r"\.dt_proj_(\d+)\.weight$", r".dt_proj#\1"),
        (r"\.dt_proj_(\d+)\.bias$", r".dt_bias#\1"),
        (r"\.attn\.global_reduce\.", ".merge.gate.reduce."),
        (r"\.attn\.channel_select\.", ".merge.gate.select."),
        (r"\.attn\.norm\.", ".merge.gate.norm."),
        (r"\.multi_scan\.weights$", ".merge.weights"),
    ),
    reshape=(r"\.conv_weight$", r"\.merge\.weights$"),
    convert=_check_rope,
)
