"""MaIR's published names, of the plain model and of the U-Net."""

from .layout import BASICSR_RENAMES, Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="XLearning-SCU/2025-CVPR-MaIR@2fb433e basicsr/archs/mair_arch.py, "
    "realDenoising/basicsr/models/archs/mairunet_arch.py",
    wrappers=("params", "params_ema", "state_dict"),
    renames=(
        *BASICSR_RENAMES,
        (r"\.conv_blk\.", ".mlp."),
        (r"\.gating\.gating\.1\.", ".merge."),
    ),
    # the grouped convolution's channels lie group by group, which are the rows of our matrix per channel
    reshape=(r"\.A_log$", r"\.D$", r"^reduce\.", r"\.merge\.(weight|bias)$"),
)
