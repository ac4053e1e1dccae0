"""MobileMamba's published names: a stage's downsampling is the head of the next stage's list; Haar filters are recomputed."""

from .layout import Layout

__all__ = ["LAYOUT"]

_DEEPEST = 64  # blocks of a stage that names are known for

LAYOUT = Layout(
    source="lewandofskee/MobileMamba@0980f48 model/mobilemamba/mobilemamba.py",
    wrappers=("net_E", "net", "model", "state_dict"),
    ignore=(r"\.i?wt_filter$",),
    renames=(
        (r"^(module\.)+", ""),
        (r"\.c\.weight$", ".conv.weight"),
        (r"\.bn\.", ".norm."),
        *((rf"^patch_embed\.{2 * i}\.", f"stem.conv{i + 1}.") for i in range(4)),
        (r"^blocks1\.", "stages.0.blocks."),
        *((rf"^blocks{i + 1}\.0\.", f"stages.{i}.downsample.before.") for i in (1, 2)),
        *((rf"^blocks{i + 1}\.1\.", f"stages.{i}.downsample.merging.") for i in (1, 2)),
        *((rf"^blocks{i + 1}\.2\.", f"stages.{i}.downsample.after.") for i in (1, 2)),
        *((rf"^blocks{i + 1}\.{j + 3}\.", f"stages.{i}.blocks.{j}.") for i in (1, 2) for j in range(_DEEPEST)),
        (r"\.merging\.conv1\.", ".merging.expand."),
        (r"\.merging\.conv2\.", ".merging.local."),
        (r"\.merging\.conv3\.", ".merging.reduce."),
        (r"\.merging\.se\.", ".merging.squeeze_excite."),
        (r"\.dw([01])\.m\.", r".local\1.inner."),
        (r"\.mixer\.m\.attn\.", ".mixer.inner."),
        (r"\.m\.pw1\.", ".inner.0."),
        (r"\.m\.pw2\.", ".inner.2."),
        (r"\.m\.", ".inner."),
        (r"\.local_op\.dwconv3x3\.", ".local.0.conv."),
        (r"\.local_op\.bn1\.", ".local.0.norm."),
        (r"\.local_op\.dwconv1x1\.", ".local.2.conv."),
        (r"\.local_op\.bn2\.", ".local.2.norm."),
        (r"\.inner\.proj\.1\.", ".inner.proj."),
        (r"\.global_op\.global_atten\.", ".wide.mixer."),
        (r"\.global_op\.base_scale\.weight$", ".wide.scale"),
        (r"\.global_op\.wavelet_convs\.0\.", ".wide.wavelets.conv."),
        (r"\.global_op\.wavelet_scale\.0\.weight$", ".wide.wavelets.scale"),
        (r"\.mixer\.(in_proj|out_proj)\.conv\.", r".mixer.\1.linear."),
        (r"\.conv2d\.", ".conv."),
        (r"\.x_proj_weight$", ".x_proj"),
        (r"\.dt_projs_weight$", ".dt_proj"),
        (r"\.dt_projs_bias$", ".dt_bias"),
        (r"\.A_logs$", ".A_log"),
        (r"\.Ds$", ".D"),
        (r"^head\.norm\.", "head.neck."),
        (r"^head\.l\.", "head.fc."),
    ),
    reshape=(r"\.(A_log|D|scale)$", r"_proj\.linear\.weight$"),
)
