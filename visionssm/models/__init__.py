"""The model families, one file each; importing this package registers them all, classifiers with timm too."""

from . import local_vim, local_vmamba, mair, mambair, mambairv2, plain_mamba, segmamba, spatial_mamba, vim, vmamba  # noqa: F401
from ._registry import create_model, list_models, pretrained_cfg

__all__ = ["create_model", "list_models", "pretrained_cfg"]
