"""Vision state-space backbones under one API, as timm models with pluggable scan orders.

import visionssm                                  # registers every classifier with timm
model = visionssm.create_model("vmamba_tiny_s1l8", scan="hilbert")
"""

from .checkpoints import load_official
from .models import create_model, list_models

__all__ = ["create_model", "list_models", "load_official"]
__version__ = "0.1.0"
