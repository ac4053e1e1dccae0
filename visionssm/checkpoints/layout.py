"""How a published state dict differs from ours, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["BASICSR_RENAMES", "CheckpointError", "Layout", "unwrap"]

WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "params_ema", "params")
OURS = {"format", "state", "model", "ema"}  # keys of a checkpoint of visionssm.engine


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model; the message names the keys."""


def unwrap(file: Mapping[str, object], wrappers: Sequence[str] = WRAPPERS) -> Mapping[str, object]:
    """The state dict inside a training file; of a checkpoint of our trainers what they export: the average, if there is one.

    Args:
        file: what was read.
        wrappers: keys that may hold the state dict, the preferred first.
    """
    for key in ("ema", "model") if file.keys() >= OURS else wrappers:
        inner = file.get(key)
        if isinstance(inner, Mapping):
            return unwrap(inner, wrappers)
    return file


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The published layout of a family.

    Args:
        source: repository and commit that defines it.
        renames: (regular expression, replacement) pairs, applied in this order to every published key. A result that ends
            in "#i" is slice i along a new first dimension of the key before it: how per-route tensors are stacked.
        ignore: expressions of published keys that are not learned values; dropped.
        reshape: expressions of our keys whose tensors may arrive in another shape of the same number of elements.
        wrappers: keys under which a training file may hold the state dict, the preferred first.
        convert: a last step for what renaming cannot say: (state in our names, model) -> state.
    """

    source: str
    renames: tuple[tuple[str, str], ...]
    ignore: tuple[str, ...] = ()
    reshape: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = WRAPPERS
    convert: Callable[[dict[str, Tensor], torch.nn.Module], dict[str, Tensor]] | None = field(default=None)

    def unwrap(self, file: Mapping[str, object]) -> Mapping[str, object]:
        """The state dict inside a training file."""
        return unwrap(file, self.wrappers)

    def rename(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our names and stacking for a published state dict; differentiable, copies nothing that is not stacked.

        Raises:
            CheckpointError: two tensors claim one name, or a slice of a stack is missing.
        """
        single: dict[str, Tensor] = {}
        stacks: dict[str, dict[int, Tensor]] = {}
        for published, tensor in state.items():
            if any(re.search(pattern, published) for pattern in self.ignore):
                continue
            key = published
            for pattern, replacement in self.renames:
                key = re.sub(pattern, replacement, key)
            name, _, index = key.partition("#")
            group = stacks.setdefault(name, {}) if index else None
            if name in single or (group is not None and int(index) in group):
                raise CheckpointError(f"{published!r} becomes {key!r}, which another tensor of the file already is")
            if group is None:
                single[name] = tensor
            else:
                group[int(index)] = tensor
        for name, slices in stacks.items():
            if sorted(slices) != list(range(len(slices))):
                raise CheckpointError(f"{name!r} is stacked from routes, but the file only holds {sorted(slices)}")
            shapes = {tuple(tensor.shape) for tensor in slices.values()}
            if len(shapes) != 1:
                raise CheckpointError(f"{name!r} is stacked from routes, but these have different shapes: {shapes}")
            single[name] = torch.stack([slices[i] for i in range(len(slices))])
        return single


BASICSR_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(module\.)+", ""),
    # the plain model
    (r"^patch_embed\.norm\.", "norm_first."),
    (r"^conv_after_body\.", "conv_body."),
    (r"^conv_before_upsample\.0\.", "head.conv_before."),
    (r"^(upsample|conv_last)\.", r"head.\1."),
    (r"^layers\.(\d+)\.residual_group\.blocks\.", r"groups.\1.blocks."),
    (r"^layers\.(\d+)\.conv\.", r"groups.\1.conv."),
    # the U-Net
    (r"^patch_embed\.proj\.", "conv_first."),
    (r"^encoder_level1\.", "encoder.0.blocks."),
    (r"^encoder_level2\.", "encoder.1.blocks."),
    (r"^encoder_level3\.", "encoder.2.blocks."),
    (r"^latent\.", "encoder.3.blocks."),
    (r"^down1_2\.body\.0\.", "encoder.1.downsample.conv."),
    (r"^down2_3\.body\.0\.", "encoder.2.downsample.conv."),
    (r"^down3_4\.body\.0\.", "encoder.3.downsample.conv."),
    (r"^up4_3\.body\.0\.", "ups.0.conv."),
    (r"^up3_2\.body\.0\.", "ups.1.conv."),
    (r"^up2_1\.body\.0\.", "ups.2.conv."),
    (r"^reduce_chan_level3\.", "reduce.0."),
    (r"^reduce_chan_level2\.", "reduce.1."),
    (r"^decoder_level3\.", "decoder.0.blocks."),
    (r"^decoder_level2\.", "decoder.1.blocks."),
    (r"^decoder_level1\.", "decoder.2.blocks."),
    (r"^refinement\.", "refinement.blocks."),
    (r"^output\.", "conv_last."),
    # the block
    (r"\.skip_scale$", ".scale1"),
    (r"\.skip_scale2$", ".scale2"),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.", ".mixer."),
    (r"\.conv2d\.", ".conv."),
    (r"\.x_proj_weight$", ".x_proj"),
    (r"\.dt_projs_weight$", ".dt_proj"),
    (r"\.dt_projs_bias$", ".dt_bias"),
    (r"\.A_logs$", ".A_log"),
    (r"\.Ds$", ".D"),
)
"""Of the restoration networks that are built on BasicSR: MambaIR, and MaIR after it."""
