"""The model families, one file each; importing this package registers them all, classifiers with timm too."""

from . import (  # noqa: F401
    efficient_vim,
    efficient_vmamba,
    group_mamba,
    light_m_unet,
    local_vim,
    local_vmamba,
    mair,
    mamba2d,
    mamba_nd,
    mambair,
    mambairv2,
    mobile_mamba,
    msvmamba,
    plain_mamba,
    segmamba,
    spatial_mamba,
    u_mamba,
    vim,
    vmamba,
    vssd,
)
from ._registry import create_model, list_models, pretrained_cfg

__all__ = ["create_model", "list_models", "pretrained_cfg"]
