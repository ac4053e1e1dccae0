"""Published checkpoints: their names as rules, strict conversion to ours, safe reading."""

from .layout import CheckpointError, Layout
from .load import adapt, convert, load_official, read_checkpoint

__all__ = ["CheckpointError", "Layout", "adapt", "convert", "load_official", "read_checkpoint"]
