"""VSSD's published names."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="YuHengsss/VSSD@87b753b classification/models/mamba2.py",
    wrappers=("model_ema", "model", "state_dict"),
    renames=(
        (r"^(module\.)+", ""),
        (r"^patch_embed\.conv1\.", "stem.conv1."),
        (r"^patch_embed\.conv2\.0\.", "stem.conv2."),
        (r"^patch_embed\.conv2\.1\.", "stem.conv3."),
        (r"^patch_embed\.conv3\.0\.", "stem.conv4."),
        (r"^patch_embed\.conv3\.1\.", "stem.conv5."),
        *(
            (rf"^layers\.{i}\.downsample\.conv\.{j}\.conv\.", f"stages.{i + 1}.downsample.conv{j + 1}.")
            for i in range(3)
            for j in range(3)
        ),
        *((rf"^layers\.{i}\.downsample\.conv\.2\.norm\.", f"stages.{i + 1}.downsample.norm.") for i in range(3)),
        (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
        (r"\.cpe([12])\.", r".pos_conv\1."),
        (r"\.attn\.to_qkv\.", ".mixer.attn.qkv."),
        (r"\.attn\.to_out\.", ".mixer.attn.proj."),
        (r"(blocks\.\d+)\.attn\.", r"\1.mixer."),
        (r"\.mixer\.conv2d\.", ".mixer.conv."),
        (r"\.mixer\.norm\.", ".mixer.out_norm."),
        (r"^outnorm(\d)\.", r"stages.\1.out_norm."),
        (r"^head\.", "head.fc."),
    ),
)
