"""Whether MMDetection or MMSegmentation is here and whole; in one line what to install where it is not."""

from __future__ import annotations

import importlib

__all__ = ["require"]

_HOW = (
    "visionssm.integrations.{module} needs {name} with mmcv's compiled operators: "
    "MMCV_WITH_OPS=1 pip install --no-build-isolation onedl-mmcv, then pip install 'visionssm[openmmlab]' "
    "(in a checkout: python dev/build_mmcv.py)"
)


def require(module: str, name: str) -> None:
    """Imports `module`, and mmcv's operators.

    Args:
        module: "mmdet" or "mmseg".
        name: what people call it.

    Raises:
        ImportError: one of them is missing; one line says what to install.
    """
    for needed in ("mmengine", "mmcv", "mmcv._ext", module):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            raise ImportError(f"{_HOW.format(module=module, name=name)}; what is missing: {error}") from None
