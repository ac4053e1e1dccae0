"""MambaIR's published names, of the plain model and of the U-Net."""

from __future__ import annotations

import re

from torch import Tensor, nn

from .layout import BASICSR_RENAMES, CheckpointError, Layout

__all__ = ["LAYOUT"]


def _refuse_old_light(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The light models' first convolution blocks had another structure: one depthwise convolution, then the attention.

    Raises:
        CheckpointError: these are such weights.
    """
    if any(re.search(r"\.conv\.1\.fc1\.", key) for key in state):
        raise CheckpointError(
            "these are weights of the light models as they were before 7 November 2024, whose convolution block was a "
            "single depthwise convolution; the present models need the files that https://github.com/csguoh/MambaIR links now"
        )
    return state


LAYOUT = Layout(
    source="csguoh/MambaIR@33d7b34 basicsr/archs/mambair_arch.py, realDenoising/basicsr/models/archs/mambairunet_arch.py",
    wrappers=("params", "params_ema", "state_dict"),
    renames=(
        *BASICSR_RENAMES,
        (r"\.conv_blk\.cab\.", ".conv."),
        (r"\.attention\.1\.", ".fc1."),
        (r"\.attention\.3\.", ".fc2."),
    ),
    reshape=(r"\.A_log$", r"\.D$", r"^reduce\."),
    convert=_refuse_old_light,
)
