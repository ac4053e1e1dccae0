"""Mamba-ND's published names: mmpretrain's classifier, UNETR with the encoder in ViT's place, classifiers of videos."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn

from .layout import CheckpointError, Layout

__all__ = ["LAYOUT", "VIDEO_LAYOUT", "VOLUME_LAYOUT"]

_MAMBA = (
    (r"\.conv1d\.weight$", ".conv_weight"),
    (r"\.conv1d\.bias$", ".conv_bias"),
    (r"\.x_proj\.weight$", ".x_proj"),
    (r"\.dt_proj\.weight$", ".dt_proj"),
    (r"\.dt_proj\.bias$", ".dt_bias"),
)
_ONE_ROUTE = (r"\.mixer\.(conv_weight|conv_bias|x_proj|dt_proj|dt_bias|A_log|D)$",)


def _reorder_merging(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Patch merging joins neighbours in another order: published channel, row, column, the last fastest; ours the reverse."""

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
        *_MAMBA,
        (r"^ln1\.", "norm."),
        (r"^ln2\.", "head.neck."),
    ),
    reshape=_ONE_ROUTE,
    convert=_reorder_merging,
)


def _as_volume(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Positions of a cube of patches as a map; without the layer behind the last map that the decoder reads."""
    state = dict(state)
    unread = f"encoder.layers.{len(model.encoder.layers)}."  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    positions = state.get("encoder.pos_embed")
    if positions is not None and positions.ndim == 3:
        side = round(positions.shape[1] ** (1 / 3))
        if side**3 != positions.shape[1]:
            raise CheckpointError(f"the positions of {positions.shape[1]} patches are not those of a cube")
        state["encoder.pos_embed"] = positions.unflatten(1, (side, side, side)).movedim(-1, 1)
    return {key: tensor for key, tensor in state.items() if not key.startswith(unread)}


VOLUME_LAYOUT = Layout(
    source="jacklishufan/Mamba-ND@4f70284 btcv/networks/{mamba,unetr}.py",
    wrappers=("state_dict",),
    renames=(
        (r"^(module\.)+", ""),
        (r"^vit\.patch_embed\.projection\.", "encoder.patch_embed."),
        (r"^vit\.", "encoder."),
        *_MAMBA,
        # the decoder's blocks are counted from the finest there
        (r"^encoder1\.", "decoder.first."),
        (r"^encoder2\.", "decoder.skips.0."),
        (r"^encoder3\.", "decoder.skips.1."),
        (r"^encoder4\.", "decoder.skips.2."),
        (r"^decoder5\.", "decoder.ups.0."),
        (r"^decoder4\.", "decoder.ups.1."),
        (r"^decoder3\.", "decoder.ups.2."),
        (r"^decoder2\.", "decoder.ups.3."),
        (r"^out\.conv\.conv\.", "head."),
    ),
    reshape=_ONE_ROUTE,
    convert=_as_volume,
)


def _as_clip(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Positions of a clip as a map; a file does not say of how many frames, so they must be the model's."""
    positions, ours = state.get("encoder.pos_embed"), model.get_parameter("encoder.pos_embed")
    if positions is None or positions.ndim != 3:
        return state
    grid = tuple(ours.shape[2:])
    if math.prod(grid) != positions.shape[1]:
        raise CheckpointError(f"positions of {positions.shape[1]} patches, but img_size and patch_size make {grid}")
    return {**state, "encoder.pos_embed": positions.unflatten(1, grid).movedim(-1, 1)}


VIDEO_LAYOUT = Layout(
    source="jacklishufan/Mamba-ND@4f70284 video_classification/src/mamba.py, video_pretraining/models/mamband.py",
    wrappers=("state_dict", "model", "module"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^backbone\.", ""),
        (r"^patch_embed\.projection\.", "encoder.patch_embed."),
        (r"^(pos_embed$|layers\.)", r"encoder.\1"),
        *_MAMBA,
        (r"^head\.0\.", "norm."),
        (r"^(head\.1|cls_head\.fc_cls)\.", "head."),
    ),
    reshape=_ONE_ROUTE,
    convert=_as_clip,
)
