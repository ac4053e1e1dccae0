"""What models cost and which weights are whose: operations, speed and memory, recognition of published files."""

from .flops import CONVENTIONS, Operations, count_operations, count_parameters

__all__ = ["CONVENTIONS", "Operations", "count_operations", "count_parameters"]
