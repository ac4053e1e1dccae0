"""EfficientViM's published names: pointwise convolutions are linear layers here, norms have singleton dimensions there."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="mlvlab/EfficientViM@304340c classification/models/EfficientViM.py",
    wrappers=("model_ema", "model", "state_dict"),
    renames=(
        (r"^(module\.)+", ""),
        *((rf"^patch_embed\.conv\.{i}\.", f"stem.conv{i + 1}.") for i in range(4)),
        *((rf"^stages\.{i}\.downsample\.", f"stages.{i + 1}.DOWN.") for i in range(2)),
        (r"\.DOWN\.conv\.0\.", ".downsample.merging.expand."),
        (r"\.DOWN\.conv\.1\.", ".downsample.merging.local."),
        (r"\.DOWN\.conv\.2\.", ".downsample.merging.squeeze_excite."),
        (r"\.DOWN\.conv\.3\.", ".downsample.merging.reduce."),
        (r"\.DOWN\.dwconv([12])\.", r".downsample.local\1.inner."),
        (r"\.dwconv([12])\.", r".local\1."),
        (r"\.ffn\.fc1\.", ".ffn.0."),
        (r"\.ffn\.fc2\.", ".ffn.2."),
        (r"\.mixer\.BCdt_proj\.conv\.", ".mixer.in_proj."),
        (r"\.mixer\.dw\.conv\.", ".mixer.conv."),
        (r"\.mixer\.hz_proj\.conv\.", ".mixer.gate_proj."),
        (r"\.mixer\.out_proj\.conv\.", ".mixer.out_proj."),
        (r"^norm\.3\.", "norm."),
        (r"^norm\.([012])\.", r"stages.\1.state_norm."),
        (r"^heads(_dist)?\.", r"head.fc\1.linears."),
        (r"^weights(_dist)?$", r"head.fc\1.weights"),
    ),
    reshape=(r"(\.|^)(state_)?norm\.(weight|bias)$", r"\.mixer\.\w+_proj\.weight$"),
)
