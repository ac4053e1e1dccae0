"""Spatial-Mamba's published names: a stage ends with the downsampling that ours begins with; fusion kernels are stacked."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="EdwardChasel/Spatial-Mamba@71221eb classification/models/spatialmamba.py",
    renames=(
        (r"^head\.", "head.fc."),
        (r"^patch_embed\.conv1\.(conv|norm)\.", r"stem.\g<1>1."),
        (r"^patch_embed\.conv2\.0\.(conv|norm)\.", r"stem.\g<1>2."),
        (r"^patch_embed\.conv2\.1\.(conv|norm)\.", r"stem.\g<1>3."),
        (r"^patch_embed\.conv3\.0\.(conv|norm)\.", r"stem.\g<1>4."),
        (r"^patch_embed\.conv3\.1\.(conv|norm)\.", r"stem.\g<1>5."),
        (r"^layers\.0\.downsample\.", "stages.1.downsample."),
        (r"^layers\.1\.downsample\.", "stages.2.downsample."),
        (r"^layers\.2\.downsample\.", "stages.3.downsample."),
        (r"\.downsample\.conv\.0\.conv\.", ".downsample.conv1."),
        (r"\.downsample\.conv\.1\.conv\.", ".downsample.conv2."),
        (r"\.downsample\.conv\.2\.conv\.", ".downsample.conv3."),
        (r"\.downsample\.conv\.2\.norm\.", ".downsample.norm."),
        (r"^layers\.", "stages."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.", ".mixer."),
        (r"\.conv2d\.", ".conv."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"\.state_fusion\.kernel_3$", ".fusion.kernels#0"),
        (r"\.state_fusion\.kernel_3_1$", ".fusion.kernels#1"),
        (r"\.state_fusion\.kernel_3_2$", ".fusion.kernels#2"),
        (r"\.state_fusion\.alpha$", ".fusion.alpha"),
    ),
    reshape=(r"\.fusion\.kernels$",),  # which are all of them in one dimension
)
