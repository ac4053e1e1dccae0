"""U-Mamba's published names: nnU-Net's, in which most tensors stand two to four times."""

from __future__ import annotations

from torch import Tensor, nn

from .layout import Layout

__all__ = ["LAYOUT"]


def _place(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Bot's one layer belongs to the last stage; heads are counted from the deepest there."""
    stages = len(model.encoder.stages)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    placed = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if first == "seg_layers":
            number, _, leaf = rest.partition(".")
            finer = stages - 2 - int(number)
            key = f"further_heads.{finer - 1}.{leaf}" if finer else f"head.{leaf}"
        elif first == "mamba_layer":
            key = f"encoder.mixers.{stages - 1}.{rest}"
        placed[key] = tensor
    return placed


LAYOUT = Layout(
    source="bowang-lab/U-Mamba@28459e3 umamba/nnunetv2/nets/UMamba{Bot,Enc}_{2d,3d}.py",
    wrappers=("network_weights", "state_dict"),
    # a block lists its layers a second time, and the decoder keeps the encoder
    ignore=(r"\.all_modules\.", r"^(module\.)?decoder\.encoder\."),
    renames=(
        (r"^module\.", ""),
        (r"^(en|de)coder\.(.*)\.conv([12])\.conv\.", r"\1coder.\2.conv\3."),
        (r"^(en|de)coder\.(.*)\.conv([12])\.norm\.", r"\1coder.\2.norm\3."),
        (r"\.conv3\.", ".shortcut."),
        (r"^encoder\.mamba_layers\.", "encoder.mixers."),
        (r"^decoder\.upsample_layers\.(\d+)\.conv\.", r"decoder.ups.\1.conv."),
        (r"^decoder\.stages\.(\d+)\.", r"decoder.ups.\1.blocks."),
        (r"^decoder\.seg_layers\.", "seg_layers."),
        (r"\.mamba\.", ".mixer."),
        (r"\.conv1d\.(weight|bias)$", r".conv_\1"),
        (r"\.(x_proj|dt_proj)\.weight$", r".\1"),
        (r"\.dt_proj\.bias$", ".dt_bias"),
    ),
    reshape=(r"\.mixer\.(conv_weight|conv_bias|x_proj|dt_proj|dt_bias|A_log|D)$",),
    convert=_place,
)
