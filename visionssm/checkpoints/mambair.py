"""MambaIR's published names, of the plain model and of the U-Net."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .layout import CheckpointError, Layout

__all__ = ["LAYOUT"]


def _refuse_old_light(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The light models' first convolution blocks had another structure: one depthwise convolution, then the attention.

    Raises:
        CheckpointError: these are such weights.
    """
    if any(re.search(r"\.conv\.1\.fc1\.", key) for key in state):
        raise CheckpointError(
            "these are weights of the light models as they were before 7 November 2024, whose convolution block was a "
            "single depthwise convolution; the present models need the files that https://github.com/csguoh/MambaIR links now"
        )
    return state


LAYOUT = Layout(
    source="csguoh/MambaIR@33d7b34 basicsr/archs/mambair_arch.py, realDenoising/basicsr/models/archs/mambairunet_arch.py",
    wrappers=("params", "params_ema", "state_dict"),
    renames=(
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
        (r"\.conv_blk\.cab\.", ".conv."),
        (r"\.attention\.1\.", ".fc1."),
        (r"\.attention\.3\.", ".fc2."),
    ),
    reshape=(r"\.A_log$", r"\.D$", r"^reduce\."),
    convert=_refuse_old_light,
)
