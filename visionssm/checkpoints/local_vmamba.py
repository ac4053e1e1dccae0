"""LocalVMamba's published names."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="hunto/LocalMamba@75e5d1f classification/lib/models/local_vmamba.py",
    wrappers=("state_dict", "ema_model", "model"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.2\.", "stem.norm1."),
        (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
        (r"^layers\.0\.downsample\.", "stages.1.downsample."),
        (r"^layers\.1\.downsample\.", "stages.2.downsample."),
        (r"^layers\.2\.downsample\.", "stages.3.downsample."),
        (r"\.op\.", ".mixer."),
        (r"\.conv2d\.", ".conv."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"\.multi_scan\.attn\.global_reduce\.", ".merge.gate.reduce."),
        (r"\.multi_scan\.attn\.channel_select\.", ".merge.gate.select."),
        (r"\.multi_scan\.attn\.norm\.", ".merge.gate.norm."),
        (r"\.multi_scan\.weights$", ".merge.weights"),
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head.fc."),
    ),
    reshape=(r"\.A_log$", r"\.D$", r"\.merge\.weights$"),
)
