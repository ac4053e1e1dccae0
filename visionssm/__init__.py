"""Vision state-space backbones under one API."""

__version__ = "0.1.0"
