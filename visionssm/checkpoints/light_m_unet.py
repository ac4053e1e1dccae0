"""LightM-UNet's published names, of nnU-Net files: MONAI's, and "conv1" and "conv2" for what are Mamba layers."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="MrBlankness/LightM-UNet@6b72e27 lightm-unet/nnunetv2/nets/LightMUNet.py",
    wrappers=("network_weights", "state_dict"),
    renames=(
        (r"^module\.", ""),
        (r"\.mamba\.", ".mixer."),
        (r"\.conv1d\.(weight|bias)$", r".conv_\1"),
        (r"\.(x_proj|dt_proj)\.weight$", r".\1"),
        (r"\.dt_proj\.bias$", ".dt_bias"),
        (r"^convInit\.(\d)\.conv\.", r"encoder.stem.\1."),
        # a stage: widening and pooling are one entry there, two here
        (r"^down_layers\.(\d+)\.0\.0\.", r"encoder.stages.\1.0."),
        (r"^down_layers\.(\d+)\.1\.", r"encoder.stages.\1.2."),
        (r"^down_layers\.(\d+)\.2\.", r"encoder.stages.\1.3."),
        (r"^down_layers\.(\d+)\.3\.", r"encoder.stages.\1.4."),
        (r"^down_layers\.(\d+)\.4\.", r"encoder.stages.\1.5."),
        (r"^(encoder\.stages\.\d+\.\d+)\.conv([12])\.", r"\1.mamba\2."),
        (r"^up_samples\.(\d+)\.0\.conv\.", r"decoder.ups.\1.conv."),
        (r"^up_layers\.(\d+)\.", r"decoder.ups.\1.blocks."),
        (r"(\.conv\.[01])\.conv\.", r"\1."),
        (r"^conv_final\.0\.", "head.0."),
        (r"^conv_final\.2\.0\.conv\.", "head.2."),
        (r"^conv_final\.2\.1\.conv\.", "head.3."),
    ),
    reshape=(r"\.mixer\.(conv_weight|conv_bias|x_proj|dt_proj|dt_bias|A_log|D)$",),
)
