"""Mamba2D's published names: what comes from above and from the left carries a T or an L, and is stacked here."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="cocoalex00/Mamba2D@9acb361 models/mamba2d.py, models/mamba2d_classifier.py",
    wrappers=("state_dict",),
    renames=(
        (r"^(module\.)+", ""),
        (r"^norm\.", "head.neck.0."),
        (r"^head\.fc1\.", "head.neck.1."),
        (r"^head\.norm\.", "head.neck.3."),
        (r"^head\.fc2\.", "head.fc."),
        (r"^(?:backbone\.)?ds\.stem\.conv\.", "stem.conv1."),
        (r"^(?:backbone\.)?ds\.stem\.post_norm\.norm\.", "stem.norm1."),
        (r"^(?:backbone\.)?ds\.ds(\d)\.", r"stages.\1.downsample."),
        (r"^(?:backbone\.)?stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.res_scale(\d)\.scale$", r".scale\1"),
        (r"\.MLP\.", ".mlp."),
        (r"\.token_mixer\.local_norm\.", ".mixer.local.norm."),
        (r"\.token_mixer\.local_path\.pwconv1\.", ".mixer.local.expand."),
        (r"\.token_mixer\.local_path\.dwconv\.", ".mixer.local.conv."),
        (r"\.token_mixer\.local_path\.pwconv2\.", ".mixer.local.reduce."),
        (r"\.token_mixer\.local_path\.", ".mixer.local."),
        (r"\.token_mixer\.(in_proj|out_proj)\.", r".mixer.scan.\1."),
        (r"\.token_mixer\.(x_proj\.weight|D)$", r".mixer.scan.scan.\1"),
        (r"\.token_mixer\.A([TL])_log$", r".mixer.scan.scan.A_log#\1"),
        (r"\.token_mixer\.dt_proj([TL])\.weight$", r".mixer.scan.scan.dt_proj#\1"),
        (r"\.token_mixer\.dt_proj([TL])\.bias$", r".mixer.scan.scan.dt_bias#\1"),
        (r"\.token_mixer\.", ".mixer."),
        (r"#T$", "#0"),
        (r"#L$", "#1"),
    ),
)
