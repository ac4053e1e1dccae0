"""VMamba's published names."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="MzeroMiko/VMamba@2ed52ea classification/models/vmamba.py",
    renames=(
        # old files
        (r"^patch_embed\.proj\.", "patch_embed.0."),
        (r"^patch_embed\.norm\.", "patch_embed.2."),
        (r"\.ln_1\.", ".norm."),
        (r"\.self_attention\.", ".op."),
        (r"^norm\.", "classifier.norm."),
        (r"^head\.", "classifier.head."),
        # all files; the first generation's stem is convolution, permutation, norm; the second's has seven parts
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.2\.", "stem.norm1."),
        (r"^patch_embed\.5\.", "stem.conv2."),
        (r"^patch_embed\.7\.", "stem.norm2."),
        (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
        (r"(blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"\.op\.", ".mixer."),
        (r"\.conv2d\.", ".conv."),
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
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head.fc."),
    ),
    reshape=(r"\.A_log$", r"\.D$", r"\.(in_proj|out_proj|fc1|fc2|reduction)\.weight$"),
)
