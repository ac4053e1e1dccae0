"""MMDetection: name this file in a config's `custom_imports`, and its models take every 2D backbone of this package.

    custom_imports = dict(imports=["visionssm.integrations.mmdet"])
    model = dict(backbone=dict(type="VisionSSM", name="vmamba_tiny_s1l8"), ...)

Registers `VisionSSM`, `VisionSSMAdapter`, the necks `SimplePyramid` and `FinerFPN`, and the optimizer constructor
`VisionSSMLayerDecay` with MMEngine, where MMDetection finds them. Needs the extra `visionssm[openmmlab]`.
"""

from ._openmmlab_packages import require

require("mmdet", "MMDetection")

from .openmmlab import VisionSSM  # noqa: E402
from .openmmlab_adapter import VisionSSMAdapter  # noqa: E402
from .openmmlab_necks import FinerFPN, SimplePyramid  # noqa: E402
from .openmmlab_optim import VisionSSMLayerDecay  # noqa: E402

__all__ = ["FinerFPN", "SimplePyramid", "VisionSSM", "VisionSSMAdapter", "VisionSSMLayerDecay"]
