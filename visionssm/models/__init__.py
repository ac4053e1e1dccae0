"""The model families, one file each; importing this package registers them all, classifiers with timm too."""

from . import vim, vmamba  # noqa: F401
from ._registry import create_model, list_models

__all__ = ["create_model", "list_models"]
