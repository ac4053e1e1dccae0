"""MSVMamba's published names: VMamba's, with the parameters of both scans stacked, in an order that depends on the generation."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .layout import Layout

__all__ = ["LAYOUT"]

_STACKED = re.compile(r"\.mixer\.(x_proj|dt_proj|dt_bias|A_log|D)$")


def _split_scales(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """One entry per scan: the first generation's stacks begin with the coarse map, the third's with the full one."""
    scales = ("coarse", "full") if getattr(model, "generation", None) == 1 else ("full", "coarse")
    single = {}
    for key, tensor in state.items():
        match = _STACKED.search(key)
        if match is None:
            single[key] = tensor
            continue
        for scale, part in zip(scales, tensor.chunk(2), strict=True):
            single[f"{key[: match.start()]}.mixer.{scale}.{match[1]}"] = part
    return single


LAYOUT = Layout(
    source="YuHengsss/MSVMamba@c394019 (nano, micro, tiny) and @fca4a39 (v3) classification/models/vmamba.py",
    wrappers=("model_ema", "model", "state_dict"),
    renames=(
        # old files
        (r"^patch_embed\.proj\.", "patch_embed.0."),
        (r"^patch_embed\.norm\.", "patch_embed.2."),
        (r"\.ln_1\.", ".norm."),
        (r"\.self_attention\.", ".op."),
        (r"^norm\.", "classifier.norm."),
        (r"^head\.", "classifier.head."),
        # all files
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.2\.", "stem.norm1."),
        (r"^patch_embed\.5\.", "stem.conv2."),
        (r"^patch_embed\.7\.", "stem.norm2."),
        (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
        (r"(blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"\.convFFN\.linear([12])\.", r".ffn.conv\1."),
        (r"\.convFFN\.dwc\.", ".ffn.local."),
        (r"\.op\.", ".mixer."),
        (r"\.conv2d\.", ".full.conv."),
        (r"\.conv2d_b1\.", ".coarse.conv."),
        (r"\.se\.fc\.0\.", ".squeeze_excite.reduce."),
        (r"\.se\.fc\.2\.", ".squeeze_excite.expand."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"^layers\.0\.downsample\.", "stages.1.downsample."),
        (r"^layers\.1\.downsample\.", "stages.2.downsample."),
        (r"^layers\.2\.downsample\.", "stages.3.downsample."),
        (r"\.downsample\.1\.", ".downsample.conv."),
        (r"\.downsample\.3\.", ".downsample.norm."),
        (r"^outnorm(\d)\.", r"stages.\1.out_norm."),
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head.fc."),
    ),
    reshape=(r"\.(A_log|D)$", r"\.(in_proj|out_proj|reduction)\.weight$"),
    convert=_split_scales,
)
