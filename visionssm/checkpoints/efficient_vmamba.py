"""EfficientVMamba's published names: the last two stages are flat sequences, whose first entry is a permutation."""

from .layout import Layout

__all__ = ["LAYOUT"]

_DEEPEST = 64  # blocks of a stage that names are known for

LAYOUT = Layout(
    source="TerryPei/EfficientVMamba@0bc5ee2 classification/models/vmamba_efficient.py",
    wrappers=("state_dict", "model_ema", "ema_model", "model"),
    renames=(
        (r"^(module\.)+", ""),
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
        (r"^layers\.0\.downsample\.", "stages.1.downsample."),
        (r"^layers\.1\.downsample\.", "stages.2.downsample."),
        (r"^layers\.2\.\d+\.(norm|reduction)\.", r"stages.3.downsample.\1."),
        *((rf"^layers\.([23])\.{i + 1}\.", rf"stages.\1.blocks.{i}.conv.") for i in range(_DEEPEST)),
        (r"\.conv_pw\.0\.", ".conv_pw."),
        (r"\.conv_pw\.1\.", ".bn1."),
        (r"\.conv_dw\.0\.", ".conv_dw."),
        (r"\.conv_dw\.1\.", ".bn2."),
        (r"\.conv_pw2\.0\.", ".conv_pwl."),
        (r"\.conv_pw2\.1\.", ".bn3."),
        (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
        (r"\.op\.", ".mixer."),
        (r"\.conv2d\.", ".conv."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"\.se\.norm\.", ".merge.gate.norm."),
        (r"\.se\.global_reduce\.", ".merge.gate.reduce."),
        (r"\.se\.channel_select\.", ".merge.gate.select."),
        (r"^outnorm(\d)\.", r"stages.\1.out_norm."),
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head.fc."),
    ),
    reshape=(r"\.(A_log|D)$",),
)
