"""PlainMamba's published names: an mmcls classifier with its backbone's keys under "backbone."."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="ChenhongyiYang/PlainMamba@0975a1d mmcls/plain_mamba_dev/models/plain_mamba/plain_mamba.py",
    wrappers=("state_dict",),
    # mmcv's EMA hook leaves its averages in the file as buffers; it had swapped them into the plain keys on saving.
    ignore=(r"^ema_",),
    renames=(
        (r"^backbone\.", ""),
        (r"^head\.fc\.", "head."),
        (r"^ln1\.", "norm."),
        (r"^patch_embed\.stem\.0\.", "patch_embed.conv1."),
        (r"^patch_embed\.stem\.1\.", "patch_embed.norm1."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.dw\.0\.", ".local.conv."),
        (r"\.dw\.1\.", ".local.norm."),
        (r"\.mamba\.", ".mixer."),
        (r"\.conv2d\.", ".conv."),
        (r"\.direction_Bs$", ".direction_B"),
        (r"\.dt_proj\.bias$", ".dt_bias"),
    ),
)
