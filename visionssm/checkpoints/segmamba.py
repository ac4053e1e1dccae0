"""SegMamba's published names: a route's tensors carry no suffix (forward), "_b" (backward) or "_s" (between slices)."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="ge-xing/SegMamba@cff3597 model_segmamba/segmamba.py",
    wrappers=("module", "model", "state_dict"),
    renames=(
        (r"^(module\.)+", ""),
        # encoder
        (r"^vit\.downsample_layers\.(\d+)\.[01]\.", r"encoder.stages.\1.downsample."),
        (r"^vit\.gscs\.(\d+)\.proj\.", r"encoder.stages.\1.gated_conv.conv1."),
        (r"^vit\.gscs\.(\d+)\.proj(\d)\.", r"encoder.stages.\1.gated_conv.conv\2."),
        (r"^vit\.mlps\.(\d+)\.", r"encoder.features.\1."),
        (r"^vit\.stages\.(\d+)\.(\d+)\.", r"encoder.stages.\1.blocks.\2."),
        (r"\.mamba\.", ".mixer."),
        (r"\.A(_[bs])?_log$", r".A_log#\1"),
        (r"\.D(_[bs])?$", r".D#\1"),
        (r"\.conv1d(_[bs])?\.(weight|bias)$", r".conv_\2#\1"),
        (r"\.x_proj(_[bs])?\.weight$", r".x_proj#\1"),
        (r"\.dt_proj(_[bs])?\.weight$", r".dt_proj#\1"),
        (r"\.dt_proj(_[bs])?\.bias$", r".dt_bias#\1"),
        (r"#$", "#0"),
        (r"#_b$", "#1"),
        (r"#_s$", "#2"),
        # decoder, whose blocks are counted from the finest there
        (r"^encoder1\.", "decoder.first."),
        (r"^encoder2\.", "decoder.skips.0."),
        (r"^encoder3\.", "decoder.skips.1."),
        (r"^encoder4\.", "decoder.skips.2."),
        (r"^encoder5\.", "decoder.skips.3."),
        (r"^decoder5\.", "decoder.ups.0."),
        (r"^decoder4\.", "decoder.ups.1."),
        (r"^decoder3\.", "decoder.ups.2."),
        (r"^decoder2\.", "decoder.ups.3."),
        (r"^decoder1\.", "decoder.last."),
        (r"^out\.conv\.conv\.", "head."),
    ),
    reshape=(r"\.conv_weight$",),
)
